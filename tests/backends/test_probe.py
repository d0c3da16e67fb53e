"""What is seen of a machine: of this one, and of ones that are put in its place."""

from __future__ import annotations

import os
import platform
import subprocess
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_local.backends import probe as module
from qwen_local.backends.machine import Card
from qwen_local.backends.probe import probe

SMI = """\
case "$*" in
  *--query-gpu=*compute_cap*) cat <<'SAID'
{with_capability}
SAID
    {after} ;;
  *--query-gpu=*) cat <<'SAID'
{without_capability}
SAID
    ;;
  *) echo "| NVIDIA-SMI 580.95.05   Driver Version: 580.95.05   {cuda} |" ;;
esac
"""


def fake_imports(**modules: Any) -> Callable[[str], Any]:
    """`import_module` on a machine that has these: a module, or the error that it raises."""

    def find(name: str) -> Any:
        found = modules.get(name.replace(".", "_"), SimpleNamespace())
        if isinstance(found, Exception):
            raise found
        return found

    return find


def fake_torch(**cuda: Any) -> SimpleNamespace:
    """A PyTorch for CUDA 13 on an RTX 3090, but for what is given."""
    cuda = {
        "is_available": lambda: True,
        "get_arch_list": lambda: ["sm_75", "sm_80", "sm_86"],
        "get_device_capability": lambda _: (8, 6),
        "get_device_name": lambda _: "NVIDIA GeForce RTX 3090",
        "get_device_properties": lambda _: SimpleNamespace(total_memory=24),
        "mem_get_info": lambda _: (21, 24),
        **cuda,
    }
    return SimpleNamespace(cuda=SimpleNamespace(**cuda), version=SimpleNamespace(cuda="13.0"))


NO_GPU = fake_torch(is_available=lambda: False)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: no card, no engine, nothing under /proc; programs of its own are in bin."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    for name in ("CUDA_VISIBLE_DEVICES", "WSL_DISTRO_NAME"):
        monkeypatch.delenv(name, raising=False)
    broken = fake_imports(mlx_core=ImportError(), torch=ImportError())
    monkeypatch.setattr(module, "import_module", broken)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def program(root: Path, name: str, script: str) -> None:
    path = root / "bin" / name
    write(path, f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def nvidia_smi(root: Path, *cards: str, cuda: str = "CUDA Version: 13.0", after: str = "") -> None:
    """A driver that names these cards: `name, MiB, driver, capability`."""
    plain = "\n".join(card.rpartition(",")[0] for card in cards)
    script = SMI.format(
        with_capability="\n".join(cards), without_capability=plain, cuda=cuda, after=after
    )
    program(root, "nvidia-smi", script)


# --- this machine ---


@pytest.mark.slow
def test_this_machine_has_both_engines_and_all_that_stands_beside_them(
    capfd: pytest.CaptureFixture[str],
) -> None:
    machine = probe(thorough=True)
    assert machine.mlx == metadata.version("mlx")
    assert machine.torch is not None and machine.torch.startswith("2.")
    assert (machine.mlx_fault, machine.torch_fault, machine.bitsandbytes_fault) == (None,) * 3
    assert machine.packages == {
        package: metadata.version(package)
        for package in ("mlx", "mlx-lm", "torch", "peft", "bitsandbytes", "transformers")
    }
    assert machine.memory_bytes > 10**9
    assert machine.python == platform.python_version()
    assert [(disk.purpose, disk.free_bytes > 0) for disk in machine.disks] == [
        ("working folder", True),
        ("hub cache", True),
    ]
    assert capfd.readouterr() == ("", "")


# --- packages ---


def test_an_engine_that_is_installed_but_broken_is_named_with_its_error(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Linux `pip install mlx` alone brings no library for the CPU."""
    no_library = OSError("libcudart.so.13: cannot open shared object file\nsecond line")
    broken = fake_imports(mlx_core=ImportError("libmlx.so"), torch=no_library)
    monkeypatch.setattr(module, "import_module", broken)
    machine = probe()
    assert (machine.mlx, machine.torch, machine.metal, machine.cuda) == (None, None, False, False)
    assert machine.mlx_fault == "mlx.core cannot be imported: ImportError: libmlx.so"
    assert machine.torch_fault == (
        "torch cannot be imported: OSError: libcudart.so.13: cannot open shared object file"
    )


def test_a_thorough_look_finds_what_is_broken_beside_an_engine(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fake_imports(
        torch=NO_GPU,
        mlx_core=SimpleNamespace(metal=SimpleNamespace(is_available=lambda: False)),
        mlx_lm=ValueError("numpy.dtype size changed, may indicate binary incompatibility"),
        peft=AttributeError(),
        qwen_local_backends_cuda_before_import=OSError(
            "libnvJitLink.so.13: cannot open shared object file"
        ),
    )
    monkeypatch.setattr(module, "import_module", found)
    machine = probe()
    assert (machine.mlx_fault, machine.torch_fault, machine.bitsandbytes_fault) == (None,) * 3
    machine = probe(thorough=True)
    assert (machine.mlx, machine.torch) == (None, None)
    assert machine.mlx_fault == (
        "mlx_lm cannot be imported: ValueError: numpy.dtype size changed, may indicate binary "
        "incompatibility"
    )
    assert machine.torch_fault == "peft cannot be imported: AttributeError"
    assert machine.bitsandbytes_fault == (
        "OSError: libnvJitLink.so.13: cannot open shared object file"
    )


def test_a_bitsandbytes_that_imports_without_its_library_is_broken(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own stand-in for a library that does not load; its import only logs."""
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary

    library = ErrorHandlerMockBNBNativeLibrary("libcublasLt.so.13: cannot open it\nand so on")
    extension = SimpleNamespace(lib=library)
    found = fake_imports(torch=NO_GPU, mlx_core=ImportError(), bitsandbytes_cextension=extension)
    monkeypatch.setattr(module, "import_module", found)
    assert probe(thorough=True).bitsandbytes_fault == "libcublasLt.so.13: cannot open it"


def test_an_engine_without_its_companion_is_not_there(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if package in ("mlx-lm", "peft"):
            raise metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    machine = probe()
    assert (machine.mlx, machine.torch) == (None, None)
    assert (machine.missing("mlx"), machine.missing("cuda")) == (("mlx-lm",), ("peft",))


# --- NVIDIA ---


def test_a_card_is_seen_with_its_memory_its_driver_and_the_cuda_of_the_wheel(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fake_imports(torch=fake_torch(), mlx_core=ImportError())
    monkeypatch.setattr(module, "import_module", found)
    nvidia_smi(elsewhere, "NVIDIA GeForce RTX 3090, 24576, 580.95.05, 8.6")
    machine = probe()
    assert (machine.nvidia, machine.driver, machine.torch_cuda) == (True, "580.95.05", "13.0")
    assert (machine.cuda, machine.bfloat16, machine.gpu_bytes) == (True, True, 24)
    assert (machine.gpu, machine.gpu_capability) == ("NVIDIA GeForce RTX 3090", (8, 6))
    assert machine.gpu_free_bytes == 21
    [card] = machine.cards
    assert card == Card(name="NVIDIA GeForce RTX 3090", memory_bytes=24 * 2**30, capability=(8, 6))


def test_cards_of_different_kinds_are_all_named(elsewhere: Path) -> None:
    nvidia_smi(
        elsewhere,
        "NVIDIA A800 80GB PCIe, 81920, 580.95.05, 8.0",
        "Tesla T4, 15360, 580.95.05, 7.5",
        "Orin (nvgpu), [N/A], 580.95.05, [N/A]",
    )
    assert probe().cards == (
        Card(name="NVIDIA A800 80GB PCIe", memory_bytes=80 * 2**30, capability=(8, 0)),
        Card(name="Tesla T4", memory_bytes=15 * 2**30, capability=(7, 5)),
        Card(name="Orin (nvgpu)", memory_bytes=0, capability=None),
    )


def test_an_old_driver_that_does_not_know_capabilities_names_its_cards(elsewhere: Path) -> None:
    program(
        elsewhere,
        "nvidia-smi",
        'case "$*" in *compute_cap*)\n'
        "  echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;;\n"
        "esac\n"
        "echo Tesla V100-SXM2-16GB, 16160, 418.87.00",
    )
    machine = probe()
    assert machine.driver == "418.87.00"
    assert machine.cards == (
        Card(name="Tesla V100-SXM2-16GB", memory_bytes=16160 * 2**20, capability=None),
    )


@pytest.mark.parametrize("said", ["CUDA Version: 13.0", "CUDA UMD Version: 13.0"])
def test_a_thorough_look_asks_the_driver_for_its_cuda(elsewhere: Path, said: str) -> None:
    nvidia_smi(elsewhere, "Tesla T4, 15360, 580.95.05, 7.5", cuda=said)
    assert probe(thorough=True).driver_cuda == "13.0"
    assert probe().driver_cuda is None


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo NVIDIA-SMI has failed; echo more; exit 9", "NVIDIA-SMI has failed"),
        ("echo no such library >&2; exit 127", "no such library"),
        ("echo No devices were found", "No devices were found"),
        ("true", None),
    ],
)
def test_a_driver_that_does_not_answer_is_none(
    script: str, said: str | None, elsewhere: Path
) -> None:
    program(elsewhere, "nvidia-smi", script)
    machine = probe()
    assert (machine.driver, machine.driver_error) == (None, said)
    # The tools alone, as on the login node of a cluster, are no card.
    assert machine.nvidia is False
    write(elsewhere / "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    write(elsewhere / "sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    assert probe().nvidia is True


HANGS = "exec sleep 30"
TOO_OLD = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"


def test_a_driver_that_hangs_is_none(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    program(elsewhere, "nvidia-smi", HANGS)
    machine = probe(thorough=True)
    assert (machine.driver, machine.driver_cuda) == (None, None)
    assert machine.driver_error == "nvidia-smi does not answer within 0.2 seconds"


@pytest.mark.slow
def test_all_questions_to_a_driver_share_the_time_that_it_is_given(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 2)
    slowly = f'case "$*" in *compute_cap*) sleep 1.5; {TOO_OLD};; esac'
    program(elsewhere, "nvidia-smi", f"{slowly}\n{HANGS}")
    given: dict[int, float] = {}  # by process: its first limit
    communicate = subprocess.Popen.communicate

    def noted(program: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
        given.setdefault(program.pid, timeout)
        return communicate(program, timeout=timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", noted)
    machine = probe()
    first, *later = given.values()
    assert first <= 2
    assert all(limit <= 0.5 for limit in later)
    assert machine.driver_error == "nvidia-smi does not answer within 2 seconds"


def test_a_driver_that_hangs_at_its_last_question_is_waited_for_no_longer(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    communicate = subprocess.Popen.communicate

    def impatient(program: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
        return communicate(program, timeout=60 if "query" in str(program.args) else 0.1)

    monkeypatch.setattr(subprocess.Popen, "communicate", impatient)
    row = "echo Tesla T4, 15360, 580.95.05, 7.5"
    program(elsewhere, "nvidia-smi", f'case "$*" in *query*) {row}; exit;; esac\n{HANGS}')
    machine = probe(thorough=True)
    assert (machine.driver, machine.driver_cuda) == ("580.95.05", None)


@pytest.mark.slow
def test_a_program_that_hangs_in_the_driver_and_cannot_be_killed_is_left_behind(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    left: list[subprocess.Popen[str]] = []
    kill = subprocess.Popen.kill
    monkeypatch.setattr(subprocess.Popen, "kill", lambda program: left.append(program))
    program(elsewhere, "nvidia-smi", HANGS)
    assert probe().driver_error == "nvidia-smi does not answer within 0.2 seconds"
    assert left[0].poll() is None  # it was not waited for
    kill(left[0])
    left[0].communicate()


@pytest.mark.parametrize(
    ("row", "card"),
    [
        (
            "NVIDIA GeForce RTX 3090, 24576, 580.95.05, 8",
            Card(name="NVIDIA GeForce RTX 3090", memory_bytes=24 * 2**30, capability=None),
        ),
        (
            "NVIDIA GeForce RTX 3090, ²4, 580.95.05, 8.²",
            Card(name="NVIDIA GeForce RTX 3090", memory_bytes=0, capability=None),
        ),
        (
            f"NVIDIA GeForce RTX 3090, {'9' * 5000}, 580.95.05, {'9' * 5000}.6",
            Card(name="NVIDIA GeForce RTX 3090", memory_bytes=0, capability=None),
        ),
        (
            "Quadro RTX 6000, passive, 24576, 580.95.05, 7.5",
            Card(name="Quadro RTX 6000, passive", memory_bytes=24 * 2**30, capability=(7, 5)),
        ),
    ],
    ids=["half a capability", "not ASCII", "numbers without end", "a comma in the name"],
)
def test_what_a_driver_error_strangely_is_not_known(row: str, card: Card, elsewhere: Path) -> None:
    nvidia_smi(elsewhere, row)
    machine = probe()
    assert (machine.driver, machine.cards, machine.driver_error) == ("580.95.05", (card,), None)


def test_bytes_that_are_no_text_are_shown_as_such(elsewhere: Path) -> None:
    program(elsewhere, "nvidia-smi", r"printf 'RTX \377, 24576, 580.95.05, 8.6\n'")
    assert [card.name for card in probe(thorough=True).cards] == ["RTX \ufffd"]
    program(elsewhere, "nvidia-smi", r"printf 'broken \377\n' >&2; exit 9")
    assert probe().driver_error == "broken \ufffd"


def test_a_driver_without_a_version_is_none(elsewhere: Path) -> None:
    nvidia_smi(elsewhere, "NVIDIA GeForce RTX 3090, 24576, , 8.6")
    machine = probe()
    assert (machine.driver, machine.cards) == (None, ())
    assert machine.driver_error == "NVIDIA GeForce RTX 3090, 24576, , 8.6"


def test_a_warning_among_the_cards_is_no_card(elsewhere: Path) -> None:
    nvidia_smi(
        elsewhere,
        "Tesla T4, 15360, 580.95.05, 7.5",
        "WARNING: infoROM is corrupted at gpu 0000:02:00.0",
    )
    machine = probe()
    assert (machine.driver, [card.name for card in machine.cards]) == ("580.95.05", ["Tesla T4"])


def test_a_sound_card_of_nvidia_is_no_gpu(elsewhere: Path) -> None:
    write(elsewhere / "sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
    write(elsewhere / "sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")
    assert probe().nvidia is False


def test_a_card_that_the_build_has_no_code_for_is_unusable(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pascal = fake_torch(get_device_capability=lambda _: (6, 1))
    found = fake_imports(torch=pascal, mlx_core=ImportError())
    monkeypatch.setattr(module, "import_module", found)
    nvidia_smi(elsewhere, "NVIDIA GeForce GTX 1080, 8192, 580.95.05, 6.1")
    machine = probe()
    assert (machine.cuda, machine.gpu, machine.gpu_bytes) == (False, None, 0)
    assert machine.architectures == ("sm_75", "sm_80", "sm_86")


def test_a_card_without_bfloat16_of_its_own_is_said_to_have_none(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turing = fake_torch(get_device_capability=lambda _: (7, 5))
    found = fake_imports(torch=turing, mlx_core=ImportError())
    monkeypatch.setattr(module, "import_module", found)
    machine = probe()
    assert (machine.cuda, machine.bfloat16) == (True, False)


def test_what_pytorch_error_of_a_card_that_it_cannot_use_is_kept_off_the_terminal(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def is_available() -> bool:
        warnings.warn("CUDA initialization: the driver is too old\n(Triggered in)", stacklevel=1)
        return False

    def taken(_: int) -> tuple[int, int]:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    said = {
        "CUDA initialization: the driver is too old": fake_torch(is_available=is_available),
        "CUDA error: out of memory": fake_torch(get_device_capability=taken),
    }
    for words, torch in said.items():
        found = fake_imports(torch=torch, mlx_core=ImportError())
        monkeypatch.setattr(module, "import_module", found)
        machine = probe()
        assert (machine.cuda, machine.torch_error) == (False, words)
    assert capfd.readouterr().err == ""


def test_cards_can_be_hidden(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe().visible_cards is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert probe().visible_cards == ""


# --- the operating system ---


def test_linux_is_known_by_its_own_files(elsewhere: Path) -> None:
    assert (probe().distribution, probe().cpu, probe().wsl) == (None, None, None)
    write(elsewhere / "etc/os-release", 'ID=ubuntu\nPRETTY_NAME="Ubuntu 24.04.2 LTS"\n')
    write(elsewhere / "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD Ryzen 9 5900X\n")
    write(elsewhere / "proc/sys/kernel/osrelease", "6.8.0-60-generic\n")
    machine = probe()
    assert machine.distribution == "Ubuntu 24.04.2 LTS"
    assert machine.cpu == "AMD Ryzen 9 5900X"
    assert (machine.wsl, machine.dxg) == (None, False)


@pytest.mark.parametrize(
    ("release", "generation"),
    [
        ("5.15.167.4-microsoft-standard-WSL2", 2),
        ("4.19.128-microsoft-standard", 2),
        ("4.4.0-19041-Microsoft", 1),
    ],
)
def test_wsl_is_known_by_its_kernel(release: str, generation: int, elsewhere: Path) -> None:
    write(elsewhere / "proc/sys/kernel/osrelease", release + "\n")
    assert probe().wsl == generation


def test_wsl2_with_a_kernel_of_ones_own_is_known_by_its_environment(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(elsewhere / "proc/sys/kernel/osrelease", "6.6.87-mine\n")
    monkeypatch.setenv("WSL_DISTRO_NAME", "Ubuntu")
    assert probe().wsl == 2


def test_wsl2_has_its_driver_in_a_folder_that_may_not_be_on_path(elsewhere: Path) -> None:
    nvidia_smi(elsewhere, "NVIDIA GeForce RTX 3090, 24576, 581.29, 8.6")
    folder = elsewhere / "usr/lib/wsl/lib"
    folder.mkdir(parents=True)
    (elsewhere / "bin/nvidia-smi").rename(folder / "nvidia-smi")
    write(elsewhere / "dev/dxg", "")
    machine = probe()
    assert (machine.dxg, machine.nvidia, machine.driver) == (True, True, "581.29")
    (folder / "nvidia-smi").unlink()
    assert probe().nvidia is False  # any GPU may stand behind /dev/dxg
    write(folder / "libcuda.so.1", "")
    assert probe().nvidia is True


def on_a_mac(root: Path, monkeypatch: pytest.MonkeyPatch, *, processor: str, **values: str) -> None:
    """macOS 15.5, whose sysctl knows these values."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.5", ("", "", ""), processor))
    cases = "\n".join(f"  {name.replace('__', '.')}) echo {v};;" for name, v in values.items())
    program(root, "sysctl", f'case "$2" in\n{cases}\n  *) exit 1;;\nesac')


def test_metal_lends_its_working_set(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_mac(elsewhere, monkeypatch, processor="arm64", machdep__cpu__brand_string="Apple M4 Pro")
    mlx = SimpleNamespace(
        metal=SimpleNamespace(is_available=lambda: True),
        device_info=lambda: {
            "max_recommended_working_set_size": 12,
            "device_name": "Apple M4 Pro",
        },
    )
    found = fake_imports(mlx_core=mlx, torch=ImportError())
    monkeypatch.setattr(module, "import_module", found)
    machine = probe()
    assert (machine.metal, machine.bfloat16, machine.gpu_bytes) == (True, True, 12)
    assert (machine.gpu, machine.cpu) == ("Apple M4 Pro", "Apple M4 Pro")
    assert (machine.distribution, machine.macos) == ("macOS 15.5", (15, 5))
    assert (machine.rosetta, machine.apple_silicon) == (False, True)


def test_rosetta_and_an_intel_mac_are_told_apart(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_mac(elsewhere, monkeypatch, processor="x86_64", sysctl__proc_translated="1")
    assert (probe().rosetta, probe().apple_silicon) == (True, True)
    on_a_mac(elsewhere, monkeypatch, processor="x86_64", sysctl__proc_translated="0")
    assert (probe().rosetta, probe().apple_silicon) == (False, False)
    on_a_mac(elsewhere, monkeypatch, processor="x86_64")
    assert (probe().rosetta, probe().apple_silicon) == (False, False)


def test_windows_is_looked_at_without_a_crash(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.delattr(os, "sysconf")
    machine = probe()
    assert (machine.system, machine.memory_bytes, machine.nvidia) == ("Windows", 0, False)


def test_a_hub_cache_that_does_not_exist_yet_has_the_room_of_its_disk(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(elsewhere / "not/yet/there"))
    _, cache = probe().disks
    assert cache.path == str(elsewhere / "not/yet/there")
    assert cache.free_bytes > 0
