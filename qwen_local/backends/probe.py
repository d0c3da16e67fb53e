"""A look at this machine. Nothing here decides anything; `select` does, from what was seen."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Literal

from qwen_local.backends.machine import (
    BFLOAT16_SINCE,
    PACKAGES,
    Capability,
    Card,
    Disk,
    Engine,
    Machine,
)
from qwen_local.backends.nvidia import covers

ROOT = Path("/")
"""Where /proc, /sys, /dev and /etc are looked for."""

WATCHED = (*PACKAGES["mlx"], *PACKAGES["cuda"], "bitsandbytes", "transformers")

PATIENCE = 20
"""Seconds for another program to answer; a sleeping NVIDIA driver takes several to wake."""


def probe(*, thorough: bool = False) -> Machine:
    """Look at this machine. Imports the engines that are installed: MLX first, see blas.py.

    Args:
        thorough: import also what stands beside the engines (mlx-lm, transformers, PEFT,
            bitsandbytes), which shows what is broken and takes some seconds.
    """
    mlx, mlx_fault = _engine("mlx")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch, torch_fault = _engine("cuda")
        capability, torch_says = _card_of_torch(torch)
        torch_says = torch_says or _words_on_cuda(said)
        broken_bitsandbytes = None
        if thorough and mlx is not None:
            mlx, mlx_fault = _with(mlx, "mlx_lm")
        if thorough and torch is not None:
            broken_bitsandbytes = bitsandbytes_fault()  # first: PEFT would import it, and loudly
            torch, torch_fault = _with(torch, "transformers", "peft")
    metal = mlx is not None and mlx.metal.is_available()
    architectures = () if torch is None else tuple(torch.cuda.get_arch_list())
    cuda = torch is not None and capability is not None and covers(architectures, capability)
    cards, driver, driver_says = _nvidia_smi()
    system, rosetta = platform.system(), _sysctl("sysctl.proc_translated") == "1"
    macos = _macos()
    return Machine(
        system=system,
        processor=platform.machine(),
        distribution=_distribution(macos),
        macos=macos,
        rosetta=rosetta,
        wsl=_wsl(),
        dxg=(ROOT / "dev/dxg").exists(),
        cpu=_cpu(),
        python=platform.python_version(),
        packages=_versions(),
        mlx=None if mlx is None else metadata.version("mlx"),
        mlx_fault=mlx_fault,
        metal=metal,
        torch=None if torch is None else metadata.version("torch"),
        torch_fault=torch_fault,
        torch_cuda=None if torch is None else torch.version.cuda,
        torch_says=torch_says,
        architectures=architectures,
        bitsandbytes_fault=broken_bitsandbytes,
        cuda=cuda,
        bfloat16=metal or (cuda and capability is not None and capability >= BFLOAT16_SINCE),
        nvidia=driver is not None or _nvidia_in_the_machine(),
        cards=cards,
        driver=driver,
        driver_cuda=_driver_cuda() if thorough and driver is not None else None,
        driver_says=driver_says,
        visible_cards=os.environ.get("CUDA_VISIBLE_DEVICES"),
        memory_bytes=_memory_bytes(),
        gpu=_gpu_name(mlx if metal else None, torch if cuda else None),
        gpu_capability=capability if cuda else None,
        gpu_bytes=_gpu_bytes(mlx if metal else None, torch if cuda else None),
        disks=_disks(),
    )


# --- packages ---


def _engine(engine: Engine) -> tuple[ModuleType | None, str | None]:
    """(mlx.core or torch, None), or (None, how its import failed) where it is installed."""
    if any(_version(package) is None for package in PACKAGES[engine]):
        return None, None
    name = "mlx.core" if engine == "mlx" else "torch"
    try:
        if engine == "mlx":
            import_module("qwen_local.backends.mlx")  # before mlx.core: see blas.py
        return import_module(name), None
    except Exception as error:  # whatever a broken installation raises; it is told on
        return None, f"{name} cannot be imported: {_in_a_line(error)}"


def _with(framework: ModuleType, *beside: str) -> tuple[ModuleType | None, str | None]:
    """(the framework, None), or (None, how the import of what stands beside it failed)."""
    for name in beside:
        try:
            import_module(name)
        except Exception as error:  # as above
            return None, f"{name} cannot be imported: {_in_a_line(error)}"
    return framework, None


def bitsandbytes_fault() -> str | None:
    """How bitsandbytes is broken; it imports even where its library for the GPU does not load."""
    if _version("bitsandbytes") is None:
        return None
    try:
        import_module("qwen_local.backends.cuda")  # imports it, and keeps it from the hub
        library = import_module("bitsandbytes.cextension").lib
    except Exception as error:  # as above
        return _in_a_line(error)
    said = getattr(library, "error_msg", None) if "Error" in type(library).__name__ else None
    return said.partition("\n")[0] if isinstance(said, str) else None


def _versions() -> dict[str, str]:
    found = {package: _version(package) for package in WATCHED}
    return {package: version for package, version in found.items() if version is not None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _in_a_line(error: Exception) -> str:
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _card_of_torch(torch: ModuleType | None) -> tuple[Capability | None, str | None]:
    """(capability of the card that PyTorch takes, None), or (None, its words on the failure)."""
    if torch is None:
        return None, None
    try:
        available = torch.cuda.is_available()
        return (torch.cuda.get_device_capability(0) if available else None), None
    except RuntimeError as error:  # a card that is taken or full
        return None, str(error).partition("\n")[0]


def _words_on_cuda(said: Sequence[warnings.WarningMessage]) -> str | None:
    """PyTorch's warning of a card that it cannot use, in a line."""
    for warning in said:
        text = str(warning.message).partition("\n")[0]
        if "CUDA" in text:
            return text
    return None


# --- the operating system ---


def _distribution(macos: tuple[int, int] | None) -> str | None:
    """`Ubuntu 24.04.2 LTS`, `macOS 15.5`."""
    if macos is not None:
        return f"macOS {macos[0]}.{macos[1]}"
    for line in _text("etc/os-release").splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            return value.strip("\"'")
    return None


def _macos() -> tuple[int, int] | None:
    major, _, rest = platform.mac_ver()[0].partition(".")
    return (int(major), int(rest.partition(".")[0] or 0)) if major.isdigit() else None


def _wsl() -> Literal[1, 2] | None:
    """Generation of WSL. Its kernels call themselves so, but for those that a user built."""
    release = _text("proc/sys/kernel/osrelease")
    if "WSL2" in release or "microsoft" in release:
        return 2
    if "Microsoft" in release:
        return 1
    return 2 if release and "WSL_DISTRO_NAME" in os.environ else None


def _cpu() -> str | None:
    named = re.search(r"^model name\s*:\s*(.+)$", _text("proc/cpuinfo"), re.M)
    return named[1].strip() if named else _sysctl("machdep.cpu.brand_string")


def _sysctl(name: str) -> str | None:
    """A value that macOS keeps; None elsewhere."""
    return _answer(["sysctl", "-n", name]) if platform.system() == "Darwin" else None


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0


def _disks() -> tuple[Disk, ...]:
    from huggingface_hub import constants

    folders: dict[Literal["working folder", "hub cache"], Path] = {
        "working folder": Path.cwd(),
        "hub cache": Path(constants.HF_HUB_CACHE),
    }
    found = []
    for purpose, path in folders.items():
        exists = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(exists).free
        found.append(Disk(purpose=purpose, path=str(path), free_bytes=free))
    return tuple(found)


def _text(path: str) -> str:
    try:
        return (ROOT / path).read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _answer(command: Sequence[str]) -> str | None:
    """What a program prints, None where it is not there, fails or takes too long."""
    program = _program(command[0])
    if program is None:
        return None
    try:
        asked = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None


def _program(name: str) -> str | None:
    """On PATH, or where WSL puts what belongs to the driver of the Windows side."""
    return shutil.which(name) or shutil.which(name, path=str(ROOT / "usr/lib/wsl/lib"))


# --- the GPU ---


def _nvidia_smi() -> tuple[tuple[Card, ...], str | None, str | None]:
    """(cards, version of the driver, None), or ((), None, the words of a failure)."""
    program = _program("nvidia-smi")
    if program is None:
        return (), None, None
    said, known = "", "name,memory.total,driver_version"
    for fields in (f"{known},compute_cap", known):
        query = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        try:
            asked = subprocess.run(
                query, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            return (), None, _in_a_line(error)
        said = asked.stdout.strip() or asked.stderr.strip()
        if asked.returncode == 0:
            rows = [[cell.strip() for cell in row.split(",")] for row in said.splitlines()]
            if rows and all(len(row) >= 3 for row in rows):
                return tuple(_card(row) for row in rows), rows[0][2], None
        if "compute_cap" not in said:  # old drivers do not know that field
            break
    return (), None, said.partition("\n")[0] or None


def _card(row: Sequence[str]) -> Card:
    """From `name, MiB, driver[, capability]`; some fields read `[N/A]` on some cards."""
    name, memory, _, *rest = row
    parts = rest[0].split(".") if rest else []
    capability = (int(parts[0]), int(parts[1])) if "".join(parts).isdigit() else None
    mebibytes = int(memory) if memory.isdigit() else 0
    return Card(name=name, memory_bytes=mebibytes * 2**20, capability=capability)


def _driver_cuda() -> str | None:
    """Highest CUDA that the driver supports; newer drivers write `CUDA UMD Version`."""
    found = re.search(r"CUDA(?: UMD)? Version:\s*([\d.]+)", _answer(["nvidia-smi"]) or "")
    return found[1] if found else None


def _nvidia_in_the_machine() -> bool:
    """Whether a display controller of NVIDIA is there, driver or not (the tools alone are none)."""
    if (ROOT / "dev/nvidia0").exists() or (ROOT / "usr/lib/wsl/lib/libcuda.so.1").exists():
        return True
    for device in (ROOT / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        except OSError:
            continue
        if vendor.strip() == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _gpu_name(mlx: ModuleType | None, torch: ModuleType | None) -> str | None:
    if mlx is not None:
        return str(mlx.device_info()["device_name"])
    return None if torch is None else str(torch.cuda.get_device_name(0))


def _gpu_bytes(mlx: ModuleType | None, torch: ModuleType | None) -> int:
    """Of the engine that has a GPU; on a Mac Metal's working set, out of the unified memory."""
    if mlx is not None:
        return int(mlx.device_info()["max_recommended_working_set_size"])
    if torch is not None:
        return int(torch.cuda.get_device_properties(0).total_memory)
    return 0
