"""`fuse`: a model folder with the adapter merged into its weights, and the proof beside it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen_local.adapters.lora import Adapter, Origin
from qwen_local.adapters.store import load_adapter, named_base
from qwen_local.backends.base import Backend, Setup
from qwen_local.backends.quantisation import check_quantization
from qwen_local.backends.select import (
    Choice,
    DType,
    Machine,
    choose,
    open_backend,
    probe,
)
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import BackendError, InputError, ModelError
from qwen_local.export.merge import linear_names, merged_tensors, open_weights, write_shards
from qwen_local.export.proof import Proof, Readings, Samples, check, compare, make_samples, read
from qwen_local.files import write_json
from qwen_local.inference.answer import PROOF
from qwen_local.job import Quantization, read_job
from qwen_local.models.architecture import Architecture
from qwen_local.models.source import ModelFiles, fetch, find_model
from qwen_local.models.weights import float_type
from qwen_local.rows import Rows
from qwen_local.training.run import prepare_data
from qwen_local.training.run_directory import check_free

log = logging.getLogger("qwen_local")

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""What goes along as it is, where the base has it."""
ROWS = 32
"""Rows of the run's data that the loss is measured on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """What `fuse --json` prints."""

    output: str
    backend: str
    dtype: str
    base: str
    quantization: Quantization
    """What the base was held in while the adapter was trained."""
    requantized: Quantization
    proof: Proof

    def to_json(self) -> dict[str, Any]:
        """The fields, the proof's figures among them."""
        fields = asdict(self)
        proof: dict[str, Any] = fields.pop("proof")
        return fields | proof


def fuse(
    adapter: Path,
    *,
    output: Path,
    model: str | None = None,
    revision: str | None = None,
    quantization: Quantization | None = None,
    requantize: Quantization = "none",
    dtype: DType | Literal["auto"] = "auto",
    backend: str = "auto",
    device: str = "auto",
) -> Fused:
    """Merge an adapter into its base, prove it, and only then put it at its place.

    Args:
        adapter: a run, or an adapter's folder.
        output: the folder to make.
        model: the base; None takes the one that the adapter names.
        revision: of a hub model; None takes the commit that it was trained on, where known.
        quantization: what the base was held in while the adapter was trained; None as recorded.
        requantize: what the merged linear layers are quantised to again.
        dtype: of the merged weights; `auto` is that of the base's files.
        backend: `auto` takes the engine that trained on a quantised base, else as `select`.
        device: `auto`, `gpu` or `cpu`.

    Raises:
        InputError: something cannot be used as given; nothing was written.
        ExportError: the merged model is not what was trained; nothing was left behind.
    """
    check_free(output)
    machine = probe()
    base, origin = named_base(adapter)
    if not (model or base):
        problem = f"{adapter} does not say which model it was trained on"
        raise ModelError.at("--model", problem, "pass --model")
    source = find_model(model or base, revision or (None if model else origin.commit))
    held = origin.quantization if quantization is None else quantization
    choice = _choose(machine, backend, device, origin, held)
    architecture = source.architecture(download=True)
    check_quantization(machine, choice, source.name, architecture, held, asked_by="--quantization")
    if requantize != "none":
        plain = replace(architecture, stored=None)
        check_quantization(machine, choice, source.name, plain, requantize, asked_by="--requantize")
    trained = load_adapter(adapter, architecture)
    files = fetch(source)
    tokenizer = ChatTokenizer.load(files.folder)
    tokenizer.check_fits(architecture.vocabulary, source.name)
    choice = _with_room(machine, choice, architecture)
    log.info("backend: %s on the %s (%s)", choice.backend, choice.device, choice.reason)
    rounded = float_type(files.folder) if dtype == "auto" else dtype
    samples, live, bare = _ask_live(
        files, trained, choice, held, tokenizer, _rows_of_run(adapter, tokenizer)
    )
    new = output.with_name(f".new-{output.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        _write(new, files, trained, choice, tokenizer, rounded, held, requantize)
        export = fetch(find_model(str(new)))
        merged = _open(export, choice)
        exact = rounded == "float32" and requantize == "none" and not _rounds_inputs(choice, held)
        proof = compare(
            live, bare, read(merged, samples), exact=exact, tokens=samples.rows.supervised
        )
        check(proof, quantised=requantize != "none")
        result = Fused(
            output=str(output),
            backend=choice.backend,
            dtype=rounded,
            base=source.name,
            quantization=held,
            requantized=requantize,
            proof=proof,
        )
        write_json(new / PROOF, {**result.to_json(), "adapter": str(adapter)})
        if output.exists():
            output.rmdir()  # empty, as was checked
        new.rename(output)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    log.info("%s", proof.describe())
    return result


def _choose(
    machine: Machine, backend: str, device: str, origin: Origin, held: Quantization
) -> Choice:
    """The engine: where the base was quantised the one that did it, whose codes are its own."""
    if held == "none" or origin.backend is None:
        return choose(machine, backend, device)
    if backend not in ("auto", origin.backend):
        raise BackendError.at(
            f"--backend {backend}",
            f"the adapter was trained on a {held} base of --backend {origin.backend}, whose "
            "weights no other engine has",
            f"pass --backend {origin.backend}, or leave it out",
        )
    return choose(machine, origin.backend, device)


def _with_room(machine: Machine, choice: Choice, architecture: Architecture) -> Choice:
    """The same choice, or the CPU where float32 copies of the model exceed the GPU."""
    if choice.device == "gpu" and 5 * architecture.parameters() > machine.gpu_bytes:
        why = "in float32, which the proof computes in, the model exceeds the GPU"
        return Choice(choice.backend, "cpu", why)
    return choice


def _rounds_inputs(choice: Choice, held: Quantization) -> bool:
    """Whether the live layers round what goes into them, as LLM.int8() does and no merged one."""
    return choice.backend == "cuda" and held == "8bit"


def _open(
    model: ModelFiles,
    choice: Choice,
    adapter: Adapter | None = None,
    quantization: Quantization = "none",
) -> Backend:
    """A model in float32, with the adapter on it."""
    engine = open_backend(
        choice,
        Setup(
            model=model,
            lora=None if adapter is None else adapter.lora,
            device=choice.device,
            dtype="float32",
            quantization=quantization,
        ),
    )
    if adapter is not None:
        engine.load_adapter(adapter.arrays)
    return engine


def _ask_live(
    files: ModelFiles,
    adapter: Adapter,
    choice: Choice,
    held: Quantization,
    tokenizer: ChatTokenizer,
    rows: Rows | None,
) -> tuple[Samples, Readings, Readings]:
    """(what to measure on, what the live adapter says of it, what the bare base says)."""
    engine = _open(files, choice, adapter, held)
    samples = make_samples(engine, tokenizer, rows)
    live = read(engine, samples)
    engine.load_adapter({name: np.zeros_like(array) for name, array in adapter.arrays.items()})
    return samples, live, read(engine, samples)


def _rows_of_run(adapter: Path, tokenizer: ChatTokenizer) -> Rows | None:
    """Rows of the data that a run evaluated on, or else trained on, where they are still at hand.

    Paths of a job count from the folder that it ran in, which may not be this one.
    """
    path = adapter / "job.yaml"
    if not path.is_file():
        return None
    try:
        prepared = prepare_data(read_job(path, preset="none").complete(0), tokenizer)
    except InputError as error:
        log.info("loss: on the answers alone; the run's data: %s", error.faults[0])
        return None
    rows = prepared.train if prepared.eval is None else prepared.eval
    return rows.take(range(min(ROWS, len(rows))))


def _write(
    folder: Path,
    files: ModelFiles,
    adapter: Adapter,
    choice: Choice,
    tokenizer: ChatTokenizer,
    dtype: DType,
    held: Quantization,
    requantize: Quantization,
) -> None:
    """The merged model's folder, all but the proof."""
    weights = open_weights(choice, files)
    quantised: frozenset[str] = frozenset()
    config = {k: v for k, v in files.config.items() if not k.startswith("quantization")}
    config |= {"dtype" if "dtype" in config else "torch_dtype": dtype}
    if requantize != "none":
        quantised = frozenset(linear_names(files.architecture))
        config |= weights.config(requantize, dtype)
    write_shards(
        folder,
        merged_tensors(files.architecture, adapter, weights, held),
        weights,
        dtype=dtype,
        quantised=quantised,
        quantization=requantize,
    )
    write_json(folder / "config.json", config)
    for name in COPIED:
        if (files.folder / name).is_file():
            shutil.copyfile(files.folder / name, folder / name)
    generation = files.folder / "generation_config.json"
    settings = json.loads(generation.read_text("utf-8")) if generation.is_file() else {}
    write_json(folder / "generation_config.json", with_stops(settings, tokenizer.stop_ids))


def with_stops(settings: Mapping[str, Any], stop_ids: Iterable[int]) -> dict[str, Any]:
    """A generation_config.json that stops where the adapter was taught to.

    A base model's own knows the end of text alone, and would go on after the end of the turn.

    >>> with_stops({"eos_token_id": 7, "top_p": 0.8}, (5, 7))
    {'eos_token_id': [5, 7], 'top_p': 0.8}
    """
    known = settings.get("eos_token_id")
    ids = [] if known is None else known if isinstance(known, list) else [known]
    stops = dict.fromkeys([*stop_ids, *ids])
    return {**settings, "eos_token_id": list(stops)}
