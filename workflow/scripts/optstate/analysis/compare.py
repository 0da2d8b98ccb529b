"""Compare each boundary with its baselines: paired differences, statistics and a verdict.

A pair is two runs with the same schedule and seed. Both train on the same batches in the same
order, unless a boundary reshuffles them. In a session that both share, the difference is exactly 0.

Only the primary outcomes, which the configuration names before the runs, get a verdict. They are
one family over all outcomes, data sets and schedules. All other comparisons are exploratory: they
have an estimate and an interval for themselves alone, and no verdict.
"""

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from optstate.analysis import tables
from optstate.analysis.files import read_json
from optstate.analysis.statistics import count_pairs_to_decide, estimate_difference
from optstate.checksums import verify, write_checksums
from optstate.job import run, write_atomically

CELL = ["dataset", "schedule"]
OUTCOME = ["boundary", "baseline", "measure"]
COMPARISON = [*CELL, *OUTCOME]
STATISTICS = [
    "t_low", "t_high", "bca_low", "bca_high", "p_t", "p_adjusted", "p_sign_flip",
]  # fmt: skip
COLUMNS = [
    *COMPARISON, "n", "mean_difference", "low", "high", "verdict", "primary", "family", "margin",
    "seeds_to_decide", *STATISTICS,
]  # fmt: skip
EXPLORATORY = "exploratory"
AT_CHANCE = "no run beats chance"
NO_DIFFERENCE = "no difference in any pair"
BETTER = " better by "  # between the winner and the size
LOST = {"epochs_to_target": "missed the target", "recovery_steps": "did not recover"}
# These measures need a target, a run that keeps all state, or a longer session.
CONDITIONAL = [
    "epochs_to_target", "excess_loss_area", "excess_loss_peak", "update_norm_ratio",
    "recovery_steps", "steps_lost",
]  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    """Write ``comparisons.csv``, and ``pairs.csv`` with the difference of every pair."""
    inputs = [arguments.tables / f"{name}.csv" for name in ("summary", "boundaries")]
    summary, boundaries = map(tables.read_verified, inputs)
    verify(*arguments.cards)
    chances = {
        dataset: tables.compute_chance(read_json(card, "classes"), arguments.valid_per_class)
        for dataset, card in zip(arguments.datasets, arguments.cards, strict=True)
    }
    pairs = pair_runs(stack_measures(summary, boundaries), json.loads(arguments.baselines))
    outcomes = json.loads(arguments.primary)
    at_chance = tables.list_at_chance(summary, chances)
    comparisons = compare_pairs(pairs, json.loads(arguments.margin), outcomes, chances, at_chance)
    outputs = [arguments.tables / f"{name}.csv" for name in ("pairs", "comparisons")]
    for output, table in zip(outputs, (pairs, comparisons), strict=True):
        with write_atomically(output) as path:
            table.to_csv(path, index=False, lineterminator="\n")
    write_checksums(arguments.tables / "compare.sha256", outputs, inputs)


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
    columns = [*COMPARISON, "seed", "difference", "value", "baseline_value"]
    return pairs[columns].sort_values([*COMPARISON, "seed"], ignore_index=True)


def compare_pairs(
    pairs: pd.DataFrame,
    margin: float | dict[str, float],
    outcomes: Sequence[Sequence[str]],
    chances: dict[str, tables.Chance],
    at_chance: Collection[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Compare each boundary with its baselines, for each data set, schedule and measure.

    Args:
        pairs: the result of :func:`pair_runs`.
        margin: the key ``equivalence_margin`` of the configuration.
        outcomes: boundary, baseline and measure of each primary outcome.
        chances: the level of chance of each data set.
        at_chance: the data sets and schedules without a verdict, because no run beats chance.

    Returns:
        A row for each comparison, with the columns ``COLUMNS``.
    """
    if pairs.empty:
        return pd.DataFrame(columns=COLUMNS)
    groups = list(pairs.groupby(COMPARISON, sort=False))
    primary = [list(names[len(CELL) :]) in list(map(list, outcomes)) for names, _ in groups]
    rows = []
    for (names, group), is_primary in zip(groups, primary, strict=True):
        row = dict(zip(COMPARISON, names, strict=True))
        row |= {"primary": is_primary, "family": sum(primary) if is_primary else 1}
        row["is_void"] = names[: len(CELL)] in at_chance
        row["margin"] = find_margin(group, margin, chances)
        rows.append(row | estimate_row(group, row))
    table = pd.DataFrame(rows)
    table["seeds_to_decide"] = [count_seeds_to_decide(row) for row in table.itertuples()]
    table["verdict"] = [describe_verdict(row) for row in table.itertuples()]
    table["primary"] = table["primary"].astype(str).str.lower()
    table = table.rename(columns={"mean": "mean_difference"})
    return table[COLUMNS].sort_values(COMPARISON, ignore_index=True)


def estimate_row(group: pd.DataFrame, row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the estimated :class:`Difference` of a comparison, and the object.

    ``num_pairs`` also counts pairs whose difference is not finite. ``is_infinite`` says whether a
    run has an infinite value.
    """
    finite = group["difference"][np.isfinite(group["difference"])].to_numpy()
    found = estimate_difference(finite, row["family"])
    is_infinite = np.isinf(group[["value", "baseline_value"]]).any(axis=None)
    return vars(found) | {"found": found, "num_pairs": len(group), "is_infinite": is_infinite}


def find_margin(
    group: pd.DataFrame, margin: float | dict[str, float], chances: dict[str, tables.Chance]
) -> float:
    """Return the margin of equivalence of a comparison, a fraction; NaN if it has none.

    A margin above chance is a fraction of what the baseline learns above the level of chance.

    Args:
        group: the pairs of the comparison.
        margin: the key ``equivalence_margin`` of the configuration.
        chances: the level of chance of each data set.
    """
    first = group.iloc[0]
    if not tables.get_measure(first["measure"]).is_top1:
        return np.nan
    if not isinstance(margin, dict):
        return float(margin)
    chance = chances[first["dataset"]]
    is_balanced = first["measure"] == "final_valid_balanced_top1"
    learnt = group["baseline_value"].mean() - (chance.balanced_top1 if is_balanced else chance.top1)
    return float(margin["above_chance"] * learnt) if learnt > 0 else np.nan


def count_seeds_to_decide(row: Any) -> float:
    """Estimate how many seeds give a 50 % chance of a verdict if the observed effect is real.

    Returns:
        The number of seeds. NaN if there is already a verdict, if there is none to expect, or if
        the noise is unknown.
    """
    is_open = row.primary and not row.is_void
    if not is_open or np.isnan(row.low) or is_different(row) or is_equivalent(row):
        return np.nan
    margin = None if np.isnan(row.margin) else row.margin
    return count_pairs_to_decide(row.found, margin, row.family)


def is_different(row: Any) -> bool:
    """Return whether the simultaneous interval excludes zero."""
    return row.low > 0 or row.high < 0


def is_equivalent(row: Any) -> bool:
    """Return whether the simultaneous interval lies within the margin of equivalence."""
    return -row.margin < row.low and row.high < row.margin


def describe_verdict(row: Any) -> str:
    """Return the result of a comparison in words."""
    num_lost = row.num_pairs - row.n
    lost = LOST.get(row.measure.partition("_session")[0], "diverged")
    reason = lost if row.is_infinite else "diverged"
    note = f"; {num_lost} of {row.num_pairs} pairs {reason}" if num_lost else ""
    if not row.primary:
        return EXPLORATORY + note
    if row.is_void:
        return AT_CHANCE + note
    if row.n < 2:
        return ("one pair: no interval" if row.n else "no pair") + note
    if np.isnan(row.low):
        return describe_equal_pairs(row) + note
    words = [describe_size(row)] if is_different(row) else []
    if is_equivalent(row):
        words.append(f"equivalent within {tables.format_margin(row.margin)}")
    return (", yet ".join(words) or describe_undecided(row)) + note


def describe_equal_pairs(row: Any) -> str:
    """Return the result of a comparison whose differences are all equal."""
    if row.mean == 0:
        return NO_DIFFERENCE
    size = tables.format_value(row.mean, tables.get_measure(row.measure))
    return f"undecided: all {row.n} differences are equal ({size}), so their noise is unknown"


def describe_size(row: Any) -> str:
    """Return which boundary is better, by how much, and the interval."""
    measure = tables.get_measure(row.measure)
    is_better = (row.mean > 0) == (measure.better == "higher")
    low, high = sorted([abs(row.low), abs(row.high)])
    size = tables.format_interval(abs(row.mean), low, high, measure, is_signed=False)
    return f"{row.boundary if is_better else row.baseline}{BETTER}{size}"


def describe_undecided(row: Any) -> str:
    """Return how many seeds give a 50 % chance of a verdict."""
    if np.isinf(row.seeds_to_decide):
        return "undecided: thousands of seeds would not decide"
    return f"undecided: about {row.seeds_to_decide:.0f} seeds for a 50 % chance of a verdict"


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--tables", type=Path, required=True, help="folder of the tables")
PARSER.add_argument("--baselines", required=True, help="JSON: the baselines of each boundary")
PARSER.add_argument("--margin", required=True, help="JSON: the key equivalence_margin")
PARSER.add_argument(
    "--primary", required=True, help="JSON: boundary, baseline and measure of each primary outcome"
)
PARSER.add_argument("--datasets", nargs="+", required=True, help="data sets, in their order")
PARSER.add_argument("--cards", type=Path, nargs="+", required=True, help="their dataset.json files")
PARSER.add_argument(
    "--valid-per-class", type=json.loads, help="validation images of each class; null: all"
)

if __name__ == "__main__":
    run(PARSER, main)
