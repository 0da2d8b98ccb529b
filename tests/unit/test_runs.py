"""The runs and sessions of an experiment, and their folders."""

from optstate.experiment.runs import Runs, Session, split_method

RUNS = Runs(["b", "a"], ["c-new", "c-uninterrupted", "c-keep-all", "d-new"], [1, 0], 3)


def test_a_method_is_split_at_its_first_hyphen():
    assert split_method("one_cycle-keep-all") == ("one_cycle", "keep-all")


def test_runs_are_sorted_whatever_their_order():
    assert list(RUNS) == sorted(RUNS)
    reordered = Runs(["a", "b"], sorted(RUNS.methods, reverse=True), [0, 1], 3)
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
    assert Runs(["a"], ["c-new"], [0], 2).have_boundaries
    assert not Runs(["a"], ["c-new"], [0], 1).have_boundaries
    assert not Runs(["a"], ["c-uninterrupted"], [0], 2).have_boundaries


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
