"""The runs of an experiment, their sessions, and the folders of both.

A run trains one method on one data set with one seed, in sessions. A method is
``SCHEDULE-BOUNDARY``. Up to the first boundary, the methods of a schedule are the same run.
Therefore they share their first session, whose folder has the schedule's name. An uninterrupted run
has a single session of its own.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from optstate import UNINTERRUPTED

FOLDER = "{dataset}/{name}/seed{seed}/session{number}"  # of a session, below the folder of all runs


def split_method(method: str) -> tuple[str, str]:
    """Return the schedule and the boundary of a method, split at the first hyphen."""
    schedule, _, boundary = method.partition("-")
    return schedule, boundary


@dataclass(frozen=True, order=True)
class Session:
    """A training job, possibly part of several runs.

    Attributes:
        dataset: the data set's name.
        name: the method, or the schedule if its methods share the session.
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
        """The name of the boundary that the session begins with; empty in a shared session."""
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
    """All runs of an experiment, sorted, so that the order in the configuration changes nothing."""

    datasets: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    num_sessions: int

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
            for method in sorted(self.methods):
                for seed in sorted(self.seeds):
                    yield Run(dataset, method, seed, self._sessions(dataset, method, seed))

    def _sessions(self, dataset: str, method: str, seed: int) -> tuple[Session, ...]:
        schedule, boundary = split_method(method)
        if boundary == UNINTERRUPTED:
            return (Session(dataset, method, seed, 1),)
        names = [schedule, *[method] * (self.num_sessions - 1)]
        return tuple(Session(dataset, name, seed, number) for number, name in enumerate(names, 1))

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

    def previous(self, session: Session) -> Session | None:
        """Return the session that ``session`` continues from, or None for the first of a run."""
        before = self.runs_of[session][0].sessions[: session.number - 1]
        return before[-1] if before else None

    @property
    def have_boundaries(self) -> bool:
        """Whether any run has more than one session."""
        return any(len(run.sessions) > 1 for run in self)
