"""The training loop: an epoch of training, an epoch of validation, a record of both."""

import time
from collections.abc import Callable, Iterable
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
NORM_EVERY = 10  # and every tenth after: they read and write all parameters once more
EVAL_BATCHES = {"cpu": 1, "cuda": 4}  # batches evaluated at once: no activations are kept
FETCH_SECONDS = 30  # how long step records stay on the device before TensorBoard shows them


@dataclass(frozen=True)
class Session:
    """What stays the same during a session."""

    spec: SessionSpec
    train: ImageSet
    valid: ImageSet
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    forward: Callable[[torch.Tensor], torch.Tensor]  # the model, compiled or not, on full batches
    step_optimizer: "OptimizerStep"
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
    order = train_order(session.train, spec.seed, epoch, spec.stream)
    rest = order[taken * spec.batch_size : num_steps * spec.batch_size]
    description = f"{spec.dataset} {spec.method} seed {spec.seed} epoch {epoch}"
    inputs = None
    records.start_clock()
    for images, labels in tqdm(
        batches(session.train, rest, spec.batch_size, session.device),
        description, num_steps, initial=taken, unit="step", leave=False, disable=None,
    ):  # fmt: skip
        step = trained.position.step + 1
        images = augmented(images, spec.augment, spec.seed, step, spec.stream)
        inputs = as_input(images, inputs)
        records.add(train_step(session, trained, epoch, inputs, labels))
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
    is_full = len(labels) == session.spec.batch_size  # other sizes would be compiled once more
    with session.autocast():
        logits = session.forward(inputs) if is_full else model(inputs)
    loss = cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    norms = session.step_optimizer(with_norms=records_norms(step - session.first_step + 1))
    trained.scheduler.step()
    trained.position = replace(trained.position, step=step)
    measures = [loss.detach(), *num_correct(logits.detach(), labels), *norms]
    return StepRecord(row, len(labels), torch.stack(measures))


def records_norms(step: int) -> bool:
    """Whether the norms of a session's ``step``, from 1, are recorded."""
    return step <= NORM_STEPS or step % NORM_EVERY == 0


class OptimizerStep:
    """The step of an optimizer, whose gradient and change can be measured.

    The parameters from before the step are copied to memory that is kept for it: to get new memory
    can take longer than the copy.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.before: list[torch.Tensor] = []

    @torch.no_grad()
    def __call__(self, with_norms: bool) -> list[torch.Tensor]:
        """Take a step. Returns the L2 norms of the gradient and of the change, if asked for."""
        if not with_norms:
            self.optimizer.step()
            return []
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.before = self.before or [torch.empty_like(p) for p in parameters]
        torch._foreach_copy_(self.before, parameters)
        # Of the gradients before the step: an optimizer may change them in place.
        grad_norm = total_norm(p.grad for p in parameters if p.grad is not None)
        self.optimizer.step()
        pairs = zip(self.before, parameters, strict=True)
        return [grad_norm, total_norm(before.sub_(now) for before, now in pairs)]


def total_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of all elements of all ``tensors``: float, without dimensions."""
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)).float()


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


class Stopwatch:
    """Seconds that a device worked: by its own clock on a GPU, which lags behind the program."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self.started_at = self._mark()

    def seconds(self) -> float:
        """Since the start, once all work that was given to the device is done."""
        now = self._mark()
        if not self.on_gpu:
            return now - self.started_at
        now.synchronize()
        return self.started_at.elapsed_time(now) / 1000

    def _mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class StepRecords:
    """The steps of a session: their measures stay on the device until fetched together.

    ``totals`` (images, loss, and hits for each of ``TOP_K``) and ``seconds`` are sums over the
    steps of the epoch in progress.
    """

    def __init__(self, recorder: Recorder, device: torch.device) -> None:
        self.recorder = recorder
        self.stopwatch = Stopwatch(device)
        self.waiting: list[StepRecord] = []
        self.totals = np.zeros(2 + len(TOP_K))
        self.seconds = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Leave the time since the last fetch out of the epoch's."""
        self.fetched_at = time.perf_counter()
        self.stopwatch.start()

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
        measured = torch.cat([record.measures for record in self.waiting])
        self.seconds += self.stopwatch.seconds()
        values = measured.cpu().split(lengths)
        rows = []
        for record, measures in zip(self.waiting, values, strict=True):
            loss, *rest = measures.tolist()
            correct, norms = rest[: len(TOP_K)], rest[len(TOP_K) :] or [None, None]
            self.totals += [record.num_images, loss * record.num_images, *correct]
            results = {"loss": loss, "top1": correct[0] / record.num_images}
            rows.append(record.row | results | dict(zip(NORMS, norms, strict=True)))
        self.recorder.record_steps(rows)
        self.waiting = []
        self.start_clock()

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
    stopwatch = Stopwatch(session.device)
    model.eval()
    totals = torch.zeros(1 + len(TOP_K), dtype=torch.float64, device=session.device)
    order = session.valid.indices
    batch_size = session.spec.batch_size * EVAL_BATCHES[session.device.type]
    # What a model may draw here leaves no trace, so that an interrupted validation leaves none.
    devices = [torch.cuda.current_device()] if session.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for images, labels in batches(session.valid, order, batch_size, session.device):
            session.stop_if_asked()
            with session.autocast():
                logits = model(as_input(images))
            loss = cross_entropy(logits.float(), labels, reduction="sum")
            totals += torch.stack([loss, *num_correct(logits, labels)])
    seconds = stopwatch.seconds()
    return _epoch_row(epoch, "valid", np.array([len(order), *totals.tolist()]), seconds)


def _epoch_row(epoch: int, split: str, totals: np.ndarray, seconds: float) -> Row:
    images, loss, *correct = totals.tolist()
    top_k = {f"top{k}": number / images for k, number in zip(TOP_K, correct, strict=True)}
    return {
        "epoch": epoch, "split": split, "loss": loss / images, **top_k,
        "images": int(images), "seconds": round(seconds, 3),
    }  # fmt: skip
