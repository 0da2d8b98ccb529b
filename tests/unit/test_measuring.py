"""Norms, accuracy and random states."""

import numpy as np
import pytest
import torch

from optstate.training.checkpoint import get_random_states, set_random_states
from optstate.training.measuring import OptimizerStep, count_by_class, count_correct, has_norms


def test_top_k_is_capped_at_the_number_of_classes():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [0, 3, 2, 1]])
    labels = torch.tensor([0, 1, 0])
    assert [int(n) for n in count_correct(logits, labels)] == [1, 1, 2]
    assert [int(n) for n in count_correct(logits[:, :2], torch.tensor([0, 0, 0]))] == [1, 3, 3]


def test_images_and_hits_are_counted_by_class():
    logits = torch.tensor([[3.0, 2, 1], [0, 3, 2], [0, 3, 2], [5, 4, 3]])
    counts = count_by_class(logits, torch.tensor([0, 1, 2, 1]), 3)
    assert counts.tolist() == [[1, 2, 1], [1, 1, 0]]


def test_norms_are_recorded_early_and_every_tenth_step():
    assert [step for step in range(1, 81) if has_norms(step)] == [*range(1, 51), 60, 70, 80]


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "RMSprop"])
def test_norms_are_those_of_gradient_and_update(optimizer):
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    unused = torch.nn.Parameter(torch.randn(2))
    table = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    made = getattr(torch.optim, optimizer)([*parameters, unused, table], lr=0.1)
    step = OptimizerStep(made)
    for with_norms in (True, False, True, True):
        before = [p.detach().clone() for p in parameters]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        norms = step(with_norms)
        change = torch.cat(
            [(p - b).flatten() for p, b in zip(parameters, before, strict=True)]
        ).detach()
        assert [float(n) for n in norms] == (
            [pytest.approx(float(vector.norm())) for vector in (gradient, change)]
            if with_norms
            else []
        )


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("norm", [1e-3, 0.7, 20.0])
def test_an_update_gets_another_norm_and_keeps_its_direction(optimizer, norm):
    changes = []
    for wanted in (None, norm):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
        before = torch.cat([p.detach().flatten() for p in parameters])
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        made = getattr(torch.optim, optimizer)(parameters, lr=0.1)
        _, recorded = OptimizerStep(made)(with_norms=True, norm=wanted)
        changes.append(torch.cat([p.detach().flatten() for p in parameters]) - before)
        assert float(recorded) == pytest.approx(float(changes[-1].norm()), rel=1e-5)
    usual, rescaled = changes
    assert float(rescaled.norm()) == pytest.approx(norm, rel=1e-4)
    torch.testing.assert_close(
        rescaled / rescaled.norm(), usual / usual.norm(), rtol=1e-3, atol=1e-4
    )


def test_an_update_of_zero_stays_zero():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    norms = OptimizerStep(torch.optim.SGD([parameter], lr=0.1))(with_norms=True, norm=0.5)
    assert torch.equal(parameter.detach(), torch.ones(3))
    assert [float(norm) for norm in norms] == [0, 0]


def test_random_states_are_restored():
    states = get_random_states()
    drawn = torch.rand(3), np.random.rand(3)
    set_random_states(states)
    assert torch.equal(torch.rand(3), drawn[0])
    assert np.array_equal(np.random.rand(3), drawn[1])


def test_the_random_state_of_one_gpu_is_saved(monkeypatch):
    """A machine with several GPUs saves what a machine with one can load."""
    gpus = [torch.zeros(16, dtype=torch.uint8), torch.ones(16, dtype=torch.uint8)]
    restored = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: gpus[0])
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_rng_state", restored.append)
    states = get_random_states()
    assert [torch.equal(state, gpus[0]) for state in states["cuda"]] == [True]
    set_random_states(states)
    assert torch.equal(restored[0], gpus[0])
