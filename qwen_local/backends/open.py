"""Opens engines and their weight files; the only module that imports one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_local.backends.memory import BYTES
from qwen_local.errors import OutOfMemoryError

if TYPE_CHECKING:
    from qwen_local.backends.base import Backend, Setup
    from qwen_local.backends.cuda.engine import TorchBackend
    from qwen_local.backends.machine import Engine
    from qwen_local.backends.mlx.engine import MlxBackend
    from qwen_local.backends.select import Choice
    from qwen_local.backends.weights import Weights
    from qwen_local.models.source import ModelFiles


def open_backend(choice: Choice, setup: Setup) -> Backend:
    """Load a model into the chosen engine.

    Raises:
        OutOfMemoryError: memory does not hold the model.
    """
    engine = engine_class(choice.backend)
    try:
        return engine(setup)
    except Exception as error:
        if not engine.ran_out_of_memory(error):
            raise
        raise OutOfMemoryError(_too_large(choice, setup)) from None


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


def engine_class(engine: Engine) -> type[TorchBackend | MlxBackend]:
    """Import an engine."""
    if engine == "mlx":
        from qwen_local.backends.mlx.engine import MlxBackend

        return MlxBackend
    from qwen_local.backends.cuda.engine import TorchBackend

    return TorchBackend


def open_weights(choice: Choice, model: ModelFiles) -> Weights:
    """Open a model's weight files, read and written by the chosen engine's library."""
    if choice.backend == "mlx":
        from qwen_local.backends.mlx.weights import MlxWeights

        return MlxWeights(model.folder, choice.device, model.architecture.stored)
    from qwen_local.backends.cuda.weights import TorchWeights

    return TorchWeights(model.folder, choice.device)
