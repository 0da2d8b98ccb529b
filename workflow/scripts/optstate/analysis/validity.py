"""What decides whether an experiment can answer at all, for each data set and schedule."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from optstate import UNINTERRUPTED
from optstate.analysis import tables
from optstate.experiment.runs import find_optimizer

MEMORIZED = 0.99  # train top-1 from which a run has memorized its images
SPIKE_WINDOW = 50  # earlier steps with which a loss is compared
SPIKE_FACTOR = 6  # median absolute deviations above their median
# The coefficient with which each optimizer averages squared gradients, or else gradients.
DECAYS = {
    "Adam": ("betas", (0.9, 0.999)), "AdamW": ("betas", (0.9, 0.999)),
    "NAdam": ("betas", (0.9, 0.999)), "RAdam": ("betas", (0.9, 0.999)),
    "Adamax": ("betas", (0.9, 0.999)), "RMSprop": ("alpha", 0.99), "Adadelta": ("rho", 0.9),
    "SGD": ("momentum", 0.0),
}  # fmt: skip


def compute_memory(optimizer: dict[str, Any], momentum: float) -> float | None:
    """Return how many steps an optimizer's averages remember: 1 / (1 - decay).

    Args:
        optimizer: ``name`` of the class, and its keyword arguments.
        momentum: the largest that a step used, which differs from the argument under OneCycle.

    Returns:
        The number of steps. None if the optimizer has no average with a constant decay.
    """
    if optimizer["name"] not in DECAYS or optimizer.get("amsgrad"):  # which keeps the maximum
        return None
    key, default = DECAYS[optimizer["name"]]
    given: Any = momentum if key == "momentum" else optimizer.get(key, default)
    decay = given[1] if key == "betas" else given
    return 1 / (1 - decay) if 0 < decay < 1 else None


def describe_validity(
    config: dict[str, Any],
    steps: pd.DataFrame,
    epochs: pd.DataFrame,
    chances: dict[str, tables.Chance],
    preserved: str,
    outcome: dict[str, str],
) -> Iterator[dict[str, str]]:
    """Yield a row for each data set and schedule, with every cell as text.

    Args:
        config: the configuration.
        steps: the table ``steps.csv``.
        epochs: the table ``epochs.csv``.
        chances: the level of chance of each data set.
        preserved: the name of the boundary that keeps the whole state.
        outcome: ``boundary`` and ``baseline`` of the first primary outcome. Accuracies are those of
            these two, unless the schedule has neither.
    """
    compared = [outcome["boundary"], outcome["baseline"]]
    for (dataset, schedule), of_cell in epochs.groupby(["dataset", "schedule"]):
        is_compared = of_cell["boundary"].isin(compared)
        of_arms = of_cell[is_compared] if is_compared.any() else of_cell
        _, own = find_optimizer(config, str(schedule))
        in_cell = steps[(steps["dataset"] == dataset) & (steps["schedule"] == schedule)]
        counts = count_session_steps(in_cell)
        memory = compute_memory(own, in_cell["momentum"].max())
        before = find_train_top1(of_arms)
        measured = [f"{100 * top1:.0f} %" for top1 in before]
        if config["optimizer_state"]:
            measured.insert(0, "not measured (given weights)")
        after = counts if config["optimizer_state"] else counts[1:]
        final = find_final(of_arms)["top1"].mean() - chances[str(dataset)].top1
        yield {
            "dataset": str(dataset),
            "schedule": str(schedule),
            "memory": f"{memory:,.0f} steps ({own['name']})" if memory else own["name"],
            "session_steps": join_shortened([f"{number:,}" for number in counts]),
            "train_top1": join_shortened(measured) or "no boundary",
            "above_chance": f"{100 * final:+.1f} points",
            "spikes": describe_spikes(in_cell[in_cell["boundary"] == preserved]),
            "gap": describe_gap(of_cell, outcome),
            "remarks": "; ".join(list_remarks(memory, after, before)) or "none",
        }


def join_shortened(texts: list[str]) -> str:
    """Join texts with commas. Of more than six, only the first three and the last three stay."""
    return ", ".join(texts if len(texts) <= 6 else [*texts[:3], "…", *texts[-3:]])


def list_remarks(memory: float | None, counts: list[int], train_top1: list[float]) -> list[str]:
    """Return what limits the answer, as phrases.

    Args:
        memory: the steps that the optimizer remembers.
        counts: the steps of each session that begins with a boundary.
        train_top1: the train top-1 before each boundary between sessions, a fraction.
    """
    found = []
    if memory and counts and max(counts) < memory:
        found.append("no session after a boundary is as long as the optimizer's memory")
    if max(train_top1, default=0) >= MEMORIZED:
        found.append("the training images were memorized before a boundary")
    return found


def count_session_steps(steps: pd.DataFrame) -> list[int]:
    """Return the number of steps of each session of the runs that have the most sessions."""
    several = steps[steps["boundary"] != UNINTERRUPTED]
    used = several if len(several) else steps
    one = used[(used["method"] == used["method"].iloc[0]) & (used["seed"] == used["seed"].iloc[0])]
    return one.groupby("session").size().tolist()


def find_train_top1(epochs: pd.DataFrame) -> list[float]:
    """Return the mean train top-1 in the last epoch before each boundary between sessions."""
    train = epochs[(epochs["split"] == "train") & (epochs["boundary"] != UNINTERRUPTED)]
    last = train.groupby(["method", "seed", "session"])["top1"].last()
    of_sessions = last.groupby("session").mean()
    return of_sessions.iloc[:-1].tolist()


def find_final(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return the last validation of each run, by boundary and seed."""
    valid = epochs[epochs["split"] == "valid"]
    return valid.groupby(["boundary", "seed"]).last()


def describe_gap(epochs: pd.DataFrame, outcome: dict[str, str]) -> str:
    """Return the final difference in valid top-1 with the running and re-estimated statistics."""
    final = find_final(epochs)
    present = final.index.get_level_values("boundary").unique()
    if not {outcome["boundary"], outcome["baseline"]} <= set(present):
        return "not compared"
    columns = ["top1", "reestimated_top1"]
    if "reestimated_top1" not in final or final["reestimated_top1"].isna().all():
        return "no batch norm"
    gap = final.loc[outcome["boundary"], columns] - final.loc[outcome["baseline"], columns]
    plain, reestimated = 100 * gap.to_numpy(float).mean(axis=0)
    return f"{plain:+.1f} points, re-estimated {reestimated:+.1f}"


def describe_spikes(steps: pd.DataFrame) -> str:
    """Return how often the loss of runs jumps far above that of the steps before.

    Args:
        steps: the steps of the runs that keep all state.
    """
    if steps.empty:
        return "no such run"
    losses = [run["loss"].to_numpy() for _, run in steps.groupby("seed")]
    num_judged = sum(max(len(loss) - SPIKE_WINDOW, 0) for loss in losses)
    if not num_judged:
        return "too few steps"
    return f"{1000 * sum(map(count_spikes, losses)) / num_judged:.1f} in 1,000 steps"


def count_spikes(loss: np.ndarray) -> int:
    """Count the losses (steps,) far above the median of the ``SPIKE_WINDOW`` losses before."""
    if len(loss) <= SPIKE_WINDOW:
        return 0
    windows = np.lib.stride_tricks.sliding_window_view(loss[:-1], SPIKE_WINDOW)
    median = np.median(windows, axis=1)
    scatter = np.median(np.abs(windows - median[:, None]), axis=1)
    return int((loss[SPIKE_WINDOW:] > median + SPIKE_FACTOR * scatter).sum())
