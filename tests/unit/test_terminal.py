"""What Snakemake prints on the terminal."""

import logging
from types import SimpleNamespace

import pytest
from snakemake.logging import DefaultFormatter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from optstate.experiment import terminal

EPOCHS = {0: 0, 1: 3, 2: 3, 3: 6}  # of each job


class Dag:
    def needrun_jobs(self, exclude_finished: bool):
        assert not exclude_finished
        return list(EPOCHS)

    def jobid(self, job: int) -> int:
        return job


@pytest.fixture
def formatter():
    usual = DefaultFormatter(quiet={Quietness.REASON})
    workflow = SimpleNamespace(dag=Dag())
    return terminal.TerminalFormatter(usual, workflow, EPOCHS.get)


def show(formatter: terminal.TerminalFormatter, text: str | None = None, **fields: object) -> str:
    return formatter.format(logging.makeLogRecord({"msg": text, **fields}))


def start(formatter: terminal.TerminalFormatter, job: int) -> str:
    return show(
        formatter, event=LogEvent.JOB_INFO, jobid=job, rule_msg=f"Train {job}", rule_name="train"
    )


def finish(formatter: terminal.TerminalFormatter, job: int) -> str:
    assert show(formatter, event=LogEvent.JOB_FINISHED, job_id=job) == ""
    return show(formatter, event=LogEvent.PROGRESS, done=job + 1, total=4)


def test_a_job_starts_in_one_line(formatter, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "14:03:09")
    assert start(formatter, 1) == "14:03:09 Train 1"


def test_the_time_left_is_estimated_from_finished_epochs(formatter, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    start(formatter, 0)
    now += 50  # this job trains nothing
    assert finish(formatter, 0) == "1 of 4 jobs done"
    start(formatter, 1)
    start(formatter, 2)
    now += 60
    assert finish(formatter, 1) == "2 of 4 jobs done, about 3 min of training left"
    assert finish(formatter, 2) == "3 of 4 jobs done, about 60 s of training left"
    start(formatter, 3)
    assert finish(formatter, 3) == "4 of 4 jobs done"


def test_a_failed_job_is_one_line_that_names_its_log(formatter):
    start(formatter, 2)
    text = show(
        formatter, event=LogEvent.JOB_ERROR, jobid=2, rule_name="train", log=["logs/2.log"],
        shellcmd="python -m something --very-long",
    )  # fmt: skip
    assert text == "Not finished: Train 2. Log: logs/2.log"
    assert show(formatter, "Execute 2 jobs...") == ""
    assert show(formatter, 'RuleException:\nCalledProcessError in file "training.smk"') == ""


def test_the_last_line_says_how_to_go_on(formatter):
    text = show(formatter, f"WorkflowError:\n{terminal.END}", event=LogEvent.ERROR)
    assert text == terminal.HOW_TO_GO_ON
    other = "WorkflowError:\nsomething else"
    assert show(formatter, other, event=LogEvent.ERROR) == other
