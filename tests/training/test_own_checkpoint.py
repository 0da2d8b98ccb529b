"""Sessions that start from a checkpoint that a plain training loop saved, and from an own model."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from conftest import file_sha256
from optstate.job import InputError
from optstate.training.batches import IMAGENET
from sessions import (
    CURVES,
    assert_equal_bits,
    flip_a_byte,
    load_checkpoint,
    make_own_spec,
    read_points,
    read_rows,
    train,
    write_arrays,
)

OWN_MODEL = """
from torch import nn


def make(num_classes, image_size):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )
"""
LR = {"kind": "constant", "lr": 0.01}


@pytest.fixture
def arrays(tmp_path):
    return write_arrays(tmp_path / "arrays")


@pytest.fixture
def own(tmp_path):
    """Settings for a model of one's own, without augmentation."""
    return replace(make_own_spec(tmp_path, OWN_MODEL), augment="none", learning_rate=LR)


def load_batches(arrays, seed: int, epoch: int):
    """Yield the inputs and labels of an epoch, as a plain loop would."""
    images = torch.from_numpy(np.load(arrays / "train_images.npy")).permute(0, 3, 1, 2) / 255
    labels = torch.from_numpy(np.load(arrays / "train_labels.npy"))
    order = np.random.default_rng([seed, epoch]).permutation(len(images))
    for start in range(0, len(order) - 1, 4):
        chosen = order[start : start + 4]
        yield images[chosen], labels[chosen]


def make_net():
    namespace: dict = {}
    exec(OWN_MODEL, namespace)  # noqa: S102 - written above
    return namespace["make"](2, 32).to(memory_format=torch.channels_last)


def take_epoch(model, optimizer, arrays, seed: int, epoch: int) -> list[float]:
    """Train an epoch in plain PyTorch. Returns its losses."""
    losses = []
    for images, labels in load_batches(arrays, seed, epoch):
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def mine(tmp_path, arrays):
    """A model and its Adam after two epochs of a plain loop, and the file they are saved in."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = make_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    for epoch in (1, 2):
        take_epoch(model, optimizer, arrays, 99, epoch)
    saved = copy.deepcopy(optimizer.state_dict())
    for entries in saved["state"].values():  # as in a plain loop, whose model is not channels-last
        entries |= {name: value.contiguous() for name, value in entries.items()}
    path = tmp_path / "mine.pt"
    torch.save({"model": model.state_dict(), "optimizer": saved}, path)
    return model, optimizer, path


def continue_from(root, own, arrays, path, keep) -> list[float]:
    """Train a session from the file ``path``. Returns its losses."""
    sha256 = file_sha256(path)
    hashes = own.file_hashes | {"weights": sha256, "optimizer_state": sha256}
    spec = replace(own, keep=keep, file_hashes=hashes, num_epochs=1)
    output = train(root, spec, arrays, weights=path, optimizer_state=path)
    return [float(row["loss"]) for row in read_rows(output / "steps.csv")]


def test_the_loss_of_a_saved_state_is_that_of_plain_pytorch(tmp_path, own, arrays, mine):
    """Only the first loss is the same with and without the state."""
    model, optimizer, path = mine
    kept = continue_from(tmp_path / "kept", own, arrays, path, "all")
    lost = continue_from(tmp_path / "lost", own, arrays, path, [])
    assert kept[0] == lost[0]
    assert kept[1] != lost[1]
    assert kept == take_epoch(model, optimizer, arrays, own.seed, 1)
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    cold = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    assert lost == take_epoch(model, cold, arrays, own.seed, 1)


CACHING_MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(3, num_classes)
        self.scale = None

    def forward(self, images):
        if self.scale is None:
            self.scale = torch.full((1,), 2.0)
        images = nn.functional.dropout(images.mean((2, 3)), 0.5, self.training)
        return self.linear(images) * self.scale


def make(num_classes, image_size):
    return Net(num_classes)
"""


def test_dropout_and_tensors_that_a_model_keeps_are_as_in_plain_pytorch(tmp_path, arrays):
    """Loading the weights draws no random number, and evaluating them leaves usable tensors."""
    own = make_own_spec(tmp_path, CACHING_MODEL)
    namespace: dict = {}
    exec(CACHING_MODEL, namespace)  # noqa: S102 - written above
    torch.set_num_threads(1)
    path = tmp_path / "mine.pt"
    torch.save(namespace["make"](2, 32).state_dict(), path)
    hashes = own.file_hashes | {"weights": file_sha256(path)}
    spec = replace(own, augment="none", learning_rate=LR, num_epochs=1, file_hashes=hashes)
    rows = read_rows(train(tmp_path / "out", spec, arrays, weights=path) / "steps.csv")

    torch.manual_seed(spec.seed)
    model = namespace["make"](2, 32)
    model.load_state_dict(torch.load(path))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    losses = take_epoch(model, optimizer, arrays, spec.seed, 1)
    assert [float(row["loss"]) for row in rows] == losses


def test_the_accuracy_of_given_weights_is_printed_and_recorded_first(tmp_path, own, arrays, caplog):
    first = train(tmp_path / "first", own, arrays)
    ends = [row for row in read_rows(first / "epochs.csv") if row["split"] == "valid"]
    path = first / "checkpoint.pt"
    spec = replace(own, file_hashes=own.file_hashes | {"weights": file_sha256(path)})
    with caplog.at_level("INFO"):
        second = train(tmp_path / "second", spec, arrays, weights=path)
    (number,) = (i for i, text in enumerate(caplog.messages) if "the given weights have" in text)
    loss, top1 = (float(ends[-1][name]) for name in ("loss", "top1"))
    assert f"valid loss {loss:.4f} top-1 {100 * top1:.1f} %" in caplog.messages[number]
    assert not any("epoch 1/" in text for text in caplog.messages[:number])
    row, *others = read_rows(second / "epochs.csv")
    assert [row[name] for name in ("epoch", "split", "session")] == ["0", "valid", "1"]
    columns = ("loss", "top1", "top2", "top3", "images", "balanced_top1")
    assert [row[name] for name in columns] == [ends[-1][name] for name in columns]
    assert others[0]["epoch"] == "1"
    (step, value), *_ = read_points(tmp_path / "second" / CURVES, "loss/valid")
    assert (step, value) == (0, pytest.approx(loss))


def test_some_entries_of_a_saved_state_are_kept(tmp_path, own, arrays, mine):
    _, optimizer, path = mine
    names = ["exp_avg_sq", "step"]
    some = continue_from(tmp_path / "some", own, arrays, path, names)
    all_kept = continue_from(tmp_path / "all", own, arrays, path, "all")
    assert some[0] == all_kept[0]
    assert some[1] != all_kept[1]
    steps = load_checkpoint(tmp_path / "some/session1")["optimizer"]["state"][0]["step"]
    assert steps == optimizer.state_dict()["state"][0]["step"] + len(some)


def test_a_state_of_another_head_is_refused_before_anything_is_written(tmp_path, own, arrays, mine):
    *_, path = mine
    saved = torch.load(path, weights_only=True)
    for name in ("weight", "bias"):
        saved["model"][f"5.{name}"] = torch.zeros(7, *saved["model"][f"5.{name}"].shape[1:])
    for index in (4, 5):
        for entry in ("exp_avg", "exp_avg_sq"):
            value = saved["optimizer"]["state"][index][entry]
            saved["optimizer"]["state"][index][entry] = torch.zeros(7, *value.shape[1:])
    torch.save(saved, path)
    with pytest.raises(InputError, match=r"does not fit 5.weight \(2, 4\) under Adam"):
        continue_from(tmp_path / "kept", own, arrays, path, "all")
    assert not (tmp_path / "kept/session1").exists()


def test_a_changed_model_file_is_an_error(tmp_path, own, arrays):
    first = train(tmp_path / "first", own, arrays)
    flip_a_byte(tmp_path / "net.py")
    for number, previous in ((1, None), (2, first)):
        with pytest.raises(InputError, match=r"^model: .*net.py has changed since Snakemake"):
            train(tmp_path / "other", replace(own, session=number), arrays, previous=previous)


def test_normalized_pixels_train_as_in_plain_pytorch(tmp_path, own, arrays):
    """Without normalization, not one bit is different from pixels in [0, 1]."""
    mean, std = (torch.tensor(IMAGENET[key])[:, None, None] for key in ("mean", "std"))
    for normalize, scale in (("none", lambda x: x), ("imagenet", lambda x: (x - mean) / std)):
        torch.manual_seed(own.seed)
        torch.set_num_threads(1)
        model = make_net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        losses = []
        for images, labels in load_batches(arrays, own.seed, 1):
            loss = cross_entropy(model(scale(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        spec = replace(own, normalize=normalize, num_epochs=1)
        rows = read_rows(train(tmp_path / normalize, spec, arrays) / "steps.csv")
        assert [float(row["loss"]) for row in rows] == losses
        as_numbers = replace(spec, normalize=IMAGENET)
        if normalize == "imagenet":
            same = train(tmp_path / "numbers", as_numbers, arrays)
            assert_equal_bits(
                load_checkpoint(same)["model"],
                load_checkpoint(tmp_path / "imagenet/session1")["model"],
            )


def test_each_seed_draws_its_own_subset(tmp_path, own, arrays):
    """Training on the drawn images alone gives the same losses as arrays that hold only them."""
    spec = replace(own, subset="seed", train_per_class=3, num_epochs=1)
    losses = {}
    for name, changes in {"3": {}, "4": {"seed": 4}, "first": {"subset": "first"}}.items():
        rows = read_rows(train(tmp_path / name, replace(spec, **changes), arrays) / "steps.csv")
        losses[name] = [row["loss"] for row in rows]
    assert len({tuple(values) for values in losses.values()}) == 3
    assert all(len(values) == 2 for values in losses.values())
