"""`export`: an adapter in another layout, or the model with it merged as GGUF; proved.

Everything is planned and checked first, then written beside its place, read back, proved, and only
then put there.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen_local.adapters.card_facts import card_facts, write_card
from qwen_local.adapters.lora import Adapter
from qwen_local.adapters.mlx_layout import write_mlx
from qwen_local.adapters.peft_layout import write_peft
from qwen_local.adapters.prompt import thinking_of
from qwen_local.adapters.store import ORIGIN, load_adapter
from qwen_local.backends.base import Weights
from qwen_local.export.blocks import Source, Voice, in_block_0, of_arrays, of_files
from qwen_local.export.live import live_voices, merged_voices
from qwen_local.export.merge import ExportError, merged_tensors, open_weights, verify
from qwen_local.export.opening import (
    Given,
    Opened,
    check_disk,
    open_export,
    place_of,
    scratch_beside,
    to_be,
)
from qwen_local.export.proof import EXPORT, Proof, check, measure
from qwen_local.export.samples import make_samples
from qwen_local.files import write_json
from qwen_local.inference.sampling import sampling_defaults
from qwen_local.job import Quantization
from qwen_local.models.licences import licence_in, licence_of
from qwen_local.models.source import PROOF, ModelFiles

log = logging.getLogger("qwen_local")

To = Literal["peft", "mlx", "gguf", "gguf-lora", "ollama"]
Outtype = Literal["f16", "bf16", "q8_0"]
CONTEXT = 8192
"""Tokens of a conversation in Ollama, which takes memory for all of them: unless the adapter was
trained on more, or the model has fewer."""
BYTES: dict[Outtype, float] = {"f16": 2, "bf16": 2, "q8_0": 34 / 32}
"""Of a number in a GGUF file."""


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


def export(given: Given, *, to: To, outtype: Outtype = "f16") -> Exported:
    """Write an adapter for another program, prove it, and only then put it at its place.

    Args:
        given: see `Given`.
        to: `peft` and `mlx` are adapters; `gguf` is the merged model, `gguf-lora` the adapter for
            llama.cpp; `ollama` is a merged GGUF with its Modelfile.
        outtype: of a merged GGUF's matrices.

    Raises:
        InputError: something cannot be used as given; nothing was written.
        ExportError: the export is not what was trained; nothing was left behind.
    """
    opened = open_export(given)
    place, base = place_of(given.output), opened.base
    merged = to in ("gguf", "ollama")
    size = BYTES[outtype] * base.architecture.parameters() if merged else 0
    check_disk(place, round(size) + sum(a.nbytes for a in opened.adapter.arrays.values()))
    weights = open_weights(opened.choice, base)
    title = _title(given)
    with to_be(place) as new:
        if merged:
            voices = _write_gguf(new, opened, weights, outtype, title, for_ollama=to == "ollama")
        else:
            voices = {EXPORT: _write_adapter(new, opened, weights, to, title)}
        with scratch_beside(new) as scratch:
            samples = make_samples(opened.tokenizer, given.adapter)
            voices = live_voices(opened, weights) | voices
            proof = measure(voices, samples, opened.choice, scratch)
        check(proof, merged=merged, mend="pass --outtype f16")
        files = sorted(path.name for path in new.iterdir())
        result = Exported(
            output=str(given.output),
            to=to,
            files=(*files, "README.md", PROOF),
            base=base.name,
            quantization=opened.held,
            backend=opened.choice.backend,
            outtype=outtype if merged else None,
            proof=proof,
        )
        write_json(new / PROOF, {**result.to_json(), "adapter": str(given.adapter)})
        held = outtype if merged else None
        facts = card_facts(given.adapter, to, base=base, weights=held, proof=new / PROOF)
        write_card(new, facts)
    log.info("%s", proof.describe())
    log.info("next: %s", _next(to, given, files))
    return result


def _title(given: Given) -> str:
    """What the fine-tune is called: the run's folder, or the adapter's."""
    path = given.adapter.expanduser().resolve()
    named = [part for part in (path, *path.parents) if part.name not in ("peft", "mlx", "adapter")]
    return named[0].name


# --- adapters ---


def _write_adapter(new: Path, opened: Opened, weights: Weights, to: To, title: str) -> Voice:
    """Write an adapter, and read it again: the voice of what is in the files.

    Raises:
        ExportError: they do not hold what was to be written.
    """
    adapter = replace(opened.adapter, base=opened.base.name)
    if opened.base.commit is not None:
        adapter = replace(adapter, origin=replace(adapter.origin, commit=opened.base.commit))
    if to == "gguf-lora":
        found = _gguf_adapter(new, adapter, opened, title)
    else:
        (write_peft if to == "peft" else write_mlx)(adapter, new)
        write_json(new / ORIGIN, asdict(adapter.origin))
        found = load_adapter(new, opened.base.architecture)
    _check_same(adapter, found)
    return Voice(of_files(opened.base, weights, found, opened.held), found.arrays)


def _gguf_adapter(new: Path, adapter: Adapter, opened: Opened, title: str) -> Adapter:
    from qwen_local.export.gguf_about import file_name, labels
    from qwen_local.export.gguf_adapter import read_adapter, write_adapter

    architecture, about = opened.base.architecture, _about(opened, title)
    name = file_name(labels(about, architecture.parameters()), "f32", lora=True)
    write_adapter(new / name, adapter=adapter, architecture=architecture, about=about)
    held = read_adapter(new / name, architecture)
    lora = adapter.lora.model_copy(
        update={"rank": held.rank, "alpha": held.scale * held.rank, "rslora": False}
    )
    return replace(adapter, lora=lora, arrays=held.arrays)


def _check_same(written: Adapter, found: Adapter) -> None:
    """Refuse files whose arrays are not, bit by bit, those that were to be written.

    The scale is one number in another form, which float32 may round.
    """
    same = written.arrays.keys() == found.arrays.keys() and all(
        np.array_equal(array, found.arrays[name]) for name, array in written.arrays.items()
    )
    if not same or not np.isclose(written.lora.scale, found.lora.scale, rtol=1e-6, atol=0):
        raise ExportError("the adapter was not written as it is")


# --- merged models ---


def _write_gguf(
    new: Path,
    opened: Opened,
    weights: Weights,
    outtype: Outtype,
    title: str,
    *,
    for_ollama: bool,
) -> dict[str, Voice]:
    """Write the merged model, and a Modelfile where one is asked for.

    Returns:
        The voices of what is in the file, and of the merge that it should hold.
    """
    from qwen_local.export.gguf_about import file_name, labels
    from qwen_local.export.gguf_encoding import encoding_of, rounding_bound
    from qwen_local.export.gguf_model import write_model
    from qwen_local.export.gguf_read import GgufWeights

    base, about = opened.base, _about(opened, title)
    name = file_name(labels(about, base.architecture.parameters()), outtype)
    if for_ollama:
        (new / "Modelfile").write_text(_modelfile(opened, name), encoding="utf-8")

    def tensors() -> Any:
        return merged_tensors(base.architecture, opened.adapter, weights, opened.held)

    write_model(
        new / name,
        files=base,
        tensors=tensors(),
        outtype=outtype,
        about=about,
        chat_template=not for_ollama,
    )
    written = GgufWeights(new / name, base.architecture)
    verify(
        tensors(),
        written.read,
        lambda array: rounding_bound(array, encoding_of(array.shape, outtype)),
    )
    return {EXPORT: Voice(_source(base, written.read)), **merged_voices(opened, weights)}


def _source(base: ModelFiles, read: Callable[[str, slice | None], np.ndarray]) -> Source:
    """The tensors of a GGUF file."""
    names = base.architecture.weight_shapes()

    def block(number: int) -> dict[str, np.ndarray]:
        prefix = f"model.layers.{number}."
        return {in_block_0(name): read(name, None) for name in names if name.startswith(prefix)}

    return of_arrays(base, read, block)


def _modelfile(opened: Opened, gguf: str) -> str:
    from qwen_local.export.ollama import modelfile

    base = opened.base
    learned = opened.adapter.origin.max_length or 0
    return modelfile(
        opened.tokenizer,
        sampling_defaults(base.folder, base.name),
        gguf=gguf,
        context=min(base.architecture.positions, max(CONTEXT, learned)),
        thinking=thinking_of(opened.adapter.origin, opened.tokenizer),
    )


def _about(opened: Opened, title: str) -> Any:
    from qwen_local.export.gguf_about import About

    base = opened.base
    licence = licence_of(base.name) or licence_in(base.folder)
    named = None if licence is None else licence.name or licence.identifier
    return About(base=opened.source, title=title, license=named)


def _next(to: To, given: Given, files: list[str]) -> str:
    """A command that uses what was made."""
    output = shlex.quote(str(given.output))
    gguf = next((name for name in files if name.endswith(".gguf")), "")
    match to:
        case "ollama":
            model = re.sub(r"[^a-z0-9]+", "-", _title(given).lower()).strip("-") or "mine"
            return f"ollama create {model} -f {output}/Modelfile"
        case "gguf":
            return f"llama-cli -m {output}/{shlex.quote(gguf)}"
        case "gguf-lora":
            return f"llama-cli -m BASE.gguf --lora {output}/{shlex.quote(gguf)}"
        case _:
            return f"qwen-local chat --adapter {output}"
