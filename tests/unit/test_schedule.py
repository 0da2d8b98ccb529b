"""The learning rate and momentum of every step."""

import math

import pytest
import torch
from torch import nn

from optstate.experiment.consistency import KEYS_OF_KIND
from optstate.training.schedule import get_momentum, make_optimizer, make_scheduler


def run_schedule(
    optimizer: dict, learning_rate: dict, num_steps: int, **options: float
) -> list[tuple]:
    made = make_optimizer([nn.Parameter(torch.ones(1))], optimizer, learning_rate)
    scheduler = make_scheduler(made, learning_rate, num_steps, **options)
    used = []
    for _ in range(int(options.get("past_steps", 0)), num_steps):
        used.append((made.param_groups[0]["lr"], get_momentum(made)))
        made.step()
        scheduler.step()
    return used


@pytest.mark.parametrize(
    "optimizer", [{"name": "SGD"}, {"name": "Adam", "betas": [0.0, 0.999]}], ids=["SGD", "Adam"]
)
def test_onecycle_gives_no_momentum_to_an_optimizer_without(optimizer):
    learning_rate = {"kind": "onecycle", "initial_lr": 1e-5, "max_lr": 1e-3}
    assert not any(momentum for _, momentum in run_schedule(optimizer, learning_rate, 10))


def test_onecycle_equals_pytorchs_and_begins_at_the_initial_lr():
    learning_rate = {"kind": "onecycle", "initial_lr": 1e-5, "max_lr": 1e-3}
    used = run_schedule({"name": "Adam"}, learning_rate, 40)

    reference = torch.optim.Adam([nn.Parameter(torch.ones(1))])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        reference, max_lr=1e-3, total_steps=40, div_factor=100
    )
    expected = []
    for _ in range(40):
        group = reference.param_groups[0]
        expected.append((group["lr"], group["betas"][0]))
        reference.step()
        scheduler.step()
    assert used == [pytest.approx(pair, rel=1e-12) for pair in expected]
    assert used[0][0] == pytest.approx(1e-5, rel=1e-12)
    assert max(lr for lr, _ in used) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        ({"name": "Adam"}, True),
        ({"name": "AdamW", "weight_decay": 0.1}, True),
        ({"name": "SGD", "momentum": 0.9}, True),
        ({"name": "Adam", "fused": False}, False),
        ({"name": "SGD", "foreach": True}, None),
        ({"name": "RMSprop"}, None),
        ({"name": "NAdam"}, None),
    ],
)
def test_fused_kernels_are_used_where_they_exist(optimizer, fused):
    rate = {"kind": "constant", "lr": 0.1}
    made = make_optimizer([nn.Parameter(torch.ones(1))], optimizer, rate)
    assert made.param_groups[0].get("fused") is fused


@pytest.mark.parametrize(
    "parameter",
    [torch.ones(4, 6)[:, :2], torch.ones(8)[::2], torch.ones(1).expand(3), torch.ones(2) + 0j],
    ids=["slice", "every other", "expanded", "complex"],
)
def test_fused_kernels_are_not_used_where_they_would_be_wrong(parameter):
    """On CPUs they ignore strides, and would update the memory after the parameter's."""
    rate = {"kind": "constant", "lr": 0.1}
    made = make_optimizer([nn.Parameter(parameter)], {"name": "Adam"}, rate)
    assert made.param_groups[0]["fused"] is False
    dense = [torch.ones(4, 6).T, torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)]
    made = make_optimizer(map(nn.Parameter, dense), {"name": "Adam"}, rate)
    assert made.param_groups[0]["fused"] is True


def test_constant_is_constant():
    used = run_schedule({"name": "Adam"}, {"kind": "constant", "lr": 3e-4}, 7)
    assert used == [(3e-4, 0.9)] * 7


def test_cosine_is_half_a_wave_down_to_the_final_lr():
    used = run_schedule({"name": "Adam"}, {"kind": "cosine", "lr": 1e-3, "final_lr": 1e-4}, 10)
    waves = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert [lr for lr, _ in used] == pytest.approx([1e-4 + 9e-4 * wave for wave in waves])


@pytest.mark.parametrize(("rising", "shares"), [(4, [1, 2, 3, 4, 4, 4]), (1, [4] * 6)])
def test_warmup_rises_linearly_and_then_stays_constant(rising, shares):
    learning_rate = {"kind": "warmup", "lr": 0.1, "warmup_steps": rising}
    used = run_schedule({"name": "Adam"}, learning_rate, 6)
    assert [lr for lr, _ in used] == pytest.approx([0.1 * share / 4 for share in shares])


SCHEDULES = [
    {"kind": "constant", "lr": 3e-4},
    {"kind": "onecycle", "initial_lr": 1e-5, "max_lr": 1e-3},
    {"kind": "cosine", "lr": 1e-3, "final_lr": 1e-4},
    {"kind": "warmup", "lr": 1e-3, "warmup_steps": 3},
]


def test_every_kind_of_schedule_is_tested_and_no_other_is_made():
    assert [schedule["kind"] for schedule in SCHEDULES] == list(KEYS_OF_KIND)
    with pytest.raises(ValueError, match="unknown kind of schedule: polynomial"):
        run_schedule({"name": "Adam"}, {"kind": "polynomial", "lr": 0.1}, 6)


@pytest.mark.parametrize("learning_rate", SCHEDULES, ids=lambda rate: rate["kind"])
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_a_schedule_over_the_run_goes_on_where_it_was(name, learning_rate):
    """A new optimizer gets the LR and momentum that the whole schedule has at that step."""
    optimizer = {"name": name} | ({"momentum": 0.8} if name == "SGD" else {})
    whole = run_schedule(optimizer, learning_rate, 40)
    for past_steps in (1, 2, 17, 39):
        rest = run_schedule(optimizer, learning_rate, 40, past_steps=past_steps)
        assert rest == whole[past_steps:]


@pytest.mark.parametrize("learning_rate", SCHEDULES, ids=lambda rate: rate["kind"])
class TestScaling:
    """A factor and a warm-up scale the LRs of any schedule, and nothing else."""

    def test_the_lrs_of_the_first_steps_are_scaled(self, learning_rate):
        plain, warm = (
            run_schedule({"name": "Adam"}, learning_rate, 12, warmup_steps=n) for n in (0, 5)
        )
        shares = [min(step / 5, 1) for step in range(1, 13)]
        expected = [lr * share for (lr, _), share in zip(plain, shares, strict=True)]
        assert [lr for lr, _ in warm] == pytest.approx(expected, rel=1e-12)
        assert [momentum for _, momentum in warm] == [momentum for _, momentum in plain]

    def test_a_factor_and_a_warmup_in_the_middle_of_a_schedule(self, learning_rate):
        plain, scaled = (
            run_schedule({"name": "Adam"}, learning_rate, 12, past_steps=4, **options)
            for options in ({}, {"factor": 0.3, "warmup_steps": 2})
        )
        shares = [0.15, *[0.3] * 7]
        expected = [lr * share for (lr, _), share in zip(plain, shares, strict=True)]
        assert [lr for lr, _ in scaled] == pytest.approx(expected, rel=1e-12)
        assert [momentum for _, momentum in scaled] == [momentum for _, momentum in plain]

    def test_a_schedule_continues_from_its_state(self, learning_rate):
        options = {"factor": 0.5, "warmup_steps": 5}
        whole = [lr for lr, _ in run_schedule({"name": "Adam"}, learning_rate, 12, **options)]
        used, states = [], None
        for start, end in ((0, 3), (3, 12)):
            optimizer = make_optimizer(
                [nn.Parameter(torch.ones(1))], {"name": "Adam"}, learning_rate
            )
            scheduler = make_scheduler(optimizer, learning_rate, 12, **options)
            if states:
                optimizer.load_state_dict(states[0])
                scheduler.load_state_dict(states[1])
            for _ in range(start, end):
                used.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
            states = optimizer.state_dict(), scheduler.state_dict()
        assert used == whole


def test_onecycle_cycles_a_configured_momentum():
    learning_rate = {"kind": "onecycle", "initial_lr": 4e-5, "max_lr": 1e-3}
    with_momentum = run_schedule({"name": "SGD", "momentum": 0.8}, learning_rate, 5)
    assert with_momentum[0][1] == 0.95


def test_an_optimizer_without_momentum_has_none():
    assert run_schedule({"name": "Adagrad"}, {"kind": "constant", "lr": 1e-2}, 2)[0][1] is None
