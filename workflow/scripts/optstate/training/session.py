"""Train one session of one run, from the arrays and the checkpoint before it to its own."""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import platform
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from optstate import job
from optstate.training import checkpoint
from optstate.training.batches import ImageSet, load_split, on_device
from optstate.training.boundary import carry_over
from optstate.training.checkpoint import Position, Trained
from optstate.training.loop import (
    OptimizerStep,
    Session,
    StepRecords,
    num_steps_per_epoch,
    train_session,
)
from optstate.training.model import load_weights, make_model
from optstate.training.progress import (
    EXIT_CODE,
    Interrupted,
    Progress,
    keep_final,
    stop_on_signals,
)
from optstate.training.recording import Curves, Recorder, add_shared_session
from optstate.training.schedule import make_optimizer, make_scheduler
from optstate.training.spec import SessionSpec


def main(arguments: argparse.Namespace) -> None:
    """Write ``checkpoint.pt``, the tables and ``made_by.json`` to ``--output``.

    Exits with ``progress.EXIT_CODE`` after saving if a signal asks for it.
    """
    spec = SessionSpec.from_json(arguments.spec)
    folder = progress_folder(arguments.progress, spec, spec.session)
    with job.hold_lock(folder / "lock"), stop_on_signals() as stop_if_asked:
        if arguments.previous:
            # Snakemake has recorded it as done, or it would not have started this one.
            before = progress_folder(arguments.progress, spec, spec.session - 1)
            shutil.rmtree(before, ignore_errors=True)
        device = set_up(spec)
        own = folder / fingerprint(arguments, describe(spec, device))
        train(spec, arguments, device, own, stop_if_asked)
        keep_final(own)


def train(
    spec: SessionSpec,
    arguments: argparse.Namespace,
    device: torch.device,
    folder: Path,
    stop_if_asked: Callable[[], None],
) -> None:
    """Train the session, or what an interrupted job has left of it, and write the outputs.

    The final state in progress stays: until Snakemake has recorded the job as done, it would delete
    the outputs of a job that was cut off, and start it again.
    """
    images = {
        "train": load_split(arguments.dataset, "train", spec.train_per_class),
        "valid": load_split(arguments.dataset, "valid", spec.valid_per_class),
    }
    log_plan(spec, images["train"], images["valid"], device)
    trained = start(spec, images["train"], arguments.previous, arguments.weights, device)
    started_at = trained.position
    progress, records = resume(spec, arguments, folder, trained, device)

    def save_if_due() -> None:
        if progress.is_due(trained.position):
            save_progress(progress, trained, records)

    session = Session(
        **{split: on_device(image_set, device) for split, image_set in images.items()},
        spec=spec,
        device=device,
        autocast=autocast(spec, device),
        forward=compiled(trained.model, device) if compiles(spec) else trained.model,
        step_optimizer=OptimizerStep(trained.optimizer),
        records=records,
        first_epoch=started_at.epoch + 1,
        first_step=started_at.step + 1,
        save_if_due=save_if_due,
        stop_if_asked=stop_if_asked,
    )
    try:
        with explained(spec):
            train_session(session, trained)
    except Interrupted as signal:
        save_progress(progress, trained, records)
        progress.finish()
        logging.warning("interrupted: %s: saved %s: run again to go on", signal, trained.position)
        sys.exit(EXIT_CODE)
    finally:
        records.recorder.curves.close()
    save_progress(progress, trained, records)
    progress.finish()
    records.recorder.write(arguments.output)
    meta = describe(spec, device)
    with job.write_atomically(arguments.output / "made_by.json") as path:
        path.write_text(json.dumps(meta, indent=1) + "\n")
    checkpoint.save(trained.state_dict() | {"meta": meta}, arguments.output / "checkpoint.pt")


def resume(
    spec: SessionSpec,
    arguments: argparse.Namespace,
    folder: Path,
    trained: Trained,
    device: torch.device,
) -> tuple[Progress, StepRecords]:
    """Bring ``trained`` to where an interrupted job has left it, with its records up to there."""
    every = json.loads(arguments.checkpoint_every)
    # On a CPU the writer would take its time from training.
    progress = Progress(folder, every, trained.position, in_background=device.type == "cuda")
    state = progress.load()
    if spec.session == 2:
        for curve in arguments.curves:
            add_shared_session(curve, arguments.previous)
    curves = Curves(arguments.curves, spec.session)
    recorder = Recorder(spec, curves, trained.position.epoch + spec.num_epochs)
    records = StepRecords(recorder, device)
    if state:
        trained.load_state_dict(state["trained"])
        records.load_state_dict(state["records"])
        logging.info("going on after %s", trained.position)
    return progress, records


def save_progress(progress: Progress, trained: Trained, records: StepRecords) -> None:
    """Save the present state, if it is not the one saved last."""
    if trained.position != progress.position:
        records.fetch()
        progress.save({"trained": trained.state_dict(), "records": records.state_dict()})
        records.start_clock()


def progress_folder(root: Path, spec: SessionSpec, session: int) -> Path:
    """Where a session of the run of ``spec`` keeps what it would continue from."""
    name = spec.schedule if session == 1 < spec.session else spec.method
    return root / spec.dataset / name / f"seed{spec.seed}" / f"session{session}"


def set_up(spec: SessionSpec) -> torch.device:
    """Choose the device, and make torch compute as the configuration says."""
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise job.InputError("`device` is cuda, and torch finds none: choose auto or cpu")
    name = "cuda" if spec.device != "cpu" and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(spec.cpu_threads)
    deterministic = name == "cpu" if spec.deterministic == "auto" else bool(spec.deterministic)
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # else cuBLAS refuses
        # Else every new tensor is filled first, which costs time and is there to find bugs.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    return torch.device(name)


def autocast(spec: SessionSpec, device: torch.device) -> Any:
    """A maker of contexts in which the model runs at the configured precision."""
    default = "bfloat16" if device.type == "cuda" else "float32"
    if (default if spec.precision == "auto" else spec.precision) == "float32":
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device.type, dtype=torch.bfloat16)


def compiles(spec: SessionSpec) -> bool:
    """Whether the model is compiled: by ``auto`` it is not, since sessions are too short for it."""
    return spec.compile is True


def compiled(model: torch.nn.Module, device: torch.device) -> Any:
    """The model compiled for batches of one size, on a GPU with its kernels in a CUDA graph."""
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(model, dynamic=False, mode=mode)


def log_plan(spec: SessionSpec, train: ImageSet, valid: ImageSet, device: torch.device) -> None:
    """Say what is about to be trained.

    Raises:
        InputError: there is not one batch to train on.
    """
    num_steps = num_steps_per_epoch(len(train), spec.batch_size)
    if num_steps == 0:
        raise job.InputError(f"{spec.dataset}: a single training image cannot be trained on")
    logging.info(
        "%s %s seed %d session %d: %d epochs of %d steps, %d train and %d valid images, on %s",
        spec.dataset, spec.method, spec.seed, spec.session, spec.num_epochs, num_steps,
        len(train), len(valid), device,
    )  # fmt: skip
    if len(train) % spec.batch_size == 1:
        logging.info("the last image of every epoch is alone in its batch and left out")


def start(
    spec: SessionSpec,
    train: ImageSet,
    previous: Path | None,
    weights: Path | None,
    device: torch.device,
) -> Trained:
    """The state that a session begins with: at a boundary, this is where the methods fork."""
    random.seed(spec.seed)
    np.random.seed(spec.seed)
    torch.manual_seed(spec.seed)
    model = make_model(spec.model, spec.image_size, train.num_classes)
    before = checkpoint.load(previous / "checkpoint.pt") if previous else None
    if before:
        model.load_state_dict(before["model"])
    elif weights:
        with weights.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != spec.weights_sha256:
                raise job.InputError(f"{weights}: has just changed: run again")
        fresh = load_weights(model, spec.model, spec.image_size, train.num_classes, weights)
        logging.info("weights from %s; new: %s", weights, ", ".join(fresh) or "none")
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    optimizer = make_optimizer(model.parameters(), spec.optimizer, spec.learning_rate)
    position = Position(session=spec.session)
    if before:
        carry_over(optimizer, before["optimizer"], spec.keep)
        checkpoint.set_random_states(before["random"])
        position = Position(**before["position"] | {"session": spec.session})
    num_steps = spec.num_epochs * num_steps_per_epoch(len(train), spec.batch_size)
    scheduler = make_scheduler(optimizer, spec.learning_rate, num_steps, spec.warmup_steps)
    return Trained(model, optimizer, scheduler, position)


@contextlib.contextmanager
def explained(spec: SessionSpec) -> Iterator[None]:
    """Turn what the configuration asks too much of a device for into one line with the mend."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise job.InputError(
            f"the GPU's memory is too small for `batch_size` {spec.batch_size} at `image_size` "
            f"{spec.image_size}: choose smaller ones"
        ) from error
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        operation = str(error).partition(" ")[0]
        raise job.InputError(
            f"`model` {spec.model} needs {operation}, which has no deterministic implementation "
            "here: set `deterministic` to false, or choose another model"
        ) from error


def fingerprint(arguments: argparse.Namespace, made_by: dict[str, Any]) -> str:
    """A name for the state of a session in progress: of all that its bits depend on.

    But not of the very device, so that a job may continue on another of its kind.
    """
    files = [arguments.dataset / "dataset.json", Path(job.__file__)]
    files += sorted(Path(__file__).parent.glob("*.py"))
    if arguments.previous:
        files.append(arguments.previous / "checkpoint.pt")
    kind = {key: value for key, value in made_by.items() if key != "device"}
    digest = hashlib.sha256(json.dumps(kind, sort_keys=True).encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def describe(spec: SessionSpec, device: torch.device) -> dict[str, Any]:
    """What made a checkpoint: configuration, versions, device."""
    on_gpu = device.type == "cuda"
    return {
        "configuration": dataclasses.asdict(spec),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
        },
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "device_type": device.type,
        "precision": "float32" if autocast(spec, device) is contextlib.nullcontext else "bfloat16",
        "compiled": compiles(spec),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--spec", required=True, help="JSON of the fields of SessionSpec")
PARSER.add_argument("--dataset", type=Path, required=True, help="folder of the arrays")
PARSER.add_argument("--previous", type=Path, help="folder of the session before this one")
PARSER.add_argument("--weights", type=Path, help="state dict that the first session starts from")
PARSER.add_argument("--output", type=Path, required=True, help="folder")
PARSER.add_argument("--progress", type=Path, required=True, help="folder of states in progress")
PARSER.add_argument("--checkpoint-every", default='{"epochs": 1}', help="JSON: when to save one")
PARSER.add_argument("--curves", type=Path, nargs="*", default=[], help="TensorBoard folders")

if __name__ == "__main__":
    job.run(PARSER, main)
    job.exit_without_cleanup()
