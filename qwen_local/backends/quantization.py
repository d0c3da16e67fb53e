"""Checks that an engine can load a quantized model: quantized on loading, or by its publisher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qwen_local.adapters.lora import Origin
from qwen_local.backends.mlx.constants import GROUP as MLX_GROUP
from qwen_local.backends.probe import bitsandbytes_fault
from qwen_local.backends.select import Choice, Engine, Machine, choose, quantization_fault
from qwen_local.errors import Fault, ModelError
from qwen_local.job.schema import Quantization
from qwen_local.models.architecture import Architecture, Stored

SCHEMES = {
    "affine": "the affine codes of MLX",
    "nf4": "NF4 codes of bitsandbytes",
    "int8": "LLM.int8() codes of bitsandbytes",
}


def choose_for(
    machine: Machine, backend: str, device: str, architecture: Architecture, origin: Origin
) -> Choice:
    """The engine for what was trained: where `--backend auto` leaves it open, the one whose codes
    the base was held in. Elsewhere as `choose`, whose errors it has.

    Args:
        machine: where it is to run.
        backend: as given.
        device: as given.
        architecture: of the base.
        origin: of the adapter.
    """
    wanted: Engine | None = origin.backend if origin.quantization != "none" else None
    if architecture.stored is not None:
        wanted = engine_of(architecture.stored)
    if wanted is None or backend != "auto":
        return choose(machine, backend, device)
    return replace(
        choose(machine, wanted, device),
        reason="the base model is quantized in this engine's format",
    )


def who_asks(given: Quantization | None, adapter: Path | None, origin: Origin) -> str:
    """What asks for a quantized base: a flag, or the adapter that was trained on one."""
    if given is not None or adapter is None:
        return "--quantization"
    return f"--adapter {adapter}: trained on a {origin.quantization} base"


def engine_of(stored: Stored) -> Engine:
    """The engine that reads these codes."""
    return "mlx" if stored.scheme == "affine" else "cuda"


def check_quantization(
    machine: Machine,
    choice: Choice,
    name: str,
    architecture: Architecture,
    quantization: Quantization,
    *,
    asked_by: str = "model.quantization",
) -> None:
    """Refuse what the chosen engine cannot load, before anything is fetched or loaded.

    Args:
        machine: where it is to run.
        choice: the engine.
        name: the model, as messages name it.
        architecture: its figures.
        quantization: what is asked for.
        asked_by: the key or flag that asks for it, as messages name it.

    Raises:
        ModelError: every fault at once.
    """
    if faults := list(_faults(machine, choice, name, architecture, quantization, asked_by)):
        raise ModelError(faults)


def _faults(
    machine: Machine,
    choice: Choice,
    name: str,
    architecture: Architecture,
    quantization: Quantization,
    asked_by: str,
) -> Iterator[Fault]:
    stored = architecture.stored
    if stored is not None:
        readers = engine_of(stored)
        if readers != choice.backend:
            yield Fault(
                name,
                f"its files hold {SCHEMES[stored.scheme]}, which only --backend {readers} reads",
                f"pass --backend {readers}, or take the model that this one was quantized from, "
                "with --quantization 4bit",
            )
        if quantization != "none":
            problem = f"{name} is quantized already, to {stored.bits} bits"
            yield Fault(asked_by, problem, "take none, or the model as it was published")
            return
        quantization = "8bit" if stored.scheme == "int8" else "4bit"  # needs the same packages
    if quantization == "none":
        return
    if choice.backend == "cuda" and machine.here and machine.bitsandbytes_fault is None:
        machine = replace(machine, bitsandbytes_fault=bitsandbytes_fault())
    if (fault := quantization_fault(machine, choice, quantization)) is not None:
        yield replace(fault, where=asked_by)
    if choice.backend == "mlx" and stored is None:
        for target, (_, columns) in architecture.linear_shapes().items():
            if columns % MLX_GROUP:
                problem = f"MLX quantizes groups of {MLX_GROUP} weights; {target} has {columns}"
                yield Fault(asked_by, problem, "set it to none")
