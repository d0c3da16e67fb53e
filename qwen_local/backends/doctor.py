"""What this machine has, what `auto` takes and why, and the mend for what is missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qwen_local.backends.select import INSTALL, Machine, choose, resolve_dtype, unusable_card
from qwen_local.errors import BackendError


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """One engine on this machine."""

    name: str
    version: str | None
    devices: tuple[str, ...]
    """Where it can run: `gpu`, `cpu`, or nowhere."""
    mend: str | None
    """What would make it run, or run on the GPU that is here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What `doctor` says."""

    system: str
    engines: tuple[EngineState, ...]
    auto: str | None
    """`mlx on the gpu`, ..., or None where `auto` takes nothing."""
    reason: str
    dtype: str | None

    def to_json(self) -> dict[str, Any]:
        """What `doctor --json` prints."""
        return {
            "system": self.system,
            "backends": {engine.name: asdict(engine) for engine in self.engines},
            "auto": self.auto,
            "reason": self.reason,
            "dtype": self.dtype,
        }

    def describe(self) -> str:
        """The same for a person."""
        lines = [f"machine  {self.system}"]
        for engine in self.engines:
            version = engine.version or "cannot be imported"
            devices = f", runs on {' and '.join(engine.devices)}" if engine.devices else ""
            lines.append(f"{engine.name:<8} {version}{devices}")
            if engine.mend is not None:
                lines.append(f"         hint: {engine.mend}")
        taken = f"{self.auto} in {self.dtype}" if self.auto else "nothing"
        lines.append(f"auto     {taken}: {self.reason}")
        return "\n".join(lines)


def diagnose(machine: Machine) -> Findings:
    """The findings for a machine, from what `probe` saw."""
    engines = (
        _engine("mlx", machine.mlx, machine.metal, mend=_mlx_mend(machine)),
        _engine("cuda", machine.torch, machine.cuda, mend=_cuda_mend(machine)),
    )
    auto, dtype = None, None
    try:
        choice = choose(machine)
        auto, reason = f"{choice.backend} on the {choice.device}", choice.reason
        dtype, _ = resolve_dtype(machine, choice, "auto")
    except BackendError as error:
        reason = error.faults[0].problem
    return Findings(
        system=f"{machine.system} {machine.processor}",
        engines=engines,
        auto=auto,
        reason=reason,
        dtype=dtype,
    )


def _engine(name: str, version: str | None, gpu: bool, *, mend: str | None) -> EngineState:
    devices = (("gpu",) if gpu else ()) + (("cpu",) if version else ())
    return EngineState(name=name, version=version, devices=devices, mend=mend)


def _mlx_mend(machine: Machine) -> str | None:
    if machine.mlx is None:
        return INSTALL["mlx"]
    if machine.system == "Darwin" and not machine.metal:
        return "MLX finds no Metal: use a native arm64 Python on macOS 14 or later"
    return None


def _cuda_mend(machine: Machine) -> str | None:
    if machine.torch is None:
        return INSTALL["cuda"]
    if machine.nvidia and not machine.cuda:
        _, mend = unusable_card(machine)
        return mend
    return None
