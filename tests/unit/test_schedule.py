"""The learning rate and momentum of every step."""

import pytest
import torch
from torch import nn

from optstate.training.schedule import make_optimizer, make_scheduler, momentum_of


def steps_of(optimizer: dict, learning_rate: dict, num_steps: int) -> list[tuple]:
    made = make_optimizer([nn.Parameter(torch.ones(1))], optimizer, learning_rate)
    scheduler = make_scheduler(made, learning_rate, num_steps)
    used = []
    for _ in range(num_steps):
        used.append((made.param_groups[0]["lr"], momentum_of(made)))
        made.step()
        scheduler.step()
    return used


def test_onecycle_is_pytorchs_own_from_the_initial_lr():
    learning_rate = {"kind": "onecycle", "initial_lr": 1e-5, "max_lr": 1e-3}
    used = steps_of({"name": "Adam"}, learning_rate, 40)

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
def test_optimizers_that_can_are_fused(optimizer, fused):
    rate = {"kind": "constant", "lr": 0.1}
    made = make_optimizer([nn.Parameter(torch.ones(1))], optimizer, rate)
    assert made.param_groups[0].get("fused") is fused


def test_constant_is_constant():
    used = steps_of({"name": "Adam"}, {"kind": "constant", "lr": 3e-4}, 7)
    assert used == [(3e-4, 0.9)] * 7


def test_onecycle_gives_no_momentum_to_plain_sgd():
    learning_rate = {"kind": "onecycle", "initial_lr": 4e-5, "max_lr": 1e-3}
    assert {momentum for _, momentum in steps_of({"name": "SGD"}, learning_rate, 5)} == {None}
    with_momentum = steps_of({"name": "SGD", "momentum": 0.8}, learning_rate, 5)
    assert with_momentum[0][1] == 0.95


def test_optimizer_without_momentum_has_none():
    assert steps_of({"name": "Adagrad"}, {"kind": "constant", "lr": 1e-2}, 2)[0][1] is None
