"""Which engine runs, on which device, in which dtype, and why.

`probe` looks at the machine; the choices themselves are pure functions of what it saw, so that
every machine can be tried on any other.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qwen_local.errors import BackendError

if TYPE_CHECKING:
    from qwen_local.backends.base import Backend, Setup

Engine = Literal["mlx", "cuda"]
Device = Literal["cpu", "gpu"]
DType = Literal["float32", "bfloat16", "float16"]

INSTALL = {
    "mlx": "on a Mac: pip install mlx mlx-lm; on Linux: pip install 'qwen-local[mlx]'",
    "cuda": "pip install 'qwen-local[cuda]'",
}

MICRO_BATCH_TOKENS = {"cpu": 2048, "gpu": 8192}
"""`train.micro_batch_tokens: auto`. A bigger product gains nothing on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What an engine can stand on."""

    system: str
    """`Linux`, `Darwin`, ..."""
    processor: str
    mlx: str | None
    """Version of MLX with mlx-lm beside it, None where either is missing."""
    metal: bool
    torch: str | None
    """Version of PyTorch with PEFT beside it, None where either is missing."""
    cuda: bool
    """Whether this PyTorch can use an NVIDIA card."""
    bfloat16: bool
    """Whether the GPU computes in bfloat16."""
    nvidia: bool
    """Whether an NVIDIA card is present, usable or not."""
    memory_bytes: int
    """Of the machine."""
    gpu_bytes: int
    """That a program may use on the GPU; 0 without one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine on a device, with the reason."""

    backend: Engine
    device: Device
    reason: str


def probe() -> Machine:
    """Look at this machine. Imports the engines that are installed."""
    mlx, torch = _version("mlx", "mlx-lm"), _version("torch", "peft")
    if mlx:
        import_module("qwen_local.backends.mlx")  # before mlx.core: see blas.py
    metal = bool(mlx) and import_module("mlx.core").metal.is_available()
    cuda = bool(torch) and import_module("torch").cuda.is_available()
    return Machine(
        system=platform.system(),
        processor=platform.machine(),
        mlx=mlx,
        metal=metal,
        torch=torch,
        cuda=cuda,
        bfloat16=metal or (cuda and import_module("torch").cuda.is_bf16_supported()),
        nvidia=shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu_bytes=_gpu_bytes(metal=metal, cuda=cuda),
    )


def choose(machine: Machine, backend: str = "auto", device: str = "auto") -> Choice:
    """The engine and device for `--backend` and `--device`.

    Raises:
        BackendError: what was asked for cannot run here, or an NVIDIA card is present that
            PyTorch cannot use (a quiet run on the CPU would not be what its owner wants).
    """
    if backend == "auto":
        return _automatic(machine, device)
    installed = machine.mlx if backend == "mlx" else machine.torch
    if installed is None:
        packages = "mlx and mlx-lm are" if backend == "mlx" else "torch and peft are"
        raise BackendError.at(
            f"--backend {backend}", f"{packages} not installed here", INSTALL[backend]
        )
    usable = machine.metal if backend == "mlx" else machine.cuda
    chip = "an Apple GPU through Metal" if backend == "mlx" else "an NVIDIA GPU through CUDA"
    engine: Engine = "mlx" if backend == "mlx" else "cuda"
    if device == "cpu":
        return Choice(engine, "cpu", "asked for by --backend and --device cpu")
    if usable:
        return Choice(engine, "gpu", f"asked for by --backend; it has {chip}")
    if device == "auto" and not (backend == "cuda" and machine.nvidia):
        return Choice(engine, "cpu", f"asked for by --backend; there is no {chip[3:]}, so the CPU")
    raise _no_gpu(machine, f"--backend {backend} --device {device}", chip)


def _automatic(machine: Machine, device: str) -> Choice:
    """`--backend auto`: Metal, then CUDA, then PyTorch on the CPU."""
    if device != "cpu":
        if machine.metal:
            return Choice("mlx", "gpu", "this Mac has an Apple GPU, which MLX uses through Metal")
        if machine.cuda:
            return Choice("cuda", "gpu", "there is an NVIDIA GPU, which PyTorch uses through CUDA")
        if device == "gpu" or machine.nvidia:
            raise _no_gpu(machine, f"--device {device}", "a GPU")
    why = "asked for by --device cpu" if device == "cpu" else "there is no GPU"
    if machine.torch:
        return Choice("cuda", "cpu", f"{why}: PyTorch on the CPU")
    if machine.mlx:
        return Choice("mlx", "cpu", f"{why} and no PyTorch: MLX on the CPU")
    raise BackendError.at(
        "--backend auto", "neither MLX nor PyTorch is installed here", INSTALL["cuda"]
    )


def _no_gpu(machine: Machine, where: str, chip: str) -> BackendError:
    if machine.nvidia:
        return BackendError.at(
            where,
            "an NVIDIA card is present, but PyTorch cannot use it",
            "install a PyTorch wheel that matches the driver (`nvidia-smi` shows its version), "
            "or pass --device cpu to train on the CPU",
        )
    return BackendError.at(where, f"expected {chip}; found none", "pass --device cpu")


def resolve_dtype(
    machine: Machine, choice: Choice, wanted: DType | Literal["auto"]
) -> tuple[DType, str]:
    """(dtype, reason) for `model.dtype`."""
    if wanted != "auto":
        return wanted, "asked for by model.dtype"
    if choice.device == "cpu":
        return "float32", "the CPU is fastest and exact in it"
    if machine.bfloat16:
        return "bfloat16", "the GPU computes in it"
    return "float16", "this GPU has no bfloat16"


def open_backend(choice: Choice, setup: Setup) -> Backend:
    """Load the model into the engine."""
    if choice.backend == "mlx":
        import qwen_local.backends.mlx.engine as mlx_engine

        return mlx_engine.MlxBackend(setup)
    import qwen_local.backends.cuda.engine as torch_engine

    return torch_engine.TorchBackend(setup)


def _gpu_bytes(*, metal: bool, cuda: bool) -> int:
    """On a Mac what Metal recommends as the working set, out of the unified memory."""
    if metal:
        info = import_module("mlx.core").device_info()
        return int(info["max_recommended_working_set_size"])
    if cuda:
        return int(import_module("torch").cuda.get_device_properties(0).total_memory)
    return 0


def _version(package: str, companion: str) -> str | None:
    try:
        metadata.version(companion)
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
