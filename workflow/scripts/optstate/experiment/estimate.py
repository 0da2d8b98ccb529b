"""Estimate an experiment before it runs: jobs, GPU hours, disk space, and hours on several GPUs.

``make estimate`` runs this. The hours are the time of all jobs divided by the number of GPUs, or
the time of the longest chain of sessions that wait for each other if that is more. Waiting in a
cluster's queue is not included.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from optstate.experiment import configuration
from optstate.experiment.check import check
from optstate.experiment.configuration import all_runs, followed_session, session_spec
from optstate.experiment.runs import Runs, Session, find_optimizer, list_schedules
from optstate.experiment.schema import Config
from optstate.job import InputError, explain_os_error
from optstate.training.model import make_model
from optstate.training.weights import make_state

SECONDS_TO_START = 20  # per training job, to start Snakemake twice, torch and the GPU
NUM_CLASSES = 10  # the size of a checkpoint hardly depends on this number
COLUMNS = "GPUs     hours   GB at most, with keep_checkpoints: all      last      none"


@dataclass(frozen=True)
class Estimate:
    """The cost of an experiment.

    Attributes:
        num_sessions: the number of training jobs.
        num_runs: the number of models that are trained to the end.
        epochs: the epochs of all jobs together.
        seconds: the seconds of all jobs together.
        longest: the seconds of the longest chain of sessions that wait for each other.
    """

    num_sessions: int
    num_runs: int
    epochs: int
    seconds: float
    longest: float

    def hours(self, num_gpus: int) -> float:
        """Return the wall time on ``num_gpus`` GPUs, in hours."""
        return max(self.seconds / num_gpus, self.longest) / 3600

    def files(self, num_gpus: int) -> list[int]:
        """Return the most files of a checkpoint's size that exist at once.

        The files are checkpoints and the states that sessions continue from. A running session has
        up to three such states. A run's last state remains until all tables are collected. With
        ``none``, a checkpoint remains until all sessions that fork from it are done.

        Returns:
            The number of files if ``keep_checkpoints`` is ``all``, ``last`` and ``none``.
        """
        num_running = min(num_gpus, self.num_runs)
        most = self.num_sessions + self.num_runs + num_running
        last = 2 * self.num_runs + 2 * num_running
        none = self.num_runs + 4 * num_running
        return [most, min(last, most), min(none, most)]


def estimate(runs: Runs, config: Config, seconds_per_epoch: float) -> Estimate:
    """Return the cost of an experiment whose epochs take ``seconds_per_epoch`` each."""
    epochs = {session: session_spec(config, session).num_epochs for session in runs.sessions}
    seconds = {s: n * seconds_per_epoch + SECONDS_TO_START for s, n in epochs.items()}

    @functools.cache
    def find_end(session: Session) -> float:
        """Return when the session ends if every session starts as soon as it can."""
        needed = runs.previous(session), followed_session(config, session)
        return max((find_end(one) for one in needed if one), default=0.0) + seconds[session]

    return Estimate(
        num_sessions=len(runs.sessions),
        num_runs=len(list(runs)),
        epochs=sum(epochs.values()),
        seconds=sum(seconds.values()),
        longest=max(map(find_end, runs.sessions)),
    )


def checkpoint_bytes(config: Config) -> int:
    """Return the size in bytes of a checkpoint, with the optimizer that has the largest state."""
    model = make_model(config["model"], config["image_size"], NUM_CLASSES)
    state_bytes = []
    for name in list_schedules(config["methods"]):
        states = make_state(find_optimizer(config, name)[1], model.parameters()).values()
        entries = [entry for state in states for entry in state.values()]
        state_bytes.append(sum(entry.nbytes for entry in entries if torch.is_tensor(entry)))
    return max(state_bytes) + sum(tensor.nbytes for tensor in model.state_dict().values())


def describe(config: Config, all_num_gpus: Sequence[int], seconds_per_epoch: float) -> str:
    """Return the estimate as a few lines of text, with a row for each of ``all_num_gpus``."""
    total = estimate(all_runs(config), config, seconds_per_epoch)
    gigabytes = checkpoint_bytes(config) / 1e9
    lines = [
        f"{len(config['datasets'])} data sets x {len(config['methods'])} methods "
        f"x {len(config['seeds'])} seeds, sessions of {config['sessions']} epochs",
        f"{total.num_sessions} training jobs, {total.epochs:,} epochs, "
        f"{total.seconds / 3600:,.1f} GPU hours at {seconds_per_epoch:g} s an epoch",
        f"a checkpoint: {gigabytes:.3f} GB; kept at the end: "
        f"{total.num_sessions * gigabytes:,.1f} GB with keep_checkpoints: all, "
        f"{total.num_runs * gigabytes:,.1f} GB with last, 0 GB with none",
        "",
        COLUMNS,
    ]
    for num_gpus in all_num_gpus:
        disk = "".join(f"{number * gigabytes:10,.1f}" for number in total.files(num_gpus))
        lines.append(f"{num_gpus:4}   {total.hours(num_gpus):7,.1f}{disk:>54}")
    return "\n".join(lines)


def main(arguments: argparse.Namespace) -> None:
    """Print the estimate for the overlays ``configfile`` on config/config.yaml."""
    if not (arguments.seconds_per_epoch > 0 and min(arguments.gpus) > 0):
        raise InputError("--seconds-per-epoch and --gpus must be above 0.")
    config = configuration.load(*arguments.configfile)
    check(config)
    print(describe(config, arguments.gpus, arguments.seconds_per_epoch))


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument(
    "configfile", type=Path, nargs="+", help="the files for Snakemake's --configfile"
)
PARSER.add_argument(
    "--seconds-per-epoch", type=float, required=True, help="train + valid seconds, see epochs.csv"
)
PARSER.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 100], help="numbers of GPUs")

if __name__ == "__main__":
    try:
        main(PARSER.parse_args())
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {InputError(explain_os_error(error))}")
