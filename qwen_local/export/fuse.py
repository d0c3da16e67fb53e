"""`fuse`: write a model folder with the adapter merged into its weights, and prove it."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qwen_local.adapters.store import ORIGIN
from qwen_local.backends.machine import DType
from qwen_local.backends.weights import Weights
from qwen_local.cards.facts import card_facts, write_card
from qwen_local.export.blocks import Variant, WeightSource, tensor_reader
from qwen_local.export.live import live_variants, merged_variant
from qwen_local.export.merge import (
    merged_tensors,
    verify,
    write_shards,
)
from qwen_local.export.opening import (
    ExportRequest,
    check_disk,
    new_folder,
    open_export,
    output_path,
    scratch_folder,
)
from qwen_local.export.proof import EXPORT, Proof, check, measure
from qwen_local.export.rounding import rounding
from qwen_local.export.samples import make_samples
from qwen_local.files import write_json
from qwen_local.inference.sampling_options import generation_config
from qwen_local.job.schema import Quantization
from qwen_local.models.config import engine_config
from qwen_local.models.source import PROOF, TOKENIZER_PARTS, fetch, find_model
from qwen_local.models.tensor_check import float_type
from qwen_local.resolve.open import open_weight_files
from qwen_local.resolve.quantization import check_quantization
from qwen_local.resolve.resolve import Resolved

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """Result of `fuse`, as `--json` prints it."""

    output: str
    backend: str
    dtype: str
    base: str
    quantization: Quantization
    """Quantization of the base model during training."""
    requantized: Quantization
    proof: Proof

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with those of the proof among them."""
        fields = asdict(self)
        proof: dict[str, Any] = fields.pop("proof")
        return fields | proof


def fuse(
    request: ExportRequest,
    *,
    requantize: Quantization = "none",
    dtype: DType | Literal["auto"] = "auto",
) -> Fused:
    """Merge an adapter into its base model, prove the result, then move it to its output folder.

    Args:
        request: the adapter and the output folder.
        requantize: quantization of the merged linear layers.
        dtype: of the merged weights; `auto` is that of the base model's files.

    Raises:
        InputError: something cannot be used; nothing was written.
        ExportError: the merged model differs from the trained one; nothing was left behind.
    """
    opened = open_export(request)
    base, choice = opened.model, opened.choice
    if requantize != "none":
        plain = replace(base.architecture, stored=None)
        check_quantization(
            opened.machine, choice, base.name, plain, requantize, asked_by="requantize"
        )
    place = output_path(request.output)
    rounded = float_type(base.folder) if dtype == "auto" else dtype
    size = base.architecture.parameters() * (4 if rounded == "float32" else 2)
    check_disk(place, size, base.architecture)
    generation = with_stops(
        generation_config(base.folder, base.name), opened.known_tokenizer.stop_ids
    )
    with new_folder(place) as new:
        weights = open_weight_files(opened)
        _write(new, opened, weights, generation, rounded, requantize)
        proof = _prove(new, opened, weights, rounded, requantize, request.adapter)
        result = Fused(
            output=str(request.output),
            backend=choice.backend,
            dtype=rounded,
            base=base.name,
            quantization=opened.quantization,
            requantized=requantize,
            proof=proof,
        )
        write_json(new / PROOF, {**result.to_json(), "adapter": str(request.adapter)})
        write_json(new / ORIGIN, asdict(opened.known_adapter.origin))
        quantized = requantize != "none"
        facts = card_facts(
            request.adapter,
            "merged",
            base=base,
            weights=requantize if quantized else rounded,
            weights_engine=choice.backend if quantized else None,
            proof=asdict(proof),
        )
        write_card(new, facts)
    log.info("%s", proof.describe())
    log.info("next: qwen-local chat --model %s", shlex.quote(str(request.output)))
    return result


def _prove(
    folder: Path,
    opened: Resolved,
    weights: Weights,
    dtype: DType,
    requantize: Quantization,
    run: Path,
) -> Proof:
    """Check the written tensors against the merge, and measure the model on the samples.

    Raises:
        ExportError: a tensor differs, or the model computes something else than the live adapter.
    """
    files = fetch(find_model(str(folder)))
    written = open_weight_files(opened, files)
    variants = live_variants(opened, weights)
    variants |= {EXPORT: Variant(WeightSource.from_files(files, written))}
    if requantize == "none":
        variants |= merged_variant(opened, weights)
        tensors = merged_tensors(
            files.architecture, opened.known_adapter, weights, opened.quantization
        )
        verify(tensors, tensor_reader(written), lambda array: rounding(array, dtype))
    with scratch_folder(folder) as scratch:
        proof = measure(variants, make_samples(opened.known_tokenizer, run), opened, scratch)
    hint = "pass `dtype=float32`"
    if requantize != "none":
        hint = "leave out `requantize`, or quantize to more bits"
    check(proof, merged=True, hint=hint)
    return proof


def _write(
    folder: Path,
    opened: Resolved,
    weights: Weights,
    generation: dict[str, Any],
    dtype: DType,
    requantize: Quantization,
) -> None:
    """Write the merged model: weights, config, tokenizer and generation settings."""
    files = opened.model
    quantized: frozenset[str] = frozenset()
    config = {k: v for k, v in files.config.items() if not k.startswith("quantization")}
    config.pop("torch_dtype", None)  # the key of transformers 4, which could contradict `dtype`
    config["dtype"] = dtype
    # transformers 5 writes it in rope_parameters only, where mlx-lm's qwen2 does not look.
    config["rope_theta"] = engine_config(files.config)["rope_theta"]
    if requantize != "none":
        quantized = frozenset(files.architecture.linear_weights())
        config |= weights.config(requantize, dtype)
    write_shards(
        folder,
        merged_tensors(files.architecture, opened.known_adapter, weights, opened.quantization),
        weights,
        dtype=dtype,
        quantized=quantized,
        quantization=requantize,
    )
    write_json(folder / "config.json", config)
    for name in TOKENIZER_PARTS:
        if (files.folder / name).is_file():
            shutil.copyfile(files.folder / name, folder / name)
    write_json(folder / "generation_config.json", generation)


def with_stops(settings: Mapping[str, Any], stop_ids: Iterable[int]) -> dict[str, Any]:
    """Return a generation_config.json that stops where the adapter was trained to stop.

    That of a base model has the end of text only, and would continue after the end of a turn.

    >>> with_stops({"eos_token_id": 7, "top_p": 0.8}, (5, 7))
    {'eos_token_id': [5, 7], 'top_p': 0.8}
    """
    known = settings.get("eos_token_id")
    ids = [] if known is None else known if isinstance(known, list) else [known]
    stops = dict.fromkeys([*stop_ids, *ids])
    return {**settings, "eos_token_id": list(stops)}
