"""The runs of an experiment, their sessions, and the folders of both.

A run trains one method on one data set with one seed, in sessions. A method is
``SCHEDULE-BOUNDARY``. Sessions with the same history are trained once: the methods of a schedule
share their first session, and later ones up to the first boundary at which they do something
different. An uninterrupted run has a single session of its own. If a run starts from a given
optimizer's state, its first session begins with a boundary, too.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from optstate import UNINTERRUPTED

Boundary = dict[str, Any]  # an entry of the configuration's `boundaries`

# These options of a boundary apply until the end of the run; the others apply to one session.
LASTING = ("reshuffle", "step_size")
LOST = "lost"  # the value of `optimizer_state` if only the weights were saved

FOLDER = "{dataset}/{name}/seed{seed}/session{number}"  # of a session, below the folder of all runs
SESSION_FILES = ("steps.csv", "epochs.csv", "made_by.json", "session.sha256")  # and checkpoint.pt


def split_method(method: str) -> tuple[str, str]:
    """Return the schedule and the boundary of a method, split at the first hyphen."""
    schedule, _, boundary = method.partition("-")
    return schedule, boundary


def list_schedules(methods: Sequence[str]) -> list[str]:
    """Return the schedules of the methods, sorted."""
    return sorted({split_method(method)[0] for method in methods})


def list_boundaries(methods: Sequence[str]) -> set[str]:
    """Return the boundaries of the methods, including that of uninterrupted runs."""
    return {split_method(method)[1] for method in methods}


def find_first_boundary(config: dict[str, Any]) -> int:
    """Return the number of the first session that begins with a boundary."""
    return 1 if config["optimizer_state"] else 2


def find_optimizer(config: dict[str, Any], schedule: str) -> tuple[str, dict[str, Any]]:
    """Return the key and the value of a schedule's optimizer: its own, or else that of all."""
    if "optimizer" in config["schedules"][schedule]:
        return f"schedules.{schedule}.optimizer", config["schedules"][schedule]["optimizer"]
    return "optimizer", config["optimizer"]


def cross_boundary(boundary: Boundary, number: int, state: str | None = None) -> Boundary:
    """Return the options with which session ``number`` begins, the same for equal meaning.

    Args:
        boundary: an entry of ``boundaries``. Before sessions that are not in its ``at``, everything
            is kept.
        number: the session's number, not before the first boundary.
        state: the key ``optimizer_state``. Before session 1, a lost state cannot be kept.
    """
    if state == LOST and number == 1:
        return cross_boundary(boundary, number) | {"keep": []}
    at = boundary.get("at", [number])
    options = {key: value for key, value in boundary.items() if key not in ("at", "baseline")}
    if number not in at:
        has_begun = number > min(at)
        return {"keep": "all"} | {
            key: options[key] for key in LASTING if has_begun and key in options
        }
    if isinstance(options["keep"], list):
        options["keep"] = sorted(options["keep"])
    return options


def cross_boundaries(boundary: Boundary, config: dict[str, Any]) -> list[Boundary]:
    """Return the options at every boundary of a run, as :func:`cross_boundary` does for one."""
    numbers = range(find_first_boundary(config), len(config["sessions"]) + 1)
    return [cross_boundary(boundary, number, config["optimizer_state"]) for number in numbers]


def list_baselines(boundary: Boundary) -> list[str]:
    """Return the boundaries that a boundary names as its baselines."""
    given = boundary.get("baseline", [])
    return given if isinstance(given, list) else [given]


def find_plain(boundaries: dict[str, Boundary], keep: str | list[str]) -> str:
    """Return the name of the boundary that does nothing but ``keep``, at every boundary.

    Of several, return the one with the usual name, ``preserve`` or ``new``, and the first by name
    otherwise. If there is none, return an empty string.
    """
    usual = "preserve" if keep == "all" else "new"
    # Before sessions that are not in `at`, everything is kept anyway.
    options = {"keep", "baseline", *(["at"] if keep == "all" else [])}
    plain = [
        name
        for name, boundary in boundaries.items()
        if boundary["keep"] == keep and boundary.keys() <= options
    ]
    return usual if usual in plain else min(plain, default="")


def choose_plain(config: dict[str, Any], keep: str | list[str]) -> str:
    """Return what :func:`find_plain` finds in the boundaries that methods use, or else in all.

    Args:
        config: ``boundaries`` and ``methods``.
        keep: ``"all"`` or an empty list.
    """
    boundaries, used = config["boundaries"], list_boundaries(config["methods"])
    of_methods = {name: boundary for name, boundary in boundaries.items() if name in used}
    return find_plain(of_methods, keep) or find_plain(boundaries, keep)


def name_sessions(config: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of the sessions of each method.

    A session before the first boundary has the schedule's name. A later one has the name of a
    method with the same history: of the one whose boundary keeps everything, or else of the first
    by name.

    Args:
        config: ``methods``, ``boundaries``, ``sessions`` and ``optimizer_state``.
    """
    methods, boundaries = config["methods"], config["boundaries"]
    several = sorted(m for m in methods if split_method(m)[1] != UNINTERRUPTED)
    keeping = choose_plain(config, keep="all")
    keepers = [f"{split_method(m)[0]}-{keeping}" for m in several] if keeping in boundaries else []
    if config["optimizer_state"] == LOST:  # a boundary that no method uses may not be allowed
        keepers = [method for method in keepers if method in methods]
    owners: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for method in (*keepers, *several):
        schedule, boundary = split_method(method)
        crossed = cross_boundaries(boundaries[boundary], config)
        names[method] = [schedule] * (find_first_boundary(config) - 1)
        for number in range(1, len(crossed) + 1):
            history = json.dumps([schedule, crossed[:number]], sort_keys=True)
            names[method].append(owners.setdefault(history, method))
    return {method: names.get(method, [method]) for method in sorted(methods)}


@dataclass(frozen=True, order=True)
class Session:
    """A training job, possibly part of several runs.

    Attributes:
        dataset: the data set's name.
        name: the schedule before the first boundary, else a method that the session is part of.
        seed: the run's seed.
        number: the session's number in its runs, from 1.
    """

    dataset: str
    name: str
    seed: int
    number: int

    @property
    def schedule(self) -> str:
        """The name of the schedule."""
        return split_method(self.name)[0]

    @property
    def boundary(self) -> str:
        """The part of the name after the schedule: a boundary, ``uninterrupted``, or nothing."""
        return split_method(self.name)[1]

    @property
    def is_whole_run(self) -> bool:
        """Whether this one session trains all epochs of an uninterrupted run."""
        return self.boundary == UNINTERRUPTED

    @property
    def folder(self) -> str:
        """The path of the session's folder, below the folder of all runs."""
        return FOLDER.format(**vars(self))


@dataclass(frozen=True, order=True)
class Run:
    """A model that is trained: one method on one data set with one seed."""

    dataset: str
    method: str
    seed: int
    sessions: tuple[Session, ...] = field(compare=False)

    @property
    def folder(self) -> str:
        """The path of the run's own folder, below the folder of all runs."""
        return f"{self.dataset}/{self.method}/seed{self.seed}"

    def names(self) -> dict[str, str]:
        """Return the columns that identify the run in the tables, with their values."""
        schedule, boundary = split_method(self.method)
        return {
            "dataset": self.dataset, "schedule": schedule, "boundary": boundary,
            "method": self.method, "seed": str(self.seed),
        }  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """All runs of an experiment, sorted, so that the order in the configuration changes nothing.

    Attributes:
        datasets: the names of the data sets.
        seeds: the seeds.
        session_names: for each method, the result of :func:`name_sessions`.
    """

    datasets: Sequence[str]
    seeds: Sequence[int]
    session_names: dict[str, list[str]]

    @classmethod
    def from_json(cls, text: str) -> "Runs":
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return JSON of everything that determines which runs and sessions exist."""
        return json.dumps(asdict(self))

    def __iter__(self) -> Iterator[Run]:
        """Yield every run, by data set, method and seed."""
        for dataset in sorted(self.datasets):
            for method, names in sorted(self.session_names.items()):
                for seed in sorted(self.seeds):
                    yield Run(
                        dataset, method, seed,
                        tuple(Session(dataset, name, seed, n) for n, name in enumerate(names, 1)),
                    )  # fmt: skip

    @property
    def methods(self) -> list[str]:
        """The names of all methods, sorted."""
        return sorted(self.session_names)

    @cached_property
    def runs_of(self) -> dict[Session, list[Run]]:
        """The runs that each session is part of. Sessions are sorted."""
        found: dict[Session, list[Run]] = defaultdict(list)
        for run in self:
            for session in run.sessions:
                found[session].append(run)
        return dict(sorted(found.items()))

    @cached_property
    def sessions(self) -> list[Session]:
        """Every session once, sorted."""
        return list(self.runs_of)

    def earlier(self, session: Session) -> tuple[Session, ...]:
        """Return the sessions of the same run before ``session``, in their order."""
        return self.runs_of[session][0].sessions[: session.number - 1]

    def previous(self, session: Session) -> Session | None:
        """Return the session that ``session`` continues from, or None for the first of a run."""
        return self.earlier(session)[-1] if session.number > 1 else None

    @property
    def have_boundaries(self) -> bool:
        """Whether any session begins with a boundary."""
        return any(session.boundary not in ("", UNINTERRUPTED) for session in self.sessions)
