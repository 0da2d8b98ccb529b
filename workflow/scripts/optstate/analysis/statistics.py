"""Statistics of paired differences: how large, how sure, and how many pairs it would take.

All by SciPy, but for Holm's method, which is statsmodels'. With few pairs Student's t interval
covers the mean as often as it says; the BCa bootstrap (Efron 1987) is beside it for skewed
differences, and covers too seldom. The sign-flip permutation test asks nothing of the differences
but that, where there is no effect, each could as well have had the other sign.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95
ALPHA = 0.05
SIGN_FLIPS = 2**16  # up to so many are tried one by one; of more, as many are drawn
RESAMPLES = 9999  # of the bootstrap
MOST_PAIRS = 10_000  # that are thought of


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its intervals at 95 %, and p-values; NaN where undefined."""

    n: int
    mean: float = np.nan
    low: float = np.nan  # Student's t interval
    high: float = np.nan
    bca_low: float = np.nan  # bias-corrected and accelerated bootstrap interval
    bca_high: float = np.nan
    p_value: float = np.nan  # two-sided sign-flip permutation test of no difference
    p_equivalence: float = np.nan  # two one-sided t tests that it is outside of the margin


def difference(pairs: np.ndarray, margin: float | None = None) -> Difference:
    """What ``pairs`` (n,), differences that are finite, say of their mean.

    Args:
        pairs: one difference for each seed.
        margin: means within ± this are equivalent; None: nobody said.
    """
    if len(pairs) < 2:
        return Difference(len(pairs), *map(float, pairs))
    mean = float(np.mean(pairs))
    if np.ptp(pairs) == 0:  # nothing scatters, so that nothing can be estimated but by counting
        return Difference(len(pairs), mean, mean, mean, mean, mean, p_value=sign_flip_p(pairs))
    interval = stats.ttest_1samp(pairs, 0).confidence_interval(CONFIDENCE)
    bca = stats.bootstrap(
        (pairs,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Difference(
        len(pairs), mean, float(interval.low), float(interval.high), float(bca.low),
        float(bca.high), sign_flip_p(pairs), equivalence_p(pairs, margin) if margin else np.nan,
    )  # fmt: skip


def sign_flip_p(pairs: np.ndarray) -> float:
    """The two-sided p-value of no difference: exact up to 16 pairs."""
    largest = np.abs(pairs).max() or 1.0

    def rounded_mean(flipped: np.ndarray, axis: int) -> np.ndarray:
        # Sums that are equal but for the order of their terms have to compare equal.
        return np.round(np.mean(flipped, axis=axis) / largest, 10)

    tested = stats.permutation_test(
        (pairs,), rounded_mean, permutation_type="samples", n_resamples=SIGN_FLIPS,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(tested.pvalue)


def equivalence_p(pairs: np.ndarray, margin: float) -> float:
    """The p-value of a mean outside of ± ``margin``: two one-sided t tests (Schuirmann 1987)."""
    above = stats.ttest_1samp(pairs, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(pairs, margin, alternative="less").pvalue
    return float(max(above, below))


def holm(p_values: np.ndarray) -> np.ndarray:
    """``p_values`` (tests,) adjusted for their number (Holm 1979); NaN are no tests."""
    adjusted = np.full(len(p_values), np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        adjusted[tested] = multipletests(p_values[tested], method="holm")[1]
    return adjusted


def fewest_pairs(num_tests: int) -> int:
    """With how many pairs the sign-flip test can be significant at all, as one of so many tests.

    All differences of one sign are one of 2**n cases, and those of the other sign another.
    """
    return next(n for n in itertools.count(1) if num_tests * 2.0 ** (1 - n) < ALPHA)


def pairs_to_decide(found: Difference, margin: float | None, num_tests: int) -> float:
    """How many pairs would as likely as not decide, if mean and scatter are as ``found``.

    As many as bring the t interval off zero, or within ± ``margin``, at levels shared out among
    the tests (Bonferroni's method: Holm's asks this of the first of them, and less of the others).
    Infinite if MOST_PAIRS would not.
    """
    n = np.arange(max(found.n + 1, fewest_pairs(num_tests)), MOST_PAIRS)
    half_width = stats.t.interval(CONFIDENCE, found.n - 1)[1]
    error = (found.high - found.mean) / half_width * np.sqrt(found.n / n)
    low, high = stats.t.interval(1 - ALPHA / num_tests, n - 1, found.mean, error)
    decided = np.asarray((low > 0) | (high < 0))
    if margin:
        low, high = stats.t.interval(1 - 2 * ALPHA / num_tests, n - 1, found.mean, error)
        decided |= (low > -margin) & (high < margin)
    return float(n[np.argmax(decided)]) if decided.any() else np.inf
