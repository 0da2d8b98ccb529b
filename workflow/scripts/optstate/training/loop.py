"""The training loop: train an epoch, validate, record both, repeat."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from optstate.job import show_progress
from optstate.training.batches import (
    REBUILDING,
    REESTIMATING,
    ImageSet,
    augment_images,
    count_batches,
    iterate_batches,
    iterate_endlessly,
    make_input,
    shuffle_indices,
)
from optstate.training.boundary import fill_state
from optstate.training.checkpoint import TrainingState, fork_random_states
from optstate.training.compute import Compute
from optstate.training.measuring import (
    TOP_K,
    OptimizerStep,
    StepRecord,
    StepRecords,
    Stopwatch,
    count_by_class,
    count_correct,
    has_norms,
    make_epoch_row,
)
from optstate.training.progress import Progress
from optstate.training.recording import Row
from optstate.training.schedule import get_momentum
from optstate.training.spec import SessionSpec

REESTIMATION_STEPS = 50  # batches from which batch-norm statistics are estimated, at most an epoch
EVAL_BATCHES = {"cpu": 1, "cuda": 4}  # training batches validated at once: no activations are kept


@dataclass(frozen=True)
class Session:
    """An open session, with everything that the training loop uses.

    Attributes:
        forward: the model, compiled if configured, for full batches.
        update_norms: for each step, the norm that its update gets. None: that of the optimizer.
        require_unchanged: called before each save. Raises if the arrays have changed.
        made_by: what makes the results, for the checkpoint and ``made_by.json``.
        first_epoch: the session's first epoch, counted through all sessions from 1.
        first_step: the session's first step, counted through all sessions from 1.
        stop_if_asked: called after every step, and before every batch that is not trained on.
            Raises ``Interrupted`` if the session must stop there.
    """

    spec: SessionSpec
    train: ImageSet
    valid: ImageSet
    compute: Compute
    state: TrainingState
    forward: Callable[[torch.Tensor], torch.Tensor]
    step_optimizer: OptimizerStep
    records: StepRecords
    progress: Progress
    require_unchanged: Callable[[], None]
    update_norms: dict[int, float] | None
    made_by: dict[str, Any]
    first_epoch: int
    first_step: int
    stop_if_asked: Callable[[], None]

    @property
    def epoch(self) -> int:
        """The current epoch, counted through all sessions from 1."""
        return self.state.position.epoch + 1

    @property
    def last_epoch(self) -> int:
        """The session's last epoch, counted through all sessions from 1."""
        return self.first_epoch + self.spec.num_epochs - 1

    def save_if_due(self) -> None:
        """Save the state in progress if ``checkpoint_every`` is reached."""
        if self.progress.is_due(self.state.position):
            self.save()

    def save(self) -> None:
        """Save the state in progress, unless it is already saved.

        Raises:
            InputError: the arrays have changed since they were prepared.
        """
        self.require_unchanged()
        if self.state.position != self.progress.position:
            self.records.fetch()
            self.progress.save(
                {
                    "training": self.state.state_dict(),
                    "records": self.records.state_dict(),
                    "compute": self.made_by["compute"],
                }
            )
            self.records.start_clock()


def train_session(session: Session) -> None:
    """Train the session's remaining epochs.

    Raises:
        Interrupted: a signal was received. The session is between two steps and can be saved.
    """
    if session.spec.rebuild_steps and session.state.position.step < session.first_step:
        rebuild_state(session)
    while session.epoch <= session.last_epoch:
        train_row = train_epoch(session)
        is_due = session.epoch % session.spec.validate_every == 0
        is_last = session.epoch == session.last_epoch
        valid_row = validate(session) if is_due or is_last else None
        if valid_row and is_last:
            valid_row |= validate_reestimated(session)
        finish_epoch(session, train_row, valid_row)


def rebuild_state(session: Session) -> None:
    """Fill the optimizer's state with ``rebuild_steps`` extra batches.

    The batches have a random stream of their own. The weights, the buffers (such as batch-norm
    statistics) and the random state of training stay as they are.
    """
    spec, compute, model = session.spec, session.compute, session.state.model
    batches = iterate_endlessly(
        session.train, spec, compute.device, first_epoch=session.first_epoch, stream=REBUILDING
    )

    def compute_losses() -> Iterator[torch.Tensor]:
        for inputs, labels in islice(batches, spec.rebuild_steps):
            session.stop_if_asked()
            with compute.autocast():
                logits = model(inputs)
            yield cross_entropy(logits.float(), labels)

    tensors = [*model.parameters(), *model.buffers()]  # a forward pass may change either
    copies = [tensor.detach().clone() for tensor in tensors]
    model.train()
    with fork_random_states():
        torch.manual_seed(spec.seed)
        fill_state(session.state.optimizer, compute_losses())
    with torch.no_grad():
        for tensor, before in zip(tensors, copies, strict=True):
            tensor.copy_(before)


def train_epoch(session: Session) -> Row:
    """Train the remaining steps of the current epoch. Returns the epoch's row."""
    spec, state, records = session.spec, session.state, session.records
    stream, epoch = int(spec.reshuffle), session.epoch
    num_steps = count_batches(len(session.train), spec.batch_size)
    first_step = session.first_step + (epoch - session.first_epoch) * num_steps
    num_done = state.position.step + 1 - first_step
    order = shuffle_indices(session.train, spec.seed, epoch, stream)
    remaining = order[num_done * spec.batch_size : num_steps * spec.batch_size]
    batches = iterate_batches(session.train, remaining, spec.batch_size, session.compute.device)
    inputs = None
    state.model.train()
    records.start_clock()
    with show_progress(f"{spec.title}, epoch {epoch}", num_steps, "steps", num_done) as progress:
        for images, labels in batches:
            number = state.position.step + 1
            images = augment_images(images, spec.augment, spec.seed, number, stream)
            inputs = make_input(images, spec.normalize, inputs)
            records.add(train_step(session, inputs, labels))
            session.save_if_due()
            session.stop_if_asked()
            progress.update()
    return records.make_train_row(epoch)


def train_step(session: Session, inputs: torch.Tensor, labels: torch.Tensor) -> StepRecord:
    """Take one training step.

    Args:
        session: the open session.
        inputs: float32 (images, 3, size, size).
        labels: int64 (images,).
    """
    spec, state, optimizer = session.spec, session.state, session.state.optimizer
    step = state.position.step + 1
    row = {
        "epoch": session.epoch,
        "step": step,
        "lr": optimizer.param_groups[0]["lr"],
        "momentum": get_momentum(optimizer),
    }
    is_full = len(labels) == spec.batch_size  # another size would compile again
    optimizer.zero_grad()  # now, so that the forward pass can use the gradients' memory
    with session.compute.autocast():
        logits = session.forward(inputs) if is_full else state.model(inputs)
    loss = cross_entropy(logits.float(), labels)
    loss.backward()
    norms = session.step_optimizer(
        with_norms=spec.all_norms or has_norms(step - session.first_step + 1),
        norm=session.update_norms[step] if session.update_norms else None,
    )
    state.scheduler.step()
    state.position = replace(state.position, step=step)
    measures = [loss.detach(), *count_correct(logits.detach(), labels), *norms]
    return StepRecord(row, len(labels), torch.stack(measures))


@torch.no_grad()  # not inference_mode: training could not use a tensor that the model keeps
def validate(session: Session) -> Row:
    """Evaluate the model on the validation split. Returns the current epoch's row."""
    model, compute = session.state.model, session.compute
    stopwatch = Stopwatch(compute.device)
    model.eval()
    totals = torch.zeros(1 + len(TOP_K), dtype=torch.float64, device=compute.device)
    by_class = torch.zeros(2, session.valid.num_classes, device=compute.device)
    order = session.valid.indices
    batch_size = session.spec.batch_size * EVAL_BATCHES[compute.device.type]
    # Restore the random state, so that a repeated validation changes no later step.
    with fork_random_states():
        for images, labels in iterate_batches(session.valid, order, batch_size, compute.device):
            session.stop_if_asked()
            with compute.autocast():
                logits = model(make_input(images, session.spec.normalize))
            loss = cross_entropy(logits.float(), labels, reduction="sum")
            totals += torch.stack([loss, *count_correct(logits, labels)])
            by_class += count_by_class(logits, labels, by_class.shape[1])
    seconds = stopwatch.read_seconds()
    sums, (images, hits) = np.array([len(order), *totals.tolist()]), by_class.cpu().double().numpy()
    row = make_epoch_row(session.epoch, "valid", sums, seconds)
    return row | {"balanced_top1": float((hits / images).mean())}


def validate_reestimated(session: Session) -> Row:
    """Evaluate the model with batch-norm statistics of its current weights.

    After a boundary, the running statistics may lag behind the weights. Afterwards the model is as
    before.

    Returns:
        The cells ``reestimated_top1`` and ``reestimated_loss``; none without batch norm.

    Raises:
        Interrupted: a signal was received. The session can be saved.
    """
    model = session.state.model
    model.train()  # some models leave norms that they do not train in evaluation mode
    norms = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and module.training
        and module.momentum != 0
    ]
    if not norms:
        return {}
    buffers = [buffer.clone() for buffer in model.buffers()]
    momenta = [norm.momentum for norm in norms]
    try:
        reestimate_statistics(session, norms)
        row = validate(session)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return {"reestimated_top1": row["top1"], "reestimated_loss": row["loss"]}


@torch.no_grad()
def reestimate_statistics(session: Session, norms: Sequence[Any]) -> None:
    """Replace the running statistics of ``norms`` by means over at most an epoch of batches.

    These are up to ``REESTIMATION_STEPS`` training batches, with a random stream of their own.
    """
    spec, compute, model = session.spec, session.compute, session.state.model
    batches = iterate_endlessly(
        session.train, spec, compute.device, first_epoch=session.epoch, stream=REESTIMATING
    )
    # A partial batch, the last of an epoch, would have the weight of a full one.
    num_steps = min(REESTIMATION_STEPS, max(len(session.train) // spec.batch_size, 1))
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    with fork_random_states(), compute.autocast():
        for number, (inputs, _) in enumerate(islice(batches, num_steps), 1):
            session.stop_if_asked()
            for norm in norms:
                norm.momentum = 1 / number  # a plain mean over the batches
            model(inputs)


def finish_epoch(session: Session, train_row: Row, valid_row: Row | None) -> None:
    """Record the current epoch, move on to the next, and save the state if due."""
    session.records.finish_epoch(train_row, valid_row)
    session.state.position = replace(session.state.position, epoch=session.epoch)
    session.save_if_due()
