"""The runs of an experiment: their methods, their sessions, and the folders of these.

A run trains one method on one data set with one seed, in sessions. A method is
``SCHEDULE-BOUNDARY``. Up to the first boundary the methods of a schedule are the same run, so they
share their first session, which lies under the schedule's name. A run without boundaries has one
session of its own. Nothing else in the project knows this.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from optstate import UNINTERRUPTED

FOLDER = "{dataset}/{name}/seed{seed}/session{number}"  # of a session, below that of all runs


def split_method(method: str) -> tuple[str, str]:
    """The schedule and the boundary of a method, which is split at its first hyphen."""
    schedule, _, boundary = method.partition("-")
    return schedule, boundary


@dataclass(frozen=True, order=True)
class Session:
    """A training job, possibly part of several runs.

    Attributes:
        dataset: the data set's name.
        name: the method, or the schedule alone where its methods share the session.
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
        """The path of the session's folder, below that of all runs."""
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
        """The path of the run's own folder, below that of all runs."""
        return f"{self.dataset}/{self.method}/seed{self.seed}"

    def names(self) -> dict[str, str]:
        """The columns that name the run in the tables."""
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
        """Everything that decides which runs and sessions there are."""
        return json.dumps(asdict(self))

    def __iter__(self) -> Iterator[Run]:
        """Every run, by data set, method and seed."""
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
        """Every session once, sorted, with the runs that it is part of."""
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
        """The session whose checkpoint a session continues from; None for the first of its runs."""
        before = self.runs_of[session][0].sessions[: session.number - 1]
        return before[-1] if before else None

    @property
    def have_boundaries(self) -> bool:
        """Whether any run has more than one session."""
        return any(len(run.sessions) > 1 for run in self)
