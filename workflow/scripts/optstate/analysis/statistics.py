"""Statistics of paired differences: their size, its uncertainty, and the pairs needed to decide.

SciPy computes everything except Holm's method, which statsmodels provides. Student's t interval has
its nominal coverage if the differences are normally distributed, even with few pairs. The BCa
bootstrap interval (Efron 1987) is computed as well, for skewed differences. With few pairs it
covers the mean too seldom. The sign-flip permutation test assumes only that, without an effect,
each difference could equally well have the opposite sign.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95
ALPHA = 0.05
SIGN_FLIPS = 2**16  # all are tried up to this number; beyond it, this many are drawn at random
RESAMPLES = 9999  # number of bootstrap samples
MAX_PAIRS = 10_000  # from this number on, the pairs needed to decide count as infinite


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its intervals at 95 %, and p-values; NaN where undefined.

    Attributes:
        n: the number of pairs.
        mean: the mean difference.
        low: the lower end of Student's t interval.
        high: the upper end of Student's t interval.
        bca_low: the lower end of the bias-corrected and accelerated bootstrap interval.
        bca_high: the upper end of that interval.
        p_value: the p-value of the two-sided sign-flip permutation test of no difference.
        p_equivalence: the p-value of two one-sided t tests. Small if the mean lies within the
            margin of equivalence.
    """

    n: int
    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    bca_low: float = np.nan
    bca_high: float = np.nan
    p_value: float = np.nan
    p_equivalence: float = np.nan


def estimate_difference(pairs: np.ndarray, margin: float | None = None) -> Difference:
    """Estimate the mean of paired differences.

    Args:
        pairs: finite differences, one for each seed (n,).
        margin: means within ± this are equivalent. None: equivalence is not tested.
    """
    if len(pairs) < 2:
        return Difference(len(pairs), *map(float, pairs))
    mean = float(np.mean(pairs))
    p_value = compute_sign_flip_p(pairs)
    if np.ptp(pairs) == 0:  # without scatter, only the number of pairs is evidence
        return Difference(len(pairs), mean, mean, mean, mean, mean, p_value)
    interval = stats.ttest_1samp(pairs, 0).confidence_interval(CONFIDENCE)
    bca = stats.bootstrap(
        (pairs,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Difference(
        len(pairs), mean, float(interval.low), float(interval.high), float(bca.low),
        float(bca.high), p_value, compute_equivalence_p(pairs, margin) if margin else np.nan,
    )  # fmt: skip


def compute_sign_flip_p(pairs: np.ndarray) -> float:
    """Compute the two-sided p-value of no effect from the differences ``pairs`` (n,).

    The value is exact up to n = 16. With more pairs, sign flips are drawn at random.
    """
    largest = np.abs(pairs).max() or 1.0

    def round_mean(flipped: np.ndarray, axis: int) -> np.ndarray:
        # Means that differ only in the order of summation must compare equal.
        return np.round(np.mean(flipped, axis=axis) / largest, 10)

    test = stats.permutation_test(
        (pairs,), round_mean, permutation_type="samples", n_resamples=SIGN_FLIPS,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.pvalue)


def compute_equivalence_p(pairs: np.ndarray, margin: float) -> float:
    """Compute the p-value of the hypothesis that the mean of ``pairs`` (n,) exceeds ± ``margin``.

    This is the larger p-value of two one-sided t tests (Schuirmann 1987).
    """
    above = stats.ttest_1samp(pairs, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(pairs, margin, alternative="less").pvalue
    return float(max(above, below))


def adjust_p_values(p_values: np.ndarray) -> np.ndarray:
    """Adjust ``p_values`` (tests,) for multiple testing (Holm 1979). A NaN is not a test."""
    adjusted = np.full(len(p_values), np.nan)
    is_test = np.isfinite(p_values)
    if is_test.any():
        adjusted[is_test] = multipletests(p_values[is_test], method="holm")[1]
    return adjusted


def count_required_pairs(num_tests: int) -> int:
    """Return the fewest pairs with which one of ``num_tests`` sign-flip tests can be significant.

    With n pairs, the smallest p-value is 2 / 2**n, reached if all differences have the same sign.
    """
    return next(n for n in itertools.count(1) if num_tests * 2.0 ** (1 - n) < ALPHA)


def count_pairs_to_decide(found: Difference, margin: float | None, num_tests: int) -> float:
    """Estimate how many pairs give a 50 % chance of a verdict if the effect is as ``found``.

    With this many pairs, the t interval would exclude zero or lie within ± ``margin``. Levels are
    divided by ``num_tests`` (Bonferroni), as Holm's method does for the smallest p-value.

    Args:
        found: the estimate so far, from at least two differences that are not all equal.
        margin: the margin of equivalence. None: equivalence is not tested.
        num_tests: the number of tests that p-values are adjusted for.

    Returns:
        The number of pairs, more than so far; infinite if ``MAX_PAIRS`` or more.
    """
    n = np.arange(max(found.n + 1, count_required_pairs(num_tests)), MAX_PAIRS)
    half_width = stats.t.interval(CONFIDENCE, found.n - 1)[1]
    error = (found.high - found.mean) / half_width * np.sqrt(found.n / n)
    low, high = stats.t.interval(1 - ALPHA / num_tests, n - 1, found.mean, error)
    is_decided = np.asarray((low > 0) | (high < 0))
    if margin:
        low, high = stats.t.interval(1 - 2 * ALPHA / num_tests, n - 1, found.mean, error)
        is_decided |= (low > -margin) & (high < margin)
    return float(n[np.argmax(is_decided)]) if is_decided.any() else np.inf
