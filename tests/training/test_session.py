"""The outputs of sessions, and errors. Validation images are never trained on."""

import re
import resource
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from conftest import assert_one_line, file_sha256, run_module
from optstate import lr_range_test
from optstate.checksums import read_checksums
from optstate.job import PROGRESS, InputError
from optstate.training import batches, measuring, session
from optstate.training.batches import load_split
from optstate.training.model import make_model
from sessions import (
    CURVES,
    FIRST,
    SECOND,
    assert_equal_bits,
    flip_a_byte,
    list_files,
    load_checkpoint,
    make_own_spec,
    read_made_by,
    read_points,
    read_rows,
    read_rows_without_seconds,
    train,
    write_arrays,
)

SHORT = replace(FIRST, num_epochs=1)


@pytest.fixture
def arrays(tmp_path):
    return write_arrays(tmp_path / "arrays")


def test_outputs_of_two_sessions(tmp_path, arrays):
    first = train(tmp_path, FIRST, arrays)
    second = train(tmp_path, SECOND, arrays, previous=first)
    saved = load_checkpoint(second)
    assert saved["position"] == {"session": 2, "epoch": 5, "step": 20}
    assert saved["meta"]["configuration"] == asdict(SECOND)
    assert saved["meta"]["device_type"] == "cpu"
    assert saved["meta"]["deterministic"] is True
    assert saved["optimizer"]["state"][0]["step"] == 20

    steps, epochs = read_rows(second / "steps.csv"), read_rows(second / "epochs.csv")
    assert [int(row["step"]) for row in steps] == list(range(13, 21))
    assert [int(row["epoch"]) for row in steps] == [4] * 4 + [5] * 4
    assert [(int(r["epoch"]), r["split"]) for r in epochs] == [
        (4, "train"), (4, "valid"), (5, "train"), (5, "valid"),
    ]  # fmt: skip
    assert {row["method"] for row in steps + epochs} == {"onecycle-preserve"}
    assert {r["images"] for r in epochs if r["split"] == "train"} == {"16"}  # of 17: one is alone
    assert {r["images"] for r in epochs if r["split"] == "valid"} == {"10"}
    for epoch in (4, 5):
        losses = [float(row["loss"]) for row in steps if int(row["epoch"]) == epoch]
        (mean,) = (
            float(r["loss"]) for r in epochs if (r["epoch"], r["split"]) == (str(epoch), "train")
        )
        assert mean == pytest.approx(np.mean(losses))


def test_curves_have_every_step_of_a_run(tmp_path, arrays):
    first = train(tmp_path, FIRST, arrays)
    train(tmp_path, SECOND, arrays, previous=first)
    # TensorBoard would read several files in the order of their names.
    assert len(list((tmp_path / CURVES).iterdir())) == 1
    for tag in ("loss/train", "accuracy/train_top1", "schedule/lr", "schedule/momentum"):
        assert [step for step, _ in read_points(tmp_path / CURVES, tag)] == list(range(1, 21))
    for tag in ("loss/valid", "accuracy/valid_top1", "accuracy/valid_top2", "accuracy/valid_top3"):
        assert [step for step, _ in read_points(tmp_path / CURVES, tag)] == [4, 8, 12, 16, 20]


def test_runs_can_be_compared_by_their_names(tmp_path, arrays):
    train(tmp_path, SHORT, arrays)
    accumulator = EventAccumulator(str(tmp_path / CURVES))
    accumulator.Reload()
    content = accumulator.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    info = HParamsPluginData.FromString(content).session_start_info
    names = {key: value.string_value or value.number_value for key, value in info.hparams.items()}
    assert names == {
        "dataset": "noise", "schedule": "onecycle", "boundary": "preserve", "seed": 3,
    }  # fmt: skip
    assert info.group_name == "noise/onecycle-preserve/seed3"


def test_every_epoch_is_a_line_on_the_terminal(tmp_path, arrays, caplog):
    with caplog.at_level(PROGRESS):
        train(tmp_path, FIRST, arrays)
    lines = [record.message for record in caplog.records if record.levelno == PROGRESS]
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(
            rf"noise onecycle seed 3 session 1, epoch {number}/3: train loss \d+\.\d{{4}} "
            r"top-1 \d+\.\d %, valid loss \d+\.\d{4} top-1 \d+\.\d %, \d+\.\d s"
            + (r", \d+ s left" if number < 3 else ""),
            line,
        )
    assert len(lines) == 3


def test_the_curves_of_a_new_boundary_include_the_shared_session(tmp_path, arrays):
    first = train(tmp_path / "shared", FIRST, arrays)
    train(tmp_path / "added", SECOND, arrays, previous=first)
    losses = read_points(tmp_path / "added" / CURVES, "loss/train")
    assert [step for step, _ in losses] == list(range(1, 21))
    assert losses[:12] == read_points(tmp_path / "shared" / CURVES, "loss/train")


def test_curves_of_another_shared_session_are_replaced(tmp_path, arrays):
    """An earlier run, or one that was killed while writing, may have left its curves."""
    train(tmp_path / "added", replace(FIRST, seed=5), arrays)
    first = train(tmp_path / "shared", FIRST, arrays)
    train(tmp_path / "added", SECOND, arrays, previous=first)
    for tag in ("loss/train", "loss/valid"):
        shared = read_points(tmp_path / "shared" / CURVES, tag)
        assert read_points(tmp_path / "added" / CURVES, tag)[: len(shared)] == shared


def test_outputs_are_listed_with_their_checksums(tmp_path, arrays):
    output = train(tmp_path, SHORT, arrays)
    listed = read_checksums(output)
    assert listed == {name: file_sha256(output / name) for name in session.OUTPUTS}
    assert sorted([*listed, "session.sha256"]) == list_files(output)


def test_what_made_the_outputs_is_recorded(tmp_path, arrays):
    output = train(tmp_path, SHORT, arrays)
    made_by = read_made_by(output)
    assert made_by == load_checkpoint(output)["meta"]
    assert made_by["dataset_sha256"] == file_sha256(arrays / "dataset.json")
    assert [kind.keys() for kind in made_by["compute"]] == [{"name", "capability", "variables"}]


@pytest.mark.parametrize("name", ["train_images.npy", "valid_labels.npy", "dataset.json"])
def test_altered_arrays_are_refused(tmp_path, arrays, name):
    """An earlier session has verified them, so their checksums are stored."""
    train(tmp_path / "earlier", SHORT, arrays)
    flip_a_byte(arrays / name)
    with pytest.raises(InputError, match=f"{arrays / name}: changed since it was made"):
        train(tmp_path / "later", SHORT, arrays)
    assert list_files(tmp_path / "later") == []


@pytest.mark.parametrize("name", ["checkpoint.pt", "steps.csv", "epochs.csv"])
def test_altered_files_of_the_previous_session_are_refused(tmp_path, arrays, name):
    first = train(tmp_path, SHORT, arrays)
    flip_a_byte(first / name)
    before = list_files(tmp_path)
    with pytest.raises(InputError, match=f"{first / name}: changed since it was made"):
        train(tmp_path, SECOND, arrays, previous=first)
    assert list_files(tmp_path) == before


def test_the_checkpoint_of_another_run_is_refused(tmp_path, arrays):
    """Its checksum fits."""
    other = train(tmp_path / "other", replace(SHORT, seed=4), arrays)
    train(tmp_path, SHORT, arrays)
    first = tmp_path / "session1"
    shutil.copytree(other, first, dirs_exist_ok=True)
    before = list_files(tmp_path)
    with pytest.raises(InputError, match=f"{first}/checkpoint.pt: .* its seed is 4, not 3. Delete"):
        train(tmp_path, SECOND, arrays, previous=first, previous_spec=SHORT)
    assert list_files(tmp_path) == before


def test_a_checkpoint_of_other_arrays_is_refused(tmp_path, arrays):
    first = train(tmp_path, SHORT, arrays)
    write_arrays(tmp_path / "other", card='{"image_size": 32}')
    with pytest.raises(InputError, match="checkpoint.pt: .* its dataset_sha256 is"):
        train(tmp_path, SECOND, tmp_path / "other", previous=first)


@pytest.mark.parametrize("altered", ["arrays", "checkpoint", "run"])
def test_the_lr_range_test_refuses_altered_files(tmp_path, arrays, altered):
    first = train(tmp_path, SHORT, arrays)
    if altered != "run":
        flip_a_byte(arrays / "train_images.npy" if altered == "arrays" else first / "checkpoint.pt")
    expected = replace(SHORT, seed=4) if altered == "run" else SHORT
    arguments = [
        "--spec", SECOND.to_json(), "--key", "0", "--arrays", arrays, "--previous", first,
        "--previous-spec", expected.to_json(), "--output", tmp_path / "curve.csv",
    ]  # fmt: skip
    with pytest.raises(InputError, match="its seed is 3, not 4" if altered == "run" else "changed"):
        lr_range_test.main(lr_range_test.PARSER.parse_args([str(a) for a in arguments]))
    assert not list(tmp_path.glob("curve.*"))


def test_a_change_of_the_weights_file_is_an_error(tmp_path, arrays):
    weights = tmp_path / "weights.pt"
    torch.save(make_model("shufflenet_v2_x0_5", 32, 2).state_dict(), weights)
    for sha256 in (file_sha256(weights), file_sha256(weights)[:8]):  # all, or a published start
        given = replace(FIRST, file_hashes={"weights": sha256})
        train(tmp_path / sha256, given, arrays, weights=weights)
    with pytest.raises(InputError, match=f"^weights: {weights} has changed .* or run again"):
        given = replace(FIRST, file_hashes={"weights": "0" * 64})
        train(tmp_path, given, arrays, weights=weights)


def test_a_seed_decides_all_bits(tmp_path, arrays):
    one, again = (load_checkpoint(train(tmp_path / name, FIRST, arrays)) for name in "ab")
    assert_equal_bits(one, again)
    other = load_checkpoint(train(tmp_path / "c", replace(FIRST, seed=4), arrays))
    assert not torch.equal(one["model"]["fc.weight"], other["model"]["fc.weight"])


def test_validation_reads_the_validation_images_and_training_does_not(tmp_path):
    """In one of two data sets, the labels of the validation images are swapped."""
    epochs = []
    for name, valid_labels in (("right", None), ("swapped", [1] * 5 + [0] * 5)):
        arrays = write_arrays(tmp_path / f"{name}-arrays", valid_labels)
        output = train(tmp_path / name, replace(FIRST, batch_size=8), arrays)
        epochs.append(read_rows_without_seconds(output / "epochs.csv"))
    for right, swapped in zip(*epochs, strict=True):
        if right["split"] == "train":
            assert right == swapped
        else:  # of two labels, one is right
            assert float(right["top1"]) + float(swapped["top1"]) == 1
            assert right["loss"] != swapped["loss"]


def test_the_balanced_top1_is_the_mean_over_classes_of_unequal_size(tmp_path):
    arrays = write_arrays(tmp_path / "arrays", [0] * 9 + [1])
    for row in read_rows(train(tmp_path, FIRST, arrays) / "epochs.csv"):
        if row["split"] == "train":
            assert row["balanced_top1"] == ""
        else:
            hits = round(10 * float(row["top1"]))
            possible = [(hits / 9 + 0) / 2, ((hits - 1) / 9 + 1) / 2]
            assert float(row["balanced_top1"]) in map(pytest.approx, possible)


def test_training_continues_with_a_loss_that_is_not_finite(tmp_path, arrays):
    learning_rate = {"kind": "constant", "lr": 1e30}
    output = train(tmp_path, replace(FIRST, learning_rate=learning_rate), arrays)
    assert read_rows(output / "steps.csv")[-1]["loss"] == "nan"
    assert len(read_rows(output / "epochs.csv")) == 6


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.cuda.OutOfMemoryError("x"),
            "batch_size: 4 images of 32 pixels do not fit .* Choose a smaller",
        ),
        (
            TypeError("expected Tensor as element 1 in argument 2, but got NoneType"),
            "optimizer: the fused SGD needs a gradient of .* Add `foreach: true`",
        ),
        (
            RuntimeError("cumsum_cuda does not have a deterministic implementation, but you set"),
            "model: it uses cumsum_cuda, which .* Set `deterministic` to false",
        ),
    ],
)
def test_errors_of_torch_are_explained(error, words):
    with (
        pytest.raises(InputError, match=words),
        session.explain_errors(replace(FIRST, optimizer={"name": "SGD", "momentum": 0.9})),
    ):
        raise error


def test_a_full_disk_is_one_line_and_no_output(tmp_path, arrays):
    """A limit on file sizes has the same effect: it is below the 100 MB of a state in progress."""

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    result = run_module(
        "optstate.training.session", "--spec", FIRST.to_json(), "--arrays", arrays,
        "--output", tmp_path / "out", "--progress", tmp_path / "in_progress",
        "--log", tmp_path / "log", preexec_fn=limit_file_size,
    )  # fmt: skip
    assert_one_line(result, str(tmp_path / "in_progress"), "ulimit -f")
    assert not (tmp_path / "out").exists()
    assert list_files(tmp_path / "in_progress") == []


def test_bfloat16_training_keeps_float32_weights(tmp_path, arrays):
    output = train(tmp_path, replace(FIRST, precision="bfloat16"), arrays)
    saved = load_checkpoint(output)
    assert saved["meta"]["precision"] == "bfloat16"
    assert saved["model"]["fc.weight"].dtype == torch.float32


def test_norms_are_recorded_early_and_every_tenth_step(tmp_path, arrays):
    first = train(tmp_path, replace(FIRST, num_epochs=16, augment="none"), arrays)
    steps = read_rows(first / "steps.csv")
    assert list_recorded(steps) == [*range(1, 51), 60]
    assert all(bool(row["grad_norm"]) == bool(row["update_norm"]) for row in steps)
    assert len(steps) == 64
    second = train(tmp_path, SECOND, arrays, previous=first)
    assert list_recorded(read_rows(second / "steps.csv")) == [*range(65, 73)]


def list_recorded(steps: list[dict]) -> list[int]:
    return [int(row["step"]) for row in steps if row["update_norm"]]


def test_the_time_of_fetching_records_changes_no_result(tmp_path, arrays, monkeypatch):
    once_an_epoch = train(tmp_path / "slow", FIRST, arrays)
    monkeypatch.setattr(measuring, "FETCH_SECONDS", -1)
    every_step = train(tmp_path / "fast", FIRST, arrays)
    assert (once_an_epoch / "steps.csv").read_text() == (every_step / "steps.csv").read_text()
    assert read_rows_without_seconds(once_an_epoch / "epochs.csv") == read_rows_without_seconds(
        every_step / "epochs.csv"
    )


def test_random_states_continue_at_the_fork(tmp_path, arrays):
    """A model with dropout must not repeat the masks of the first session."""
    spec = replace(FIRST, model="mobilenet_v3_small", num_epochs=1)
    first = train(tmp_path, spec, arrays)
    saved = load_checkpoint(first)["random"]["torch"]
    later = replace(spec, session=2, keep="all")
    images = load_split(arrays, "train", None)
    before = session.load_previous(arrays, first, spec.to_json())
    session.make_state(later, images, before, {}, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), saved)
    torch.manual_seed(spec.seed)
    make_model(spec.model, 32, 2)
    assert not torch.equal(torch.get_rng_state(), saved)


@pytest.mark.parametrize(("batch_size", "num_batches"), [(4, 4), (15, 1)])
def test_reestimated_statistics_are_those_of_the_final_weights(
    tmp_path, arrays, batch_size, num_batches
):
    """A model whose statistics are re-estimated is validated, and then restored.

    Statistics come from the full batches of an epoch of 17 images.
    """
    spec = replace(FIRST, batch_size=batch_size)
    output = train(tmp_path, spec, arrays)
    *others, last = [row for row in read_rows(output / "epochs.csv") if row["split"] == "valid"]
    assert {row["reestimated_top1"] for row in others} == {""}
    saved = load_checkpoint(output)
    model = make_model(FIRST.model, 32, 2)
    model.load_state_dict(saved["model"])
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    stream = batches.REESTIMATING
    train_set = load_split(arrays, "train", None)
    endless = batches.iterate_endlessly(
        train_set, spec, torch.device("cpu"), first_epoch=3, stream=stream
    )
    with torch.no_grad():
        for _ in range(num_batches):
            model(next(endless)[0])
        images = torch.from_numpy(np.load(arrays / "valid_images.npy"))
        labels = torch.from_numpy(np.load(arrays / "valid_labels.npy"))
        logits = model.eval()(batches.make_input(images))
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert float(last["reestimated_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(last["reestimated_loss"]) != float(last["loss"])
    assert float(last["reestimated_top1"]) == (logits.argmax(1) == labels).float().mean()


def test_a_model_without_batch_norm_has_no_reestimated_statistics(tmp_path, arrays):
    spec = replace(FIRST, model="squeezenet1_0", image_size=32, num_epochs=1)
    rows = read_rows(train(tmp_path, spec, arrays) / "epochs.csv")
    assert {row["reestimated_loss"] for row in rows} == {""}


NORMS = """
from torch import nn


class Norm(nn.BatchNorm2d):
    def forward(self, x):
        self.num_batches_tracked.add_(self.training)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum,
        )


class Frozen(Norm):
    def train(self, mode=True):
        return super().train(False)


def make(num_classes, image_size):
    return nn.Sequential(
        NORM, nn.Conv2d(3, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
"""


@pytest.mark.parametrize(
    ("norm", "is_trained"),
    [("Norm(3)", True), ("Frozen(3)", False), ("Norm(3, momentum=0)", False)],
)
def test_only_statistics_that_are_trained_are_reestimated(tmp_path, arrays, norm, is_trained):
    spec = replace(make_own_spec(tmp_path, NORMS.replace("NORM", norm)), num_epochs=1)
    output = train(tmp_path / "out", spec, arrays)
    last = read_rows(output / "epochs.csv")[-1]
    assert bool(last["reestimated_loss"]) is is_trained
    kept = load_checkpoint(output)["model"]["0.running_mean"]
    assert bool(kept.any()) is is_trained
