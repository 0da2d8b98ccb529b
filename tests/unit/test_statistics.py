"""The statistics recover what is planted: coverage, false alarms, effects, equivalence."""

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from optstate.analysis import compare
from optstate.analysis.statistics import (
    Difference,
    adjust_p_values,
    compute_equivalence_p,
    compute_sign_flip_p,
    count_pairs_to_decide,
    count_required_pairs,
    estimate_difference,
)

MARGIN = 0.01
CELLS = [(dataset, schedule) for dataset in ("one", "two") for schedule in ("a", "b")]


def plant(mean: float, scatter: float, num_seeds: int, repeats: int) -> pd.DataFrame:
    """Return normally distributed pairs of four cells. The boundary's name has the experiment."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "dataset": dataset, "schedule": schedule, "boundary": f"preserve{repeat}",
            "baseline": "new", "measure": "final_valid_top1", "seed": seed,
            "difference": rng.normal(mean, scatter),
        }
        for repeat in range(repeats)
        for dataset, schedule in CELLS
        for seed in range(num_seeds)
    )  # fmt: skip


def find_verdicts(mean: float, scatter: float, num_seeds: int, repeats: int = 1) -> list[list[str]]:
    """Return the verdicts of the cells of experiments that differ only by chance.

    p-values are adjusted within a boundary, so one call compares all experiments.
    """
    pairs = plant(mean, scatter, num_seeds, repeats)
    table = compare.compare_pairs(pairs, MARGIN, ["new", "new", "final_valid_top1"])
    table["verdict"] = table["verdict"].str.replace(r"preserve\d+", "preserve", regex=True)
    return [group["verdict"].tolist() for _, group in table.groupby("boundary")]


@pytest.fixture
def quick_statistics(monkeypatch, frozen_heap):
    monkeypatch.setattr("optstate.analysis.statistics.RESAMPLES", 99)
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

    @pytest.mark.parametrize(("num_tests", "required"), [(1, 6), (2, 7), (4, 8)])
    def test_the_required_number_of_pairs(self, num_tests, required):
        assert count_required_pairs(num_tests) == required
        for n, significant in ((required, True), (required - 1, False)):
            p = compute_sign_flip_p(np.linspace(1, 2, n))
            assert bool(adjust_p_values(np.full(num_tests, p)).max() < 0.05) is significant


def test_holm_equals_a_calculation_by_hand():
    adjusted = adjust_p_values(np.array([0.01, 0.04, np.nan, 0.03]))
    assert adjusted[[0, 1, 3]] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(adjusted[2])
    assert np.isnan(adjust_p_values(np.array([np.nan]))).all()


def test_equivalence_is_seldom_claimed_at_the_margin():
    rng = np.random.default_rng(4)
    claims = [
        compute_equivalence_p(rng.normal(MARGIN, 0.004, 8), MARGIN) < 0.05 for _ in range(1000)
    ]
    assert np.mean(claims) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("num_tests", [1, 4])
@pytest.mark.parametrize(("mean", "margin"), [(0.5, None), (0.001, 0.01), (0.0, 0.01)])
def test_the_number_of_pairs_to_decide_is_the_smallest(mean, margin, num_tests):
    scatter = 0.02 if margin else 1.0
    pairs = mean + scatter * np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    needed = int(count_pairs_to_decide(estimate_difference(pairs, margin), margin, num_tests))
    spread = np.std(pairs, ddof=1)

    def decides(n: int) -> bool:
        low, high = stats.t.interval(1 - 0.05 / num_tests, n - 1, mean, spread / np.sqrt(n))
        inner = stats.t.interval(1 - 0.1 / num_tests, n - 1, mean, spread / np.sqrt(n))
        within = margin is not None and -margin < inner[0] and inner[1] < margin
        return low > 0 or high < 0 or within

    assert needed > 8
    assert decides(needed)
    assert not decides(needed - 1)


def test_no_number_of_pairs_decides_without_a_difference():
    found = estimate_difference(np.array([-1.0, 1.0, -2.0, 2.0]))
    assert count_pairs_to_decide(found, None, num_tests=1) == np.inf


@pytest.mark.usefixtures("quick_statistics")
class TestVerdicts:
    def test_few_experiments_without_an_effect_show_a_difference(self):
        found = find_verdicts(mean=0, scatter=0.02, num_seeds=8, repeats=150)
        alarms = [any("better" in verdict for verdict in cells) for cells in found]
        assert np.mean(alarms) <= 0.08
        assert all("seeds would" in verdict for verdict in found[0])

    def test_a_planted_effect_and_its_size_are_found(self):
        found = find_verdicts(mean=0.03, scatter=0.01, num_seeds=8, repeats=40)
        better = [v.startswith("preserve better by ") for cells in found for v in cells]
        assert np.mean(better) > 0.95
        sizes = [float(v.split()[3]) for cells in found for v in cells if "better" in v]
        assert np.mean(sizes) == pytest.approx(3, abs=0.2)

    def test_a_better_baseline_is_named(self):
        (cells,) = find_verdicts(mean=-0.03, scatter=0.002, num_seeds=8)
        assert all(verdict.startswith("new better by ") for verdict in cells)

    def test_equivalence_is_found(self):
        found = find_verdicts(mean=0, scatter=0.004, num_seeds=8, repeats=40)
        claims = [v == "equivalent within ±1 point" for cells in found for v in cells]
        assert np.mean(claims) > 0.9

    def test_a_difference_may_be_too_small_to_matter(self):
        (cells,) = find_verdicts(mean=0.003, scatter=0.0005, num_seeds=8)
        for verdict in cells:
            assert verdict.startswith("preserve better by 0.")
            assert verdict.endswith(", yet equivalent within ±1 point")

    def test_too_few_seeds_are_reported(self):
        (cells,) = find_verdicts(mean=0.03, scatter=0.001, num_seeds=5)
        for verdict in cells:
            assert (
                "about 8 seeds would decide (with fewer than 8 nothing is significant)" in verdict
            )
