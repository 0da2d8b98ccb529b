"""The answer in numbers: paired differences of each boundary to its baseline, and a verdict.

A pair is two runs of one seed, which share the first session, and from there on the batches and
their order. p-values are adjusted by Holm's method over data sets and schedules.
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
    Difference,
    difference,
    fewest_pairs,
    holm,
    pairs_to_decide,
)
from optstate.job import write_atomically, run

CELL = ["dataset", "schedule"]
COMPARISON = [*CELL, "boundary", "baseline", "measure"]
COLUMNS = [
    *COMPARISON, "n", "mean_difference", "low", "high", "verdict", "bca_low", "bca_high",
    "p_sign_flip", "p_holm", "p_equivalence", "seeds_to_decide", "primary",
]  # fmt: skip
LOST = {"epochs_to_target": "missed the target", "recovery_steps": "did not recover"}
ONLY_WITH = ["epochs_to_target", "excess_loss_area", "excess_loss_peak", "update_norm_ratio"]


def main(arguments: argparse.Namespace) -> None:
    """Write ``comparisons.csv``, and ``pairs.csv`` with every single difference."""
    summary = tables.read(arguments.tables / "summary.csv")
    boundaries = tables.read(arguments.tables / "boundaries.csv")
    pairs = paired(values(summary, boundaries), json.loads(arguments.baselines))
    written = {"pairs": pairs, "comparisons": compare(pairs, arguments.margin, arguments.primary)}
    for name, table in written.items():
        with write_atomically(arguments.tables / f"{name}.csv") as path:
            table.to_csv(path, index=False, lineterminator="\n")


def values(summary: pd.DataFrame, boundaries: pd.DataFrame) -> pd.DataFrame:
    """What is compared, in rows: dataset, schedule, boundary, seed, measure, value."""
    names = [*CELL, "boundary", "seed"]
    of_runs = summary.melt(names, list(tables.OF_RUNS), "measure")
    crossed = boundaries.melt([*names, "session"], list(tables.OF_BOUNDARIES), "measure")
    crossed["measure"] += "_session" + crossed.pop("session").astype(str)
    rows = pd.concat([of_runs, crossed], ignore_index=True).astype({"value": float})
    # Without a target, or a run that keeps all, there is nothing to measure.
    unmeasured = rows["measure"].str.replace(r"_session\d+", "", regex=True).isin(ONLY_WITH)
    is_there = rows.groupby([*CELL, "measure"])["value"].transform("count") > 0
    return rows[is_there | ~unmeasured]


def paired(rows: pd.DataFrame, baselines: dict[str, str]) -> pd.DataFrame:
    """The differences of each boundary to its baseline, a row for each seed.

    Args:
        rows: as :func:`values` gives them.
        baselines: what each boundary is compared with.
    """
    of_baseline = rows.rename(columns={"boundary": "baseline", "value": "baseline_value"})
    rows = rows.assign(baseline=rows["boundary"].map(baselines))
    both = rows[rows["boundary"] != rows["baseline"]].merge(of_baseline)
    with np.errstate(invalid="ignore"):  # of two that are infinite
        both["difference"] = both["value"] - both["baseline_value"]
    columns = [*COMPARISON, "seed", "difference"]
    return both[columns].sort_values(columns[:-1], ignore_index=True)


def compare(pairs: pd.DataFrame, margin: float, primary: list[str]) -> pd.DataFrame:
    """A row for each (dataset, schedule, boundary, measure).

    Args:
        pairs: as :func:`paired` gives them.
        margin: top-1 that differs by less is equivalent, a fraction.
        primary: measure and boundary of the outcome that answers the question.
    """
    if pairs.empty:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    for names, group in pairs.groupby(COMPARISON):
        of_measure = tables.measure_of(str(names[-1]))
        finite = group["difference"][np.isfinite(group["difference"])].to_numpy()
        found = difference(finite, margin if of_measure.is_top1 else None)
        rows.append(dict(zip(COMPARISON, names, strict=True)) | {"found": found, "of": len(group)})
    table = pd.DataFrame(rows, columns=[*COMPARISON, "found", "of"])
    for column in Difference.__dataclass_fields__:
        table[column] = [getattr(found, column) for found in table["found"]]
    # Of each outcome, the data sets and schedules are so many chances to be wrong.
    family = table.groupby(["boundary", "measure"])
    table["p_holm"] = family["p_value"].transform(lambda p: holm(p.to_numpy(float)))
    table["p_equivalence"] = family["p_equivalence"].transform(lambda p: holm(p.to_numpy(float)))
    table["num_tests"] = family["p_value"].transform("count")
    table["seeds_to_decide"] = [seeds_to_decide(row, margin) for row in table.itertuples()]
    table["verdict"] = [verdict(row, margin) for row in table.itertuples()]
    table["primary"] = (
        (table[["measure", "boundary"]] == primary).all(axis=1).astype(str).str.lower()
    )
    table = table.rename(columns={"mean": "mean_difference", "p_value": "p_sign_flip"})
    return table[COLUMNS].sort_values(COMPARISON, ignore_index=True)


def seeds_to_decide(row: Any, margin: float) -> float:
    """How many seeds would decide what is undecided; NaN if it is not, or nobody can tell."""
    if row.n < 2 or row.low == row.high or is_different(row) or row.p_equivalence < ALPHA:
        return np.nan
    is_top1 = tables.measure_of(row.measure).is_top1
    return pairs_to_decide(row.found, margin if is_top1 else None, row.num_tests)


def is_different(row: Any) -> bool:
    """Whether the test is significant, and its interval, which need not agree, off zero."""
    return row.p_holm < ALPHA and not row.low <= 0 <= row.high


def verdict(row: Any, margin: float) -> str:
    """The result of a comparison in words."""
    num_lost = row.of - row.n
    reason = LOST.get(row.measure.partition("_session")[0], "diverged")
    note = f"; {num_lost} of {row.of} pairs {reason}" if num_lost else ""
    if row.n < 2:
        return ("one seed: no interval" if row.n else "no pair") + note
    if row.low == row.high:
        return (f"{shown(row)} in all pairs" if row.mean else "no difference in any pair") + note
    words = [shown(row)] if is_different(row) else []
    if row.p_equivalence < ALPHA:
        words.append(f"equivalent within {tables.points(margin)}")
    return (", yet ".join(words) or undecided(row)) + note


def shown(row: Any) -> str:
    """Which of the two is better, or higher if nothing is better, by how much, and its interval."""
    measure = tables.measure_of(row.measure)
    if measure.better:
        wins = (row.mean > 0) == (measure.better == "higher")
        words = f"{row.boundary if wins else row.baseline} better by"
    else:
        words = f"{row.boundary} {'higher' if row.mean > 0 else 'lower'} by"
    mean, low, high = abs(row.mean), *sorted([abs(row.low), abs(row.high)])
    if measure.is_top1:
        return f"{words} {100 * mean:.2f} points [{100 * low:.2f}, {100 * high:.2f}]"
    return f"{words} {mean:.3g} [{low:.3g}, {high:.3g}]"


def undecided(row: Any) -> str:
    """How many seeds it would take, and how many at least."""
    least = fewest_pairs(row.num_tests)
    note = f" (with fewer than {least} nothing is significant)" if row.n < least else ""
    if np.isinf(row.seeds_to_decide):
        return f"undecided: thousands of seeds would not decide{note}"
    return f"undecided: about {row.seeds_to_decide:.0f} seeds would decide{note}"


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--tables", type=Path, required=True, help="folder")
PARSER.add_argument("--baselines", required=True, help="JSON: what each boundary is compared with")
PARSER.add_argument("--margin", type=float, required=True, help="of equivalence, in top-1")
PARSER.add_argument("--primary", nargs=2, required=True, help="measure and boundary")

if __name__ == "__main__":
    run(PARSER, main)
