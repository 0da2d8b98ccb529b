"""The entries of an optimizer's state that each boundary keeps, for several optimizers."""

import pytest
import torch
from torch import nn

from optstate.training.boundary import (
    apply_learning_rate,
    carry_over,
    fill_state,
    load_state,
    make_initial_state,
)
from optstate.training.schedule import make_optimizer, make_scheduler

STEPS = 5
ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}
OPTIMIZERS = {
    "Adam": ({"name": "Adam", "betas": (0.8, 0.99)}, ADAM_STATE),
    "AdamW": ({"name": "AdamW", "weight_decay": 0.1}, ADAM_STATE),
    "SGD": ({"name": "SGD", "momentum": 0.9}, {"momentum_buffer"}),
}
CONSTANT = {"kind": "constant", "lr": 3e-4}
ONECYCLE = {"kind": "onecycle", "initial_lr": 2e-5, "max_lr": 1e-3}


def make_parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (4,)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def take_steps(optimizer: dict, learning_rate: dict) -> torch.optim.Optimizer:
    """Return an optimizer after a session of a few steps."""
    made = make_optimizer(make_parameters(), optimizer, learning_rate)
    scheduler = make_scheduler(made, learning_rate, STEPS)
    for _ in range(STEPS):
        made.zero_grad()
        sum((p**2).sum() for p in made.param_groups[0]["params"]).backward()
        made.step()
        scheduler.step()
    return made


def cross_boundary(optimizer: dict, learning_rate: dict, keep) -> tuple:
    """Return the optimizers before and after a boundary at which the learning rate changes."""
    before = take_steps(
        optimizer, learning_rate | {"lr": 1e-3} if "lr" in learning_rate else ONECYCLE
    )
    after = make_optimizer(make_parameters(), optimizer, learning_rate)
    carry_over(after, before.state_dict(), keep)
    make_scheduler(after, learning_rate, STEPS)
    return before, after


@pytest.mark.parametrize("learning_rate", [CONSTANT, ONECYCLE], ids=["constant", "onecycle"])
@pytest.mark.parametrize("name", OPTIMIZERS)
class TestNewAndPreserve:
    def test_preserve_keeps_every_entry(self, name, learning_rate):
        optimizer, entries = OPTIMIZERS[name]
        before, after = cross_boundary(optimizer, learning_rate, "all")
        old, new = before.state_dict()["state"], after.state_dict()["state"]
        assert old.keys() == new.keys() == {0, 1}
        for index in old:
            assert old[index].keys() == new[index].keys() == entries
            for entry in entries:
                assert torch.equal(torch.as_tensor(old[index][entry]), new[index][entry])
            if "step" in entries:
                assert new[index]["step"] == STEPS

    def test_new_keeps_no_entry(self, name, learning_rate):
        _, after = cross_boundary(OPTIMIZERS[name][0], learning_rate, [])
        assert after.state_dict()["state"] == {}

    @pytest.mark.parametrize("keep", ["all", []], ids=["preserve", "new"])
    def test_the_session_decides_all_settings(self, name, learning_rate, keep):
        optimizer, _ = OPTIMIZERS[name]
        _, after = cross_boundary(optimizer, learning_rate, keep)
        fresh = make_optimizer(make_parameters(), optimizer, learning_rate)
        make_scheduler(fresh, learning_rate, STEPS)
        (group,), (expected,) = after.param_groups, fresh.param_groups
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in expected.items() if k != "params"
        }
        assert group["lr"] == pytest.approx(learning_rate.get("lr") or 2e-5, rel=1e-12)
        if learning_rate is ONECYCLE:
            momentum = group["betas"][0] if "betas" in group else group["momentum"]
            assert momentum == 0.95
        elif "betas" in optimizer:
            assert group["betas"] == optimizer["betas"]


@pytest.mark.parametrize("kept", ["step", "exp_avg", "exp_avg_sq"])
def test_a_part_is_kept_and_the_rest_is_new(kept):
    before, after = cross_boundary(OPTIMIZERS["Adam"][0], CONSTANT, [kept])
    for index, entries in after.state_dict()["state"].items():
        assert entries.keys() == ADAM_STATE
        for entry, value in entries.items():
            old = before.state_dict()["state"][index][entry]
            assert torch.equal(value, old if entry == kept else torch.zeros_like(value))


def test_keeping_every_entry_by_name_equals_keeping_all():
    _, by_name = cross_boundary(OPTIMIZERS["Adam"][0], CONSTANT, sorted(ADAM_STATE))
    _, all_ = cross_boundary(OPTIMIZERS["Adam"][0], CONSTANT, "all")
    for index, entries in all_.state_dict()["state"].items():
        for entry, value in entries.items():
            assert torch.equal(by_name.state_dict()["state"][index][entry], value)


@pytest.mark.parametrize(
    ("name", "entry", "value"),
    [("NAdam", "mu_product", 1.0), ("Adagrad", "sum", 0.5), ("Rprop", "step_size", 3e-4)],
)
def test_the_initial_state_is_the_optimizers_own(name, entry, value):
    """Some entries do not begin at zero."""
    extra = {"initial_accumulator_value": 0.5} if name == "Adagrad" else {}
    optimizer = make_optimizer(make_parameters(), {"name": name, **extra}, CONSTANT)
    state = make_initial_state(optimizer)
    assert torch.all(torch.as_tensor(state[0][entry]) == value)
    assert all(p.grad is None for p in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize(
    "name", "Adadelta Adafactor Adagrad Adam Adamax AdamW ASGD NAdam RAdam RMSprop Rprop".split()
)
def test_every_optimizer_can_keep_a_part(name):
    """An optimizer can continue with each single entry."""
    before = take_steps({"name": name}, CONSTANT)
    for kept in before.state_dict()["state"][0]:
        after = make_optimizer(make_parameters(), {"name": name}, CONSTANT)
        carry_over(after, before.state_dict(), [kept])
        sum((p**2).sum() for p in after.param_groups[0]["params"]).backward()
        after.step()
        assert all(torch.isfinite(p).all() for p in after.param_groups[0]["params"])


@pytest.mark.parametrize(
    "name", "Adadelta Adagrad Adam Adamax AdamW NAdam RAdam RMSprop SGD".split()
)
def test_filling_the_state_changes_no_weights(name):
    """The state becomes that of as many steps with the same gradients, at any learning rate."""
    filled, trained = (
        make_optimizer(make_parameters(), {"name": name}, {"kind": "constant", "lr": lr})
        for lr in (0.1, 1e-30)
    )
    parameters = filled.param_groups[0]["params"]
    fill_state(filled, (sum((p**3).sum() for p in parameters) for _ in range(3)))
    for expected, parameter in zip(make_parameters(), parameters, strict=True):
        assert torch.equal(expected, parameter)
        assert parameter.grad is None
    assert filled.param_groups[0]["lr"] == 0.1
    for _ in range(3):
        trained.zero_grad()
        sum((p**3).sum() for p in trained.param_groups[0]["params"]).backward()
        trained.step()
    for index, entries in trained.state_dict()["state"].items():
        for entry, value in entries.items():
            found = filled.state_dict()["state"][index][entry]
            if torch.is_tensor(value):
                torch.testing.assert_close(found, value, rtol=1e-6, atol=0)
            else:
                assert found == value


ASGD = {"name": "ASGD", "lambd": 0.5, "alpha": 0.75}  # a large decay, so that the step counts


def compute_eta(lr: float, step: int) -> float:
    return lr / (1 + 0.5 * lr * step) ** 0.75


def compute_loss(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return a loss whose gradient is ``3 * parameter**2``."""
    return sum((p**3).sum() for p in optimizer.param_groups[0]["params"])


def assert_next_step(optimizer: torch.optim.Optimizer, eta: float) -> None:
    """Take a step of ASGD, and compare it with one computed by hand."""
    parameters = optimizer.param_groups[0]["params"]
    expected = [(p * (1 - 0.5 * eta) - eta * 3 * p**2).detach() for p in parameters]
    optimizer.zero_grad()
    compute_loss(optimizer).backward()
    optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-6)


class TestASGD:
    """The size of ASGD's next step is an entry of its state."""

    def make(self, old_lr: float = 0.1, new_lr: float = 0.3, **options) -> torch.optim.Optimizer:
        """Return a preserved optimizer whose learning rate changes at the boundary."""
        optimizer = ASGD | options
        before = take_steps(optimizer, {"kind": "constant", "lr": old_lr})
        after = make_optimizer(make_parameters(), optimizer, {"kind": "constant", "lr": new_lr})
        carry_over(after, before.state_dict(), "all")
        return after

    @pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=str)
    def test_the_first_step_has_the_new_learning_rate(self, options):
        after = self.make(**options)
        apply_learning_rate(after)
        assert_next_step(after, compute_eta(0.3, STEPS))
        assert_next_step(after, compute_eta(0.3, STEPS + 1))

    @pytest.mark.parametrize("lr", [0.1, 0.07, 0.033, 0.012])
    def test_the_same_learning_rate_changes_no_bit(self, lr):
        after = self.make(lr, lr)
        before = [entries["eta"].clone() for entries in after.state.values()]
        apply_learning_rate(after)
        assert [entries["eta"] for entries in after.state.values()] == before
        assert {entries["eta"].dtype for entries in after.state.values()} == {torch.float32}

    def test_an_optimizer_without_state_stays_without(self):
        new = make_optimizer(make_parameters(), ASGD, CONSTANT)
        apply_learning_rate(new)
        assert new.state_dict()["state"] == {}

    @pytest.mark.parametrize("is_preserved", [True, False])
    def test_filling_the_state_changes_no_weights_and_the_next_step_does(self, is_preserved):
        """With a preserved state, the first step would still have the old learning rate."""
        new = make_optimizer(make_parameters(), ASGD, {"kind": "constant", "lr": 0.3})
        filled = self.make() if is_preserved else new
        fill_state(filled, (compute_loss(filled) for _ in range(3)))
        for expected, parameter in zip(
            make_parameters(), filled.param_groups[0]["params"], strict=True
        ):
            assert torch.equal(expected, parameter)
        assert_next_step(filled, compute_eta(0.3, 3 + STEPS * is_preserved))


def test_adagrad_starts_from_zero_when_nothing_is_kept():
    """Adagrad is special because its constructor creates the state."""
    before, after = cross_boundary({"name": "Adagrad"}, CONSTANT, [])
    assert before.state_dict()["state"][0]["sum"].any()
    assert not after.state_dict()["state"][0]["sum"].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["Adam", "NAdam", "ASGD"])
def test_entries_of_any_type_are_loaded_to_the_bit(name, dtype):
    """torch would cast NAdam's and ASGD's float32 entries to the type of the parameters."""

    def make() -> torch.optim.Optimizer:
        parameters = [nn.Parameter(torch.ones(3, dtype=dtype))]
        return make_optimizer(parameters, {"name": name, "foreach": False}, CONSTANT)

    trained, loaded = make(), make()
    for _ in range(3):
        trained.param_groups[0]["params"][0].sum().backward()
        trained.step()
    state = trained.state_dict()
    load_state(loaded, state)
    for key, value in state["state"][0].items():
        found = loaded.state_dict()["state"][0][key]
        assert found.dtype == value.dtype
        assert torch.equal(found, value)
