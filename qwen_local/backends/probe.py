"""Describe this machine. `select` decides from the result."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Literal

from qwen_local.backends.hub import check_settings
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
"""Root of /proc, /sys, /dev and /etc."""

WATCHED = (*PACKAGES["mlx"], *PACKAGES["cuda"], "bitsandbytes", "transformers")

PATIENCE = 10
"""Seconds that other programs may take to answer, in total; an idle NVIDIA driver takes several to
wake up."""


def probe(*, thorough: bool = False) -> Machine:
    """Describe this machine. Imports the installed engines, MLX first (see blas.py).

    Args:
        thorough: also import the engines' companions (mlx-lm, transformers, PEFT, bitsandbytes),
            which finds broken packages and takes some seconds.

    Raises:
        InputError: huggingface_hub cannot be imported in this environment.
    """
    check_settings()
    engines = _import_engines(thorough=thorough)
    mlx, torch, capability = engines.mlx, engines.torch, engines.capability
    metal = mlx is not None and mlx.metal.is_available()
    architectures = () if torch is None else tuple(torch.cuda.get_arch_list())
    cuda = torch is not None and capability is not None and covers(architectures, capability)
    until = time.monotonic() + PATIENCE
    cards, driver, driver_error = _nvidia_smi(until)
    system, rosetta = platform.system(), _sysctl("sysctl.proc_translated") == "1"
    macos = _macos()
    return Machine(
        system=system,
        processor=platform.machine(),
        distribution=_distribution(macos),
        macos=macos,
        rosetta=rosetta,
        wsl=wsl(),
        dxg=(ROOT / "dev/dxg").exists(),
        cpu=_cpu(),
        python=platform.python_version(),
        packages=_versions(),
        mlx=None if mlx is None else metadata.version("mlx"),
        mlx_fault=engines.mlx_fault,
        metal=metal,
        torch=None if torch is None else metadata.version("torch"),
        torch_fault=engines.torch_fault,
        torch_cuda=None if torch is None else torch.version.cuda,
        torch_error=engines.torch_error,
        architectures=architectures,
        bitsandbytes_fault=engines.bitsandbytes_fault,
        cuda=cuda,
        bfloat16=metal or (cuda and capability is not None and capability >= BFLOAT16_SINCE),
        nvidia=driver is not None or _nvidia_in_the_machine(),
        cards=cards,
        driver=driver,
        driver_cuda=_driver_cuda(until) if thorough and driver is not None else None,
        driver_error=driver_error,
        visible_cards=os.environ.get("CUDA_VISIBLE_DEVICES"),
        memory_bytes=_memory_bytes(),
        gpu=_gpu_name(mlx if metal else None, torch if cuda else None),
        gpu_capability=capability if cuda else None,
        gpu_bytes=_gpu_bytes(mlx if metal else None, torch if cuda else None),
        gpu_free_bytes=_gpu_free_bytes(torch) if cuda and not metal else None,
        disks=_disks(),
    )


# --- packages ---


@dataclass(frozen=True, kw_only=True, slots=True)
class _Engines:
    """Imported engines, None for those that cannot be imported, and the faults found."""

    mlx: ModuleType | None
    mlx_fault: str | None
    torch: ModuleType | None
    torch_fault: str | None
    torch_error: str | None
    """Error or warning of PyTorch about the NVIDIA card."""
    capability: Capability | None
    """Compute capability of the card that PyTorch uses."""
    bitsandbytes_fault: str | None
    """Known only after a thorough import."""


def _import_engines(*, thorough: bool) -> _Engines:
    """Import MLX, then PyTorch; if thorough, their companions as well."""
    mlx, mlx_fault = _engine("mlx")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch, torch_fault = _engine("cuda")
        capability, torch_error = _card_of_torch(torch)
        torch_error = torch_error or _cuda_warning(caught)
        broken_bitsandbytes = None
        if thorough and mlx is not None:
            mlx, mlx_fault = _with(mlx, "mlx_lm")
        if thorough and torch is not None:
            broken_bitsandbytes = bitsandbytes_fault()  # first: PEFT would import it, with warnings
            torch, torch_fault = _with(torch, "transformers", "peft")
    return _Engines(
        mlx=mlx,
        mlx_fault=mlx_fault,
        torch=torch,
        torch_fault=torch_fault,
        torch_error=torch_error,
        capability=capability,
        bitsandbytes_fault=broken_bitsandbytes,
    )


def _engine(engine: Engine) -> tuple[ModuleType | None, str | None]:
    """Return (mlx.core or torch, None), or (None, error of its import) if it is installed."""
    if any(_version(package) is None for package in PACKAGES[engine]):
        return None, None
    name = "mlx.core" if engine == "mlx" else "torch"
    try:
        first = "mlx.before_import" if engine == "mlx" else "cuda.before_torch"
        import_module(f"qwen_local.backends.{first}")
        return import_module(name), None
    except Exception as error:  # whatever a broken installation raises is reported
        return None, f"{name} cannot be imported: {in_a_line(error)}"


def _with(framework: ModuleType, *beside: str) -> tuple[ModuleType | None, str | None]:
    """Return (the framework, None), or (None, error of a companion's import)."""
    for name in beside:
        try:
            import_module(name)
        except Exception as error:  # as above
            return None, f"{name} cannot be imported: {in_a_line(error)}"
    return framework, None


def bitsandbytes_fault() -> str | None:
    """Return why bitsandbytes is broken; it imports even if its GPU library does not load."""
    if _version("bitsandbytes") is None:
        return None
    try:
        import_module("qwen_local.backends.cuda.before_import")  # imports it, offline
        library = import_module("bitsandbytes.cextension").lib
    except Exception as error:  # as above
        return in_a_line(error)
    message = getattr(library, "error_msg", None) if "Error" in type(library).__name__ else None
    return message.partition("\n")[0] if isinstance(message, str) else None


def _versions() -> dict[str, str]:
    found = {package: _version(package) for package in WATCHED}
    return {package: version for package, version in found.items() if version is not None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def in_a_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _card_of_torch(torch: ModuleType | None) -> tuple[Capability | None, str | None]:
    """Return (capability of the card that PyTorch uses, None), or (None, its error message)."""
    if torch is None:
        return None, None
    try:
        available = torch.cuda.is_available()
        return (torch.cuda.get_device_capability(0) if available else None), None
    except RuntimeError as error:  # a card that is taken or full
        return None, str(error).partition("\n")[0]


def _cuda_warning(caught: Sequence[warnings.WarningMessage]) -> str | None:
    """Return PyTorch's warning about a card that it cannot use, in one line."""
    for warning in caught:
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


def wsl() -> Literal[1, 2] | None:
    """Return the generation of WSL from the name of its kernel, which a user may have built."""
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
    """Return a system value of macOS; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    return _output("sysctl", "-n", name, until=time.monotonic() + PATIENCE)


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


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """Result of running another program."""

    ok: bool
    text: str
    """Its output, or else the error."""


def _output(name: str, *arguments: str, until: float) -> str | None:
    """Run another program and return its output; None if it is missing, fails or takes too long."""
    result = _run(name, *arguments, until=until)
    return result.text or None if result is not None and result.ok else None


def _run(name: str, *arguments: str, until: float) -> ProgramResult | None:
    """Run another program; None if it is missing.

    Args:
        name: of the program.
        *arguments: for it.
        until: end of the wait for it, by `time.monotonic`.
    """
    program = _program(name)
    if program is None:
        return None
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            [program, *arguments], stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        return ProgramResult(False, in_a_line(error))
    try:
        out, err = process.communicate(timeout=max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # one that hangs in a driver does not die
            process.communicate(timeout=1)
        return ProgramResult(False, f"{name} does not answer within {PATIENCE} seconds")
    return ProgramResult(process.returncode == 0, out.strip() or err.strip())


def _program(name: str) -> str | None:
    """Find a program on PATH, or where WSL puts the tools of the Windows driver."""
    return shutil.which(name) or shutil.which(name, path=str(ROOT / "usr/lib/wsl/lib"))


# --- the GPU ---


def _nvidia_smi(until: float) -> tuple[tuple[Card, ...], str | None, str | None]:
    """Return (cards, version of the driver, None), or ((), None, error message)."""
    text, known = "", "name,memory.total,driver_version"
    for fields in (f"{known},compute_cap", known):
        query = (f"--query-gpu={fields}", "--format=csv,noheader,nounits")
        result = _run("nvidia-smi", *query, until=until)
        if result is None:
            return (), None, None
        text = result.text
        rows = [_row(line, fields.count(",")) for line in text.splitlines() if result.ok]
        cards = [row for row in rows if row is not None]
        if cards:
            return tuple(_card(row) for row in cards), cards[0][2], None
        if "compute_cap" not in text:  # old drivers do not know that field
            break
    return (), None, text.partition("\n")[0] or None


def _row(line: str, commas: int) -> list[str] | None:
    """Split the line of a card; None for warnings, and for a card whose driver has no version."""
    row = [cell.strip() for cell in line.rsplit(",", commas)]  # a name may contain a comma
    return row if len(row) == commas + 1 and re.match("[0-9]", row[2]) else None


def _card(row: Sequence[str]) -> Card:
    """Parse `name, MiB, driver[, capability]`; some fields read `[N/A]` on some cards."""
    name, memory, _, *rest = row
    mebibytes = int(memory) if re.fullmatch("[0-9]{1,9}", memory) else 0
    number = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", rest[0]) if rest else None
    capability = (int(number[1]), int(number[2])) if number else None
    return Card(name=name, memory_bytes=mebibytes * 2**20, capability=capability)


def _driver_cuda(until: float) -> str | None:
    """Return the highest CUDA that the driver supports; newer ones print `CUDA UMD Version`."""
    text = _output("nvidia-smi", until=until) or ""
    found = re.search(r"CUDA(?: UMD)? Version:\s*([0-9.]+)", text)
    return found[1] if found else None


def _nvidia_in_the_machine() -> bool:
    """Return True if an NVIDIA display controller is present, with or without a driver."""
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
    """Return the GPU memory; on a Mac, Metal's working set out of the unified memory."""
    if mlx is not None:
        return int(mlx.device_info()["max_recommended_working_set_size"])
    if torch is not None:
        return int(torch.cuda.get_device_properties(0).total_memory)
    return 0


def _gpu_free_bytes(torch: ModuleType | None) -> int | None:
    """Return what other programs leave of the card's memory; None if unknown."""
    assert torch is not None
    try:
        return int(torch.cuda.mem_get_info(0)[0])
    except RuntimeError:  # a card that is full, where the question itself takes memory
        return 0
