"""What Snakemake prints on the terminal: short errors, and how long training will take.

Its own log in ``.snakemake/log`` keeps every detail.
"""

import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from snakemake.logging import ColorizingTextHandler, logger
from snakemake_interface_logger_plugins.common import LogEvent

from optstate.job import format_duration

if TYPE_CHECKING:  # snakemake.dag and snakemake.workflow import each other
    from snakemake.jobs import Job
    from snakemake.workflow import Workflow

END = "At least one job did not complete successfully."
HOW_TO_GO_ON = (
    "Not all jobs finished. If there is an error above, fix it. Then run the same command again: "
    "it continues from the last saved states."
)
LEFT_OUT = re.compile(  # what jobs print themselves, or what nobody needs
    r"CalledProcessError in file|Exiting because a job execution failed"
    r"|Select jobs to execute|Execute \d+ jobs\.\.\."
)


def shorten_messages(workflow: "Workflow", count_epochs: Callable[["Job"], int]) -> None:
    """Let Snakemake's messages on the terminal be formatted by :class:`TerminalFormatter`."""
    for handler in logger.handlers:
        if isinstance(handler, ColorizingTextHandler) and handler.formatter:
            handler.setFormatter(TerminalFormatter(handler.formatter, workflow, count_epochs))


class TerminalFormatter(logging.Formatter):
    """Formats Snakemake's messages.

    Args:
        usual: formats the messages that are printed as usual.
        workflow: the workflow.
        count_epochs: returns how many epochs a job trains.
    """

    def __init__(
        self, usual: logging.Formatter, workflow: "Workflow", count_epochs: Callable[["Job"], int]
    ) -> None:
        super().__init__()
        self.usual = usual
        self.workflow = workflow
        self.count_epochs = count_epochs
        self.messages: dict[int, str] = {}  # by job
        self.started = 0.0  # when the first training job started, in seconds
        self.epochs: dict[int, int] = {}  # to train, by job
        self.finished: set[int] = set()

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a message. If it is empty, nothing is printed."""
        fields = vars(record)
        event = fields.get("event")
        if event == LogEvent.JOB_INFO:
            self._note_start(fields)
            _, _, text = self.usual.format(record).partition("\n")
            return text.replace(f"Job {fields['jobid']}:", time.strftime("%H:%M:%S"), 1)
        if event == LogEvent.JOB_FINISHED:
            self.finished.add(fields["job_id"])
            return ""
        if event == LogEvent.PROGRESS:
            return f"{fields['done']} of {fields['total']} jobs done{self._estimate()}"
        if event == LogEvent.JOB_ERROR:
            job = self.messages.get(fields["jobid"], fields["rule_name"])
            return f"Not finished: {job}. Log: {', '.join(fields['log'])}"
        text = self.usual.format(record)
        if END in text:
            return HOW_TO_GO_ON
        return "" if LEFT_OUT.search(text) else text

    def _note_start(self, fields: dict[str, Any]) -> None:
        self.messages[fields["jobid"]] = fields["rule_msg"] or fields["rule_name"]
        if not self.epochs:
            dag = self.workflow.dag
            jobs = dag.needrun_jobs(exclude_finished=False)
            self.epochs = {dag.jobid(job): self.count_epochs(job) for job in jobs}
        if not self.started and self.epochs.get(fields["jobid"]):
            self.started = time.monotonic()

    def _estimate(self) -> str:
        """How long training will take, at the mean speed so far."""
        done = sum(self.epochs.get(job, 0) for job in self.finished)
        left = sum(self.epochs.values()) - done
        if not (done and left):
            return ""
        seconds = (time.monotonic() - self.started) * left / done
        return f", about {format_duration(seconds)} of training left"
