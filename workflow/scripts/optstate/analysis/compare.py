"""Compare each boundary with its baseline: paired differences, statistics and a verdict.

A pair is two runs of one seed. They share the first session, and from then on their batches and
the order of these. p-values are adjusted over data sets and schedules by Holm's method.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from optstate.analysis import tables
from optstate.analysis.statistics import (
    ALPHA,
    adjust_p_values,
    count_pairs_to_decide,
    count_required_pairs,
    estimate_difference,
)
from optstate.job import run, write_atomically

CELL = ["dataset", "schedule"]
COMPARISON = [*CELL, "boundary", "baseline", "measure"]
COLUMNS = [
    *COMPARISON, "n", "mean_difference", "low", "high", "verdict", "bca_low", "bca_high",
    "p_sign_flip", "p_holm", "p_equivalence", "seeds_to_decide", "primary",
]  # fmt: skip
LOST = {"epochs_to_target": "missed the target", "recovery_steps": "did not recover"}
CONDITIONAL = ["epochs_to_target", "excess_loss_area", "excess_loss_peak", "update_norm_ratio"]


def main(arguments: argparse.Namespace) -> None:
    """Write ``comparisons.csv``, and ``pairs.csv`` with every single difference."""
    summary = tables.read(arguments.tables / "summary.csv")
    boundaries = tables.read(arguments.tables / "boundaries.csv")
    pairs = pair_runs(stack_measures(summary, boundaries), json.loads(arguments.baselines))
    comparisons = compare_pairs(pairs, arguments.margin, arguments.primary)
    for name, table in (("pairs", pairs), ("comparisons", comparisons)):
        with write_atomically(arguments.tables / f"{name}.csv") as path:
            table.to_csv(path, index=False, lineterminator="\n")


def stack_measures(summary: pd.DataFrame, boundaries: pd.DataFrame) -> pd.DataFrame:
    """Return all measures in rows: dataset, schedule, boundary, seed, measure, value."""
    names = [*CELL, "boundary", "seed"]
    of_runs = summary.melt(names, list(tables.OF_RUNS), "measure")
    of_boundaries = boundaries.melt([*names, "session"], list(tables.OF_BOUNDARIES), "measure")
    of_boundaries["measure"] += "_session" + of_boundaries.pop("session").astype(str)
    rows = pd.concat([of_runs, of_boundaries], ignore_index=True).astype({"value": float})
    # Without a target, or a run that keeps all state, some measures have no values at all.
    is_conditional = rows["measure"].str.replace(r"_session\d+", "", regex=True).isin(CONDITIONAL)
    has_values = rows.groupby([*CELL, "measure"])["value"].transform("count") > 0
    return rows[has_values | ~is_conditional]


def pair_runs(rows: pd.DataFrame, baselines: dict[str, str]) -> pd.DataFrame:
    """Subtract from each boundary's value that of its baseline: a row for each seed.

    Args:
        rows: the result of :func:`stack_measures`.
        baselines: the boundary that each boundary is compared with.
    """
    of_baseline = rows.rename(columns={"boundary": "baseline", "value": "baseline_value"})
    rows = rows.assign(baseline=rows["boundary"].map(baselines))
    pairs = rows[rows["boundary"] != rows["baseline"]].merge(of_baseline)
    with np.errstate(invalid="ignore"):  # both may be infinite
        pairs["difference"] = pairs["value"] - pairs["baseline_value"]
    columns = [*COMPARISON, "seed", "difference"]
    return pairs[columns].sort_values(columns[:-1], ignore_index=True)


def compare_pairs(pairs: pd.DataFrame, margin: float, primary: list[str]) -> pd.DataFrame:
    """Compare each boundary with its baseline: a row for each measure of a data set and schedule.

    Args:
        pairs: the result of :func:`pair_runs`.
        margin: of equivalence in top-1, a fraction.
        primary: measure and boundary of the primary outcome.
    """
    if pairs.empty:
        return pd.DataFrame(columns=COLUMNS)
    table = estimate_differences(pairs, margin)
    # Each outcome is tested once for each data set and schedule.
    outcome = table.groupby(["boundary", "measure"])
    for column, adjusted in (("p_value", "p_holm"), ("p_equivalence", "p_equivalence")):
        table[adjusted] = outcome[column].transform(lambda p: adjust_p_values(p.to_numpy(float)))
    table["num_tests"] = outcome["p_value"].transform("count")
    table["seeds_to_decide"] = [count_seeds_to_decide(row, margin) for row in table.itertuples()]
    table["verdict"] = [word_verdict(row, margin) for row in table.itertuples()]
    is_primary = (table[["measure", "boundary"]] == primary).all(axis=1)
    table["primary"] = is_primary.astype(str).str.lower()
    table = table.rename(columns={"mean": "mean_difference", "p_value": "p_sign_flip"})
    return table[COLUMNS].sort_values(COMPARISON, ignore_index=True)


def estimate_differences(pairs: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Estimate the mean difference of each comparison.

    Returns:
        A table of COMPARISON, the fields of a :class:`Difference`, ``found``, which holds it, and
        ``num_pairs``, which includes those that are not finite.
    """
    rows = []
    for names, group in pairs.groupby(COMPARISON):
        is_top1 = tables.get_measure(str(names[-1])).is_top1
        finite = group["difference"][np.isfinite(group["difference"])].to_numpy()
        found = estimate_difference(finite, margin if is_top1 else None)
        row = dict(zip(COMPARISON, names, strict=True))
        rows.append(row | vars(found) | {"found": found, "num_pairs": len(group)})
    return pd.DataFrame(rows)


def count_seeds_to_decide(row: Any, margin: float) -> float:
    """Count the seeds with a 50 % chance of a verdict if the observed effect is real.

    Returns:
        The number of seeds; NaN if there is a verdict already or if too few pairs allow no guess.
    """
    if row.n < 2 or row.low == row.high or is_different(row) or row.p_equivalence < ALPHA:
        return np.nan
    is_top1 = tables.get_measure(row.measure).is_top1
    return count_pairs_to_decide(row.found, margin if is_top1 else None, row.num_tests)


def is_different(row: Any) -> bool:
    """Return whether the test is significant and the interval, which may disagree, excludes 0."""
    return row.p_holm < ALPHA and not row.low <= 0 <= row.high


def word_verdict(row: Any, margin: float) -> str:
    """Return the result of a comparison in words."""
    num_lost = row.num_pairs - row.n
    reason = LOST.get(row.measure.partition("_session")[0], "diverged")
    note = f"; {num_lost} of {row.num_pairs} pairs {reason}" if num_lost else ""
    if row.n < 2:
        return ("one seed: no interval" if row.n else "no pair") + note
    if row.low == row.high:
        is_zero = not row.mean
        return ("no difference in any pair" if is_zero else f"{word_size(row)} in all pairs") + note
    words = [word_size(row)] if is_different(row) else []
    if row.p_equivalence < ALPHA:
        words.append(f"equivalent within {tables.format_margin(margin)}")
    return (", yet ".join(words) or word_undecided(row)) + note


def word_size(row: Any) -> str:
    """Return which one is better (or higher if neither is), by how much, and the interval."""
    measure = tables.get_measure(row.measure)
    if measure.better:
        is_better = (row.mean > 0) == (measure.better == "higher")
        words = f"{row.boundary if is_better else row.baseline} better by"
    else:
        words = f"{row.boundary} {'higher' if row.mean > 0 else 'lower'} by"
    mean, low, high = abs(row.mean), *sorted([abs(row.low), abs(row.high)])
    if measure.is_top1:
        return f"{words} {100 * mean:.2f} points [{100 * low:.2f}, {100 * high:.2f}]"
    return f"{words} {mean:.3g} [{low:.3g}, {high:.3g}]"


def word_undecided(row: Any) -> str:
    """Return how many seeds would decide, and how many are required for any significant result."""
    required = count_required_pairs(row.num_tests)
    note = f" (with fewer than {required} nothing is significant)" if row.n < required else ""
    if np.isinf(row.seeds_to_decide):
        return f"undecided: thousands of seeds would not decide{note}"
    return f"undecided: about {row.seeds_to_decide:.0f} seeds would decide{note}"


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--baselines", required=True, help="JSON: the baseline of each boundary")
PARSER.add_argument("--margin", type=float, required=True, help="of equivalence, in top-1")
PARSER.add_argument("--primary", nargs=2, required=True, help="measure and boundary")

if __name__ == "__main__":
    run(PARSER, main)
