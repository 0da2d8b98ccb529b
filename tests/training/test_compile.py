"""Training with ``compile: true``."""

from dataclasses import replace

import pytest
import torch

from sessions import FIRST, SECOND, load_checkpoint, read_rows, train, write_arrays

SPEC = replace(FIRST, num_epochs=1)


@pytest.fixture
def arrays(tmp_path):
    return write_arrays(tmp_path / "arrays")


class FakeCompile:
    """Replaces ``torch.compile``, which takes a minute, and records its calls."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, bool]] = []  # images, and whether in training

    def __call__(self, model, **options):
        self.options = options

        def forward(images):
            self.batches.append((len(images), model.training))
            return model(images)

        return forward


@pytest.fixture
def compiled(monkeypatch):
    fake = FakeCompile()
    monkeypatch.setattr(torch, "compile", fake)
    return fake


def test_only_full_training_batches_are_compiled(tmp_path, arrays, compiled):
    """17 images make two full batches of 6."""
    output = train(tmp_path, replace(SPEC, compile=True, batch_size=6), arrays)
    assert compiled.batches == [(6, True)] * 2
    assert compiled.options == {"dynamic": False, "mode": "default"}
    assert len(read_rows(output / "steps.csv")) == 3
    assert load_checkpoint(output)["meta"]["compiled"] is True


@pytest.mark.parametrize("choice", ["auto", False])
def test_nothing_is_compiled_by_default(tmp_path, arrays, compiled, choice):
    output = train(tmp_path, replace(SPEC, compile=choice), arrays)
    assert compiled.batches == []
    assert load_checkpoint(output)["meta"]["compiled"] is False


def test_a_later_session_continues_from_a_compiled_one(tmp_path, arrays, compiled):
    first = train(tmp_path, replace(SPEC, compile=True), arrays)
    train(tmp_path, replace(SECOND, compile=True, num_epochs=1), arrays, previous=first)


@pytest.mark.exhaustive
def test_compiled_runs_are_equal_and_differ_from_eager_ones_by_rounding(tmp_path, arrays):
    """Test this with torch.compile itself."""
    eager, once, again = (
        read_rows(
            train(tmp_path / name, replace(SPEC, compile=name != "eager"), arrays) / "steps.csv"
        )
        for name in ("eager", "once", "again")
    )
    assert once == again
    assert float(once[0]["loss"]) == pytest.approx(float(eager[0]["loss"]), rel=1e-4)
