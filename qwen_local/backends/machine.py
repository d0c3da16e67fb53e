"""What an engine can stand on, as plain data: any machine can be described on any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Engine = Literal["mlx", "cuda"]
Device = Literal["cpu", "gpu"]
DType = Literal["float32", "bfloat16", "float16"]

Capability = tuple[int, int]
"""NVIDIA's number of what a card can do; (8, 6) for an RTX 3090."""

PACKAGES: Mapping[Engine, tuple[str, str]] = {"mlx": ("mlx", "mlx-lm"), "cuda": ("torch", "peft")}
"""Packages that an engine needs: the framework and its companion."""

COMPUTING: Mapping[Engine, tuple[str, ...]] = {
    "mlx": ("qwen-local", "mlx", "mlx-lm"),
    "cuda": ("qwen-local", "torch", "transformers", "peft"),
}
"""Packages whose version may change the last digits of a result."""

BFLOAT16_SINCE: Capability = (8, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """An NVIDIA card, usable or not."""

    name: str
    memory_bytes: int
    capability: Capability | None
    """None where the driver is too old to say."""

    @property
    def bfloat16(self) -> bool | None:
        """Whether it computes in bfloat16 itself, None where that is not known."""
        return None if self.capability is None else self.capability >= BFLOAT16_SINCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """Room in a folder."""

    purpose: Literal["working folder", "hub cache"]
    path: str
    free_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What an engine can stand on. A default says: none, or not known."""

    here: bool = True
    """Whether it is the present one."""
    system: str
    """`Linux`, `Darwin`, ..."""
    processor: str
    """`x86_64`, `arm64`, ... as this Python sees it."""
    distribution: str | None = None
    """`Ubuntu 24.04.2 LTS`, `macOS 15.5`, ..."""
    macos: tuple[int, int] | None = None
    rosetta: bool = False
    """Whether this is a Python for Intel on Apple silicon."""
    wsl: Literal[1, 2] | None = None
    """Generation of the Windows Subsystem for Linux that this is."""
    dxg: bool = False
    """Whether WSL lends a GPU of the Windows side (/dev/dxg)."""
    cpu: str | None = None
    python: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each installed package that matters here, whether it works or not."""
    mlx: str | None
    """Version of MLX with mlx-lm beside it, None where one of them is missing or broken."""
    mlx_fault: str | None = None
    """How importing MLX or mlx-lm failed, where they are installed."""
    metal: bool
    torch: str | None
    """Version of PyTorch with PEFT beside it, None where one of them is missing or broken."""
    torch_fault: str | None = None
    """How importing PyTorch or PEFT failed, where they are installed."""
    torch_cuda: str | None
    """CUDA version that this PyTorch was built for, None where for the CPU only."""
    torch_says: str | None = None
    """PyTorch's own words on a card that it cannot use."""
    architectures: tuple[str, ...] = ()
    """Cards that this PyTorch has code for: `sm_86`, `compute_120`, ..."""
    bitsandbytes_fault: str | None = None
    """How importing bitsandbytes failed; None where it works, or where `probe` was not thorough."""
    cuda: bool
    """Whether this PyTorch can use an NVIDIA card."""
    bfloat16: bool
    """Whether the GPU computes in bfloat16 itself, and does not emulate it."""
    nvidia: bool
    """Whether an NVIDIA card is present, usable or not."""
    cards: tuple[Card, ...] = ()
    """Those that the driver names; none where no driver answers."""
    driver: str | None
    """Version of the NVIDIA driver, None where there is none that answers."""
    driver_cuda: str | None = None
    """Highest CUDA version that the driver supports."""
    driver_says: str | None = None
    """Words of a driver that does not answer properly."""
    visible_cards: str | None = None
    """CUDA_VISIBLE_DEVICES."""
    memory_bytes: int
    """Of the machine; 0 where unknown."""
    gpu: str | None = None
    """The name of the GPU that an engine can use."""
    gpu_capability: Capability | None = None
    """Of the NVIDIA card that PyTorch takes."""
    gpu_bytes: int
    """That a program may use on the GPU; 0 without one."""
    disks: tuple[Disk, ...] = ()

    def bytes_on(self, device: Device) -> int:
        """Memory for a run on this device."""
        return self.gpu_bytes if device == "gpu" else self.memory_bytes

    def missing(self, engine: Engine) -> tuple[str, ...]:
        """Packages of the engine that are not installed."""
        return tuple(name for name in PACKAGES[engine] if name not in self.packages)

    @property
    def apple_silicon(self) -> bool:
        """Whether this is a Mac with a GPU for MLX, even where this Python cannot use it."""
        return self.system == "Darwin" and (self.processor == "arm64" or self.rosetta)

    @property
    def lacks_mlx(self) -> bool:
        """Whether this is a Mac whose GPU goes unused for want of MLX."""
        return self.apple_silicon and self.mlx is None
