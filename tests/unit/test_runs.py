"""The runs and sessions of an experiment, and their folders."""

import itertools

import pytest

from optstate.experiment.runs import (
    Runs,
    Session,
    cross_boundary,
    find_plain,
    name_sessions,
    split_method,
)

BOUNDARIES = {"new": {"keep": []}, "keep-all": {"keep": "all"}}
METHODS = ["c-new", "c-uninterrupted", "c-keep-all", "d-new"]


def name(methods, boundaries, num_sessions, state=None):
    config = {
        "methods": methods, "boundaries": boundaries, "sessions": [1] * num_sessions,
        "optimizer_state": state,
    }  # fmt: skip
    return name_sessions(config)


RUNS = Runs(["b", "a"], [1, 0], name(METHODS, BOUNDARIES, 3))


def test_a_method_is_split_at_its_first_hyphen():
    assert split_method("one_cycle-keep-all") == ("one_cycle", "keep-all")


def test_runs_are_sorted_whatever_their_order():
    assert list(RUNS) == sorted(RUNS)
    for methods in itertools.permutations(METHODS):
        names = name(methods, dict(reversed(BOUNDARIES.items())), 3)
        assert list(names.items()) == list(RUNS.session_names.items())
    reordered = Runs(["a", "b"], [0, 1], dict(reversed(RUNS.session_names.items())))
    assert list(reordered) == list(RUNS)
    assert len(list(RUNS)) == 2 * 4 * 2


def test_the_first_session_of_a_schedule_is_shared():
    shared = Session("a", "c", 0, 1)
    assert [run.method for run in RUNS.runs_of[shared]] == ["c-keep-all", "c-new"]
    assert RUNS.previous(Session("a", "c-new", 0, 2)) == shared
    assert RUNS.previous(Session("a", "c-new", 0, 3)) == Session("a", "c-new", 0, 2)
    assert RUNS.previous(shared) is None


def test_an_uninterrupted_run_has_one_session_of_its_own():
    own = Session("a", "c-uninterrupted", 0, 1)
    (run,) = RUNS.runs_of[own]
    assert run.sessions == (own,)
    assert own.is_whole_run
    assert not Session("a", "c", 0, 1).is_whole_run

    def have_boundaries(method, num_sessions, state=None):
        names = name([method], BOUNDARIES, num_sessions, state)
        return Runs(["a"], [0], names).have_boundaries

    assert have_boundaries("c-new", 2)
    assert not have_boundaries("c-new", 1)
    assert have_boundaries("c-new", 1, "mine.pt")
    assert not have_boundaries("c-uninterrupted", 2)
    assert not have_boundaries("c-uninterrupted", 1, "mine.pt")


def test_every_session_is_one_job():
    assert len(RUNS.sessions) == len(set(RUNS.sessions)) == 2 * 2 * (2 + 2 * 3 + 1)


def test_folders_of_sessions_and_runs():
    assert Session("a", "c", 7, 1).folder == "a/c/seed7/session1"
    assert Session("a", "c-new", 7, 2).folder == "a/c-new/seed7/session2"
    assert [run.folder for run in RUNS][:2] == ["a/c-keep-all/seed0", "a/c-keep-all/seed1"]


def test_names_of_a_run():
    run = next(iter(RUNS))
    assert run.names() == {
        "dataset": "a", "schedule": "c", "boundary": "keep-all", "method": "c-keep-all",
        "seed": "0",
    }  # fmt: skip


def test_a_job_reads_the_same_runs():
    assert list(Runs.from_json(RUNS.to_json())) == list(RUNS)


@pytest.mark.parametrize(
    ("boundary", "number", "options"),
    [
        ({"keep": []}, 2, {"keep": []}),
        ({"keep": ["b", "a"]}, 2, {"keep": ["a", "b"]}),
        ({"keep": [], "baseline": "x"}, 2, {"keep": []}),
        ({"keep": [], "at": [3]}, 3, {"keep": []}),
        ({"keep": [], "at": [3]}, 2, {"keep": "all"}),
        ({"keep": [], "at": [3]}, 4, {"keep": "all"}),
        # Options that last from the first of these sessions to the end of the run.
        ({"keep": [], "at": [3], "step_size": "x"}, 2, {"keep": "all"}),
        ({"keep": [], "at": [3], "step_size": "x"}, 4, {"keep": "all", "step_size": "x"}),
        ({"keep": [], "at": [3], "reshuffle": True}, 4, {"keep": "all", "reshuffle": True}),
        # Options of a single session.
        ({"keep": [], "at": [3], "lr_factor": 0.5, "rebuild_steps": 2}, 4, {"keep": "all"}),
    ],
)
def test_what_happens_at_a_boundary(boundary, number, options):
    assert cross_boundary(boundary, number) == options


@pytest.mark.parametrize(
    ("boundaries", "expected"),
    [
        (["preserve", "all"], "preserve"),
        (["b", "a"], "a"),
        ([], ""),
        (["late"], "late"),
    ],
)
def test_a_plain_boundary_is_found(boundaries, expected):
    """A boundary with another option is not plain, whatever its name."""
    plain = {name: {"keep": "all", "baseline": "new"} for name in boundaries}
    if "late" in plain:  # before session 2, everything is kept, too
        plain["late"]["at"] = [3]
    others = {"new": {"keep": []}, "preserve": {"keep": "all", "warmup_steps": 5}}
    assert find_plain(others | plain, keep="all") == expected


class TestSharedSessions:
    """Sessions with the same history are one job."""

    boundaries = BOUNDARIES | {
        "late": {"keep": [], "at": [4]},
        "early": {"keep": [], "at": [2]},
        "both": {"keep": [], "at": [2, 4]},
        "also-late": {"keep": [], "at": [4], "baseline": "new"},
        "every": {"keep": [], "at": [2, 3, 4]},
    }

    def name(self, *names: str) -> dict[str, list[str]]:
        return name([f"c-{name}" for name in names], self.boundaries, 4)

    def test_a_run_is_the_preserved_run_until_it_loses_its_state(self):
        names = self.name("keep-all", "late")
        assert names["c-late"] == ["c", "c-keep-all", "c-keep-all", "c-late"]
        assert names["c-keep-all"] == ["c", *["c-keep-all"] * 3]

    def test_the_folder_is_that_of_the_preserved_run_even_if_this_is_not_a_method(self):
        """So adding it trains nothing again."""
        assert self.name("late")["c-late"] == self.name("late", "keep-all")["c-late"]

    def test_other_histories_are_shared_under_the_first_name(self):
        names = self.name("both", "early")
        assert names["c-early"] == ["c", "c-both", "c-both", "c-early"]
        assert names["c-both"] == ["c", *["c-both"] * 3]
        assert self.name("late", "also-late")["c-late"][-1] == "c-also-late"

    def test_the_same_sessions_in_other_words_are_the_same(self):
        assert self.name("new", "every")["c-new"] == self.name("new", "every")["c-every"]

    def test_ten_losses_at_different_times_cost_what_differs(self):
        boundaries = {"preserve": {"keep": "all"}} | {
            f"at{n}": {"keep": [], "at": [n]} for n in range(2, 12)
        }
        names = name([f"c-{name}" for name in boundaries], boundaries, 11)
        runs = Runs(["a"], [0], names)
        assert len(runs.sessions) == 11 + sum(range(1, 11))
        (shared,) = (s for s in runs.sessions if s.name == "c-preserve" and s.number == 10)
        assert [run.method for run in runs.runs_of[shared]] == ["c-at11", "c-preserve"]
        assert runs.earlier(Session("a", "c-at3", 0, 3)) == (
            Session("a", "c", 0, 1), Session("a", "c-preserve", 0, 2),
        )  # fmt: skip

    def test_a_used_boundary_that_keeps_everything_owns_the_sessions(self):
        """The default `preserve`, which no method uses, does not."""
        boundaries = {"preserve": {"keep": "all"}, "stay": {"keep": "all"}, "new": {"keep": []}}
        names = name(["c-stay", "c-new"], boundaries, 2)
        assert names == {"c-new": ["c", "c-new"], "c-stay": ["c", "c-stay"]}

    def test_a_lost_state_cannot_be_kept_in_session_1(self):
        boundaries = {
            "preserve": {"keep": "all"}, "later": {"keep": "all", "at": [2]},
            "new": {"keep": []}, "slow": {"keep": [], "lr_factor": 0.5},
        }  # fmt: skip
        methods = [f"c-{name}" for name in ("later", "new", "slow")]
        names = name(methods, boundaries, 2, "lost")
        assert names["c-later"] == ["c-later", "c-later"]
        assert names["c-new"] == ["c-later", "c-new"]
        assert names["c-slow"] == ["c-slow", "c-slow"]
        assert name(["c-new"], boundaries, 1, "lost") == {"c-new": ["c-new"]}

    def test_schedules_share_nothing(self):
        names = name(["c-late", "d-late"], self.boundaries, 4)
        assert names["d-late"] == ["d", "d-keep-all", "d-keep-all", "d-late"]
