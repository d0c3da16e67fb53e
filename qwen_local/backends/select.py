"""Choice of engine, device and dtype, with reasons.

Pure functions of a `Machine`, so that any machine can be simulated on another; `probe` describes
this one.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from qwen_local.backends.machine import Device, DType, Engine, Machine
from qwen_local.backends.mlx.constants import GROUP
from qwen_local.backends.nvidia import dotted, install_torch, unusable_card
from qwen_local.backends.probe import bitsandbytes_fault
from qwen_local.errors import BackendError, Fault
from qwen_local.job.schema import Quantization
from qwen_local.models.architecture import Architecture

ENGINES: dict[Engine, str] = {"mlx": "MLX", "cuda": "PyTorch"}
"""Names in messages."""
NF4_SINCE, INT8_SINCE = (6, 0), (7, 5)
"""First cards on which bitsandbytes computes NF4 and LLM.int8(), by its own documentation."""

OLDEST_MACOS = (14, 0)
"""First macOS that MLX runs on."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine on a device, with the reason."""

    backend: Engine
    device: Device
    reason: str


def may_be_metal(backend: str, device: str) -> bool:
    """Return True if a run with these choices may compute on a Mac's GPU. Imports no engine.

    Args:
        backend: `auto`, `mlx` or `cuda`.
        device: `auto`, `gpu` or `cpu`.
    """
    mac = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    return mac and backend != "cuda" and device != "cpu"


def choose(machine: Machine, backend: str = "auto", device: str = "auto") -> Choice:
    """Choose the engine and the device.

    Args:
        machine: where it is to run.
        backend: `auto`, `mlx` or `cuda`.
        device: `auto`, `gpu` or `cpu`.

    Raises:
        BackendError: the requested engine or device cannot be used here, or PyTorch cannot use the
            NVIDIA card of this machine (a silent fallback to the CPU would be a surprise).
    """
    where = f"`backend={backend}` `device={device}`"
    refused = unsupported_system(machine)
    if refused is not None:
        raise BackendError.at(where, *refused)
    if backend == "auto":
        return _automatic(machine, device, where)
    engine: Engine = "mlx" if backend == "mlx" else "cuda"
    if (machine.mlx if engine == "mlx" else machine.torch) is None:
        raise BackendError.at(f"backend {backend}", *without_engine(machine, engine))
    usable = machine.metal if engine == "mlx" else machine.cuda
    chip = "Apple GPU" if engine == "mlx" else "NVIDIA GPU"
    if device == "cpu":
        return Choice(engine, "cpu", "requested")
    if usable:
        return Choice(engine, "gpu", f"requested; there is an {chip}")
    if engine == "cuda" and machine.nvidia:
        raise _card_error(machine, where)
    if device == "gpu":
        raise BackendError.at(where, f"expected an {chip}; found none", "pass `device=cpu`")
    return Choice(engine, "cpu", f"requested; there is no {chip}")


def _automatic(machine: Machine, device: str, where: str) -> Choice:
    """Choose for `backend=auto`: Metal, then CUDA, then PyTorch on the CPU."""
    if device != "cpu":
        if machine.metal:
            return Choice("mlx", "gpu", "there is an Apple GPU, which MLX uses through Metal")
        if machine.cuda:
            return Choice("cuda", "gpu", "there is an NVIDIA GPU, which PyTorch uses through CUDA")
        if machine.nvidia:
            raise _card_error(machine, where)
        if device == "gpu":
            fix = "pass `device=cpu`"
            if machine.lacks_mlx:
                _, fix = without_engine(machine, "mlx")
            raise BackendError.at(where, "expected a GPU that an engine can use; found none", fix)
    why = "requested" if device == "cpu" else "there is no GPU"
    if device != "cpu" and machine.lacks_mlx:
        why = "MLX, which would use the GPU of this Mac, cannot be imported"
    if machine.torch:
        return Choice("cuda", "cpu", f"{why}; PyTorch runs on the CPU")
    if machine.mlx:
        return Choice("mlx", "cpu", f"{why}; MLX runs on the CPU, and there is no PyTorch")
    _, fix = without_engine(machine, "mlx" if machine.system == "Darwin" else "cuda")
    problem = "neither MLX nor PyTorch can be imported here"
    faults = [fault for fault in (machine.mlx_fault, machine.torch_fault) if fault]
    raise BackendError.at(where, "; ".join([problem, *faults]), fix)


def unsupported_system(machine: Machine) -> tuple[str, str] | None:
    """Return (problem with the operating system, fix); None if an engine can run on it."""
    if machine.system == "Windows" or machine.system.startswith(("CYGWIN", "MINGW", "MSYS")):
        return "native Windows is not supported", (
            "use WSL2: run `wsl --install` in PowerShell, restart, and install qwen-local in there"
        )
    if machine.wsl == 1:
        return "WSL1 is not supported: it has no GPU and no Linux kernel", (
            "turn this distribution into WSL2: run `wsl --set-version NAME 2` in PowerShell; "
            "`wsl --list` shows its name"
        )
    return None


def without_engine(machine: Machine, engine: Engine) -> tuple[str, str]:
    """Return (reason why the engine cannot be imported, fix)."""
    fault = machine.mlx_fault if engine == "mlx" else machine.torch_fault
    missing = machine.missing(engine)
    if missing:
        fault = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
    problem = fault or "it cannot be imported"
    if machine.system == "Darwin" and not machine.apple_silicon:
        return problem, (
            "this is an Intel Mac: MLX needs Apple silicon, and PyTorch has no wheels for Intel "
            "Macs since 2.3; use another machine"
        )
    if engine == "cuda":
        return problem, install_torch(machine)
    if machine.rosetta:
        return problem, (
            "this Python is one for Intel, under Rosetta: install one for Apple silicon (from "
            "python.org, or `uv python install`), and make a new environment with it"
        )
    if machine.macos is not None and machine.macos < OLDEST_MACOS:
        return problem, "MLX needs macOS 14: update macOS, then pip install mlx mlx-lm"
    install = "pip install" if missing else "pip install --force-reinstall"
    mlx = "mlx" if machine.system == "Darwin" else "'mlx[cpu]'"
    return problem, f"{install} {mlx} mlx-lm"


def _card_error(machine: Machine, where: str) -> BackendError:
    problem, fix = unusable_card(machine)
    pause = "\n" if "\n" in fix else "; "
    return BackendError.at(where, problem, f"{fix}{pause}or pass `device=cpu`")


def resolve_dtype(
    machine: Machine, choice: Choice, wanted: DType | Literal["auto"]
) -> tuple[DType, str]:
    """Return (dtype, reason) for `model.dtype`."""
    if wanted != "auto":
        return wanted, "set by model.dtype"
    if choice.device == "cpu":
        return "float32", "the CPU is fastest and exact in it"
    if machine.bfloat16:
        return "bfloat16", "the GPU computes in it"
    return "float32", "this GPU has no bfloat16, and float16 overflows"


def quantization_fault(machine: Machine, choice: Choice, quantization: str) -> Fault | None:
    """Return the fault that keeps `model.quantization` from working on this engine here, or None.

    MLX quantizes itself; PyTorch needs bitsandbytes. A broken bitsandbytes is only known after a
    thorough `probe`.
    """
    if quantization == "none" or choice.backend == "mlx":
        return None
    where, needs = "model.quantization", f"{quantization} on PyTorch needs bitsandbytes"
    if "bitsandbytes" not in machine.packages:
        return Fault(where, f"{needs}, which is not installed", "pip install bitsandbytes")
    if machine.bitsandbytes_fault is not None:
        problem = f"{needs}, which does not work: {machine.bitsandbytes_fault}"
        fix = "pip install --upgrade --no-deps bitsandbytes"
        if re.search("cuda|libcu|libnv", machine.bitsandbytes_fault, re.I):  # libraries of CUDA
            fix += "\nor install the PyTorch build that docs/machines.md names"
        return Fault(where, problem, fix)
    card, since = machine.gpu_capability, NF4_SINCE if quantization == "4bit" else INT8_SINCE
    if choice.device == "gpu" and card is not None and card < since:
        needs = f"{quantization} needs a card of compute capability {dotted(since)} or later"
        fix = "use none" if card < NF4_SINCE else "use 4bit"
        return Fault(where, f"{needs}; found {machine.gpu}", fix)
    return None


def quantization_faults(
    machine: Machine, choice: Choice, quantization: Quantization, architecture: Architecture
) -> Iterator[Fault]:
    """Yield the faults that keep an engine from holding a base model in this format here.

    Args:
        machine: where it is to run; the present one is probed for a broken bitsandbytes.
        choice: the engine.
        quantization: `4bit` or `8bit`, on loading or in the model's files.
        architecture: of the base model.
    """
    if choice.backend == "mlx":
        for target, (_, columns) in architecture.linear_shapes().items():
            if architecture.stored is None and columns % GROUP:
                problem = f"MLX quantizes groups of {GROUP} weights; {target} has {columns}"
                yield Fault("model.quantization", problem, "set it to none")
        return
    if machine.here and machine.bitsandbytes_fault is None:
        machine = replace(machine, bitsandbytes_fault=bitsandbytes_fault())
    if (fault := quantization_fault(machine, choice, quantization)) is not None:
        yield fault
