"""The training loop: an epoch of training, an epoch of validation, a record of both."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from optstate.training.batches import ImageSet, as_input, augmented, batches, train_order
from optstate.training.checkpoint import Trained
from optstate.training.recording import Recorder, Row
from optstate.training.schedule import momentum_of
from optstate.training.spec import SessionSpec

TOP_K = (1, 2, 3)
NORMS = ("grad_norm", "update_norm")
NORM_STEPS = 50  # steps of a session, from its first, whose norms are recorded,
NORM_EVERY = 10  # and every tenth after: on every step they would cost 6 % of the time
FETCH_SECONDS = 30  # how long step records stay on the device before TensorBoard shows them


@dataclass(frozen=True)
class Session:
    """What stays the same during a session."""

    spec: SessionSpec
    train: ImageSet
    valid: ImageSet
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    records: "StepRecords"
    first_epoch: int  # counted through all sessions, from 1
    first_step: int
    save_if_due: Callable[[], None]  # called after every step and every epoch
    stop_if_asked: Callable[[], None]  # raises Interrupted


def num_steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Full batches and a last, partial one; not one of a single image (batch norm needs two)."""
    return num_images // batch_size + (num_images % batch_size > 1)


def train_session(session: Session, trained: Trained) -> None:
    """Train what ``trained`` has not behind it yet of the session's epochs.

    Raises:
        Interrupted: ``trained`` and the records are at a step's end, to be saved.
    """
    end = session.first_epoch + session.spec.num_epochs
    for epoch in range(trained.position.epoch + 1, end):
        train_row = train_epoch(session, trained, epoch)
        valid_row = validate(session, trained.model, epoch)
        session.records.end_epoch(train_row, valid_row)
        trained.position = replace(trained.position, epoch=epoch)
        session.save_if_due()


def train_epoch(session: Session, trained: Trained, epoch: int) -> Row:
    """Train the rest of an epoch, recording every step. Returns the epoch's row."""
    spec, records = session.spec, session.records
    trained.model.train()
    num_steps = num_steps_per_epoch(len(session.train), spec.batch_size)
    first_step = session.first_step + (epoch - session.first_epoch) * num_steps
    taken = trained.position.step + 1 - first_step
    order = train_order(session.train, spec.seed, epoch)
    rest = order[taken * spec.batch_size : num_steps * spec.batch_size]
    description = f"{spec.dataset} {spec.method} seed {spec.seed} epoch {epoch}"
    records.start_clock()
    for images, labels in tqdm(
        batches(session.train, rest, spec.batch_size, session.device),
        description, num_steps, initial=taken, unit="step", leave=False, disable=None,
    ):  # fmt: skip
        images = augmented(images, spec.augment, spec.seed, trained.position.step + 1)
        records.add(train_step(session, trained, epoch, as_input(images), labels))
        session.save_if_due()
        session.stop_if_asked()
    records.fetch()
    return records.epoch_row(epoch)


@dataclass(frozen=True)
class StepRecord:
    """One step: what the host knows of it, and what is still on the device."""

    row: Row
    num_images: int
    measures: torch.Tensor  # loss, hits for each of TOP_K, and where recorded the two norms


def train_step(
    session: Session, trained: Trained, epoch: int, inputs: torch.Tensor, labels: torch.Tensor
) -> StepRecord:
    """Take one step on ``inputs`` (images, 3, size, size) and ``labels`` (images,)."""
    model, optimizer = trained.model, trained.optimizer
    step = trained.position.step + 1
    row = {
        "epoch": epoch,
        "step": step,
        "lr": optimizer.param_groups[0]["lr"],
        "momentum": momentum_of(optimizer),
    }
    with session.autocast():
        logits = model(inputs)
    loss = cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    norms = optimizer_step(optimizer, with_norms=records_norms(step - session.first_step + 1))
    trained.scheduler.step()
    trained.position = replace(trained.position, step=step)
    measures = [loss.detach(), *num_correct(logits.detach(), labels), *norms]
    return StepRecord(row, len(labels), torch.stack(measures))


def records_norms(step: int) -> bool:
    """Whether the norms of a session's ``step``, from 1, are recorded."""
    return step <= NORM_STEPS or step % NORM_EVERY == 0


def optimizer_step(optimizer: torch.optim.Optimizer, with_norms: bool) -> list[torch.Tensor]:
    """Take a step. Returns the L2 norms of the gradient and of the change, if asked for."""
    if not with_norms:
        optimizer.step()
        return []
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    before = [p.detach().clone() for p in parameters]
    # Of the gradients before the step: an optimizer may change them in place.
    grad_norm = torch.nn.utils.get_total_norm(gradients).float()
    optimizer.step()
    changes = [p.detach() - b for p, b in zip(parameters, before, strict=True)]
    return [grad_norm, torch.nn.utils.get_total_norm(changes).float()]


def num_correct(logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """How many labels are among the k highest logits, for k = 1, 2, 3 capped at the classes.

    Args:
        logits: (images, classes).
        labels: (images,).

    Returns:
        Three float tensors without dimensions.
    """
    highest = logits.topk(min(max(TOP_K), logits.shape[1])).indices
    hits = (highest == labels[:, None]).float()
    return [hits[:, :k].sum() for k in TOP_K]


class StepRecords:
    """The steps of a session: their measures stay on the device until fetched together.

    ``totals`` (images, loss, and hits for each of ``TOP_K``) and ``seconds`` are sums over the
    steps of the epoch in progress.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.waiting: list[StepRecord] = []
        self.totals = np.zeros(2 + len(TOP_K))
        self.seconds = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Leave the time since the last fetch out of the epoch's."""
        self.fetched_at = time.perf_counter()

    def add(self, record: StepRecord) -> None:
        """Take a step, and fetch if the last fetch was long ago."""
        self.waiting.append(record)
        if time.perf_counter() - self.fetched_at > FETCH_SECONDS:
            self.fetch()

    def fetch(self) -> None:
        """Bring the measures to the host, to the recorder and into the epoch's totals."""
        if not self.waiting:
            return
        lengths = [len(record.measures) for record in self.waiting]
        values = torch.cat([record.measures for record in self.waiting]).cpu().split(lengths)
        now = time.perf_counter()  # with all work on the device done
        self.seconds += now - self.fetched_at
        rows = []
        for record, measures in zip(self.waiting, values, strict=True):
            loss, *rest = measures.tolist()
            correct, norms = rest[: len(TOP_K)], rest[len(TOP_K) :] or [None, None]
            self.totals += [record.num_images, loss * record.num_images, *correct]
            results = {"loss": loss, "top1": correct[0] / record.num_images}
            rows.append(record.row | results | dict(zip(NORMS, norms, strict=True)))
        self.recorder.record_steps(rows)
        self.waiting, self.fetched_at = [], now

    def epoch_row(self, epoch: int) -> Row:
        """Means over the epoch's images, as they were trained on."""
        return _epoch_row(epoch, "train", self.totals, self.seconds)

    def end_epoch(self, train: Row, valid: Row) -> None:
        """Pass the rows of an epoch on, and begin the next."""
        self.recorder.record_epoch(train, valid)
        self.totals, self.seconds = np.zeros_like(self.totals), 0.0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and the sums of the epoch in progress."""
        return {
            "recorder": self.recorder.state_dict(),
            "totals": self.totals.tolist(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after ``state``."""
        self.recorder.load_state_dict(state["recorder"])
        self.totals, self.seconds = np.array(state["totals"]), state["seconds"]


@torch.inference_mode()
def validate(session: Session, model: torch.nn.Module, epoch: int) -> Row:
    """Evaluate on the validation split. Returns the epoch's row."""
    start = _now(session.device)
    model.eval()
    totals = torch.zeros(1 + len(TOP_K), dtype=torch.float64, device=session.device)
    order, batch_size = session.valid.indices, session.spec.batch_size
    # What a model may draw here leaves no trace, so that an interrupted validation leaves none.
    devices = [torch.cuda.current_device()] if session.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for images, labels in batches(session.valid, order, batch_size, session.device):
            session.stop_if_asked()
            with session.autocast():
                logits = model(as_input(images))
            loss = cross_entropy(logits.float(), labels, reduction="sum")
            totals += torch.stack([loss, *num_correct(logits, labels)])
    totals_on_host = np.array([len(order), *totals.tolist()])
    return _epoch_row(epoch, "valid", totals_on_host, _now(session.device) - start)


def _epoch_row(epoch: int, split: str, totals: np.ndarray, seconds: float) -> Row:
    images, loss, *correct = totals.tolist()
    top_k = {f"top{k}": number / images for k, number in zip(TOP_K, correct, strict=True)}
    return {
        "epoch": epoch, "split": split, "loss": loss / images, **top_k,
        "images": int(images), "seconds": round(seconds, 3),
    }  # fmt: skip


def _now(device: torch.device) -> float:
    """Seconds on a clock, with all work on ``device`` done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
