"""Measure training: norms, accuracy, seconds, and a record of every step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils import get_total_norm

from optstate.training.recording import Recorder, Row

TOP_K = (1, 2, 3)
NORMS = ("grad_norm", "update_norm")
# Norms are recorded at a session's first 50 steps and then at every tenth, because computing them
# reads and writes all parameters once more.
NORM_STEPS = 50
NORM_EVERY = 10
FETCH_SECONDS = 30  # how long step records stay on the device, unseen by TensorBoard


def has_norms(step: int) -> bool:
    """Return whether norms are recorded at ``step``, counted in the session from 1."""
    return step <= NORM_STEPS or step % NORM_EVERY == 0


class OptimizerStep:
    """Take an optimizer's steps, and measure the norms of gradient and parameter change.

    Norms are L2 norms over all parameters. The memory for the parameters before a step is reused,
    because allocating it can take longer than copying into it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.before: list[torch.Tensor] = []

    @torch.no_grad()
    def __call__(self, with_norms: bool, norm: float | None = None) -> list[torch.Tensor]:
        """Take a step.

        Args:
            with_norms: whether norms are measured.
            norm: rescale the change of the parameters to this norm. None: do not.

        Returns:
            The norms of the gradient and of the change, if they are measured.
        """
        if not with_norms:
            self.optimizer.step()
            return []
        given = [p for group in self.optimizer.param_groups for p in group["params"]]
        # Integers have no norm, and no optimizer changes them.
        parameters = [p for p in given if p.is_floating_point() or p.is_complex()]
        self.before = self.before or [torch.empty_like(p) for p in parameters]
        torch._foreach_copy_(self.before, parameters)
        # Measure gradients before the step, because an optimizer may change them in place. Avoid
        # foreach kernels, because they may round sums differently.
        gradients = [p.grad for p in parameters if p.grad is not None]
        grad_norm = get_total_norm(gradients, foreach=False)
        self.optimizer.step()
        if norm is not None:
            rescale_change(self.before, parameters, norm)
        pairs = zip(self.before, parameters, strict=True)
        changes = [before.sub_(now) for before, now in pairs]
        return [grad_norm, get_total_norm(changes, foreach=False)]


def rescale_change(
    before: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], norm: float
) -> None:
    """Move ``parameters`` such that their change has a given L2 norm, in the same direction.

    A change that already has this norm is not touched. A change of zero stays zero.

    Args:
        before: the parameters before the change.
        parameters: the parameters after the change.
        norm: the norm over all parameters.
    """
    changes = [now - old for old, now in zip(before, parameters, strict=True)]
    found = get_total_norm(changes, foreach=False)
    # `norm / found` would multiply by the reciprocal, so equal norms would not give exactly 1.
    excess = torch.where(found > 0, torch.full_like(found, norm) / found, 1) - 1
    for parameter, change in zip(parameters, changes, strict=True):
        parameter.add_(change * excess)


def count_correct(logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Count the labels among the k highest logits, for each k of ``TOP_K``.

    With k classes or fewer, every label counts.

    Args:
        logits: (images, classes).
        labels: (images,).

    Returns:
        For each k, a float tensor without dimensions.
    """
    hits = _find_hits(logits, labels)
    return [hits[:, :k].sum() for k in TOP_K]


def _find_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return 1 where the k-th highest logit is the label's, else 0 (images, largest of TOP_K)."""
    highest = logits.topk(min(max(TOP_K), logits.shape[1])).indices
    return (highest == labels[:, None]).float()


def count_by_class(logits: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Count the images, and those whose label has the highest logit, of each class.

    Args:
        logits: (images, classes).
        labels: (images,).
        num_classes: the number of classes.

    Returns:
        float32 (2, classes).
    """
    members = (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()
    hits = _find_hits(logits, labels)[:, :1]
    return torch.stack([members.sum(0), (members * hits).sum(0)])


def make_epoch_row(epoch: int, split: str, totals: np.ndarray, seconds: float) -> Row:
    """Return an epoch's row, with means over its images.

    Args:
        epoch: the epoch, counted through all sessions from 1.
        split: ``train`` or ``valid``.
        totals: sums over the images: their number, loss, and hits for each of ``TOP_K``.
        seconds: the duration of the epoch.
    """
    images, loss, *correct = totals.tolist()
    top_k = {f"top{k}": number / images for k, number in zip(TOP_K, correct, strict=True)}
    return {
        "epoch": epoch, "split": split, "loss": loss / images, **top_k,
        "images": int(images), "seconds": round(seconds, 3),
    }  # fmt: skip


class Stopwatch:
    """A stopwatch for a device. A GPU has its own clock, because it lags behind the host."""

    def __init__(self, device: torch.device) -> None:
        self.is_on_gpu = device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Restart from zero."""
        self.start_mark = self._mark()

    def read_seconds(self) -> float:
        """Return the seconds since the start, after all submitted work of the device is done."""
        now = self._mark()
        if not self.is_on_gpu:
            return now - self.start_mark
        now.synchronize()
        return self.start_mark.elapsed_time(now) / 1000

    def _mark(self) -> Any:
        if not self.is_on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class StepRecord:
    """One step, with values known to the host and measures that are still on the device."""

    row: Row
    num_images: int
    measures: torch.Tensor  # loss, hits for each of TOP_K, and the two norms if recorded


class StepRecords:
    """The records of a session's steps. Measures stay on the device and are fetched together.

    ``totals`` (images, loss, and hits for each of ``TOP_K``) and ``seconds`` are sums over the
    fetched steps of the current epoch.
    """

    def __init__(self, recorder: Recorder, device: torch.device) -> None:
        self.recorder = recorder
        self.stopwatch = Stopwatch(device)
        self.waiting: list[StepRecord] = []
        self.totals = np.zeros(2 + len(TOP_K))
        self.seconds = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Restart the clock: the time since the last fetch does not count as training."""
        self.fetched_at = time.perf_counter()
        self.stopwatch.start()

    def add(self, record: StepRecord) -> None:
        """Add a step. Fetch all steps if the last fetch is more than ``FETCH_SECONDS`` ago."""
        self.waiting.append(record)
        if time.perf_counter() - self.fetched_at > FETCH_SECONDS:
            self.fetch()

    def fetch(self) -> None:
        """Copy the waiting measures to the host, and add them to the recorder and the totals."""
        if not self.waiting:
            return
        lengths = [len(record.measures) for record in self.waiting]
        measures = torch.cat([record.measures for record in self.waiting])
        self.seconds += self.stopwatch.read_seconds()
        values = measures.cpu().split(lengths)
        pairs = zip(self.waiting, values, strict=True)
        self.recorder.record_steps([self._count(record, v.tolist()) for record, v in pairs])
        self.waiting = []
        self.start_clock()

    def _count(self, record: StepRecord, values: list[float]) -> Row:
        """Add a step's values to the totals. Returns the step's row."""
        loss, *correct = values[: 1 + len(TOP_K)]
        norms: list[Any] = values[1 + len(TOP_K) :] or [None] * len(NORMS)
        self.totals += [record.num_images, loss * record.num_images, *correct]
        results = {"loss": loss, "top1": correct[0] / record.num_images}
        return record.row | results | dict(zip(NORMS, norms, strict=True))

    def make_train_row(self, epoch: int) -> Row:
        """Fetch the last steps of an epoch. Returns the epoch's row for the training split."""
        self.fetch()
        return make_epoch_row(epoch, "train", self.totals, self.seconds)

    def finish_epoch(self, train: Row, valid: Row | None) -> None:
        """Record the rows of an epoch, and reset the sums for the next."""
        self.recorder.record_epoch(train, valid)
        self.totals, self.seconds = np.zeros_like(self.totals), 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the rows recorded so far, and the sums of the current epoch."""
        return {
            "recorder": self.recorder.state_dict(),
            "totals": self.totals.tolist(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.recorder.load_state_dict(state["recorder"])
        self.totals, self.seconds = np.array(state["totals"]), state["seconds"]
