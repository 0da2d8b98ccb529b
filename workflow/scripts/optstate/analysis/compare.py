"""Compare each boundary with its baselines: paired differences, statistics and a verdict.

A pair is two runs with the same schedule and seed. Both train on the same batches in the same
order, unless a boundary reshuffles them. In a session that both share, the difference is exactly 0.
p-values are adjusted over data sets and schedules by Holm's method.
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
from optstate.checksums import write_checksums
from optstate.job import run, write_atomically

CELL = ["dataset", "schedule"]
OUTCOME = ["boundary", "baseline", "measure"]
COMPARISON = [*CELL, *OUTCOME]
COLUMNS = [
    *COMPARISON, "n", "mean_difference", "low", "high", "verdict", "bca_low", "bca_high",
    "p_sign_flip", "p_holm", "p_equivalence", "seeds_to_decide", "primary",
]  # fmt: skip
LOST = {"epochs_to_target": "missed the target", "recovery_steps": "did not recover"}
# These measures need a target, a run that keeps all state, or a session before the boundary.
CONDITIONAL = [
    "epochs_to_target", "excess_loss_area", "excess_loss_peak", "update_norm_ratio",
    "recovery_steps",
]  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    """Write ``comparisons.csv``, and ``pairs.csv`` with the difference of every pair."""
    summary = tables.read_verified(arguments.tables / "summary.csv")
    boundaries = tables.read_verified(arguments.tables / "boundaries.csv")
    pairs = pair_runs(stack_measures(summary, boundaries), json.loads(arguments.baselines))
    comparisons = compare_pairs(pairs, arguments.margin, arguments.primary)
    outputs = [arguments.tables / f"{name}.csv" for name in ("pairs", "comparisons")]
    for output, table in zip(outputs, (pairs, comparisons), strict=True):
        with write_atomically(output) as path:
            table.to_csv(path, index=False, lineterminator="\n")
    write_checksums(arguments.tables / "compare.sha256", outputs)


def stack_measures(summary: pd.DataFrame, boundaries: pd.DataFrame) -> pd.DataFrame:
    """Return all measures in rows: dataset, schedule, boundary, seed, measure, value."""
    names = [*CELL, "boundary", "seed"]
    known = [measure for measure in tables.OF_RUNS if measure in summary]  # older tables have fewer
    of_runs = summary.melt(names, known, "measure")
    of_boundaries = boundaries.melt([*names, "session"], list(tables.OF_BOUNDARIES), "measure")
    of_boundaries["measure"] += "_session" + of_boundaries.pop("session").astype(str)
    rows = pd.concat([of_runs, of_boundaries], ignore_index=True).astype({"value": float})
    # Leave out a conditional measure that has no value at all.
    is_conditional = rows["measure"].str.replace(r"_session\d+", "", regex=True).isin(CONDITIONAL)
    has_values = rows.groupby([*CELL, "measure"])["value"].transform("count") > 0
    return rows[has_values | ~is_conditional]


def pair_runs(rows: pd.DataFrame, baselines: dict[str, list[str]]) -> pd.DataFrame:
    """Subtract each baseline's value from the boundary's value. Returns a row for each pair.

    Args:
        rows: the result of :func:`stack_measures`.
        baselines: for each boundary, the boundaries that it is compared with.
    """
    of_baseline = rows.rename(columns={"boundary": "baseline", "value": "baseline_value"})
    rows = rows.assign(baseline=rows["boundary"].map(baselines)).explode("baseline")
    pairs = rows[rows["boundary"] != rows["baseline"]].merge(of_baseline)
    with np.errstate(invalid="ignore"):  # both may be infinite
        pairs["difference"] = pairs["value"] - pairs["baseline_value"]
    columns = [*COMPARISON, "seed", "difference"]
    return pairs[columns].sort_values(columns[:-1], ignore_index=True)


def compare_pairs(pairs: pd.DataFrame, margin: float, primary: list[str]) -> pd.DataFrame:
    """Compare each boundary with its baselines, for each data set, schedule and measure.

    Args:
        pairs: the result of :func:`pair_runs`.
        margin: the margin of equivalence in top-1, a fraction.
        primary: boundary, baseline and measure of the primary outcome.

    Returns:
        A row for each comparison, with the columns ``COLUMNS``.
    """
    if pairs.empty:
        return pd.DataFrame(columns=COLUMNS)
    table = estimate_differences(pairs, margin)
    # An outcome is tested in each data set and schedule, so its p-values are adjusted over these.
    outcome = table.groupby(OUTCOME)
    for column, adjusted in (("p_value", "p_holm"), ("p_equivalence", "p_equivalence")):
        table[adjusted] = outcome[column].transform(lambda p: adjust_p_values(p.to_numpy(float)))
    table["num_tests"] = outcome["p_value"].transform("count")
    table["seeds_to_decide"] = [count_seeds_to_decide(row, margin) for row in table.itertuples()]
    table["verdict"] = [describe_verdict(row, margin) for row in table.itertuples()]
    is_primary = (table[OUTCOME] == primary).all(axis=1)
    table["primary"] = is_primary.astype(str).str.lower()
    table = table.rename(columns={"mean": "mean_difference", "p_value": "p_sign_flip"})
    return table[COLUMNS].sort_values(COMPARISON, ignore_index=True)


def estimate_differences(pairs: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Estimate the mean difference of each comparison.

    Returns:
        A row for each comparison. Its columns are ``COMPARISON``, the fields of the estimated
        :class:`Difference`, the :class:`Difference` itself as ``found``, and ``num_pairs``, which
        also counts pairs whose difference is not finite.
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
    """Estimate how many seeds give a 50 % chance of a verdict if the observed effect is real.

    Returns:
        The number of seeds. NaN if there is already a verdict, or if the pairs show no scatter
        (fewer than two, or all equal).
    """
    if row.n < 2 or row.low == row.high or is_different(row) or row.p_equivalence < ALPHA:
        return np.nan
    is_top1 = tables.get_measure(row.measure).is_top1
    return count_pairs_to_decide(row.found, margin if is_top1 else None, row.num_tests)


def is_different(row: Any) -> bool:
    """Return whether the adjusted test is significant and the t interval excludes 0.

    The two may disagree, because they make different assumptions.
    """
    return row.p_holm < ALPHA and not row.low <= 0 <= row.high


def describe_verdict(row: Any, margin: float) -> str:
    """Return the result of a comparison in words."""
    num_lost = row.num_pairs - row.n
    reason = LOST.get(row.measure.partition("_session")[0], "diverged")
    note = f"; {num_lost} of {row.num_pairs} pairs {reason}" if num_lost else ""
    if row.n < 2:
        return ("one seed: no interval" if row.n else "no pair") + note
    if row.low == row.high:
        result = f"{describe_size(row)} in all pairs" if row.mean else "no difference in any pair"
        return result + note
    words = [describe_size(row)] if is_different(row) else []
    if row.p_equivalence < ALPHA:
        words.append(f"equivalent within {tables.format_margin(margin)}")
    return (", yet ".join(words) or describe_undecided(row)) + note


def describe_size(row: Any) -> str:
    """Return which boundary is better, by how much, and the interval.

    If neither direction is better, return whether the boundary is higher or lower.
    """
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


def describe_undecided(row: Any) -> str:
    """Return how many seeds would decide, and how many a significant result needs at least."""
    required = count_required_pairs(row.num_tests)
    note = f" (with fewer than {required} nothing is significant)" if row.n < required else ""
    if np.isinf(row.seeds_to_decide):
        return f"undecided: thousands of seeds would not decide{note}"
    return f"undecided: about {row.seeds_to_decide:.0f} seeds would decide{note}"


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--tables", type=Path, required=True, help="folder of the tables")
PARSER.add_argument("--baselines", required=True, help="JSON: the baselines of each boundary")
PARSER.add_argument(
    "--margin", type=float, required=True, help="margin of equivalence in top-1, a fraction"
)
PARSER.add_argument(
    "--primary", nargs=3, required=True, help="boundary, baseline and measure to answer for"
)

if __name__ == "__main__":
    run(PARSER, main)
