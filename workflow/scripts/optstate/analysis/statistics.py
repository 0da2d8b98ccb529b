"""Statistics of paired differences: their size, its uncertainty, and the pairs needed to decide.

One interval decides each comparison, Student's t interval. Comparisons that are tested together are
a family of m, and their intervals are simultaneous (Bonferroni): each has the confidence
1 - 0.05 / m. If differences are normal, the probability that any of them misses its true mean is at
most 5 %, and so is the probability of any false statement that follows from them: that a boundary
is better (the interval excludes zero), or that two are equivalent (it lies within the margin). The
interval excludes zero if, and only if, the p-value of the paired t test, multiplied by m, is below
0.05.

Two more methods are computed as a check, and decide nothing. The sign-flip permutation test assumes
only that, without an effect, each difference could equally well have the opposite sign. The BCa
bootstrap interval (Efron 1987) allows for skewed differences, but with few pairs it covers the mean
too seldom.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05  # the probability of any false statement in a family
SIGN_FLIPS = 2**16  # all are tried up to this number; beyond it, this many are drawn at random
RESAMPLES = 9999  # number of bootstrap samples
MAX_PAIRS = 10_000  # from this number on, the pairs needed to decide count as infinite


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with intervals and p-values; NaN where undefined.

    Attributes:
        n: the number of pairs.
        mean: the mean difference.
        low: the lower end of the simultaneous t interval.
        high: the upper end of the simultaneous t interval.
        t_low: the lower end of the t interval at 95 %, for this comparison alone.
        t_high: the upper end of that interval.
        bca_low: the lower end of the bootstrap interval at 95 %.
        bca_high: the upper end of that interval.
        p_t: the p-value of the paired t test of no difference.
        p_adjusted: that p-value, adjusted for the size of the family.
        p_sign_flip: the p-value of the two-sided sign-flip permutation test.
    """

    n: int
    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    t_low: float = np.nan
    t_high: float = np.nan
    bca_low: float = np.nan
    bca_high: float = np.nan
    p_t: float = np.nan
    p_adjusted: float = np.nan
    p_sign_flip: float = np.nan


def estimate_difference(pairs: np.ndarray, family: int = 1) -> Difference:
    """Estimate the mean of paired differences.

    If all differences are equal, their noise is unknown, so there is no interval and no t test.

    Args:
        pairs: finite differences, one for each seed (n,).
        family: the number of comparisons that are tested together.
    """
    if len(pairs) < 2:
        return Difference(len(pairs), *map(float, pairs))
    p_sign_flip = compute_sign_flip_p(pairs)
    if not has_scatter(pairs):
        return Difference(len(pairs), float(pairs[0]), p_sign_flip=p_sign_flip)
    p_t = float(stats.ttest_1samp(pairs, 0).pvalue)
    bca = stats.bootstrap(
        (pairs,), np.mean, n_resamples=RESAMPLES, confidence_level=1 - ALPHA, method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Difference(
        len(pairs), float(np.mean(pairs)), *compute_interval(pairs, family),
        *compute_interval(pairs), float(bca.low), float(bca.high), p_t, min(family * p_t, 1.0),
        p_sign_flip,
    )  # fmt: skip


def has_scatter(pairs: np.ndarray) -> bool:
    """Return whether differences are unequal by more than the rounding of their subtraction."""
    return bool(np.ptp(pairs) > 1e-9 * np.abs(pairs).max())


def compute_interval(pairs: np.ndarray, family: int = 1) -> tuple[float, float]:
    """Return the t interval of the mean of ``pairs`` (n,), simultaneous in a ``family``."""
    found = stats.ttest_1samp(pairs, 0).confidence_interval(1 - ALPHA / family)
    return float(found.low), float(found.high)


def compute_sign_flip_p(pairs: np.ndarray) -> float:
    """Compute the two-sided p-value of no effect from the differences ``pairs`` (n,).

    The value is exact up to n = 16. With more pairs, sign flips are drawn at random.
    ``scipy.stats.permutation_test`` computes the same, but takes 0.6 s for 16 pairs.
    """
    largest = np.abs(pairs).max() or 1.0
    # Sums that differ only in their order must compare equal.
    sums = np.abs(np.round(list_sign_flips(len(pairs)) @ pairs / largest, 9))
    return float(np.mean(sums >= sums[0]))


@functools.cache
def list_sign_flips(n: int) -> np.ndarray:
    """Return sign flips (m, n) of n differences, as 1 and -1. The first one changes no sign.

    All 2**n are listed if they are at most ``SIGN_FLIPS``.
    """
    if 2**n > SIGN_FLIPS:
        drawn = np.random.default_rng(0).choice([1.0, -1.0], (SIGN_FLIPS, n))
        return np.concatenate([np.ones((1, n)), drawn])
    is_flipped = np.arange(2**n)[:, np.newaxis] >> np.arange(n) & 1
    return 1.0 - 2.0 * is_flipped


def count_pairs_to_decide(found: Difference, margin: float | None, family: int) -> float:
    """Estimate how many pairs give a 50 % chance of a verdict if the effect is as ``found``.

    The verdict is that the simultaneous interval excludes zero, or lies within ± ``margin``. True
    mean and scatter are taken to be those of ``found``, and means of pairs are taken to be normal.

    Args:
        found: the estimate so far, from at least two differences that are not all equal.
        margin: the margin of equivalence. None: equivalence is not claimed.
        family: the number of comparisons that are tested together.

    Returns:
        The number of pairs, more than so far; infinite if ``MAX_PAIRS`` or more.
    """
    n = np.arange(found.n + 1, MAX_PAIRS)
    quantile = stats.t.interval(1 - ALPHA, found.n - 1)[1]
    error = (found.t_high - found.mean) / quantile * np.sqrt(found.n / n)
    reach = stats.t.interval(1 - ALPHA / family, n - 1)[1] * error  # half of the future interval
    chance = 1 - _probability_within(reach, found.mean, error)
    if margin is not None:
        chance += _probability_within(np.minimum(margin - reach, reach), found.mean, error)
    is_likely = chance >= 0.5
    return float(n[np.argmax(is_likely)]) if is_likely.any() else np.inf


def _probability_within(limit: np.ndarray, mean: float, error: np.ndarray) -> np.ndarray:
    """Return the probability that a normal variable lies within ± ``limit``; 0 if negative."""
    limit = np.maximum(limit, 0)
    low, high = (stats.norm.cdf(sign * limit, mean, error) for sign in (-1, 1))
    return np.asarray(high - low)
