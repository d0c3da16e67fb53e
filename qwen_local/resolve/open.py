"""Open what was resolved: the only place that opens an engine or a model's weight files."""

from __future__ import annotations

from dataclasses import replace

from qwen_local.backends import open as engines
from qwen_local.backends.base import Backend, Setup
from qwen_local.backends.weights import Weights
from qwen_local.models.source import ModelFiles
from qwen_local.resolve.resolve import Resolved, with_weights


def open_model(resolved: Resolved, setup: Setup) -> Backend:
    """Load the base model into the engine that was chosen for it.

    The arrays of the request's adapter are not in the engine yet: see `Backend.load_adapter`.

    Args:
        resolved: from `resolve`; weights that are not here yet are downloaded.
        setup: from `Resolved.setup`, or a plan's.

    Raises:
        ModelError: the weights are not available, or do not fit the architecture.
    """
    resolved = with_weights(resolved)
    return engines.open_backend(resolved.choice, replace(setup, model=resolved.model))


def open_weight_files(resolved: Resolved, model: ModelFiles | None = None) -> Weights:
    """Open the weight files of a model, read and written by the chosen engine's library.

    Args:
        resolved: from `with_weights`.
        model: other files in the same format, such as a merged model; None for the base model's.
    """
    return engines.open_weights(resolved.choice, resolved.model if model is None else model)
