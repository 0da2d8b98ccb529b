"""The statistics recover what is planted: coverage, false alarms, effects, equivalence."""

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import ROOT
from optstate.analysis import compare, tables
from optstate.analysis.statistics import (
    Difference,
    compute_interval,
    compute_sign_flip_p,
    count_pairs_to_decide,
    estimate_difference,
    has_scatter,
)

MARGIN = 0.01
CELLS = [(dataset, schedule) for dataset in ("one", "two") for schedule in ("a", "b")]
MEASURE = "final_valid_top1"
CHANCES = dict.fromkeys(["one", "two"], tables.Chance(0.1, 0.11, 0.1, 0.11))


def plant(mean: float, scatter: float, num_seeds: int, seed: int = 0) -> pd.DataFrame:
    """Return normally distributed pairs of four cells."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "dataset": dataset, "schedule": schedule, "boundary": "preserve", "baseline": "new",
            "measure": MEASURE, "seed": seed, "difference": rng.normal(mean, scatter),
            "baseline_value": 0.5,
            "value": 0.5,
        }
        for dataset, schedule in CELLS
        for seed in range(num_seeds)
    )  # fmt: skip


def find_verdicts(mean: float, scatter: float, num_seeds: int, repeats: int = 1) -> list[list[str]]:
    """Return the verdicts of the cells of experiments that differ only by chance."""
    outcomes = [["preserve", "new", MEASURE]]
    return [
        compare.compare_pairs(plant(mean, scatter, num_seeds, repeat), MARGIN, outcomes, CHANCES)[
            "verdict"
        ].tolist()
        for repeat in range(repeats)
    ]


@pytest.fixture
def quick_statistics(monkeypatch):
    monkeypatch.setattr("optstate.analysis.statistics.RESAMPLES", 9)
    monkeypatch.setattr("optstate.analysis.statistics.MAX_PAIRS", 300)


class TestIntervals:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls) -> Iterator[list[Difference]]:
        rng = np.random.default_rng(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("optstate.analysis.statistics.RESAMPLES", 999)
            yield [estimate_difference(rng.normal(0.3, 1, 7)) for _ in range(500)]

    def test_the_t_interval_covers_the_mean_as_often_as_it_claims(self, found):
        assert np.mean([d.low <= 0.3 <= d.high for d in found]) == pytest.approx(0.95, abs=0.02)

    def test_the_bootstrap_covers_it_less_often(self, found):
        covered = np.mean([d.bca_low <= 0.3 <= d.bca_high for d in found])
        assert 0.83 < covered < 0.93

    def test_the_bootstrap_corrects_for_skewness(self):
        """The percentiles of the resampled means stop short on the side of the long tail."""
        pairs = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 0.9, 2.0, 5.0])
        found = estimate_difference(pairs)
        means = np.random.default_rng(0).choice(pairs, (20_000, len(pairs))).mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        assert found.bca_low > low + 0.05
        assert found.bca_high > high + 0.2

    def test_intervals_contain_the_mean(self, found):
        for d in found:
            assert d.low < d.mean < d.high
            assert d.bca_low < d.mean < d.bca_high


class TestSignFlips:
    def test_p_is_exact_for_few_pairs(self):
        """Of the 2**n combinations of signs, all plus and all minus are the most extreme ones."""
        for n in range(2, 10):
            assert compute_sign_flip_p(np.arange(1.0, n + 1)) == pytest.approx(2 / 2**n)
        assert compute_sign_flip_p(np.array([3.0, -1.0, 2.0])) == pytest.approx(4 / 8)

    def test_equal_sums_count_as_equal_despite_rounding(self):
        images = np.array([14, 26, -54, -24, 23, 15, -11, 5])
        signs = np.array(list(itertools.product((-1, 1), repeat=len(images))))
        as_extreme = abs(signs @ images) >= abs(images.sum())
        assert compute_sign_flip_p((1500 + images) / 3925 - 1500 / 3925) == as_extreme.mean()

    def test_false_alarms_are_as_frequent_as_expected(self):
        rng = np.random.default_rng(2)
        alarms = [compute_sign_flip_p(rng.normal(0, 1, 8)) < 0.05 for _ in range(600)]
        assert np.mean(alarms) == pytest.approx(12 / 256, abs=0.02)

    def test_sign_flips_of_many_pairs_are_sampled(self):
        rng = np.random.default_rng(3)
        pairs = rng.normal(0.4, 1, 30)
        assert compute_sign_flip_p(pairs) == pytest.approx(
            stats.ttest_1samp(pairs, 0).pvalue, abs=0.005
        )


def test_an_interval_excludes_zero_exactly_if_the_adjusted_test_is_significant():
    rng = np.random.default_rng(5)
    decided = set()
    for family in (1, 2, 6):
        for pairs in rng.normal(0.8, 1, (60, 8)):
            found = estimate_difference(pairs, family)
            excludes_zero = found.low > 0 or found.high < 0
            assert excludes_zero is (found.p_adjusted < 0.05)
            assert found.p_adjusted == min(family * found.p_t, 1)
            assert found.p_t == pytest.approx(stats.ttest_1samp(pairs, 0).pvalue)
            half = stats.t.interval(1 - 0.05 / family, 7)[1] * stats.sem(pairs)
            assert (found.low, found.high) == pytest.approx(
                (pairs.mean() - half, pairs.mean() + half)
            )
            assert (found.t_low, found.t_high) == compute_interval(pairs)
            decided.add(excludes_zero)
    assert decided == {True, False}


@pytest.mark.parametrize("pairs", [[0.01, 0.01], [0.01] * 5, [0.3 - 0.2, 0.4 - 0.3], [0.0] * 4])
def test_equal_differences_have_no_interval(pairs):
    """0.3 - 0.2 and 0.4 - 0.3 differ in the last bit."""
    found = estimate_difference(np.array(pairs))
    assert found.mean == pytest.approx(pairs[0])
    assert np.isnan([found.low, found.high, found.p_t, found.p_adjusted]).all()
    assert found.p_sign_flip == pytest.approx(1 if not pairs[0] else 2 / 2 ** len(pairs))
    assert not has_scatter(np.array(pairs))
    assert has_scatter(np.array([0.01, 0.01 + 1e-6]))


# Differences with a mean of 0 and a standard deviation of 1.
SHAPES = {
    "normal": lambda rng, shape: rng.normal(0, 1, shape),
    "skewed": lambda rng, shape: rng.exponential(1, shape) - 1,
    "heavy": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
    "rounded": lambda rng, shape: np.round(rng.normal(0, 1, shape) * 2) / 2,
}


class TestSimulation:
    """False alarms and power of the interval for one family of four, with few seeds."""

    REPEATS = 4000
    FAMILY = 4

    def count(self, shape: str, num_seeds: int, effect: float) -> float:
        """Return the share of experiments in which any of the intervals excludes zero."""
        rng = np.random.default_rng(6)
        size = (self.REPEATS, self.FAMILY, num_seeds)
        pairs = effect + SHAPES[shape](rng, size)
        mean, error = pairs.mean(axis=-1), stats.sem(pairs, axis=-1)
        critical = stats.t.interval(1 - 0.05 / self.FAMILY, num_seeds - 1)[1]
        is_decided = (np.abs(mean) > critical * error) & (error > 0)
        for repeat in range(0, self.REPEATS, 500):  # the same decisions as the code makes
            low, high = compute_interval(pairs[repeat, 0], self.FAMILY)
            if error[repeat, 0] > 0:
                assert (low > 0 or high < 0) == is_decided[repeat, 0]
        return float(is_decided.any(axis=1).mean())

    @pytest.mark.parametrize("num_seeds", [3, 4, 8, 16])
    @pytest.mark.parametrize("shape", ["normal", "heavy"])
    def test_false_alarms_are_at_most_five_percent(self, shape, num_seeds):
        assert self.count(shape, num_seeds, 0) < 0.06

    @pytest.mark.parametrize("num_seeds", [4, 8, 16])
    def test_rounded_accuracies_hardly_matter(self, num_seeds):
        assert self.count("rounded", num_seeds, 0) < 0.08

    def test_a_skewed_difference_with_a_mean_of_zero_gives_more_false_alarms(self):
        """Without an effect, differences are symmetric. This one is not."""
        alarms = [self.count("skewed", num_seeds, 0) for num_seeds in (4, 8, 16)]
        assert all(0.1 < share < 0.3 for share in alarms)

    @pytest.mark.parametrize(
        ("shape", "num_seeds", "low", "high"),
        [("normal", 8, 0.99, 1), ("normal", 4, 0.6, 0.9), ("heavy", 8, 0.99, 1)],
    )
    def test_an_effect_of_two_standard_deviations_is_found(self, shape, num_seeds, low, high):
        assert low < self.count(shape, num_seeds, 2) <= high

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_documented_shares_are_those_of_the_simulation(self, shape):
        lines = (ROOT / "docs/method.md").read_text().splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith(f"| {shape}")]
        assert [row[1] for row in rows] == ["0", "1", "2"]
        for _, effect, *shares in rows:
            found = [self.count(shape, num_seeds, int(effect)) for num_seeds in (3, 4, 8, 16)]
            assert shares == [f"{100 * share:.0f} %" for share in found]


@pytest.mark.parametrize("family", [1, 4])
@pytest.mark.parametrize(("mean", "margin"), [(0.5, None), (0.001, 0.01), (0.0, 0.01)])
def test_half_of_the_experiments_with_the_number_of_pairs_to_decide_do(mean, margin, family):
    scatter = 0.02 if margin else 1.0
    pairs = mean + scatter * np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    needed = int(count_pairs_to_decide(estimate_difference(pairs), margin, family))
    assert needed > 6
    spread = np.std(pairs, ddof=1)
    drawn = np.random.default_rng(0).normal(mean, spread, (20_000, needed))
    error = drawn.std(axis=1, ddof=1) / np.sqrt(needed)
    low, high = stats.t.interval(1 - 0.05 / family, needed - 1, drawn.mean(axis=1), error)
    is_decided = (low > 0) | (high < 0)
    if margin:
        is_decided |= (low > -margin) & (high < margin)
    assert np.mean(is_decided) == pytest.approx(0.5, abs=0.06)


def test_more_pairs_than_so_far_are_needed():
    pairs = np.array([1.0, 1.1, 0.9, 1.05])
    assert count_pairs_to_decide(estimate_difference(pairs), None, 1) == 5


def test_no_number_of_pairs_decides_without_a_difference():
    found = estimate_difference(np.array([-1.0, 1.0, -2.0, 2.0]))
    assert count_pairs_to_decide(found, None, family=1) == np.inf


@pytest.mark.usefixtures("quick_statistics")
class TestVerdicts:
    def test_few_experiments_without_an_effect_show_a_difference(self):
        found = find_verdicts(mean=0, scatter=0.02, num_seeds=8, repeats=100)
        alarms = [any("better" in verdict for verdict in cells) for cells in found]
        assert np.mean(alarms) <= 0.1

    def test_a_planted_effect_and_its_size_are_found(self):
        found = find_verdicts(mean=0.03, scatter=0.01, num_seeds=8, repeats=20)
        better = [v.startswith("preserve better by ") for cells in found for v in cells]
        assert np.mean(better) > 0.95
        sizes = [float(v.split()[3]) for cells in found for v in cells if "better" in v]
        assert np.mean(sizes) == pytest.approx(3, abs=0.2)

    def test_a_better_baseline_is_named(self):
        (cells,) = find_verdicts(mean=-0.03, scatter=0.002, num_seeds=8)
        assert all(verdict.startswith("new better by ") for verdict in cells)

    def test_equivalence_is_found(self):
        found = find_verdicts(mean=0, scatter=0.004, num_seeds=8, repeats=20)
        claims = [v == "equivalent within ±1 point" for cells in found for v in cells]
        assert np.mean(claims) > 0.85

    def test_a_difference_may_be_too_small_to_matter(self):
        (cells,) = find_verdicts(mean=0.003, scatter=0.0005, num_seeds=8)
        for verdict in cells:
            assert verdict.startswith("preserve better by 0.")
            assert verdict.endswith(", yet equivalent within ±1 point")
