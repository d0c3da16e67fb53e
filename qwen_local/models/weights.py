"""What a model's safetensors hold, by their headers: no engine should meet a surprise in them.

transformers fills a tensor that is missing with random numbers and a warning, and passes over one
that it does not know; mlx-lm stops with a traceback. Neither is an answer to a damaged download.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen_local.errors import Fault
from qwen_local.models.architecture import Architecture

HINT = "download or copy the model again"
PASSED_OVER = ("lm_head.weight", ".rotary_emb.inv_freq")
"""Endings of names that some publishers write and no engine needs: the head where it is tied."""


def tensor_faults(folder: Path, name: str, architecture: Architecture) -> Iterator[Fault]:
    """What is damaged, missing, unknown or of another shape in a folder's weights.

    Args:
        folder: a model folder with `model*.safetensors`.
        name: the model, as messages name it.
        architecture: of its config.json.
    """
    from safetensors import SafetensorError, safe_open

    wanted = architecture.weight_shapes()
    found: set[str] = set()
    damaged = False
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="np") as tensors:
                for key in tensors.keys():  # noqa: SIM118  # not a mapping
                    shape = tuple(tensors.get_slice(key).get_shape())
                    if key in found:
                        problem, hint = "stands in another file, too", "keep one of the two files"
                        yield Fault(f"{name}: {file.name}: {key}", problem, hint)
                    found.add(key)
                    if key not in wanted and not key.endswith(PASSED_OVER):
                        problem = f"not a tensor of a {architecture.model_type} model"
                        yield Fault(f"{name}: {file.name}: {key}", problem, HINT)
                    elif shape != wanted.get(key, shape):
                        problem = f"expected shape {wanted[key]}; found {shape}"
                        yield Fault(f"{name}: {file.name}: {key}", problem, HINT)
        except (OSError, SafetensorError) as error:
            damaged = True
            yield Fault(f"{name}: {file.name}", f"not a readable safetensors file: {error}", HINT)
    if not damaged:
        for key in sorted(wanted.keys() - found):
            yield Fault(f"{name}: {key}", "missing from the weights", HINT)
