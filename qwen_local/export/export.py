"""`export`: convert an adapter, or write the merged model as GGUF, and prove the result.

Everything is checked first. The files are written beside the output folder, read back and proved,
and moved to it last.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen_local.adapters.lora import Adapter
from qwen_local.adapters.mlx_layout import write_mlx
from qwen_local.adapters.peft_layout import write_peft
from qwen_local.adapters.store import ORIGIN, load_adapter
from qwen_local.backends.weights import Weights
from qwen_local.cards.facts import card_facts, without_folders, write_card
from qwen_local.errors import InputError
from qwen_local.export.blocks import Variant, WeightSource
from qwen_local.export.gguf_about import About
from qwen_local.export.gguf_encoding import Outtype
from qwen_local.export.gguf_export import (
    about_of,
    gguf_bytes,
    modelfile_of,
    write_gguf,
    write_gguf_adapter,
)
from qwen_local.export.live import live_variants
from qwen_local.export.merge import ExportError
from qwen_local.export.opening import (
    ExportRequest,
    check_disk,
    new_folder,
    open_export,
    output_path,
    scratch_folder,
)
from qwen_local.export.proof import EXPORT, Proof, check, measure
from qwen_local.export.samples import make_samples
from qwen_local.files import expanded, write_json
from qwen_local.job.schema import Quantization
from qwen_local.models.families import FAMILIES
from qwen_local.models.source import PROOF
from qwen_local.resolve.open import open_weight_files
from qwen_local.resolve.resolve import Resolved
from qwen_local.runs.names import ADAPTER, MLX, PEFT

log = logging.getLogger("qwen_local")

To = Literal["peft", "mlx", "gguf", "gguf-lora", "ollama"]
MERGED: tuple[To, ...] = ("gguf", "ollama")
"""Targets that hold the merged model; the others hold the adapter alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """Result of `export`, as `--json` prints it."""

    output: str
    to: To
    files: tuple[str, ...]
    base: str
    quantization: Quantization
    """Quantization of the base model during training."""
    backend: str
    outtype: Outtype | None
    """Encoding of a merged GGUF's matrices."""
    proof: Proof

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with those of the proof among them."""
        fields = asdict(self)
        proof: dict[str, Any] = fields.pop("proof")
        return {**fields, "files": list(self.files)} | proof


def export(
    request: ExportRequest,
    *,
    to: To,
    outtype: Outtype = "f16",
    name: str | None = None,
    thinking: bool | None = None,
    for_hub: bool = False,
) -> Exported:
    """Write an adapter for another program, prove the result, then move it to its output folder.

    Args:
        request: the adapter and the output folder.
        to: `peft` and `mlx` are adapters; `gguf` is the merged model, `gguf-lora` the adapter for
            llama.cpp; `ollama` is a merged GGUF with its Modelfile.
        outtype: encoding of a merged GGUF's matrices.
        name: name of the fine-tune in a GGUF; None for the name of the adapter's folder.
        thinking: `enable_thinking` of the prompts in Ollama; None for that of training, if known.
        for_hub: True if others will load it: an adapter then needs a base model from the hub.

    Raises:
        InputError: something cannot be used; nothing was written.
        ExportError: the export differs from the trained model; nothing was left behind.
    """
    opened = open_export(request, dora=to != "gguf-lora")
    place, architecture = output_path(request.output), opened.model.architecture
    _check_target(opened, to, for_hub=for_hub)
    size = sum(array.nbytes for array in opened.known_adapter.arrays.values())
    size = gguf_bytes(architecture, outtype) if to in MERGED else size
    check_disk(place, size, architecture)
    weights = open_weight_files(opened)
    about = about_of(opened, _title(request) if name is None else name)
    modelfile = modelfile_of(opened, about, outtype, thinking) if to == "ollama" else None
    with new_folder(place) as new:
        if to in MERGED:
            variants = write_gguf(new, opened, weights, outtype, about, template=modelfile is None)
            if modelfile is not None:
                (new / "Modelfile").write_text(modelfile, encoding="utf-8")
        else:
            variants = {EXPORT: _write_adapter(new, opened, weights, to, about)}
        proof = _prove(new, opened, weights, variants, request.adapter)
        exact = "use `to=gguf-lora`, or run `qwen-local fuse --dtype float32`"
        hint = exact if outtype == "f16" else "pass `outtype=f16`"
        check(proof, merged=to in MERGED, hint=hint)
        result = _describe(new, request, opened, to, outtype, proof)
    log.info("%s", proof.describe())
    log.info("next: %s", _next(to, request, result.files))
    return result


def _prove(
    folder: Path,
    opened: Resolved,
    weights: Weights,
    written: Mapping[str, Variant],
    adapter: Path,
) -> Proof:
    """Measure the written variants against the live adapter."""
    with scratch_folder(folder) as scratch:
        samples = make_samples(opened.known_tokenizer, adapter)
        return measure(live_variants(opened, weights) | dict(written), samples, opened, scratch)


def _describe(
    folder: Path,
    request: ExportRequest,
    opened: Resolved,
    to: To,
    outtype: Outtype,
    proof: Proof,
) -> Exported:
    """Write proof.json and the model card beside the exported files."""
    files = sorted(path.name for path in folder.iterdir())
    result = Exported(
        output=str(request.output),
        to=to,
        files=(*files, "README.md", PROOF),
        base=opened.model.name,
        quantization=opened.quantization,
        backend=opened.choice.backend,
        outtype=outtype if to in MERGED else None,
        proof=proof,
    )
    write_json(folder / PROOF, {**result.to_json(), "adapter": str(request.adapter)})
    facts = card_facts(
        request.adapter,
        to,
        base=opened.model,
        weights=result.outtype,
        file=next((name for name in files if name.endswith(".gguf")), None),
        proof=asdict(proof),
    )
    write_card(folder, facts)
    return result


def _check_target(opened: Resolved, to: To, *, for_hub: bool) -> None:
    """Warn if the target will differ from the live adapter.

    Raises:
        InputError: the export is for the hub, but its base model is not there.
    """
    base = opened.model
    if for_hub and to in ("peft", "mlx") and base.commit is None:
        named = without_folders(base.name)
        problem = f"the base model {named} is not on the hub, so others cannot load the adapter"
        hint = (
            "set `model` to its hub id, or push the merged model (`qwen-local fuse`, or "
            "`qwen-local export --to gguf`)"
        )
        raise InputError.at("push_to_hub", problem, hint)
    if opened.quantization != "none" and to not in MERGED:
        log.warning(
            "the adapter was trained on a %s base model; on another its answers differ slightly. "
            "`qwen-local fuse` and `qwen-local export --to gguf` merge it into the weights that it "
            "was trained on",
            opened.quantization,
        )
    reads_rope_parameters = FAMILIES[base.architecture.model_type].mlx_lm_reads_rope_parameters
    if to == "mlx" and not reads_rope_parameters and "rope_theta" not in base.config:
        log.warning(
            "%s: config.json has rope_theta in rope_parameters only, where mlx-lm does not look; "
            "copy it to the top level, or mlx-lm computes another base model than the one that the "
            "adapter was trained on",
            base.name,
        )


def _title(request: ExportRequest) -> str:
    """Return the name of the fine-tune: that of the run's folder, or of the adapter's."""
    path = Path(os.path.realpath(expanded(request.adapter)))
    named = [part for part in (path, *path.parents) if part.name not in (PEFT, MLX, ADAPTER)]
    title = without_folders(str(named[0]))
    return "" if title in ("~", "/") else title


# --- adapters ---


def _write_adapter(new: Path, opened: Resolved, weights: Weights, to: To, about: About) -> Variant:
    """Write an adapter, read it again, and return the variant with the written arrays.

    Raises:
        ExportError: the file differs from the adapter.
    """
    origin = replace(opened.known_adapter.origin, commit=opened.model.commit)
    adapter = replace(opened.known_adapter, base=opened.model.name, origin=origin)
    if to == "gguf-lora":
        found = write_gguf_adapter(new, adapter, opened, about)
    else:
        (write_peft if to == "peft" else write_mlx)(adapter, new)
        write_json(new / ORIGIN, asdict(adapter.origin))
        found = load_adapter(new, opened.model.architecture)
    _check_same(adapter, found)
    source = WeightSource.from_files(opened.model, weights, found, opened.quantization)
    return Variant(source, found.arrays)


def _check_same(written: Adapter, found: Adapter) -> None:
    """Check that the read arrays equal the written ones, bit by bit.

    The scale is stored in another form, which float32 may round.
    """
    same = written.arrays.keys() == found.arrays.keys() and all(
        np.array_equal(array, found.arrays[name]) for name, array in written.arrays.items()
    )
    if not same or not np.isclose(written.lora.scale, found.lora.scale, rtol=1e-6, atol=0):
        raise ExportError("the written adapter differs from the original")


def _next(to: To, request: ExportRequest, files: Sequence[str]) -> str:
    """Return a command that uses the export."""
    output = shlex.quote(str(request.output))
    gguf = next((name for name in files if name.endswith(".gguf")), "")
    match to:
        case "ollama":
            model = re.sub(r"[^a-z0-9]+", "-", _title(request).lower()).strip("-") or "my-model"
            return f"ollama create {model} -f {output}/Modelfile && ollama run {model}"
        case "gguf":
            return f"llama-cli -m {output}/{shlex.quote(gguf)}"
        case "gguf-lora":
            return f"llama-cli -m BASE.gguf --lora {output}/{shlex.quote(gguf)}"
        case _:
            return f"qwen-local chat --adapter {output}"
