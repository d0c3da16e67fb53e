"""Checks that an engine can load a quantized model: quantized on loading, or by its publisher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qwen_local.adapters.lora import Origin
from qwen_local.backends.machine import Engine, Machine
from qwen_local.backends.select import Choice, choose, quantization_faults
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
    """Choose engine and device as `choose` does, but for a quantized base model.

    Where `backend` is `auto`, a quantized base model goes to the engine that wrote its files, or
    that quantized it while the adapter was trained: no other engine has exactly these weights.

    Args:
        machine: where it is to run.
        backend: `auto`, `mlx` or `cuda`.
        device: `auto`, `gpu` or `cpu`.
        architecture: of the base model.
        origin: of the adapter, with the quantization that the base model will have.

    Raises:
        BackendError: the engine cannot run here.
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


def engine_of(stored: Stored) -> Engine:
    """Return the engine that reads this format."""
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
    """Refuse what the chosen engine cannot load, before anything is downloaded or loaded.

    Args:
        machine: where it is to run.
        choice: the engine.
        name: the model, as messages name it.
        architecture: of the model.
        quantization: the requested format.
        asked_by: the key or argument that requests it, as messages name it.

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
                f"its files hold {SCHEMES[stored.scheme]}, which only `backend={readers}` reads",
                f"pass `backend={readers}`, or the original model with `quantization=4bit`",
            )
        if quantization != "none":
            problem = f"{name} is quantized already, to {stored.bits} bits"
            yield Fault(asked_by, problem, "set it to none, or use the unquantized model")
            return
        if readers == choice.backend:  # reading these formats needs what quantizing to them needs
            needed: Quantization = "8bit" if stored.scheme == "int8" else "4bit"
            for fault in quantization_faults(machine, choice, needed, architecture):
                unquantized = "or use the unquantized model"
                yield Fault(name, fault.problem, f"{fault.hint}; {unquantized}")
        return
    if quantization == "none":
        return
    for fault in quantization_faults(machine, choice, quantization, architecture):
        yield replace(fault, where=asked_by)
