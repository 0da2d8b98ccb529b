"""Training on a CUDA GPU. Skipped without one."""

from dataclasses import replace

import pytest
import torch

from optstate.training import batches, loop
from sessions import (
    FIRST,
    SECOND,
    load_checkpoint,
    read_rows,
    read_rows_without_seconds,
    train,
    write_arrays,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

ON_GPU = {"device": "cuda", "deterministic": True}
SPEC = replace(FIRST, **ON_GPU)


@pytest.fixture
def arrays(tmp_path):
    return write_arrays(tmp_path / "arrays")


def assert_same(output, expected):
    for name in ("checkpoint.pt", "steps.csv"):
        assert (output / name).read_bytes() == (expected / name).read_bytes(), name
    assert read_rows_without_seconds(output / "epochs.csv") == read_rows_without_seconds(
        expected / "epochs.csv"
    )


def test_every_run_gives_the_same_bits(tmp_path, arrays):
    outputs = []
    for name in ("once", "again"):
        first = train(tmp_path / name, SPEC, arrays)
        outputs.append(train(tmp_path / name, replace(SECOND, **ON_GPU), arrays, previous=first))
    assert_same(*outputs)
    assert load_checkpoint(outputs[0])["meta"]["precision"] == "bfloat16"


def test_images_in_host_memory_give_the_same_bits_as_on_the_gpu(tmp_path, arrays, monkeypatch):
    held = train(tmp_path / "held", SPEC, arrays)
    monkeypatch.setattr(batches, "MAX_MEMORY_SHARE", 0)
    assert_same(train(tmp_path / "streamed", SPEC, arrays), held)


def test_no_step_waits_for_the_gpu(tmp_path, arrays, monkeypatch):
    train_step, augment_images = loop.train_step, loop.augment_images

    def forbid_waiting(function):
        def watched(*arguments):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return watched

    monkeypatch.setattr(loop, "train_step", forbid_waiting(train_step))
    monkeypatch.setattr(loop, "augment_images", forbid_waiting(augment_images))
    train(tmp_path, SPEC, arrays)


def test_compiling_with_cuda_graphs_changes_losses_by_rounding(tmp_path, arrays):
    eager, compiled = (
        read_rows(
            train(tmp_path / str(choice), replace(SPEC, compile=choice), arrays) / "steps.csv"
        )
        for choice in (False, True)
    )
    assert float(compiled[0]["loss"]) == pytest.approx(float(eager[0]["loss"]), rel=0.02)
