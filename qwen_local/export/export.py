"""`export`: an adapter in another layout, or the model with it merged as GGUF; proved.

Everything is planned and checked first, then written beside its place, read back, proved, and only
then put there.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
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
    Given,
    check_disk,
    open_export,
    place_of,
    scratch_in,
    to_be,
)
from qwen_local.export.proof import EXPORT, Proof, check, measure
from qwen_local.export.samples import make_samples
from qwen_local.files import expanded, write_json
from qwen_local.job.schema import Quantization
from qwen_local.models.families import FAMILIES
from qwen_local.models.source import PROOF
from qwen_local.resolve.open import open_weights
from qwen_local.resolve.resolve import Resolved
from qwen_local.runs.names import ADAPTER, MLX, PEFT

log = logging.getLogger("qwen_local")

To = Literal["peft", "mlx", "gguf", "gguf-lora", "ollama"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What `export --json` prints."""

    output: str
    to: To
    files: tuple[str, ...]
    base: str
    quantization: Quantization
    """What the base was held in while the adapter was trained."""
    backend: str
    outtype: Outtype | None
    """What the matrices of a merged GGUF are held in."""
    proof: Proof

    def to_json(self) -> dict[str, Any]:
        """The fields, the proof's figures among them."""
        fields = asdict(self)
        proof: dict[str, Any] = fields.pop("proof")
        return {**fields, "files": list(self.files)} | proof


def export(
    given: Given,
    *,
    to: To,
    outtype: Outtype = "f16",
    name: str | None = None,
    thinking: bool | None = None,
    for_hub: bool = False,
) -> Exported:
    """Write an adapter for another program, prove it, and only then put it at its place.

    Args:
        given: see `Given`.
        to: `peft` and `mlx` are adapters; `gguf` is the merged model, `gguf-lora` the adapter for
            llama.cpp; `ollama` is a merged GGUF with its Modelfile.
        outtype: of a merged GGUF's matrices.
        name: what a GGUF says that the fine-tune is called; None takes the folder's.
        thinking: how answers begin in Ollama; None as the adapter was trained, where that is known.
        for_hub: whether others are to load it, for whom a base on this machine is none.

    Raises:
        InputError: something cannot be used as given; nothing was written.
        ExportError: the export is not what was trained; nothing was left behind.
    """
    opened = open_export(given, dora=to != "gguf-lora")
    place, base = place_of(given.output), opened.model
    _check_target(opened, to, for_hub=for_hub)
    merged = to in ("gguf", "ollama")
    size = sum(array.nbytes for array in opened.known_adapter.arrays.values())
    size = gguf_bytes(base.architecture, outtype) if merged else size
    check_disk(place, size, base.architecture)
    weights = open_weights(opened)
    title = _title(given) if name is None else name
    about = about_of(opened, title)
    modelfile = modelfile_of(opened, about, outtype, thinking) if to == "ollama" else None
    with to_be(place) as new:
        if merged:
            variants = write_gguf(new, opened, weights, outtype, about, template=modelfile is None)
            if modelfile is not None:
                (new / "Modelfile").write_text(modelfile, encoding="utf-8")
        else:
            variants = {EXPORT: _write_adapter(new, opened, weights, to, about)}
        with scratch_in(new) as scratch:
            samples = make_samples(opened.known_tokenizer, given.adapter)
            variants = live_variants(opened, weights) | variants
            proof = measure(variants, samples, opened, scratch)
        exact = "take --to gguf-lora, or fuse --dtype float32"
        check(proof, merged=merged, hint=exact if outtype == "f16" else "pass --outtype f16")
        files = sorted(path.name for path in new.iterdir())
        result = Exported(
            output=str(given.output),
            to=to,
            files=(*files, "README.md", PROOF),
            base=base.name,
            quantization=opened.quantization,
            backend=opened.choice.backend,
            outtype=outtype if merged else None,
            proof=proof,
        )
        write_json(new / PROOF, {**result.to_json(), "adapter": str(given.adapter)})
        facts = card_facts(
            given.adapter,
            to,
            base=base,
            weights=result.outtype,
            file=next((name for name in files if name.endswith(".gguf")), None),
            proof=asdict(proof),
        )
        write_card(new, facts)
    log.info("%s", proof.describe())
    log.info("next: %s", _next(to, given, files))
    return result


def _check_target(opened: Resolved, to: To, *, for_hub: bool) -> None:
    """Say where the target will fall short of the live adapter.

    Raises:
        InputError: nobody else could use it, and it is for others.
    """
    base = opened.model
    if for_hub and to in ("peft", "mlx") and base.commit is None:
        named = without_folders(base.name)
        problem = f"the base {named} is no model on the hub: nobody else has it"
        hint = "pass --model with its hub id, or push the merged model (fuse, or --to gguf)"
        raise InputError.at("--push-to-hub", problem, hint)
    if opened.quantization != "none" and to not in ("gguf", "ollama"):
        log.warning(
            "the adapter was trained on a %s base, and answers to another a little otherwise; the "
            "merged model (fuse, --to gguf) has the weights that it was trained on",
            opened.quantization,
        )
    reads_rope_parameters = FAMILIES[base.architecture.model_type].mlx_lm_reads_rope_parameters
    if to == "mlx" and not reads_rope_parameters and "rope_theta" not in base.config:
        log.warning(
            "%s: config.json has rope_theta in rope_parameters alone, where mlx-lm does not look; "
            "write it beside them, or mlx-lm computes another base than the adapter was trained on",
            base.name,
        )


def _title(given: Given) -> str:
    """What the fine-tune is called: the run's folder, or the adapter's."""
    path = Path(os.path.realpath(expanded(given.adapter)))
    named = [part for part in (path, *path.parents) if part.name not in (PEFT, MLX, ADAPTER)]
    title = without_folders(str(named[0]))
    return "" if title in ("~", "/") else title


# --- adapters ---


def _write_adapter(new: Path, opened: Resolved, weights: Weights, to: To, about: About) -> Variant:
    """Write an adapter, read it again, and return the variant with the written arrays.

    Raises:
        ExportError: they do not hold what was to be written.
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
    """Refuse files whose arrays are not, bit by bit, those that were to be written.

    The scale is one number in another form, which float32 may round.
    """
    same = written.arrays.keys() == found.arrays.keys() and all(
        np.array_equal(array, found.arrays[name]) for name, array in written.arrays.items()
    )
    if not same or not np.isclose(written.lora.scale, found.lora.scale, rtol=1e-6, atol=0):
        raise ExportError("the adapter was not written as it is")


def _next(to: To, given: Given, files: list[str]) -> str:
    """A command that uses what was made."""
    output = shlex.quote(str(given.output))
    gguf = next((name for name in files if name.endswith(".gguf")), "")
    match to:
        case "ollama":
            model = re.sub(r"[^a-z0-9]+", "-", _title(given).lower()).strip("-") or "mine"
            return f"ollama create {model} -f {output}/Modelfile && ollama run {model}"
        case "gguf":
            return f"llama-cli -m {output}/{shlex.quote(gguf)}"
        case "gguf-lora":
            return f"llama-cli -m BASE.gguf --lora {output}/{shlex.quote(gguf)}"
        case _:
            return f"qwen-local chat --adapter {output}"
