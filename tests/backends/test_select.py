"""The choice of engine, device and dtype, on machines that are not here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from qwen_local.backends import select
from qwen_local.backends.select import (
    Choice,
    Device,
    DType,
    Machine,
    choose,
    probe,
    resolve_dtype,
)
from qwen_local.errors import BackendError

BARE = Machine(
    system="Linux",
    processor="x86_64",
    mlx=None,
    metal=False,
    torch=None,
    torch_cuda=None,
    cuda=False,
    bfloat16=False,
    nvidia=False,
    driver=None,
    memory_bytes=16 * 10**9,
    gpu_bytes=0,
)
LINUX = replace(BARE, torch="2.13.0+cpu")
LINUX_WITH_BOTH = replace(LINUX, mlx="0.32.4")
ONLY_MLX = replace(BARE, mlx="0.32.4")
NVIDIA = replace(
    BARE,
    torch="2.13.0",
    torch_cuda="13.0",
    cuda=True,
    bfloat16=True,
    nvidia=True,
    driver="580.65.06",
    gpu_bytes=24 * 10**9,
)
OLD_DRIVER = replace(NVIDIA, cuda=False, bfloat16=False, driver="470.82.01", gpu_bytes=0)
CPU_WHEEL = replace(OLD_DRIVER, torch="2.13.0+cpu", torch_cuda=None)
NO_DRIVER = replace(OLD_DRIVER, driver=None)
CARD_WITHOUT_TORCH = replace(OLD_DRIVER, torch=None, torch_cuda=None)
MAC = replace(
    BARE,
    system="Darwin",
    processor="arm64",
    mlx="0.32.4",
    metal=True,
    bfloat16=True,
    gpu_bytes=12 * 10**9,
)
MAC_WITH_BOTH = replace(MAC, torch="2.13.0")
MAC_WITHOUT_METAL = replace(MAC, metal=False, bfloat16=False, gpu_bytes=0)
MAC_WITHOUT_MLX = replace(MAC_WITHOUT_METAL, mlx=None, torch="2.13.0")
BARE_MAC = replace(MAC_WITHOUT_MLX, torch=None)

ASKED_ON_CPU = "asked for by --backend and --device"
METAL = "there is an Apple GPU, which MLX uses through Metal"
CUDA = "there is an NVIDIA GPU, which PyTorch uses through CUDA"
GET_MLX = "pip install mlx 'mlx-lm>=0.32'; on Linux 'mlx[cpu]' instead of mlx"
GET_TORCH = "pip install torch peft"


@pytest.mark.parametrize(
    ("machine", "backend", "device", "choice"),
    [
        (MAC, "auto", "auto", Choice("mlx", "gpu", METAL)),
        (MAC_WITH_BOTH, "auto", "auto", Choice("mlx", "gpu", METAL)),
        (MAC_WITH_BOTH, "auto", "gpu", Choice("mlx", "gpu", METAL)),
        (NVIDIA, "auto", "auto", Choice("cuda", "gpu", CUDA)),
        (NVIDIA, "auto", "gpu", Choice("cuda", "gpu", CUDA)),
        (
            LINUX_WITH_BOTH,
            "auto",
            "auto",
            Choice("cuda", "cpu", "there is no GPU; PyTorch runs on the CPU"),
        ),
        (
            NVIDIA,
            "auto",
            "cpu",
            Choice("cuda", "cpu", "asked for by --device; PyTorch runs on the CPU"),
        ),
        (
            OLD_DRIVER,
            "auto",
            "cpu",
            Choice("cuda", "cpu", "asked for by --device; PyTorch runs on the CPU"),
        ),
        (
            MAC,
            "auto",
            "cpu",
            Choice(
                "mlx",
                "cpu",
                "asked for by --device; MLX runs on the CPU, and there is no PyTorch",
            ),
        ),
        (
            ONLY_MLX,
            "auto",
            "auto",
            Choice("mlx", "cpu", "there is no GPU; MLX runs on the CPU, and there is no PyTorch"),
        ),
        (
            MAC_WITHOUT_MLX,
            "auto",
            "auto",
            Choice(
                "cuda",
                "cpu",
                "MLX, which would use the GPU of this Mac, cannot be imported; "
                "PyTorch runs on the CPU",
            ),
        ),
        (
            MAC,
            "mlx",
            "auto",
            Choice("mlx", "gpu", "asked for by --backend; there is an Apple GPU"),
        ),
        (MAC, "mlx", "gpu", Choice("mlx", "gpu", "asked for by --backend; there is an Apple GPU")),
        (MAC, "mlx", "cpu", Choice("mlx", "cpu", ASKED_ON_CPU)),
        (
            MAC_WITHOUT_METAL,
            "mlx",
            "auto",
            Choice("mlx", "cpu", "asked for by --backend; there is no Apple GPU"),
        ),
        (
            MAC_WITH_BOTH,
            "cuda",
            "auto",
            Choice("cuda", "cpu", "asked for by --backend; there is no NVIDIA GPU"),
        ),
        (
            NVIDIA,
            "cuda",
            "auto",
            Choice("cuda", "gpu", "asked for by --backend; there is an NVIDIA GPU"),
        ),
        (
            LINUX,
            "cuda",
            "auto",
            Choice("cuda", "cpu", "asked for by --backend; there is no NVIDIA GPU"),
        ),
        (LINUX_WITH_BOTH, "mlx", "cpu", Choice("mlx", "cpu", ASKED_ON_CPU)),
        (LINUX_WITH_BOTH, "cuda", "cpu", Choice("cuda", "cpu", ASKED_ON_CPU)),
        (CPU_WHEEL, "cuda", "cpu", Choice("cuda", "cpu", ASKED_ON_CPU)),
        (
            replace(NVIDIA, mlx="0.32.4"),
            "mlx",
            "auto",
            Choice("mlx", "cpu", "asked for by --backend; there is no Apple GPU"),
        ),
    ],
)
def test_the_engine_and_the_device_come_with_their_reason(
    machine: Machine, backend: str, device: str, choice: Choice
) -> None:
    assert choose(machine, backend, device) == choice


CARD = "an NVIDIA card is present, but PyTorch cannot use it: "
ON_CPU = "; or pass --device cpu"
GET_WHEEL = (
    "install a PyTorch wheel for a CUDA version that the driver supports "
    "(`nvidia-smi` shows it), or a newer driver"
)
GET_DRIVER = "install the NVIDIA driver, or restart if it was just updated"
OLD = f"{CARD}driver 470.82.01, PyTorch 2.13.0 built for CUDA 13.0"


@pytest.mark.parametrize(
    ("machine", "backend", "device", "where", "problem", "hint"),
    [
        (BARE, "mlx", "auto", "--backend mlx", "mlx and mlx-lm cannot be imported here", GET_MLX),
        (
            BARE,
            "cuda",
            "cpu",
            "--backend cuda",
            "torch and peft cannot be imported here",
            GET_TORCH,
        ),
        (
            BARE,
            "auto",
            "auto",
            "--backend auto --device auto",
            "neither MLX nor PyTorch can be imported here",
            GET_TORCH,
        ),
        (
            BARE_MAC,
            "auto",
            "cpu",
            "--backend auto --device cpu",
            "neither MLX nor PyTorch can be imported here",
            GET_MLX,
        ),
        (
            LINUX,
            "auto",
            "gpu",
            "--backend auto --device gpu",
            "expected a GPU that an engine can use; found none",
            "pass --device cpu",
        ),
        (
            MAC_WITHOUT_MLX,
            "auto",
            "gpu",
            "--backend auto --device gpu",
            "expected a GPU that an engine can use; found none",
            GET_MLX,
        ),
        (
            LINUX_WITH_BOTH,
            "mlx",
            "gpu",
            "--backend mlx --device gpu",
            "expected an Apple GPU; found none",
            "pass --device cpu",
        ),
        (
            replace(NVIDIA, mlx="0.32.4"),  # the card is fine; MLX does not use it
            "mlx",
            "gpu",
            "--backend mlx --device gpu",
            "expected an Apple GPU; found none",
            "pass --device cpu",
        ),
        (
            MAC_WITH_BOTH,
            "cuda",
            "gpu",
            "--backend cuda --device gpu",
            "expected an NVIDIA GPU; found none",
            "pass --device cpu",
        ),
        (OLD_DRIVER, "auto", "auto", "--backend auto --device auto", OLD, GET_WHEEL + ON_CPU),
        (OLD_DRIVER, "auto", "gpu", "--backend auto --device gpu", OLD, GET_WHEEL + ON_CPU),
        (OLD_DRIVER, "cuda", "auto", "--backend cuda --device auto", OLD, GET_WHEEL + ON_CPU),
        (OLD_DRIVER, "cuda", "gpu", "--backend cuda --device gpu", OLD, GET_WHEEL + ON_CPU),
        (
            CPU_WHEEL,
            "auto",
            "auto",
            "--backend auto --device auto",
            f"{CARD}driver 470.82.01, PyTorch 2.13.0+cpu built for the CPU only",
            GET_WHEEL + ON_CPU,
        ),
        (
            NO_DRIVER,
            "auto",
            "auto",
            "--backend auto --device auto",
            f"{CARD}no driver that answers, PyTorch 2.13.0 built for CUDA 13.0",
            GET_DRIVER + ON_CPU,
        ),
        (
            CARD_WITHOUT_TORCH,
            "auto",
            "auto",
            "--backend auto --device auto",
            f"{CARD}driver 470.82.01, no PyTorch that can be imported",
            GET_TORCH + ON_CPU,
        ),
    ],
)
def test_what_cannot_run_is_refused_with_the_mend(
    machine: Machine, backend: str, device: str, where: str, problem: str, hint: str
) -> None:
    with pytest.raises(BackendError) as raised:
        choose(machine, backend, device)
    assert str(raised.value) == f"{where}: {problem}\n\nhint: {hint}"


@pytest.mark.parametrize(
    ("machine", "device", "wanted", "found"),
    [
        (MAC, "gpu", "auto", ("bfloat16", "the GPU computes in it")),
        (NVIDIA, "gpu", "auto", ("bfloat16", "the GPU computes in it")),
        (
            replace(NVIDIA, bfloat16=False),
            "gpu",
            "auto",
            ("float32", "this GPU has no bfloat16, and float16 overflows"),
        ),
        (NVIDIA, "cpu", "auto", ("float32", "the CPU is fastest and exact in it")),
        (MAC, "gpu", "float32", ("float32", "asked for by model.dtype")),
        (LINUX, "cpu", "bfloat16", ("bfloat16", "asked for by model.dtype")),
    ],
)
def test_the_dtype_comes_with_its_reason(
    machine: Machine, device: Device, wanted: DType | Literal["auto"], found: tuple[str, str]
) -> None:
    assert resolve_dtype(machine, Choice("cuda", device, ""), wanted) == found


# --- looking at a machine ---


def fake_imports(**modules: Any) -> Callable[[str], Any]:
    """`import_module` on a machine that has these: a module, or the error that it raises."""

    def find(name: str) -> Any:
        module = modules.get(name.replace(".", "_"), SimpleNamespace())
        if isinstance(module, Exception):
            raise module
        return module

    return find


def test_this_machine_has_both_engines() -> None:
    machine = probe()
    assert machine.mlx == metadata.version("mlx")
    assert machine.torch is not None and machine.torch.startswith("2.")
    assert machine.memory_bytes > 10**9


def test_an_engine_that_is_installed_but_broken_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Linux `pip install mlx` alone brings no library for the CPU."""
    broken = fake_imports(mlx_core=ImportError("libmlx.so"), torch=OSError("libcudart.so"))
    monkeypatch.setattr(select, "import_module", broken)
    machine = probe()
    assert (machine.mlx, machine.torch, machine.metal, machine.cuda) == (None, None, False, False)


def test_an_engine_without_its_companion_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in ("mlx-lm", "peft"):
            raise metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    machine = probe()
    assert (machine.mlx, machine.torch) == (None, None)


def test_a_card_is_seen_with_its_memory_its_driver_and_the_cuda_of_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_bf16_supported=lambda including_emulation: including_emulation,  # a card of 2018
        get_device_name=lambda _: "an old card",
        get_device_properties=lambda _: SimpleNamespace(total_memory=24),
    )
    torch = SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.0"))
    found = fake_imports(torch=torch, mlx_core=ImportError())
    monkeypatch.setattr(select, "import_module", found)
    monkeypatch.setenv("PATH", str(tmp_path))
    executable(tmp_path / "nvidia-smi", "echo 580.65.06; echo 580.65.06")
    machine = probe()
    assert (machine.cuda, machine.bfloat16, machine.gpu_bytes) == (True, False, 24)
    assert (machine.nvidia, machine.driver, machine.torch_cuda) == (True, "580.65.06", "13.0")


@pytest.mark.parametrize(
    "answer", ["echo NVIDIA-SMI has failed; exit 9", "echo", "exec nothing-of-this-name"]
)
def test_a_driver_that_does_not_answer_is_none(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = fake_imports(mlx_core=ImportError(), torch=ImportError())
    monkeypatch.setattr(select, "import_module", broken)
    monkeypatch.setenv("PATH", str(tmp_path))
    executable(tmp_path / "nvidia-smi", answer)
    monkeypatch.setattr(select, "_nvidia_in_the_machine", lambda: True)
    assert (probe().nvidia, probe().driver) == (True, None)
    # The tools alone, as on the login node of a cluster, are no card.
    monkeypatch.setattr(select, "_nvidia_in_the_machine", lambda: False)
    assert probe().nvidia is False


def test_metal_lends_its_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    mlx = SimpleNamespace(
        metal=SimpleNamespace(is_available=lambda: True),
        device_info=lambda: {
            "max_recommended_working_set_size": 12,
            "device_name": "Apple M4 Pro",
        },
    )
    monkeypatch.setattr(select, "import_module", fake_imports(mlx_core=mlx, torch=ImportError()))
    machine = probe()
    assert (machine.metal, machine.bfloat16, machine.gpu_bytes) == (True, True, 12)
    assert machine.gpu == "Apple M4 Pro"


def executable(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
