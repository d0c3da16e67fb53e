"""The choice of engine, device and dtype, on machines that are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from qwen_local.backends.machine import Capability, Card, Device, DType, Machine
from qwen_local.backends.nvidia import TORCH, covers
from qwen_local.backends.select import (
    Choice,
    choose,
    quantization_fault,
    resolve_dtype,
)
from qwen_local.errors import BackendError, Fault

ROOT = Path(__file__).resolve().parents[2]

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
PYTORCH = {"torch": "2.13.0", "peft": "0.21.2"}
MLX = {"mlx": "0.32.4", "mlx-lm": "0.32.2"}
LINUX = replace(BARE, torch="2.13.0+cpu", packages=PYTORCH)
LINUX_WITH_BOTH = replace(LINUX, mlx="0.32.4", packages=PYTORCH | MLX)
ONLY_MLX = replace(BARE, mlx="0.32.4", packages=MLX)
RTX_3090 = Card(name="NVIDIA GeForce RTX 3090", memory_bytes=24 * 2**30, capability=(8, 6))
V100 = Card(name="Tesla V100-SXM2-16GB", memory_bytes=16 * 2**30, capability=(7, 0))
RTX_5090 = Card(name="NVIDIA GeForce RTX 5090", memory_bytes=32 * 2**30, capability=(12, 0))
NVIDIA = replace(
    BARE,
    packages=PYTORCH,
    torch="2.13.0",
    torch_cuda="13.0",
    architectures=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
    cuda=True,
    bfloat16=True,
    nvidia=True,
    cards=(RTX_3090,),
    driver="580.65.06",
    gpu=RTX_3090.name,
    gpu_capability=(8, 6),
    gpu_bytes=24 * 10**9,
)
UNUSABLE = replace(NVIDIA, cuda=False, bfloat16=False, gpu=None, gpu_capability=None, gpu_bytes=0)
OLD_DRIVER = replace(UNUSABLE, driver="535.183.01")
ANCIENT_DRIVER = replace(UNUSABLE, driver="470.82.01", cards=(replace(RTX_3090, capability=None),))
CPU_WHEEL = replace(UNUSABLE, torch="2.13.0+cpu", torch_cuda=None)
NO_DRIVER = replace(UNUSABLE, driver=None, cards=())
NO_TORCH = replace(UNUSABLE, torch=None, torch_cuda=None, packages={})
OLD_DRIVER_NO_TORCH = replace(NO_TORCH, driver="535.183.01")
NO_PEFT = replace(NO_TORCH, packages={"torch": "2.13.0"})
BROKEN = replace(
    NO_TORCH,
    packages=PYTORCH,
    torch_fault="torch cannot be imported: OSError: libcudart.so.13: cannot open it",
)
OLD_CARD = replace(UNUSABLE, cards=(V100,))
OLD_AND_NEW_CARD = replace(UNUSABLE, cards=(V100, RTX_5090))
NEW_CARD_OLD_BUILD = replace(
    UNUSABLE, cards=(RTX_5090,), torch_cuda="12.6", architectures=("sm_50", "sm_86", "sm_90")
)
NEW_CARD_OLD_DRIVER = replace(NEW_CARD_OLD_BUILD, driver="570.86.15")
HIDDEN = replace(UNUSABLE, visible_cards="")
SLEPT = replace(UNUSABLE, torch_error="CUDA unknown error - this may be due to a setup")
WSL_OLD_DRIVER = replace(OLD_DRIVER, wsl=2, driver="537.13")
WSL_NO_DRIVER = replace(NO_DRIVER, wsl=2)
MISMATCH = replace(NO_DRIVER, driver_error="Failed to initialize NVML: version mismatch")
WINDOWS = replace(LINUX, system="Windows", processor="AMD64")
WSL1 = replace(LINUX, wsl=1)
MAC = replace(
    BARE,
    system="Darwin",
    processor="arm64",
    packages=MLX,
    mlx="0.32.4",
    metal=True,
    bfloat16=True,
    gpu_bytes=12 * 10**9,
)
MAC_WITH_BOTH = replace(MAC, torch="2.13.0", packages=PYTORCH | MLX)
MAC_WITHOUT_METAL = replace(MAC, metal=False, bfloat16=False, gpu_bytes=0)
MAC_WITHOUT_MLX = replace(MAC_WITHOUT_METAL, mlx=None, torch="2.13.0", packages=PYTORCH)
BARE_MAC = replace(MAC_WITHOUT_MLX, torch=None, packages={})
ROSETTA = replace(BARE_MAC, processor="x86_64", rosetta=True)
INTEL_MAC = replace(BARE_MAC, processor="x86_64")
OLD_MACOS = replace(BARE_MAC, macos=(13, 6))

ASKED_ON_CPU = "requested"
METAL = "there is an Apple GPU, which MLX uses through Metal"
CUDA = "there is an NVIDIA GPU, which PyTorch uses through CUDA"
GET_MLX = "pip install mlx mlx-lm"
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
            Choice("cuda", "cpu", "requested; PyTorch runs on the CPU"),
        ),
        (
            OLD_DRIVER,
            "auto",
            "cpu",
            Choice("cuda", "cpu", "requested; PyTorch runs on the CPU"),
        ),
        (
            MAC,
            "auto",
            "cpu",
            Choice(
                "mlx",
                "cpu",
                "requested; MLX runs on the CPU, and there is no PyTorch",
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
            Choice("mlx", "gpu", "requested; there is an Apple GPU"),
        ),
        (MAC, "mlx", "gpu", Choice("mlx", "gpu", "requested; there is an Apple GPU")),
        (MAC, "mlx", "cpu", Choice("mlx", "cpu", ASKED_ON_CPU)),
        (
            MAC_WITHOUT_METAL,
            "mlx",
            "auto",
            Choice("mlx", "cpu", "requested; there is no Apple GPU"),
        ),
        (
            MAC_WITH_BOTH,
            "cuda",
            "auto",
            Choice("cuda", "cpu", "requested; there is no NVIDIA GPU"),
        ),
        (
            NVIDIA,
            "cuda",
            "auto",
            Choice("cuda", "gpu", "requested; there is an NVIDIA GPU"),
        ),
        (
            LINUX,
            "cuda",
            "auto",
            Choice("cuda", "cpu", "requested; there is no NVIDIA GPU"),
        ),
        (LINUX_WITH_BOTH, "mlx", "cpu", Choice("mlx", "cpu", ASKED_ON_CPU)),
        (LINUX_WITH_BOTH, "cuda", "cpu", Choice("cuda", "cpu", ASKED_ON_CPU)),
        (CPU_WHEEL, "cuda", "cpu", Choice("cuda", "cpu", ASKED_ON_CPU)),
        (
            replace(NVIDIA, mlx="0.32.4"),
            "mlx",
            "auto",
            Choice("mlx", "cpu", "requested; there is no Apple GPU"),
        ),
    ],
)
def test_the_engine_and_the_device_come_with_their_reason(
    machine: Machine, backend: str, device: str, choice: Choice
) -> None:
    assert choose(machine, backend, device) == choice


CARD = "an NVIDIA card is present, but PyTorch cannot use it: "
WHEEL = "PyTorch 2.13.0 built for CUDA 13.0"
GET_CUDA_12 = (
    "install the build for CUDA 12.6:\n"
    "  pip install 'torch==2.13.0+cu126' --index-url https://download.pytorch.org/whl/cu126"
)
GET_CUDA_13 = (
    "install the build for CUDA 13.0:\n"
    "  pip install 'torch==2.13.0+cu130' --index-url https://download.pytorch.org/whl/cu130"
)
GET_DRIVER = "install the NVIDIA driver, or restart if it was just updated"
NEW_DRIVER = "update the NVIDIA driver to 580 or later, and restart"
NEW_DRIVER_IN_WINDOWS = (
    "update the NVIDIA driver in Windows to 580 or later, then run `wsl --update` and "
    "`wsl --shutdown` there; install no Linux driver inside WSL"
)
BESIDE_IT = "\n  pip install peft bitsandbytes"

CARDS = {
    "an old driver": (
        OLD_DRIVER,
        f"driver 535.183.01, {WHEEL}, which needs driver 580",
        f"{NEW_DRIVER};\nor {GET_CUDA_12}",
    ),
    "a driver too old for any build": (
        ANCIENT_DRIVER,
        f"driver 470.82.01, {WHEEL}, which needs driver 580",
        NEW_DRIVER,
    ),
    "a build for the CPU": (
        CPU_WHEEL,
        "driver 580.65.06, PyTorch 2.13.0+cpu built for the CPU only",
        GET_CUDA_13,
    ),
    "no driver": (NO_DRIVER, f"no driver that answers, {WHEEL}", GET_DRIVER),
    "a driver that does not fit its kernel module": (
        MISMATCH,
        f"no driver that answers, {WHEEL}",
        "restart if the driver was just updated; else install the NVIDIA driver again",
    ),
    "no PyTorch": (
        NO_TORCH,
        "driver 580.65.06, no PyTorch that can be imported",
        GET_CUDA_13 + BESIDE_IT,
    ),
    "no PyTorch and an old driver": (
        OLD_DRIVER_NO_TORCH,
        "driver 535.183.01, no PyTorch that can be imported",
        GET_CUDA_12 + BESIDE_IT,
    ),
    "no PEFT": (
        NO_PEFT,
        "driver 580.65.06, no PyTorch that can be imported",
        "pip install peft",
    ),
    "a broken PyTorch": (
        BROKEN,
        "driver 580.65.06, torch cannot be imported: OSError: libcudart.so.13: cannot open it",
        GET_CUDA_13.replace("pip install", "pip install --force-reinstall") + BESIDE_IT,
    ),
    "a card older than the build": (
        OLD_CARD,
        f"driver 580.65.06, {WHEEL}, which has no code for Tesla V100-SXM2-16GB "
        "(compute capability 7.0)",
        GET_CUDA_12,
    ),
    "a card newer than the build": (
        NEW_CARD_OLD_BUILD,
        "driver 580.65.06, PyTorch 2.13.0 built for CUDA 12.6, which has no code for NVIDIA "
        "GeForce RTX 5090 (compute capability 12.0)",
        GET_CUDA_13,
    ),
    "a card newer than the build, and an old driver": (
        NEW_CARD_OLD_DRIVER,
        "driver 570.86.15, PyTorch 2.13.0 built for CUDA 12.6, which has no code for NVIDIA "
        "GeForce RTX 5090 (compute capability 12.0)",
        NEW_DRIVER,
    ),
    "cards that no build has code for at once": (
        OLD_AND_NEW_CARD,
        f"driver 580.65.06, {WHEEL}, which has no code for Tesla V100-SXM2-16GB "
        "(compute capability 7.0)",
        "no build of PyTorch suits all cards here: hide the others with CUDA_VISIBLE_DEVICES",
    ),
    "a card that is hidden": (
        HIDDEN,
        f"driver 580.65.06, {WHEEL}; CUDA_VISIBLE_DEVICES='' hides every card",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "a card that fails for a reason of its own": (
        SLEPT,
        f"driver 580.65.06, {WHEEL}; its error: CUDA unknown error - this may be due to a setup",
        "restart the machine: a driver that was updated, or a laptop that slept, leaves the card "
        "like this",
    ),
    "WSL2 and an old driver": (
        WSL_OLD_DRIVER,
        f"driver 537.13, {WHEEL}, which needs driver 580",
        f"{NEW_DRIVER_IN_WINDOWS};\nor {GET_CUDA_12}",
    ),
    "WSL2 and no driver": (
        WSL_NO_DRIVER,
        f"no driver that answers, {WHEEL}",
        NEW_DRIVER_IN_WINDOWS,
    ),
}


@pytest.mark.parametrize(("machine", "problem", "fix"), CARDS.values(), ids=CARDS.keys())
@pytest.mark.parametrize(("backend", "device"), [("auto", "auto"), ("auto", "gpu")])
def test_a_card_that_pytorch_cannot_use_is_an_error_with_driver_wheel_and_mend(
    machine: Machine, problem: str, fix: str, backend: str, device: str
) -> None:
    with pytest.raises(BackendError) as raised:
        choose(machine, backend, device)
    pause = "\n" if "\n" in fix else "; "
    assert str(raised.value) == (
        f"`backend={backend}` `device={device}`: {CARD}{problem}\n\n"
        f"hint: {fix}{pause}or pass `device=cpu`"
    )


@pytest.mark.parametrize(
    ("machine", "backend", "device", "where", "problem", "hint"),
    [
        (
            BARE,
            "mlx",
            "auto",
            "backend mlx",
            "mlx and mlx-lm are not installed",
            "pip install 'mlx[cpu]' mlx-lm",
        ),
        (
            replace(BARE, packages={"mlx": "0.32.4"}),
            "mlx",
            "cpu",
            "backend mlx",
            "mlx-lm is not installed",
            "pip install 'mlx[cpu]' mlx-lm",
        ),
        (
            replace(BARE, packages=MLX, mlx_fault="mlx.core cannot be imported: ImportError: x"),
            "mlx",
            "cpu",
            "backend mlx",
            "mlx.core cannot be imported: ImportError: x",
            "pip install --force-reinstall 'mlx[cpu]' mlx-lm",
        ),
        (
            replace(BARE, packages=PYTORCH, torch_fault="torch cannot be imported: OSError: x"),
            "auto",
            "auto",
            "`backend=auto` `device=auto`",
            "neither MLX nor PyTorch can be imported here; torch cannot be imported: OSError: x",
            "pip install --force-reinstall torch peft",
        ),
        (
            BARE,
            "cuda",
            "cpu",
            "backend cuda",
            "torch and peft are not installed",
            GET_TORCH,
        ),
        (
            BARE,
            "auto",
            "auto",
            "`backend=auto` `device=auto`",
            "neither MLX nor PyTorch can be imported here",
            GET_TORCH,
        ),
        (
            BARE_MAC,
            "auto",
            "cpu",
            "`backend=auto` `device=cpu`",
            "neither MLX nor PyTorch can be imported here",
            GET_MLX,
        ),
        (
            LINUX,
            "auto",
            "gpu",
            "`backend=auto` `device=gpu`",
            "expected a GPU that an engine can use; found none",
            "pass `device=cpu`",
        ),
        (
            MAC_WITHOUT_MLX,
            "auto",
            "gpu",
            "`backend=auto` `device=gpu`",
            "expected a GPU that an engine can use; found none",
            GET_MLX,
        ),
        (
            LINUX_WITH_BOTH,
            "mlx",
            "gpu",
            "`backend=mlx` `device=gpu`",
            "expected an Apple GPU; found none",
            "pass `device=cpu`",
        ),
        (
            replace(NVIDIA, mlx="0.32.4"),  # the card is fine; MLX does not use it
            "mlx",
            "gpu",
            "`backend=mlx` `device=gpu`",
            "expected an Apple GPU; found none",
            "pass `device=cpu`",
        ),
        (
            MAC_WITH_BOTH,
            "cuda",
            "gpu",
            "`backend=cuda` `device=gpu`",
            "expected an NVIDIA GPU; found none",
            "pass `device=cpu`",
        ),
        (
            OLD_DRIVER,
            "cuda",
            "auto",
            "`backend=cuda` `device=auto`",
            f"{CARD}driver 535.183.01, {WHEEL}, which needs driver 580",
            f"{NEW_DRIVER};\nor {GET_CUDA_12}\nor pass `device=cpu`",
        ),
        *(
            (
                WINDOWS,
                backend,
                device,
                f"`backend={backend}` `device={device}`",
                "native Windows is not supported",
                "use WSL2: run `wsl --install` in PowerShell, restart, and install qwen-local "
                "in there",
            )
            for backend in ("auto", "cuda", "mlx")
            for device in ("auto", "cpu")
        ),
        (
            WSL1,
            "auto",
            "cpu",
            "`backend=auto` `device=cpu`",
            "WSL1 is not supported: it has no GPU and no Linux kernel",
            "turn this distribution into WSL2: run `wsl --set-version NAME 2` in PowerShell; "
            "`wsl --list` shows its name",
        ),
        (
            ROSETTA,
            "mlx",
            "auto",
            "backend mlx",
            "mlx and mlx-lm are not installed",
            "this Python is one for Intel, under Rosetta: install one for Apple silicon (from "
            "python.org, or `uv python install`), and make a new environment with it",
        ),
        *(
            (
                INTEL_MAC,
                backend,
                "auto",
                where,
                problem,
                "this is an Intel Mac: MLX needs Apple silicon, and PyTorch has no wheels for "
                "Intel Macs since 2.3; use another machine",
            )
            for backend, where, problem in (
                (
                    "auto",
                    "`backend=auto` `device=auto`",
                    "neither MLX nor PyTorch can be imported here",
                ),
                ("mlx", "backend mlx", "mlx and mlx-lm are not installed"),
                ("cuda", "backend cuda", "torch and peft are not installed"),
            )
        ),
        (
            OLD_MACOS,
            "auto",
            "auto",
            "`backend=auto` `device=auto`",
            "neither MLX nor PyTorch can be imported here",
            "MLX needs macOS 14: update macOS, then pip install mlx mlx-lm",
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
        (MAC, "gpu", "float32", ("float32", "set by model.dtype")),
        (LINUX, "cpu", "bfloat16", ("bfloat16", "set by model.dtype")),
    ],
)
def test_the_dtype_comes_with_its_reason(
    machine: Machine, device: Device, wanted: DType | Literal["auto"], found: tuple[str, str]
) -> None:
    assert resolve_dtype(machine, Choice("cuda", device, ""), wanted) == found


# --- quantization ---

WITH_BITSANDBYTES = PYTORCH | {"bitsandbytes": "0.50.2"}
ON_GPU, ON_CPU, ON_MLX = (
    Choice("cuda", "gpu", ""),
    Choice("cuda", "cpu", ""),
    Choice("mlx", "gpu", ""),
)


@pytest.mark.parametrize(
    ("machine", "choice", "quantization"),
    [
        (NVIDIA, ON_GPU, "none"),
        (MAC, ON_MLX, "4bit"),
        (MAC, ON_MLX, "8bit"),
        (replace(NVIDIA, packages=WITH_BITSANDBYTES), ON_GPU, "4bit"),
        (replace(NVIDIA, packages=WITH_BITSANDBYTES), ON_GPU, "8bit"),
        (replace(LINUX, packages=WITH_BITSANDBYTES), ON_CPU, "8bit"),
        (replace(NVIDIA, packages=WITH_BITSANDBYTES, gpu_capability=(7, 0)), ON_GPU, "4bit"),
        (replace(NVIDIA, packages=WITH_BITSANDBYTES, gpu_capability=(6, 0)), ON_GPU, "4bit"),
        (replace(NVIDIA, packages=WITH_BITSANDBYTES, gpu_capability=(5, 2)), ON_CPU, "8bit"),
    ],
)
def test_quantization_works_on_mlx_and_with_bitsandbytes(
    machine: Machine, choice: Choice, quantization: str
) -> None:
    assert quantization_fault(machine, choice, quantization) is None


@pytest.mark.parametrize(
    ("machine", "choice", "quantization", "problem", "hint"),
    [
        (
            NVIDIA,
            ON_GPU,
            "4bit",
            "4bit on PyTorch needs bitsandbytes, which is not installed",
            "pip install bitsandbytes",
        ),
        (
            LINUX,
            ON_CPU,
            "8bit",
            "8bit on PyTorch needs bitsandbytes, which is not installed",
            "pip install bitsandbytes",
        ),
        (
            replace(NVIDIA, packages=WITH_BITSANDBYTES, bitsandbytes_fault="ImportError: x"),
            ON_GPU,
            "4bit",
            "4bit on PyTorch needs bitsandbytes, which does not work: ImportError: x",
            "pip install --upgrade --no-deps bitsandbytes",
        ),
        *(
            (
                replace(NVIDIA, packages=WITH_BITSANDBYTES, bitsandbytes_fault=words),
                ON_GPU,
                "4bit",
                f"4bit on PyTorch needs bitsandbytes, which does not work: {words}",
                "pip install --upgrade --no-deps bitsandbytes\n"
                "or install the PyTorch build that docs/machines.md names",
            )
            for words in (
                "CUDA SETUP failed despite GPU being available.",
                "libcudart.so.13: cannot open shared object file",
                "libcublasLt.so.13: cannot open shared object file",
                "libnvJitLink.so.13: cannot open shared object file",
            )
        ),
        (
            replace(NVIDIA, packages=WITH_BITSANDBYTES, gpu=V100.name, gpu_capability=(7, 0)),
            ON_GPU,
            "8bit",
            "8bit needs a card of compute capability 7.5 or later; found Tesla V100-SXM2-16GB",
            "use 4bit",
        ),
        (
            replace(NVIDIA, packages=WITH_BITSANDBYTES, gpu="GTX 980", gpu_capability=(5, 2)),
            ON_GPU,
            "4bit",
            "4bit needs a card of compute capability 6.0 or later; found GTX 980",
            "use none",
        ),
        (
            replace(NVIDIA, packages=WITH_BITSANDBYTES, gpu="GTX 980", gpu_capability=(5, 2)),
            ON_GPU,
            "8bit",
            "8bit needs a card of compute capability 7.5 or later; found GTX 980",
            "use none",
        ),
    ],
)
def test_what_keeps_quantization_from_working_is_said_with_the_mend(
    machine: Machine, choice: Choice, quantization: str, problem: str, hint: str
) -> None:
    fault = Fault("model.quantization", problem, hint)
    assert quantization_fault(machine, choice, quantization) == fault


# --- builds of PyTorch ---


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_80",), (8, 0), True),
        (("sm_80",), (8, 9), True),  # within a generation, upwards
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("compute_80",), (9, 0), True),  # the driver compiles it
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),
        (("sm_75", "sm_120"), (12, 1), True),
        (("gfx90a",), (9, 0), True),
        ((), (6, 1), True),
        (("sm_80",), None, True),
    ],
)
def test_code_runs_on_its_generation_of_cards(
    architectures: tuple[str, ...], capability: Capability | None, runs: bool
) -> None:
    assert covers(architectures, capability) is runs


def test_hints_install_the_pytorch_that_the_tests_run_on() -> None:
    assert f"\ntorch=={TORCH}\n" in (ROOT / "constraints.txt").read_text("utf-8")
