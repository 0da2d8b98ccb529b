"""What a boundary does to a run: whole experiments on tiny arrays, and independent computations."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from optstate.checksums import write_checksums
from optstate.experiment import configuration
from optstate.experiment.runs import Session
from optstate.job import InputError
from optstate.training import batches, loop
from optstate.training.model import make_model
from sessions import (
    CONFIG,
    assert_equal_bits,
    flip_a_byte,
    load_checkpoint,
    make_own_spec,
    read_rows,
    train,
    train_methods,
    write_arrays,
)

OPTIMIZERS = {
    "Adam": {"name": "Adam"},
    "AdamW": {"name": "AdamW", "weight_decay": 0.1},
    "SGD": {"name": "SGD", "momentum": 0.9},
    "RMSprop": {"name": "RMSprop", "momentum": 0.5},
    "NAdam": {"name": "NAdam"},
}
SCHEDULES = {
    "constant": {"lr": 1e-3},
    "onecycle": {"initial_lr": 1e-5, "max_lr": 1e-3},
    "cosine": {"lr": 1e-3, "final_lr": 0.0},
    "warmup": {"lr": 1e-3, "warmup_steps": 7},
}
SESSIONS = [1, 3, 2]  # epochs
NUM_STEPS = 4  # in an epoch


@pytest.fixture
def arrays(tmp_path):
    return write_arrays(tmp_path / "arrays")


def make_config(boundaries: dict, kind: str = "cosine", **changes) -> dict:
    """Return the configuration of an experiment whose schedule is over the run."""
    schedule = {"kind": kind, "over": "run", **SCHEDULES[kind]}
    methods = [f"run-{name}" for name in (*boundaries, "uninterrupted") if boundaries.get(name, 1)]
    config = copy.deepcopy(CONFIG) | {
        "model": "shufflenet_v2_x0_5",
        "sessions": SESSIONS,
        "schedules": {"run": schedule},
        "boundaries": {"new": {"keep": []}, "preserve": {"keep": "all"}} | boundaries,
        "methods": methods,
    }
    return configuration.validate(config | changes)


def read_steps(folders: list) -> list[dict]:
    """Return the rows of every step of a run."""
    return [row for folder in folders for row in read_rows(folder / "steps.csv")]


def read_column(folders: list, name: str) -> list[float]:
    return [float(row[name]) for row in read_steps(folders)]


def compute_whole_schedule(kind: str, optimizer: dict) -> list[tuple[float, float]]:
    """Return LR and momentum of every step, by PyTorch's own schedulers over the whole run."""
    options = {key: value for key, value in optimizer.items() if key != "name"}
    lr = {"onecycle": 1e-5}.get(kind, 1e-3)
    made = getattr(torch.optim, optimizer["name"])(
        [torch.zeros(1, requires_grad=True)], lr, **options
    )
    num_steps = sum(SESSIONS) * NUM_STEPS
    own = torch.optim.lr_scheduler
    scheduler = {
        "constant": lambda: own.LambdaLR(made, lambda _: 1.0),
        "onecycle": lambda: own.OneCycleLR(made, 1e-3, total_steps=num_steps, div_factor=100),
        "cosine": lambda: own.CosineAnnealingLR(made, num_steps, eta_min=0),
        "warmup": lambda: own.LinearLR(made, start_factor=1 / 7, total_iters=6),
    }[kind]()
    used = []
    for _ in range(num_steps):
        group = made.param_groups[0]
        used.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
        made.step()
        scheduler.step()
    return used


class TestOverTheRun:
    """One schedule over all sessions, as in a job that is interrupted and continues."""

    @pytest.mark.parametrize("kind", SCHEDULES)
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_preserve_equals_uninterrupted(self, request, tmp_path, arrays, name, kind):
        if name != "Adam" and kind != "onecycle" and not request.config.getoption("--exhaustive"):
            pytest.skip("slow: run it with --exhaustive")
        config = make_config(
            {"new": {"keep": []}, "preserve": {"keep": "all"}}, kind, optimizer=OPTIMIZERS[name]
        )
        made = train_methods(tmp_path, config, arrays)
        whole, kept = made["run-uninterrupted"], made["run-preserve"]
        names = ("epoch", "step", "loss", "top1", "lr", "momentum")
        rows = zip(read_steps(whole), read_steps(kept), strict=True)
        for expected, found in rows:
            assert [found[n] for n in names] == [expected[n] for n in names]
            for norm in ("grad_norm", "update_norm"):
                assert found[norm] == expected[norm] or "" in (found[norm], expected[norm])
        interrupted, uninterrupted = load_checkpoint(kept[-1]), load_checkpoint(whole[-1])
        for part in ("model", "optimizer", "scheduler", "random"):
            assert_equal_bits(interrupted[part], uninterrupted[part])
        for folders in made.values():
            used = [(float(r["lr"]), float(r["momentum"])) for r in read_steps(folders)]
            assert used == compute_whole_schedule(kind, OPTIMIZERS[name])
        assert read_column(made["run-new"], "loss") != read_column(kept, "loss")


RESCALED = {
    "new": {"keep": []},
    "preserve": {"keep": "all"},
    "new-at-preserved-norm": {"keep": [], "step_size": "preserve"},
    "preserve-at-new-norm": {"keep": "all", "step_size": "new"},
    "preserve-at-own-norm": {"keep": "all", "step_size": "preserve"},
    "late": {"keep": [], "at": [3], "step_size": "preserve"},
    "chain": {"keep": "all", "step_size": "new-at-preserved-norm"},
}


@pytest.fixture(scope="module")
def rescaled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rescaled")
    arrays = write_arrays(folder / "arrays")
    return train_methods(folder, make_config(RESCALED, "constant"), arrays)


class TestStepSize:
    """Every update gets the norm that it has in the run of another boundary."""

    def test_norms(self, rescaled):
        norms = {
            method.removeprefix("run-"): np.array(read_column(folders[1:], "update_norm"))
            for method, folders in rescaled.items()
            if method != "run-uninterrupted"
        }
        assert norms["new"][0] > 1.5 * norms["preserve"][0]
        for boundary, options in RESCALED.items():
            if "step_size" in options:
                twin = norms[options["step_size"]]
                assert norms[boundary] == pytest.approx(twin, rel=1e-3), boundary
        losses = {method: read_column(folders, "loss") for method, folders in rescaled.items()}
        assert losses["run-new-at-preserved-norm"] != losses["run-new"]
        assert losses["run-preserve-at-new-norm"] != losses["run-preserve"]

    def test_the_own_norm_changes_no_bit(self, rescaled):
        own, kept = (rescaled[f"run-{name}"] for name in ("preserve-at-own-norm", "preserve"))
        assert read_column(own, "loss") == read_column(kept, "loss")
        final, expected = (load_checkpoint(folders[-1]) for folders in (own, kept))
        for part in ("model", "optimizer", "random"):
            assert_equal_bits(final[part], expected[part])

    def test_runs_are_the_same_until_their_updates_are_rescaled(self, rescaled):
        assert rescaled["run-late"][:2] == rescaled["run-preserve"][:2]
        assert rescaled["run-late"][2] not in rescaled["run-preserve"]


@pytest.mark.parametrize("damage", ["another session", "no norms"])
def test_a_table_without_the_norms_is_refused(tmp_path, arrays, rescaled, damage):
    folder = tmp_path / "norms"
    shutil.copytree(rescaled["run-preserve"][2 if damage == "another session" else 1], folder)
    path = folder / "steps.csv"
    if damage == "no norms":
        rows = path.read_text().splitlines()
        path.write_text("\n".join([*rows[:-1], rows[-1].rpartition(",")[0] + ","]) + "\n")
        write_checksums(folder / "session.sha256", [path])
    config = make_config(RESCALED, "constant")
    spec = configuration.session_spec(config, Session("noise", "run-new-at-preserved-norm", 3, 2))
    with pytest.raises(InputError, match=f"{path}: does not have the norm of every update from"):
        train(tmp_path / "a", spec, arrays, rescaled["run-new"][0], step_sizes=folder)


def test_an_altered_table_of_norms_is_refused(tmp_path, arrays, rescaled):
    folder = tmp_path / "norms"
    shutil.copytree(rescaled["run-preserve"][1], folder)
    flip_a_byte(folder / "steps.csv")
    config = make_config(RESCALED, "constant")
    spec = configuration.session_spec(config, Session("noise", "run-new-at-preserved-norm", 3, 2))
    with pytest.raises(InputError, match=f"{folder}/steps.csv: changed since it was made"):
        train(tmp_path / "a", spec, arrays, rescaled["run-new"][0], step_sizes=folder)


SELF_CHANGING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(3, num_classes)
        self.average = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, images):
        means = images.mean((2, 3))
        if self.training:
            self.average.lerp_(means.mean(0), 0.5)
        return self.linear(means / self.average)


def make(num_classes, image_size):
    return Net(num_classes)
"""


class TestRebuilding:
    def test_the_state_equals_that_of_an_independent_loop(self, tmp_path, arrays, monkeypatch):
        """Weights, buffers and random state stay equal to the bit; the state counts the batches."""
        num_batches = 6  # more than an epoch has
        config = make_config(
            {"rebuilt": {"keep": [], "rebuild_steps": num_batches}}, "constant", augment="none"
        )
        seen = []
        train_epoch = loop.train_epoch

        def look(session):
            if session.spec.session == 2 and session.spec.boundary == "rebuilt":
                seen.append(copy.deepcopy(session.state.state_dict()))
            return train_epoch(session)

        monkeypatch.setattr(loop, "train_epoch", look)
        made = train_methods(tmp_path, config, arrays)
        before, found = load_checkpoint(made["run-rebuilt"][0]), seen[0]
        assert_equal_bits(found["model"], before["model"])
        assert_equal_bits(found["random"], before["random"])

        model = make_model("shufflenet_v2_x0_5", 32, 2)
        model.load_state_dict(before["model"])
        model = model.to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)
        images, labels = (np.load(arrays / f"train_{kind}.npy") for kind in ("images", "labels"))
        orders = [np.random.default_rng([3, epoch, 4]).permutation(17)[:16] for epoch in (2, 3)]
        for chosen in np.concatenate(orders).reshape(-1, 4)[:num_batches]:
            inputs = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float().div(255)
            optimizer.zero_grad()
            cross_entropy(model(inputs), torch.from_numpy(labels[chosen])).backward()
            optimizer.step()
        assert_equal_bits(found["optimizer"]["state"], optimizer.state_dict()["state"])
        assert {int(s["step"]) for s in found["optimizer"]["state"].values()} == {num_batches}
        assert found["optimizer"]["param_groups"][0]["lr"] == 1e-3

    def test_weights_that_a_forward_pass_changes_are_restored(self, tmp_path, arrays):
        """The first loss is that of a new optimizer, whose state is not rebuilt."""
        spec = make_own_spec(tmp_path, SELF_CHANGING)
        losses = [
            read_column([train(tmp_path / str(steps), replace(spec, num_epochs=1,
                         rebuild_steps=steps), arrays)], "loss")
            for steps in (0, 3)
        ]  # fmt: skip
        assert losses[0][0] == losses[1][0]
        assert losses[0] != losses[1]

    def test_kept_entries_go_on(self, tmp_path, arrays):
        config = make_config(
            {"rebuilt": {"keep": ["step"], "at": [2], "rebuild_steps": 3}}, "constant"
        )
        made = train_methods(tmp_path, config, arrays)
        state = load_checkpoint(made["run-rebuilt"][-1])["optimizer"]["state"]
        assert {int(s["step"]) for s in state.values()} == {sum(SESSIONS) * NUM_STEPS + 3}
        first, kept = (made[f"run-{name}"] for name in ("rebuilt", "uninterrupted"))
        at = SESSIONS[0] * NUM_STEPS
        assert read_column(first, "loss")[: at + 1] == read_column(kept, "loss")[: at + 1]
        assert read_column(first, "loss")[at + 1] != read_column(kept, "loss")[at + 1]


@pytest.fixture
def starts(monkeypatch) -> dict[tuple[str, int], dict]:
    """The optimizer before the first step of each session, by boundary and session."""
    seen: dict[tuple[str, int], dict] = {}
    train_epoch = loop.train_epoch

    def look(session):
        optimizer = copy.deepcopy(session.state.optimizer.state_dict())
        seen.setdefault((session.spec.boundary, session.spec.session), optimizer)
        return train_epoch(session)

    monkeypatch.setattr(loop, "train_epoch", look)
    return seen


WITH_STATE = {
    "preserve": {"keep": "all"},
    "slow": {"keep": "all", "at": [2], "lr_factor": 0.5, "warmup_steps": 2},
    "rebuilt": {"keep": [], "at": [2], "rebuild_steps": 3},
    "part": {"keep": ["mu"], "at": [2], "lr_factor": 0.5},
}


class TestStateWithLearningRate:
    """ASGD and Rprop have entries that are computed from the learning rate."""

    def read_etas(self, starts, boundary: str, session: int = 2) -> tuple[float, float]:
        """Return LR and ``eta`` of the first step of a session."""
        optimizer = starts[boundary, session]
        (eta,) = {float(entries["eta"]) for entries in optimizer["state"].values()}
        return optimizer["param_groups"][0]["lr"], eta

    def test_asgd_starts_with_the_sessions_learning_rate(self, tmp_path, arrays, starts):
        asgd = {"name": "ASGD", "lambd": 1.0}
        schedule = {"kind": "constant", "lr": [0.2, 0.1]}
        config = make_config(
            WITH_STATE, schedules={"run": schedule}, sessions=[1, 1], optimizer=asgd
        )
        train_methods(tmp_path, config, arrays)
        for name, lr, steps in (
            ("preserve", 0.1, 4), ("slow", 0.025, 4), ("rebuilt", 0.1, 3), ("part", 0.05, 0),
        ):  # fmt: skip
            expected = lr / (1 + lr * steps) ** 0.75
            assert self.read_etas(starts, name) == pytest.approx((lr, expected)), name

    def test_asgd_over_the_run(self, tmp_path, arrays, starts):
        """Without a change at the boundary, the first step has torch's own eta."""
        asgd = {"name": "ASGD", "lambd": 1.0}
        config = make_config(WITH_STATE, optimizer=asgd)
        made = train_methods(tmp_path, config, arrays)
        whole, kept = made["run-uninterrupted"], made["run-preserve"]
        assert read_column(whole, "loss") == read_column(kept, "loss")
        final, expected = load_checkpoint(kept[-1]), load_checkpoint(whole[-1])
        for part in ("model", "optimizer"):
            assert_equal_bits(final[part], expected[part])
        lr, eta = self.read_etas(starts, "preserve")
        assert eta != pytest.approx(lr / (1 + lr * 4) ** 0.75)
        for name, factor, steps in (("slow", 0.25, 4), ("rebuilt", 1, 3), ("part", 0.5, 0)):
            changed = lr * factor
            expected = changed / (1 + changed * steps) ** 0.75
            assert self.read_etas(starts, name) == pytest.approx((changed, expected)), name
        lr, eta = self.read_etas(starts, "slow", session=3)  # its LR is not scaled any more
        assert eta == pytest.approx(lr / (1 + lr * 16) ** 0.75)

    def test_entries_that_are_not_kept_begin_with_the_sessions_learning_rate(
        self, tmp_path, arrays, starts
    ):
        boundaries = {"part": {"keep": ["prev"], "lr_factor": 0.5}}
        config = make_config(boundaries, sessions=[1, 1], optimizer={"name": "Rprop"})
        train_methods(tmp_path, config, arrays)
        optimizer = starts["part", 2]
        lr = optimizer["param_groups"][0]["lr"]
        assert 0 < lr < 0.5e-3
        for entries in optimizer["state"].values():
            torch.testing.assert_close(
                entries["step_size"], torch.full_like(entries["step_size"], lr)
            )


def test_options_can_be_combined(tmp_path, arrays):
    """The LR rises over two steps to half of the schedule's, before session 3 only."""
    boundary = {
        "keep": ["exp_avg_sq", "step"], "at": [3], "lr_factor": 0.5, "warmup_steps": 2,
        "rebuild_steps": 1, "reshuffle": True,
    }  # fmt: skip
    made = train_methods(tmp_path, make_config({"all": boundary}, "cosine"), arrays)
    found, whole = (read_column(made[f"run-{name}"], "lr") for name in ("all", "uninterrupted"))
    at = sum(SESSIONS[:2]) * NUM_STEPS
    factors = [*[1.0] * at, 0.25, *[0.5] * (SESSIONS[2] * NUM_STEPS - 1)]
    assert found == pytest.approx([lr * f for lr, f in zip(whole, factors, strict=True)])
    losses = [read_column(made[f"run-{name}"], "loss") for name in ("all", "uninterrupted")]
    assert losses[0][:at] == losses[1][:at]
    assert losses[0][at] != losses[1][at]  # another batch


def test_validation_every_other_epoch_changes_nothing_else(tmp_path, arrays):
    boundaries = {"preserve": {"keep": "all"}}
    results = [
        train_methods(tmp_path / str(every), make_config(boundaries, validate_every=every), arrays)
        for every in (1, 2)
    ]
    for method in results[0]:
        always, seldom = (made[method] for made in results)
        assert read_steps(always) == read_steps(seldom)
        all_rows, rows = (
            [
                {key: value for key, value in row.items() if key != "seconds"}
                for folder in folders
                for row in read_rows(folder / "epochs.csv")
            ]
            for folders in (always, seldom)
        )
        ends = {1, 4, 6} if method == "run-preserve" else {6}
        assert rows == [
            row
            for row in all_rows
            if row["split"] == "train" or int(row["epoch"]) in {2, 4, 6} | ends
        ]
        final, expected = (load_checkpoint(folders[-1]) for folders in (seldom, always))
        assert_equal_bits(final["model"], expected["model"])


def test_extra_batches_are_no_batches_of_training(arrays):
    train = batches.load_split(arrays, "train", None)
    orders = [batches.shuffle_indices(train, 3, 1, s).tolist() for s in (0, 1, batches.REBUILDING)]
    assert len(set(map(tuple, orders))) == 3
