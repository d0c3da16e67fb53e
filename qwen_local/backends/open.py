"""Opens engines and their weight files; the only module that imports one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_local.backends.base import Backend, Setup
    from qwen_local.backends.machine import Engine
    from qwen_local.backends.select import Choice
    from qwen_local.backends.weights import Weights
    from qwen_local.models.source import ModelFiles


def open_backend(choice: Choice, setup: Setup) -> Backend:
    """Load a model into the chosen engine."""
    return engine_class(choice.backend)(setup)


def engine_class(engine: Engine) -> Callable[[Setup], Backend]:
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
