"""Opens engines and their weight files; the only module that imports one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_local.backends.memory import BYTES
from qwen_local.errors import OutOfMemoryError

if TYPE_CHECKING:
    from qwen_local.backends.base import Backend, Setup
    from qwen_local.backends.machine import Engine
    from qwen_local.backends.select import Choice
    from qwen_local.backends.weights import Weights
    from qwen_local.models.source import ModelFiles


def open_backend(choice: Choice, setup: Setup) -> Backend:
    """Load a model into the chosen engine.

    Raises:
        OutOfMemoryError: memory does not hold the model.
    """
    try:
        return load_engine(choice.backend, setup)
    except Exception as error:  # each engine has its own for memory; the others pass
        if not _ran_out_of_memory(choice.backend, error):
            raise
        raise OutOfMemoryError(_too_large(choice, setup)) from None


def load_engine(engine: Engine, setup: Setup) -> Backend:
    """Import an engine, and load the model into it."""
    if engine == "mlx":
        from qwen_local.backends.mlx.engine import MlxBackend

        return MlxBackend(setup)
    from qwen_local.backends.cuda.engine import TorchBackend

    return TorchBackend(setup)


def _ran_out_of_memory(engine: Engine, error: Exception) -> bool:
    if engine == "mlx":
        from qwen_local.backends.mlx.engine import ran_out_of_memory
    else:
        from qwen_local.backends.cuda.engine import ran_out_of_memory
    return ran_out_of_memory(error)


def _too_large(choice: Choice, setup: Setup) -> str:
    bytes_held = setup.model.architecture.parameters() * BYTES[setup.dtype]
    where = "the GPU's memory" if choice.device == "gpu" else "memory"
    size = f" ({bytes_held / 1e9:.1f} GB in {setup.dtype})" if setup.quantization == "none" else ""
    ways = ["stop other programs that use it", "choose a smaller model"]
    if setup.quantization != "4bit":
        ways.insert(0, "set `quantization=4bit`")
    return (
        f"out of memory: {setup.model.name}{size} does not fit into {where}\n\n"
        f"hint: {ways[0]}, or {', or '.join(ways[1:])}"
    )


def open_weights(choice: Choice, model: ModelFiles) -> Weights:
    """Open a model's weight files, read and written by the chosen engine's library."""
    if choice.backend == "mlx":
        from qwen_local.backends.mlx.weights import MlxWeights

        return MlxWeights(model.folder, choice.device, model.architecture.stored)
    from qwen_local.backends.cuda.weights import TorchWeights

    return TorchWeights(model.folder, choice.device)
