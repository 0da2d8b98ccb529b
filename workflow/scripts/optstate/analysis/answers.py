"""Say in words what an experiment found, and first of all what keeps it from finding anything."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from optstate import UNINTERRUPTED
from optstate.analysis import tables
from optstate.analysis.compare import AT_CHANCE, BETTER, NO_DIFFERENCE, OUTCOME
from optstate.experiment.runs import list_boundaries

Config = dict[str, Any]

GIVEN = "given weights, before the first epoch"  # in the column of methods
FEW_IMAGES = 100  # with fewer, a single validation image is worth more than 1 point of top-1
MINUS = "\N{MINUS SIGN}"  # a hyphen is too short next to a plus sign


def name_arm(boundary: str, config: Config) -> str:
    """Return a boundary in words: what it does if that is simple, else its name."""
    if boundary == UNINTERRUPTED:
        return "the uninterrupted run"
    options = config["boundaries"].get(boundary, {})
    if options.keys() - {"baseline"} == {"keep"}:
        if options["keep"] == "all":
            return "keeping the optimizer's state"
        if options["keep"] == []:
            return "a new optimizer"
    return boundary


def list_warnings(
    summary: pd.DataFrame,
    epochs: pd.DataFrame,
    comparisons: pd.DataFrame,
    chances: dict[str, tables.Chance],
    outcomes: Sequence[dict[str, str]],
    has_boundaries: bool,
) -> list[str]:
    """Return what the reader must know before any result, as sentences.

    Args:
        summary: the table ``summary.csv``.
        epochs: the table ``epochs.csv``.
        comparisons: the table ``comparisons.csv``.
        chances: the level of chance of each data set.
        outcomes: ``boundary``, ``baseline`` and ``measure`` of each primary outcome.
        has_boundaries: whether any session begins with a boundary.
    """
    primary = tables.select_primary(comparisons)
    found = []
    if not has_boundaries:
        found.append("No session begins with a boundary, so no state can be lost or kept.")
    else:
        compared = set(primary[OUTCOME].itertuples(index=False, name=None))
        found += [
            f"No schedule has the runs of the primary outcome {outcome['boundary']} {MINUS} "
            f"{outcome['baseline']} in {tables.label_measure(outcome['measure'])}."
            for outcome in outcomes
            if tuple(outcome[key] for key in OUTCOME) not in compared
        ]
    at_chance = tables.list_at_chance(summary, chances)
    for dataset, schedules in summary.groupby("dataset")["schedule"]:
        void = [name for name in sorted(set(schedules)) if (dataset, name) in at_chance]
        is_all = len(void) == schedules.nunique()
        where = [str(dataset)] if is_all else [f"{dataset!s}, {name}" for name in void]
        found += [f"{place}: {AT_CHANCE}, so nothing is compared." for place in where]
    if len(set(summary["seed"])) == 1:
        found.append("One seed cannot decide: it may show an effect, but not whether it repeats.")
    if len(set(summary["seed"])) == 2:
        found.append(
            "Two seeds rarely decide: their intervals are several times as wide as those of four."
        )
    found += [
        f"{row.dataset}, {row.schedule}: {row.boundary} and {row.baseline} do not differ in any "
        f"pair of runs in {tables.label_measure(row.measure)}."
        for row in tables.iterate_rows(primary[primary["verdict"].str.startswith(NO_DIFFERENCE)])
    ]
    if number := int(summary["diverged"].sum()):
        found.append(f"{number} of {len(summary)} runs diverged: a loss was not finite.")
    numbers = epochs[epochs["split"] == "valid"].groupby("dataset")["images"].first()
    return found + [
        f"{dataset}: with {number} validation images, each is worth {100 / number:.1f} points of "
        "top-1. No interval covers the choice of these images."
        for dataset, number in numbers.items()
        if number < FEW_IMAGES
    ]


def describe_boundary(options: Config) -> str:
    """Return what an entry of ``boundaries`` does, in words."""
    keep, at = options["keep"], options.get("at")
    sentences = {
        "lr_factor": "multiplies the session's learning rate by {:g}",
        "warmup_steps": "lets the learning rate rise over {} steps",
        "rebuild_steps": "fills it from {} batches",
        "step_size": "from then on gives every update the norm that it has with {}",
        "reshuffle": "from then on orders the images differently",
    }
    kept = "the optimizer's state" if keep == "all" else f"only {' and '.join(keep)}"
    done = [f"keeps {kept}" if keep else "loses the optimizer's state"]
    done += [text.format(options[key]) for key, text in sentences.items() if key in options]
    sessions = f"session{'s' * (len(at) > 1)} {', '.join(map(str, at))}" if at else ""
    return ", ".join(done) + (f" (before {sessions} only)" if at else "")


def describe_boundaries(config: Config) -> dict[str, str]:
    """Return what each boundary of the methods does, by its name."""
    used = sorted(list_boundaries(config["methods"]) - {UNINTERRUPTED})
    return {name: describe_boundary(config["boundaries"][name]) for name in used}


def list_answers(
    comparisons: pd.DataFrame, config: Config, outcomes: Sequence[dict[str, str]]
) -> dict[str, list[str]]:
    """Return, for each data set, a sentence for each primary comparison, in their order."""
    primary = tables.select_primary(comparisons)
    order = [tuple(outcome[key] for key in OUTCOME) for outcome in outcomes]
    return {
        str(dataset): [
            describe_answer(row, config)
            for row in sorted(
                tables.iterate_rows(rows),
                key=lambda row: order.index(tuple(getattr(row, key) for key in OUTCOME)),
            )
        ]
        for dataset, rows in primary.groupby("dataset")
    }


def describe_answer(row: Any, config: Config) -> str:
    """Return the verdict of a comparison in a sentence, with its direction, size and interval."""
    measure = tables.get_measure(row.measure)
    verdict, _, lost = row.verdict.partition("; ")
    difference = f"{row.boundary} {MINUS} {row.baseline}"
    direction = " (lower is better)" if measure.better == "lower" else ""
    label = tables.label_measure(row.measure)
    where = f"{row.schedule}, {label}, {row.n} seed{'s' if row.n != 1 else ''}"
    note = f" ({lost})" if lost else ""
    if verdict == AT_CHANCE:
        answer = f"not compared, because {AT_CHANCE}"
    elif np.isnan(row.low):
        value = tables.format_value(row.mean_difference, measure).replace("-", MINUS)
        size = f"{difference}: {value}{direction}"
        answer = f"one pair cannot decide. {size}" if row.n == 1 else verdict
    elif BETTER in verdict:
        winner, _, size = verdict.partition(BETTER)
        loser = row.baseline if winner == row.boundary else row.boundary
        arms = [name_arm(name, config) for name in (winner, loser)]
        answer = "{} is better than {} by {}".format(*arms, size)
    else:
        interval = tables.format_interval(row.mean_difference, row.low, row.high, measure)
        answer = f"{verdict}. {difference}: {interval.replace('-', MINUS)}{direction}"
    return f"{where}: {answer}{note}."


def format_answers(
    warnings: Sequence[str],
    answers: dict[str, list[str]],
    levels: Iterable[dict[str, Any]],
    boundaries: dict[str, str],
) -> str:
    """Return an experiment's answer as plain text.

    Args:
        warnings: the result of :func:`list_warnings`.
        answers: the result of :func:`list_answers`.
        levels: the result of :func:`list_levels`.
        boundaries: the result of :func:`describe_boundaries`.
    """
    lines = list(warnings)
    for dataset, sentences in answers.items():
        lines += ["", dataset, *[f"- {sentence}" for sentence in sentences]]
    lines += ["", "Mean over the seeds, and range:"]
    for row in levels:
        values = "; ".join(f"{label} {text}" for label, text in row["levels"].items() if text)
        if row["method"] == GIVEN:
            values = values.replace("final ", "")
        lines.append(f"{row['dataset']}, {row['method']}: {values}; chance {row['chance']}")
    if boundaries:
        lines += ["", "What each boundary does:"]
        lines += [f"{name}: {does}" for name, does in boundaries.items()]
    return "\n".join(lines).lstrip("\n") + "\n"


def list_levels(
    summary: pd.DataFrame,
    epochs: pd.DataFrame,
    chances: dict[str, tables.Chance],
    measures: Iterable[str],
) -> Iterator[dict[str, Any]]:
    """Yield the values of the given weights and of each method of each data set, as text.

    Args:
        summary: the table ``summary.csv``.
        epochs: the table ``epochs.csv``.
        chances: the level of chance of each data set.
        measures: the primary measures. Those of runs are listed after the final valid top-1.

    Yields:
        ``dataset``, ``method``, ``levels`` (by the measures' labels) and ``chance``. A value that
        the given weights do not have is empty.
    """
    names = dict.fromkeys(["final_valid_top1", *(m for m in measures if m in tables.OF_RUNS)])
    given = epochs[epochs["epoch"] == 0].assign(method=GIVEN)
    before = given.rename(columns={name.removeprefix("final_valid_"): name for name in names})
    rows = [*before.groupby(["dataset", "method"]), *summary.groupby(["dataset", "method"])]
    for (dataset, method), runs in sorted(rows, key=lambda row: row[0][0]):
        yield {
            "dataset": str(dataset),
            "method": str(method),
            "levels": {
                tables.label_measure(name): format_level(runs[name], tables.get_measure(name))
                if name in runs
                else ""
                for name in names
            },
            "chance": f"{100 * chances[str(dataset)].top1:.1f} %",
        }


def format_level(values: pd.Series, measure: tables.Measure) -> str:
    """Return the mean of a measure over runs, with its range unless all values are equal."""
    scale, form, unit = (100, ".1f", " %") if measure.is_top1 else (1, ".3g", "")
    mean, low, high = (f"{scale * x:{form}}" for x in (values.mean(), values.min(), values.max()))
    has_range = len(values.unique()) > 1
    return f"{mean}{unit}" + (f" ({low} to {high}{unit})" if has_range else "")
