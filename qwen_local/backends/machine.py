"""Hardware and software of a machine as plain data; any machine can be described on any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Engine = Literal["mlx", "cuda"]
Device = Literal["cpu", "gpu"]
DType = Literal["float32", "bfloat16", "float16"]

Capability = tuple[int, int]
"""NVIDIA's compute capability; (8, 6) for an RTX 3090."""

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
    """None if the driver is too old to report it."""

    @property
    def bfloat16(self) -> bool | None:
        """True if it computes in bfloat16 natively; None if that is not known."""
        return None if self.capability is None else self.capability >= BFLOAT16_SINCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """Free space of a folder."""

    purpose: Literal["working folder", "hub cache"]
    path: str
    free_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Hardware and software that engines need. A default means: none, or not known."""

    here: bool = True
    """True for the machine that this process runs on."""
    system: str
    """`Linux`, `Darwin`, ..."""
    processor: str
    """`x86_64`, `arm64`, ... as this Python sees it."""
    distribution: str | None = None
    """`Ubuntu 24.04.2 LTS`, `macOS 15.5`, ..."""
    macos: tuple[int, int] | None = None
    rosetta: bool = False
    """True for an Intel build of Python on Apple silicon."""
    wsl: Literal[1, 2] | None = None
    """Generation of the Windows Subsystem for Linux; None outside it."""
    dxg: bool = False
    """True if WSL provides a GPU of Windows (/dev/dxg)."""
    cpu: str | None = None
    python: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each relevant package that is installed, working or not."""
    mlx: str | None
    """Version of MLX; None if MLX or mlx-lm is missing or broken."""
    mlx_fault: str | None = None
    """Error of importing MLX or mlx-lm, if they are installed."""
    metal: bool
    torch: str | None
    """Version of PyTorch; None if PyTorch or PEFT is missing or broken."""
    torch_fault: str | None = None
    """Error of importing PyTorch or PEFT, if they are installed."""
    torch_cuda: str | None
    """CUDA version that this PyTorch was built for; None for a CPU build."""
    torch_error: str | None = None
    """PyTorch's own message about a card that it cannot use."""
    architectures: tuple[str, ...] = ()
    """Architectures that this PyTorch has code for: `sm_86`, `compute_120`, ..."""
    bitsandbytes_fault: str | None = None
    """Error of importing bitsandbytes; None if it works, or if `probe` was not thorough."""
    cuda: bool
    """True if this PyTorch can use an NVIDIA card."""
    bfloat16: bool
    """True if the GPU computes in bfloat16 natively."""
    nvidia: bool
    """True if an NVIDIA card is present, usable or not."""
    cards: tuple[Card, ...] = ()
    """Cards that the driver lists; empty if no driver answers."""
    driver: str | None
    """Version of the NVIDIA driver; None if no driver answers."""
    driver_cuda: str | None = None
    """Highest CUDA version that the driver supports."""
    driver_error: str | None = None
    """Error message of a driver that does not answer properly."""
    visible_cards: str | None = None
    """CUDA_VISIBLE_DEVICES."""
    memory_bytes: int
    """Memory of the machine; 0 if unknown."""
    gpu: str | None = None
    """Name of the GPU that an engine can use."""
    gpu_capability: Capability | None = None
    """Compute capability of the NVIDIA card that PyTorch uses."""
    gpu_bytes: int
    """GPU memory that a program may use; 0 without a GPU."""
    gpu_free_bytes: int | None = None
    """What other programs leave of an NVIDIA card's memory now; None if unknown."""
    disks: tuple[Disk, ...] = ()

    def bytes_on(self, device: Device) -> int:
        """Return the memory for a run on this device."""
        return self.gpu_bytes if device == "gpu" else self.memory_bytes

    def missing(self, engine: Engine) -> tuple[str, ...]:
        """Return the packages of the engine that are not installed."""
        return tuple(name for name in PACKAGES[engine] if name not in self.packages)

    @property
    def apple_silicon(self) -> bool:
        """True for a Mac with a GPU for MLX, even if this Python cannot use it."""
        return self.system == "Darwin" and (self.processor == "arm64" or self.rosetta)

    @property
    def lacks_mlx(self) -> bool:
        """True for a Mac whose GPU is unused because MLX is missing."""
        return self.apple_silicon and self.mlx is None
