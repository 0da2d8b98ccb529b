"""How torch computes in a session: device, precision, compilation, determinism."""

import contextlib
import logging
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optstate.job import InputError
from optstate.training.spec import SessionSpec

# Environment variables that choose instructions or precision, and thereby change rounding.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_CPU_ISA_HINTS",
    "DNNL_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "OPENBLAS_CORETYPE",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)


@dataclass(frozen=True)
class Compute:
    """The device and how it computes, with every ``auto`` of the configuration resolved.

    Attributes:
        device: where the model is trained, a CPU or a CUDA GPU.
        precision: ``float32``, or ``bfloat16`` for autocast to bfloat16.
        is_compiled: whether full training batches run through ``torch.compile``.
        is_deterministic: whether torch uses deterministic algorithms only.
    """

    device: torch.device
    precision: str
    is_compiled: bool
    is_deterministic: bool

    @property
    def is_on_gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager:
        """Return a context in which the model runs at the configured precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def compile_model(self, model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the model compiled for batches of one size, or unchanged if not configured.

        On a GPU, the compiled kernels run as one CUDA graph.
        """
        if not self.is_compiled:
            return model
        mode = "reduce-overhead" if self.is_on_gpu else "default"
        return torch.compile(model, dynamic=False, mode=mode)

    def describe(self) -> dict[str, str | bool]:
        """Return what a checkpoint records about the device and the computation."""
        name = torch.cuda.get_device_name(self.device) if self.is_on_gpu else platform.machine()
        return {
            "device": name,
            "device_type": self.device.type,
            "precision": self.precision,
            "compiled": self.is_compiled,
            "deterministic": self.is_deterministic,
        }

    def describe_kind(self) -> dict[str, Any]:
        """Return what the bits depend on besides configuration and versions.

        These are the ``name`` of the CPU or GPU, the ``capability`` that torch uses (a CPU's vector
        instructions, or a GPU's compute capability), and those of ``VARIABLES`` that are set.
        """
        if self.is_on_gpu:
            name = torch.cuda.get_device_name(self.device)
            capability = "sm_{}{}".format(*torch.cuda.get_device_capability(self.device))
        else:
            name, capability = read_cpu_name(), torch.backends.cpu.get_cpu_capability()
        variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        return {"name": name, "capability": capability, "variables": variables}


def set_up(spec: SessionSpec, driver: Path = Path("/proc/driver/nvidia/version")) -> Compute:
    """Choose the device, and configure torch's threads and determinism globally.

    Args:
        spec: the session's settings.
        driver: a file that exists if an NVIDIA driver is loaded.

    Raises:
        InputError: the configuration requires a GPU or the job was given one, and torch finds none.
    """
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device: cuda is configured, but torch finds no CUDA GPU. Choose auto or cpu."
        )
    on_gpu = spec.device != "cpu" and torch.cuda.is_available()
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "-1")
    if spec.device == "auto" and not on_gpu and given not in ("", "-1") and driver.exists():
        raise InputError(
            f"device: this job has GPU {given}, but torch {torch.__version__} cannot use it. Is "
            "the driver (`nvidia-smi`) too old for it? Update one of them, or choose cpu."
        )
    torch.set_num_threads(spec.cpu_threads)
    is_deterministic = not on_gpu if spec.deterministic == "auto" else bool(spec.deterministic)
    torch.use_deterministic_algorithms(is_deterministic)
    if is_deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS raises an error without it
        # Otherwise torch fills every new tensor, a debugging aid that costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not is_deterministic
    torch.backends.cudnn.allow_tf32 = False  # float32 convolutions would have 10 bits of mantissa
    default = "bfloat16" if on_gpu else "float32"
    return Compute(
        device=torch.device("cuda" if on_gpu else "cpu"),
        precision=default if spec.precision == "auto" else spec.precision,
        is_compiled=spec.compile is True,  # not for `auto`: most sessions are too short to benefit
        is_deterministic=is_deterministic,
    )


def read_cpu_name(information: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's model name, from Linux's ``information`` if it is there."""
    with contextlib.suppress(OSError):
        for line in information.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def add_kind(earlier: list[dict[str, Any]], kind: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the kinds of an interrupted session that continues under ``kind``.

    Args:
        earlier: the results of :meth:`Compute.describe_kind` so far, in the order of first use.
        kind: the current result.
    """
    if kind in earlier:
        return earlier
    logging.warning(
        "continuing on %s, after %s: the results cannot be reproduced to the bit",
        format_kind(kind), format_kind(earlier[-1]),
    )  # fmt: skip
    return [*earlier, kind]


def format_kind(kind: dict[str, Any]) -> str:
    """Return a result of :meth:`Compute.describe_kind` in words."""
    settings = [f"{name}={value}" for name, value in kind["variables"].items()]
    return f"{kind['name']} ({', '.join([kind['capability'], *settings])})"
