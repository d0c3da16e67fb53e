"""Report of this machine: what it has, what `auto` chooses and why, and fixes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from qwen_local.backends.hub import Hub
from qwen_local.backends.machine import Card, Disk, Engine, Machine
from qwen_local.backends.nvidia import dotted, unusable_card
from qwen_local.backends.select import (
    Choice,
    choose,
    quantization_fault,
    resolve_dtype,
    unsupported_system,
    without_engine,
)
from qwen_local.errors import BackendError

GIB = 2**30

SCARCE_DISK = 5 * GIB
"""Free bytes below which not even Qwen3-1.7B (4.1 GB in bfloat16) fits in the hub cache."""

INDENT = " " * 14
WIDTH = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of the report."""

    topic: str
    text: str
    hint: str | None = None
    """The fix, if something is wrong or could be better."""

    def __str__(self) -> str:
        text = _folded(self.text)
        if self.hint is not None:
            text += "\n" + _folded(f"hint: {self.hint}")
        return self.topic.ljust(len(INDENT)) + text[len(INDENT) :]


def _folded(text: str) -> str:
    """Indent and wrap to `WIDTH`; a line that is indented already is a command and stays whole."""
    lines: list[str] = []
    for line in text.split("\n"):
        room = len(line) if line.startswith(" ") else WIDTH - len(INDENT)
        lines += textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), INDENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """One engine on this machine."""

    name: Engine
    version: str | None
    devices: tuple[str, ...]
    """Devices that it can run on: `gpu`, `cpu`, or none."""
    problem: str | None
    """Reason why it cannot run, or not on the GPU of this machine."""
    fix: str | None
    """The fix; also None if this machine does not need the engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """Result of `doctor`."""

    machine: Machine
    engines: tuple[EngineState, ...]
    choice: Choice | None
    """Choice of `auto`; None if it refuses."""
    reason: str
    """Reason for the choice, or for the refusal."""
    dtype: str | None
    dtype_reason: str | None
    hub: Hub | None
    lines: tuple[Line, ...]
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Return the object that `doctor --json` prints."""
        choice = self.choice
        return {
            "ready": choice is not None,
            "verdict": self.verdict,
            "backends": {engine.name: asdict(engine) for engine in self.engines},
            "auto": choice and {"backend": choice.backend, "device": choice.device},
            "reason": self.reason,
            "dtype": self.dtype,
            "dtype_reason": self.dtype_reason,
            "hints": [{"topic": line.topic, "hint": line.hint} for line in self.lines if line.hint],
            "hub": self.hub and asdict(self.hub),
            "machine": asdict(self.machine),
        }

    def describe(self) -> str:
        """Return the report for a terminal."""
        return "\n".join([*(str(line) for line in self.lines), "", self.verdict])


def diagnose(machine: Machine, hub: Hub | None = None) -> Diagnosis:
    """Diagnose a machine from the result of a thorough `probe`."""
    choice = dtype = dtype_reason = None
    try:
        choice = choose(machine)
        reason = choice.reason
        dtype, dtype_reason = resolve_dtype(machine, choice, "auto")
    except BackendError as error:
        reason = error.faults[0].problem
    engines = (_mlx(machine), _cuda(machine))
    lines = (
        *_system(machine),
        *_gpu(machine),
        *(_engine_line(machine, engine) for engine in engines),
        _bitsandbytes(machine, choice),
        Line(topic="transformers", text=machine.packages.get("transformers", "not installed")),
        *(_disk(disk) for disk in machine.disks),
        *([] if hub is None else [_hub(hub)]),
        *_auto(choice, reason, dtype, dtype_reason),
    )
    return Diagnosis(
        machine=machine,
        engines=engines,
        choice=choice,
        reason=reason,
        dtype=dtype,
        dtype_reason=dtype_reason,
        hub=hub,
        lines=lines,
        verdict=_verdict(machine, choice, lines),
    )


def _system(machine: Machine) -> Iterator[Line]:
    name = machine.distribution or machine.system
    if machine.wsl is not None:
        name += f" in WSL{machine.wsl}"
    if machine.wsl == 2:
        name += " (supported as Linux)"
    hint = None
    refused = unsupported_system(machine)
    if refused is not None:
        name, hint = f"{name}: {refused[0]}", refused[1]
    rosetta = " under Rosetta" if machine.rosetta else ""
    yield Line(topic="system", text=name, hint=hint)
    yield Line(topic="processor", text=", ".join(filter(None, (machine.cpu, machine.processor))))
    yield Line(topic="python", text=f"{machine.python or 'unknown'}{rosetta}")
    memory = f"{machine.memory_bytes / GIB:.1f} GiB" if machine.memory_bytes else "unknown"
    yield Line(topic="memory", text=memory + (", unified" if machine.apple_silicon else ""))


def _gpu(machine: Machine) -> Iterator[Line]:
    """Lines about every GPU and the NVIDIA driver."""
    if machine.metal:
        memory = f"{machine.gpu_bytes / GIB:.1f} GiB of the memory for a run"
        yield Line(topic="gpu", text=f"{machine.gpu} through Metal, {memory}, bfloat16")
    for card in machine.cards:
        yield Line(topic="gpu", text=_card(card))
    if not machine.metal and not machine.cards:
        yield _no_card(machine)
    if machine.cuda and len(machine.cards) > 1:
        text = f"a run uses one card, {machine.gpu}; CUDA_VISIBLE_DEVICES chooses another"
        yield Line(topic="", text=text)
    if not machine.nvidia and machine.driver_error is None:
        return
    if machine.driver is None:
        error = f": {machine.driver_error}" if machine.driver_error else ""
        yield Line(topic="driver", text=f"none that answers{error}")
        return
    reach = f", supports CUDA up to {machine.driver_cuda}" if machine.driver_cuda else ""
    side = " (of Windows)" if machine.wsl == 2 else ""
    yield Line(topic="driver", text=f"{machine.driver}{side}{reach}")


def _card(card: Card) -> str:
    memory = f"{card.memory_bytes / GIB:.1f} GiB" if card.memory_bytes else "memory unknown"
    if card.capability is None:
        return f"{card.name}, {memory}"
    bfloat16 = "bfloat16" if card.bfloat16 else "no bfloat16"
    return f"{card.name}, {memory}, compute capability {dotted(card.capability)}, {bfloat16}"


def _no_card(machine: Machine) -> Line:
    """Line for a machine whose GPU, if any, has no name."""
    if machine.cuda:
        memory = f"{machine.gpu_bytes / GIB:.1f} GiB"
        return Line(topic="gpu", text=f"{machine.gpu}, {memory} (nvidia-smi does not answer)")
    if machine.nvidia:
        return Line(topic="gpu", text="an NVIDIA card that does not answer")
    if machine.apple_silicon:
        text = "no Metal here" if machine.mlx else "an Apple GPU, for MLX only"
        return Line(topic="gpu", text=text)
    if machine.wsl == 2:
        missing = "" if machine.dxg else " (there is no /dev/dxg)"
        return Line(
            topic="gpu",
            text=f"none provided by Windows{missing}",
            hint="if this PC has an NVIDIA card: update its driver in Windows, then run\n"
            "`wsl --update` and `wsl --shutdown` there; install no Linux driver inside WSL",
        )
    return Line(topic="gpu", text="none")


def _mlx(machine: Machine) -> EngineState:
    devices = _devices(machine, machine.mlx, gpu=machine.metal)
    problem = fix = None
    if machine.mlx is None:
        problem, fix = without_engine(machine, "mlx")
        if not machine.apple_silicon and machine.missing("mlx"):
            fix = None  # PyTorch is the engine here
    elif machine.apple_silicon and not machine.metal:
        problem, fix = (
            "MLX finds no Metal",
            ("a virtual machine has no Metal: run on the Mac itself"),
        )
    return EngineState(name="mlx", version=machine.mlx, devices=devices, problem=problem, fix=fix)


def _cuda(machine: Machine) -> EngineState:
    devices = _devices(machine, machine.torch, gpu=machine.cuda)
    problem = fix = None
    if machine.nvidia and not machine.cuda:
        problem, fix = unusable_card(machine)
    elif machine.torch is None:
        problem, fix = without_engine(machine, "cuda")
        if machine.missing("cuda") and (machine.apple_silicon or machine.mlx):
            fix = None  # MLX is the engine here
    return EngineState(
        name="cuda", version=machine.torch, devices=devices, problem=problem, fix=fix
    )


def _devices(machine: Machine, version: str | None, *, gpu: bool) -> tuple[str, ...]:
    if version is None or unsupported_system(machine) is not None:
        return ()
    return ("gpu", "cpu") if gpu else ("cpu",)


def _engine_line(machine: Machine, engine: EngineState) -> Line:
    if engine.version is None:
        needless = "" if engine.fix else "; not needed here"
        problem, _ = without_engine(machine, engine.name)
        return Line(topic=engine.name, text=f"{problem}{needless}", hint=engine.fix)
    packages = machine.packages
    if engine.name == "mlx":
        text = f"MLX {engine.version}, mlx-lm {packages.get('mlx-lm', 'unknown')}"
    else:
        build = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "the CPU only"
        text = f"PyTorch {engine.version} for {build}, PEFT {packages.get('peft', 'unknown')}"
    return Line(topic=engine.name, text=text + _where(machine, engine), hint=engine.fix)


def _where(machine: Machine, engine: EngineState) -> str:
    if not engine.devices:
        return ""
    names = " and ".join({"gpu": "the GPU", "cpu": "the CPU"}[device] for device in engine.devices)
    unused = engine.name == "cuda" and machine.nvidia and not machine.cuda
    return f"; runs on {names}" + (", not on the card" if unused else "")


def _bitsandbytes(machine: Machine, choice: Choice | None) -> Line:
    """Line about bitsandbytes, PyTorch's quantizer; MLX has its own."""
    topic, version = "bitsandbytes", machine.packages.get("bitsandbytes")
    if choice is None or choice.backend == "mlx":
        needless = "; MLX quantizes itself" if choice else ""
        return Line(topic=topic, text=(version or "not installed") + needless)
    four = quantization_fault(machine, choice, "4bit")
    eight = quantization_fault(machine, choice, "8bit")
    if eight is None:
        return Line(topic=topic, text=f"{version}; quantizes to 4bit and 8bit here")
    if four is None:
        return Line(topic=topic, text=f"{version}; quantizes to 4bit here; {eight.problem}")
    if version is None:
        return Line(topic=topic, text="not installed; 4bit and 8bit need it", hint=four.hint)
    if machine.bitsandbytes_fault is None:
        return Line(topic=topic, text=f"{version}; quantizes nothing here: {four.problem}")
    text = f"{version}, but does not work: {machine.bitsandbytes_fault}"
    return Line(topic=topic, text=text, hint=four.hint)


def _disk(disk: Disk) -> Line:
    hint = None
    if disk.free_bytes < SCARCE_DISK:
        elsewhere = "set HF_HOME to" if disk.purpose == "hub cache" else "work in"
        hint = f"{elsewhere} a folder on a larger disk, or make room"
    room = f"{disk.free_bytes / GIB:.1f} GiB free in the {disk.purpose}"
    return Line(topic="disk", text=f"{room} ({disk.path})", hint=hint)


def _hub(hub: Hub) -> Line:
    token = "a token is set" if hub.token else "no token is set"
    if hub.offline:
        return Line(topic="hub", text=f"{hub.endpoint}: not contacted, as HF_HUB_OFFLINE is set")
    return Line(
        topic="hub", text=f"{hub.endpoint}: {hub.problem or 'answers'}; {token}", hint=hub.hint
    )


def _auto(
    choice: Choice | None, reason: str, dtype: str | None, dtype_reason: str | None
) -> Iterator[Line]:
    if choice is None:
        yield Line(topic="auto", text=f"nothing: {reason}")
        return
    yield Line(topic="auto", text=f"{choice.backend} on the {choice.device}: {reason}")
    yield Line(topic="dtype", text=f"{dtype}: {dtype_reason}")


def _verdict(machine: Machine, choice: Choice | None, lines: tuple[Line, ...]) -> str:
    hints = sum(line.hint is not None for line in lines)
    see = f"see the {'hint' if hints == 1 else f'{hints} hints'} above"
    if choice is not None:
        return f"ready; {see}" if hints else "ready"
    try:
        choose(machine, device="cpu")
    except BackendError:
        return f"not ready; {see}"
    return f"not ready; {see}, or train on the CPU: qwen-local train --device cpu"
