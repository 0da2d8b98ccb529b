"""Train one session of one run, from the prepared arrays and the previous session's checkpoint."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import logging
import platform
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from optstate import checksums, job
from optstate.training import checkpoint
from optstate.training.batches import (
    ImageSet,
    count_batches,
    load_split,
    place_split,
    verify_arrays,
)
from optstate.training.boundary import apply_learning_rate, carry_over
from optstate.training.checkpoint import Position, TrainingState
from optstate.training.compute import Compute, add_kind, set_up
from optstate.training.loop import Session, train_session, validate
from optstate.training.measuring import OptimizerStep, StepRecords
from optstate.training.model import make_model, move_channels_last
from optstate.training.progress import (
    EXIT_CODE,
    Interrupted,
    Progress,
    keep_final,
    stop_on_signals,
)
from optstate.training.recording import Curves, Recorder, read_rows
from optstate.training.schedule import make_optimizer, make_scheduler
from optstate.training.spec import SessionSpec
from optstate.training.weights import load_weights, read_optimizer_state

FILES = ("model", "weights", "optimizer_state")  # keys of the configuration that name files
OUTPUTS = ("checkpoint.pt", "steps.csv", "epochs.csv", "made_by.json")  # in session.sha256


@dataclass(frozen=True)
class Paths:
    """The files and folders of a session. Their paths do not change its results.

    Attributes:
        arrays: the folder of the data set's arrays.
        output: the folder for the checkpoint, the tables, ``made_by.json`` and their checksums.
        progress: this session's own folder for its lock and its states in progress.
        previous: the output folder of the previous session.
        previous_spec: JSON of the settings with which the previous session was trained.
        previous_progress: the previous session's ``progress``, removed when this session begins.
        model: the user's file that makes the model. None: the model is torchvision's.
        weights: a file with the weights that the first session starts from.
        optimizer_state: a file with the optimizer state that the first session starts from.
        step_sizes: the output folder of the session whose update norms this one takes over.
        earlier: the output folders of all earlier sessions of the run, in their order.
        curves: the TensorBoard folders of those runs that get the session's curves.
    """

    arrays: Path
    output: Path
    progress: Path
    previous: Path | None = None
    previous_spec: str | None = None
    previous_progress: Path | None = None
    model: Path | None = None
    weights: Path | None = None
    optimizer_state: Path | None = None
    step_sizes: Path | None = None
    earlier: Sequence[Path] = ()
    curves: Sequence[Path] = ()

    @property
    def files(self) -> dict[str, Path]:
        """The user's files, by their keys."""
        return {key: path for key in FILES if (path := getattr(self, key))}


def main(arguments: argparse.Namespace) -> None:
    """Train the session that the command line describes."""
    names = [field.name for field in dataclasses.fields(Paths)]
    paths = Paths(**{name: getattr(arguments, name) for name in names})
    train(SessionSpec.from_json(arguments.spec), paths, json.loads(arguments.checkpoint_every))


def train(spec: SessionSpec, paths: Paths, checkpoint_every: dict[str, float]) -> None:
    """Train a session, or the rest of an interrupted one, and write its outputs.

    When a signal arrives, the state is saved and the process exits with ``progress.EXIT_CODE``.

    Args:
        spec: the session's settings.
        paths: the session's files and folders.
        checkpoint_every: the key of the configuration: ``epochs``, ``steps``, ``minutes``.
    """
    with job.hold_lock(paths.progress / "lock"), stop_on_signals() as stop_if_asked:
        verify_inputs(paths.arrays, paths.previous, paths.step_sizes)
        compute = set_up(spec)
        with (
            explain_errors(spec),
            open_session(spec, paths, compute, checkpoint_every, stop_if_asked) as session,
        ):
            if paths.previous_progress:
                # Snakemake starts this session only after it has recorded the previous one as done.
                shutil.rmtree(paths.previous_progress, ignore_errors=True)
            try:
                if paths.weights and session.state.position.step < session.first_step:
                    record_given_weights(session)
                train_session(session)
            except Interrupted as signal:
                save_and_exit(session, str(signal))
            write_outputs(session, paths.output)
        # The last state stays: Snakemake deletes the outputs of a job that it has not recorded as
        # done, and runs it again.
        keep_final(session.progress.folder)


def verify_inputs(arrays: Path, previous: Path | None, step_sizes: Path | None = None) -> None:
    """Check that the arrays and other sessions' outputs are as their jobs wrote them.

    Raises:
        InputError: a file is missing or has changed.
    """
    verify_arrays(arrays)
    if previous:
        names = ("checkpoint.pt", "steps.csv", "epochs.csv")
        checksums.verify(*(previous / name for name in names))
    if step_sizes:
        checksums.verify(step_sizes / "steps.csv")


@contextlib.contextmanager
def open_session(
    spec: SessionSpec,
    paths: Paths,
    compute: Compute,
    checkpoint_every: dict[str, float],
    stop_if_asked: Callable[[], None],
) -> Iterator[Session]:
    """Open a session where it begins, or where an earlier job was interrupted.

    Nothing is written or removed if the previous session's checkpoint is refused.

    Args:
        spec: the session's settings.
        paths: the session's files and folders.
        compute: the result of :func:`set_up`.
        checkpoint_every: the key of the configuration: ``epochs``, ``steps``, ``minutes``.
        stop_if_asked: see :class:`Session`.
    """
    train = load_split(paths.arrays, "train", spec.train_per_class, spec.subset_seed)
    valid = load_split(paths.arrays, "valid", spec.valid_per_class)
    log_plan(spec, train, valid, compute.device)
    made_by = describe(spec, compute, paths)
    before = load_previous(paths.arrays, paths.previous, paths.previous_spec)
    state = make_state(spec, train, before, paths.files, compute.device)
    del before  # as large as the model and the optimizer's state
    start = state.position
    num_steps = spec.num_epochs * count_batches(len(train), spec.batch_size)
    update_norms = read_update_norms(paths.step_sizes, start.step + 1, num_steps)
    folder = paths.progress / fingerprint(made_by, paths.previous)
    # On a CPU, writing in the background would slow down training.
    progress = Progress(folder, checkpoint_every, start, in_background=compute.is_on_gpu)
    saved = progress.load()
    curves = Curves(paths.curves, spec.session, paths.earlier)
    recorder = Recorder(spec, curves, start.epoch + spec.num_epochs)
    records = StepRecords(recorder, compute.device)
    if saved:
        state.load_state_dict(saved["training"])
        records.load_state_dict(saved["records"])
        logging.log(job.PROGRESS, "%s: continuing after %s", spec.title, state.position)
        kinds = saved["compute"]
        is_finished = state.position.epoch == start.epoch + spec.num_epochs
        made_by["compute"] = kinds if is_finished else add_kind(kinds, compute.describe_kind())
    del saved  # as large as `before`
    try:
        yield Session(
            spec=spec,
            train=place_split(train, compute.device),
            valid=place_split(valid, compute.device),
            compute=compute,
            state=state,
            forward=compute.compile_model(state.model),
            step_optimizer=OptimizerStep(state.optimizer),
            records=records,
            progress=progress,
            require_unchanged=lambda: verify_arrays(paths.arrays),
            update_norms=update_norms,
            made_by=made_by,
            first_epoch=start.epoch + 1,
            first_step=start.step + 1,
            stop_if_asked=stop_if_asked,
        )
    finally:
        curves.close()


def log_plan(spec: SessionSpec, train: ImageSet, valid: ImageSet, device: torch.device) -> None:
    """Log the size of the session, and check that it has a training step.

    Raises:
        InputError: there are too few images for a batch.
    """
    num_steps = count_batches(len(train), spec.batch_size)
    if num_steps == 0:
        raise job.InputError(
            f"{spec.dataset}: a single training image is not enough. Provide at least two."
        )
    logging.info(
        "%s: %d epochs of %d steps, %d train and %d valid images, on %s",
        spec.title, spec.num_epochs, num_steps, len(train), len(valid), device,
    )  # fmt: skip
    if len(train) % spec.batch_size == 1:
        logging.info("the last batch of every epoch would be a single image and is left out")


def load_previous(
    arrays: Path, previous: Path | None, previous_spec: str | None
) -> dict[str, Any] | None:
    """Load the checkpoint that a session continues from; None for the first session.

    Args:
        arrays: the folder of the data set's arrays.
        previous: the output folder of the previous session, already verified.
        previous_spec: JSON of the settings with which that session was trained.

    Raises:
        InputError: the checkpoint belongs to another run or session, or was made with other
            settings or from other arrays.
    """
    if not (previous and previous_spec):
        return None
    path, spec = previous / "checkpoint.pt", SessionSpec.from_json(previous_spec)
    before = checkpoint.load(path)
    last = read_rows(previous / "steps.csv")[-1]
    difference = checkpoint.find_difference(
        before["meta"],
        before["position"],
        spec,
        dataset_sha256=checksums.file_sha256(arrays / "dataset.json"),
        end=Position(spec.session, int(last["epoch"]), int(last["step"])),
    )
    if difference:
        raise job.InputError(
            f"{path}: not the checkpoint of {spec.method} seed {spec.seed} session {spec.session}: "
            f"{difference}. Delete it, then run again."
        )
    return before


def make_state(
    spec: SessionSpec,
    train: ImageSet,
    before: dict[str, Any] | None,
    files: Mapping[str, Path],
    device: torch.device,
) -> TrainingState:
    """Return the state that a session begins with. At a boundary, the methods differ from here on.

    Args:
        spec: the session's settings.
        train: the training split.
        before: the previous session's checkpoint. None: this is the first session.
        files: the user's files, by those of ``FILES`` that are given.
        device: the device of the model.

    Raises:
        InputError: a file does not fit, or has changed since Snakemake started.
    """
    require_unchanged(spec, files)
    random.seed(spec.seed)
    np.random.seed(spec.seed)
    torch.manual_seed(spec.seed)
    name = f"{files.get('model', '')}{spec.model}"
    model = make_model(name, spec.image_size, train.num_classes)
    if before:
        model.load_state_dict(before["model"])
    elif path := files.get("weights"):
        with checkpoint.fork_random_states():  # it makes more models
            new = load_weights(model, name, spec.image_size, train.num_classes, path)
        logging.info("weights from %s", path)
        if new:
            logging.log(
                job.PROGRESS, "%s: newly initialized for %d classes: %s",
                path, train.num_classes, ", ".join(new),
            )  # fmt: skip
    model = move_channels_last(model, device)

    optimizer = make_optimizer(model.parameters(), spec.optimizer, spec.learning_rate)
    position, previous = Position(session=spec.session), None
    if before:
        checkpoint.set_random_states(before["random"])
        position = Position(**before["position"] | {"session": spec.session})
        previous = before["optimizer"]
    elif path := files.get("optimizer_state"):
        previous = read_optimizer_state(path, spec.optimizer, model.named_parameters())
    num_epochs = spec.learning_rate.get("num_epochs", spec.num_epochs)
    scheduler = make_scheduler(
        optimizer,
        spec.learning_rate,
        num_steps=num_epochs * count_batches(len(train), spec.batch_size),
        past_steps=position.step if spec.learning_rate.get("over") == "run" else 0,
        factor=spec.lr_factor,
        warmup_steps=spec.warmup_steps,
    )
    if previous:
        # Some entries begin with a value that depends on the LR, so the scheduler sets it first.
        carry_over(optimizer, previous, spec.keep)
        next_lr = before["optimizer"]["param_groups"][0]["lr"] if before else None
        if optimizer.param_groups[0]["lr"] != next_lr:
            apply_learning_rate(optimizer)
    return TrainingState(model, optimizer, scheduler, position)


def require_unchanged(spec: SessionSpec, files: Mapping[str, Path]) -> None:
    """Check that the user's files are those that Snakemake hashed when it started.

    Raises:
        InputError: a file is not.
    """
    for key, file in files.items():
        if not checksums.file_sha256(file).startswith(spec.file_hashes[key]):
            raise job.InputError(
                f"{key}: {file} has changed since Snakemake started. Restore it, or run again to "
                "begin every run with the new file."
            )


def read_update_norms(
    folder: Path | None, first_step: int, num_steps: int
) -> dict[int, float] | None:
    """Read the norm of every update of a finished session.

    Args:
        folder: the session's output folder. None: no norms are taken over.
        first_step: the first step, counted through all sessions from 1.
        num_steps: the number of steps.

    Raises:
        InputError: the session has other steps, or no norm at some of them.
    """
    if folder is None:
        return None
    path = folder / "steps.csv"
    norms = {int(row["step"]): row["update_norm"] for row in read_rows(path)}
    if [*norms] != [*range(first_step, first_step + num_steps)] or not all(norms.values()):
        raise job.InputError(
            f"{path}: does not have the norm of every update from step {first_step} on. Delete it, "
            "then run again."
        )
    return {step: float(norm) for step, norm in norms.items()}


def record_given_weights(session: Session) -> None:
    """Record the accuracy before the first step, where a wrong ``normalize`` can be noticed."""
    session.records.recorder.record_given_weights(validate(session))


@contextlib.contextmanager
def explain_errors(spec: SessionSpec) -> Iterator[None]:
    """Turn errors caused by the configuration into one-line errors that say how to fix it."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise job.InputError(
            f"batch_size: {spec.batch_size} images of {spec.image_size} pixels do not fit into the "
            "GPU's memory. Choose a smaller batch_size or image_size."
        ) from error
    except TypeError as error:
        if spec.optimizer["name"] != "SGD" or "but got NoneType" not in str(error):
            raise
        raise job.InputError(
            "optimizer: the fused SGD needs a gradient of every parameter in its first step, but "
            "the model has some that were not used. Add `foreach: true` to `optimizer`."
        ) from error
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        operation = str(error).partition(" ")[0]
        raise job.InputError(
            f"model: it uses {operation}, which has no deterministic implementation on this "
            "device. Set `deterministic` to false, or choose another model."
        ) from error


def save_and_exit(session: Session, reason: str) -> None:
    """Save an interrupted session, and exit with ``EXIT_CODE``."""
    session.save()
    session.progress.finish()
    position = session.state.position
    logging.warning("interrupted: %s: saved %s: run again to continue", reason, position)
    sys.exit(EXIT_CODE)


def write_outputs(session: Session, folder: Path) -> None:
    """Write the tables, ``made_by.json`` and ``checkpoint.pt``, and last their checksums."""
    session.save()
    session.progress.finish()
    session.records.recorder.write(folder)
    with job.write_atomically(folder / "made_by.json") as path:
        path.write_text(json.dumps(session.made_by, indent=1) + "\n")
    content = session.state.state_dict() | {"meta": session.made_by}
    checkpoint.save(content, folder / "checkpoint.pt")
    checksums.write_checksums(folder / "session.sha256", [folder / name for name in OUTPUTS])


def describe(spec: SessionSpec, compute: Compute, paths: Paths) -> dict[str, Any]:
    """Return what makes a checkpoint: configuration, inputs, versions, and how torch computes.

    Of a session that was interrupted, ``compute`` lists each kind of processor that took part.
    """
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
    }
    configuration = dataclasses.asdict(spec)
    return {
        "configuration": configuration,
        "dataset_sha256": checksums.file_sha256(paths.arrays / "dataset.json"),
        # A session is identified by its steps.csv, which has every loss.
        "previous_sha256": paths.previous and checksums.read_checksums(paths.previous)["steps.csv"],
        "step_sizes_sha256": paths.step_sizes
        and checksums.read_checksums(paths.step_sizes)["steps.csv"],
        "versions": versions,
        **compute.describe(),
        "compute": [compute.describe_kind()],
    }


def fingerprint(made_by: dict[str, Any], previous: Path | None) -> str:
    """Hash everything that the results of a session depend on, to name its states in progress.

    The names of the device and of its kind are left out, so that a job may continue on another
    device of the same type.
    """
    inputs = {key: value for key, value in made_by.items() if key not in ("device", "compute")}
    if previous:  # its files have been verified
        inputs["previous"] = checksums.read_checksums(previous)["checkpoint.pt"]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for path in [Path(job.__file__), *sorted(Path(__file__).parent.glob("*.py"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--spec", required=True, help="JSON of the fields of SessionSpec")
PARSER.add_argument("--arrays", type=Path, required=True, help="folder of the data set's arrays")
PARSER.add_argument("--output", type=Path, required=True, help="folder for checkpoint and tables")
PARSER.add_argument(
    "--progress", type=Path, required=True, help="this session's folder of states in progress"
)
PARSER.add_argument("--previous", type=Path, help="output folder of the previous session")
PARSER.add_argument("--previous-spec", help="JSON of the settings of the previous session")
PARSER.add_argument(
    "--previous-progress", type=Path, help="the previous session's folder of states, to remove"
)
PARSER.add_argument("--model", type=Path, help="the user's file that makes the model")
PARSER.add_argument("--weights", type=Path, help="weights that the first session starts from")
PARSER.add_argument(
    "--optimizer-state", type=Path, help="optimizer state that the first session starts from"
)
PARSER.add_argument(
    "--checkpoint-every", default='{"epochs": 1}', help="when to save the state, as JSON"
)
PARSER.add_argument(
    "--step-sizes", type=Path, help="output folder of the session whose update norms are taken over"
)
PARSER.add_argument(
    "--earlier", type=Path, nargs="*", default=[], help="output folders of all earlier sessions"
)
PARSER.add_argument("--curves", type=Path, nargs="*", default=[], help="TensorBoard folders")

if __name__ == "__main__":
    job.run(PARSER, main)
    job.exit_without_cleanup()
