"""Device, precision, compilation and determinism, as configured."""

import os
import platform

import pytest
import torch

from optstate.experiment import configuration
from optstate.experiment.runs import Session
from optstate.job import InputError
from optstate.training import compute as compute_module
from optstate.training.compute import Compute, add_kind, read_cpu_name, set_up


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    torch.set_num_threads(threads)


def make_spec(**keys):
    config = configuration.load({"device": "cpu", **keys})
    return configuration.session_spec(config, Session("imagenette", "constant", 0, 1))


@pytest.mark.parametrize(
    ("device", "setting", "expected"),
    [("cpu", "auto", True), ("cpu", False, False), ("cuda", "auto", False), ("cuda", True, True)],
)
def test_determinism_is_set_as_configured(monkeypatch, device, setting, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.use_deterministic_algorithms(not expected)
    compute = set_up(make_spec(device=device, deterministic=setting))
    assert compute.device.type == device
    assert compute.is_deterministic is expected
    assert torch.are_deterministic_algorithms_enabled() is expected
    assert torch.backends.cudnn.benchmark is not expected
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is expected


@pytest.mark.parametrize(("is_available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_chooses_a_gpu_if_there_is_one(monkeypatch, is_available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    assert set_up(make_spec(device="auto")).device.type == expected


def test_a_required_gpu_must_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device: cuda .* no CUDA GPU. Choose auto or cpu"):
        set_up(make_spec(device="cuda"))


@pytest.mark.parametrize(
    ("given", "is_loaded"), [("0", True), ("0", False), ("-1", True), ("", True), (None, True)]
)
def test_a_given_gpu_that_does_not_work_is_an_error(monkeypatch, tmp_path, given, is_loaded):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    driver = tmp_path / "version"
    if is_loaded:
        driver.touch()
    if given == "0" and is_loaded:
        with pytest.raises(InputError, match="device: this job has GPU 0, but torch .* choose cpu"):
            set_up(make_spec(device="auto"), driver)
    else:
        assert set_up(make_spec(device="auto"), driver).device.type == "cpu"
    assert set_up(make_spec(device="cpu"), driver).device.type == "cpu"


def test_the_configuration_sets_the_number_of_threads():
    set_up(make_spec(cpu_threads=3))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("device", "setting", "expected"),
    [
        ("cpu", "auto", "float32"), ("cpu", "bfloat16", "bfloat16"),
        ("cuda", "auto", "bfloat16"), ("cuda", "float32", "float32"),
    ],
)  # fmt: skip
def test_precision_is_set_as_configured(monkeypatch, device, setting, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert set_up(make_spec(device=device, precision=setting)).precision == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_uses_the_precision(precision):
    compute = Compute(torch.device("cpu"), precision, is_compiled=False, is_deterministic=True)
    with compute.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, precision)


@pytest.mark.parametrize(
    ("device", "mode"),
    [("cpu", "default"), ("cuda", "reduce-overhead")],  # reduce-overhead means CUDA graphs
)
def test_a_gpu_compiles_with_cuda_graphs(monkeypatch, device, mode):
    called = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: called.append(options) or model)
    model = torch.nn.Identity()
    compute = Compute(torch.device(device), "float32", is_compiled=True, is_deterministic=True)
    assert compute.compile_model(model) is model
    assert called == [{"dynamic": False, "mode": mode}]


@pytest.mark.parametrize(("choice", "is_compiled"), [("auto", False), (False, False), (True, True)])
def test_a_model_is_compiled_only_if_configured(monkeypatch, choice, is_compiled):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: "compiled")
    compute = set_up(make_spec(compile=choice))
    assert compute.is_compiled is is_compiled
    model = torch.nn.Identity()
    assert compute.compile_model(model) is ("compiled" if is_compiled else model)


KIND = {"name": "CPU A", "capability": "AVX2", "variables": {}}


def describe_kind(device: str) -> dict:
    return Compute(torch.device(device), "float32", False, True).describe_kind()


def test_the_kind_of_a_cpu(monkeypatch):
    for name in compute_module.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(compute_module, "read_cpu_name", lambda: "CPU A")
    assert describe_kind("cpu") == KIND
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # does not change the bits
    assert describe_kind("cpu") == KIND | {"variables": {"MKL_CBWR": "COMPATIBLE"}}


def test_the_kind_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU B")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    kind = describe_kind("cuda")
    assert (kind["name"], kind["capability"]) == ("GPU B", "sm_90")


def test_the_name_of_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    information = tmp_path / "cpuinfo"
    assert read_cpu_name(information) == "riscv64"
    information.write_text("processor\t: 0\nmodel\t\t: 1\n")
    assert read_cpu_name(information) == "riscv64"
    information.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: CPU: A\n")
    assert read_cpu_name(information) == "CPU: A"


def test_each_kind_is_listed_once_in_the_order_of_first_use(caplog):
    other = {"name": "CPU A", "capability": "AVX512", "variables": {"MKL_CBWR": "AUTO"}}
    assert add_kind([KIND], KIND) == [KIND]
    assert not caplog.text
    assert add_kind([KIND], other) == [KIND, other]
    assert "continuing on CPU A (AVX512, MKL_CBWR=AUTO), after CPU A (AVX2)" in caplog.text
    assert add_kind([KIND, other], KIND) == [KIND, other]
