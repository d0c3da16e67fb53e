"""`fuse`: a model folder with the adapter merged into its weights, and the proof beside it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError

from qwen_local.adapters.lora import Adapter, Origin
from qwen_local.adapters.prompt import thinking_of
from qwen_local.adapters.store import ORIGIN, base_of, load_adapter, named_base
from qwen_local.backends.base import Backend, Setup
from qwen_local.backends.quantisation import check_quantization, choose_for, who_asks
from qwen_local.backends.select import (
    Choice,
    DType,
    Machine,
    open_backend,
    probe,
)
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import BackendError, InputError
from qwen_local.export.merge import (
    ExportError,
    linear_names,
    merged_tensors,
    open_weights,
    verified,
    write_shards,
)
from qwen_local.export.proof import (
    Proof,
    Readings,
    Samples,
    allowed_difference,
    check,
    compare,
    make_samples,
    read,
)
from qwen_local.files import free_bytes, readable_by_all, write_json
from qwen_local.inference.sampling import generation_config
from qwen_local.job import Quantization, read_job
from qwen_local.models.architecture import Architecture
from qwen_local.models.source import PROOF, ModelFiles, fetch, find_model
from qwen_local.models.weights import float_type
from qwen_local.rows import Rows
from qwen_local.training.preparation import prepare_data
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
ROWS, READ = 32, 640
"""Rows of the run's data that the loss is measured on, and records that are read for them."""
FLOAT32_BYTES = 4.5
"""Of a parameter, while the model is run in float32."""


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
    given = Path(os.path.expanduser(output))  # noqa: PTH111 - Path raises for `~nobody`
    check_free(given)
    place = Path(os.path.realpath(given))  # a link to an empty folder stays a link
    machine = probe()
    base, origin = named_base(adapter)
    source = base_of(model, revision, adapter)
    architecture = source.architecture(download=True)
    held = origin.quantization if quantization is None else quantization
    choice = _choose(machine, backend, device, architecture, replace(origin, quantization=held))
    asked_by = who_asks(quantization, adapter, origin)
    check_quantization(machine, choice, source.name, architecture, held, asked_by=asked_by)
    if requantize != "none":
        plain = replace(architecture, stored=None)
        check_quantization(machine, choice, source.name, plain, requantize, asked_by="--requantize")
    choice = with_room(machine, choice, architecture, device)
    trained = load_adapter(adapter, architecture)
    if base not in ("", source.name):
        log.warning("the adapter was made for %s; this is %s", base, source.name)
    files = fetch(source)
    rounded = float_type(files.folder) if dtype == "auto" else dtype
    check_disk(place, architecture.parameters() * (4 if rounded == "float32" else 2))
    tokenizer = ChatTokenizer.load(files.folder)
    tokenizer.check_fits(architecture.vocabulary, source.name)
    generation = with_stops(generation_config(files.folder, source.name), tokenizer.stop_ids)
    log.info("backend: %s on the %s (%s)", choice.backend, choice.device, choice.reason)
    with _to_be(place) as new:
        rows = _rows_of_run(adapter, tokenizer)
        samples, live, bare = _ask_live(files, trained, choice, held, tokenizer, rows)
        _write(new, files, trained, choice, generation, rounded, held, requantize)
        fusion = _Fusion(new, files, trained, choice, rounded, held)
        if requantize == "none":
            proof = fusion.prove(samples, live, bare)
        else:
            proof = fusion.prove_quantised(samples, live, bare)
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
        write_json(new / ORIGIN, asdict(trained.origin))
    log.info("%s", proof.describe())
    log.info("next: qwen-local chat --model %s", shlex.quote(str(output)))
    return result


@contextmanager
def _to_be(output: Path) -> Iterator[Path]:
    """A new folder beside `output`, which takes its place unless an error ends the `with`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=output.parent))
    try:
        yield new
        check_free(output)  # meanwhile, too
        readable_by_all(new)
        new.replace(output)  # an empty folder gives way
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _choose(
    machine: Machine, backend: str, device: str, architecture: Architecture, origin: Origin
) -> Choice:
    """The engine: where the base was quantised the one that did it, whose codes are its own."""
    if origin.quantization != "none" and backend not in ("auto", origin.backend or backend):
        raise BackendError.at(
            f"--backend {backend}",
            f"the adapter was trained on a {origin.quantization} base of --backend "
            f"{origin.backend}, whose weights no other engine has",
            f"pass --backend {origin.backend}, or leave it out",
        )
    return choose_for(machine, backend, device, architecture, origin)


def with_room(machine: Machine, choice: Choice, architecture: Architecture, device: str) -> Choice:
    """The same choice, or the CPU where a float32 copy of the model exceeds the GPU.

    Raises:
        BackendError: it does, and the GPU was asked for.
    """
    need = round(FLOAT32_BYTES * architecture.parameters())
    if choice.device == "cpu" or need <= machine.gpu_bytes:
        return choice
    why = f"the proof computes in float32 and needs about {need / 1e9:.0f} GB; the GPU has less"
    if device == "gpu":
        raise BackendError.at("--device gpu", why, "leave it out: the CPU will do")
    return Choice(choice.backend, "cpu", why)


def check_disk(output: Path, need: int) -> None:
    """Refuse a disk without room for the model.

    Raises:
        ExportError: how much is missing.
    """
    if (free := free_bytes(output)) < need:
        raise ExportError(
            f"{output}: the model needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )


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
    thinking = thinking_of(adapter.origin, tokenizer)
    samples = make_samples(engine, tokenizer, rows, thinking=thinking)
    live = read(engine, samples)
    engine.load_adapter({name: np.zeros_like(array) for name, array in adapter.arrays.items()})
    return samples, live, read(engine, samples)


@dataclass(frozen=True, slots=True)
class _Fusion:
    """A merged model in a folder, and what it was made from."""

    folder: Path
    base: ModelFiles
    adapter: Adapter
    choice: Choice
    dtype: DType
    held: Quantization

    def prove(self, samples: Samples, live: Readings, bare: Readings) -> Proof:
        """What the files say, and what the merge says that they are to hold, rounded.

        Raises:
            ExportError: it is not what the live adapter says.
        """
        files = fetch(find_model(str(self.folder)))
        engine = _open(files, self.choice)
        export = read(engine, samples)
        written = open_weights(self.choice, files)
        engine.put_weights(verified(self._merged(self.adapter), written, self.dtype))
        merge = read(engine, samples)
        allowed = allowed_difference(live)
        if self._rounds_inputs():
            engine.put_weights(self._merged(replace(self.adapter, arrays={})))
            allowed = allowed_difference(live, bare, read(engine, samples))
        proof = compare(live, bare, export, merge, tokens=samples.rows.supervised)
        check(proof, allowed=allowed)
        return proof

    def prove_quantised(self, samples: Samples, live: Readings, bare: Readings) -> Proof:
        """What the files say that were quantised again; errors as above."""
        engine = _open(fetch(find_model(str(self.folder))), self.choice)
        export = read(engine, samples)
        proof = compare(live, bare, export, None, tokens=samples.rows.supervised)
        check(proof, allowed=0.0)
        return proof

    def _merged(self, adapter: Adapter) -> Iterator[tuple[str, np.ndarray]]:
        weights = open_weights(self.choice, self.base)
        return merged_tensors(self.base.architecture, adapter, weights, self.held)

    def _rounds_inputs(self) -> bool:
        """Whether live layers round what goes into them, as LLM.int8() does and no merged one."""
        stored = self.base.architecture.stored
        return self.choice.backend == "cuda" and (
            self.held == "8bit" or (stored is not None and stored.bits == 8)
        )


def _rows_of_run(adapter: Path, tokenizer: ChatTokenizer) -> Rows | None:
    """Some rows of the data that a run was made with, where they are still at hand and the same.

    Paths of a job count from the folder that it ran in, which may not be this one.
    """
    if not ((adapter / "job.yaml").is_file() and (adapter / "data.json").is_file()):
        return None
    try:
        job = read_job(adapter / "job.yaml", preset="none").complete(0)
        known = json.loads((adapter / "data.json").read_text("utf-8"))["sources"]
        if any(source["sha256"] is None for source in known):
            return None  # on the hub
        few = job.data.model_copy(update={"limit": min(job.data.limit or READ, READ)})
        prepared = prepare_data(job.model_copy(update={"data": few}), tokenizer)
    except (InputError, KeyError, TypeError, ValueError) as error:
        said = error.faults[0] if isinstance(error, InputError) else "its data.json is not ours"
        log.info("loss: on the answers alone; the run's data: %s", said)
        return None
    if [s.sha256 for s in prepared.report.sources] != [s["sha256"] for s in known]:
        log.info("loss: on the answers alone; the run's data have changed")
        return None
    rows = prepared.train if prepared.eval is None else prepared.eval
    return rows.take(range(min(ROWS, len(rows))))


def _write(
    folder: Path,
    files: ModelFiles,
    adapter: Adapter,
    choice: Choice,
    generation: dict[str, Any],
    dtype: DType,
    held: Quantization,
    requantize: Quantization,
) -> None:
    """The merged model's folder, all but the proof."""
    weights = open_weights(choice, files)
    quantised: frozenset[str] = frozenset()
    config = {k: v for k, v in files.config.items() if not k.startswith("quantization")}
    config.pop("torch_dtype", None)  # its name in transformers 4; two would contradict each other
    config["dtype"] = dtype
    if requantize != "none":
        quantised = frozenset(linear_names(files.architecture))
        config |= weights.config(requantize, dtype)
    try:
        write_shards(
            folder,
            merged_tensors(files.architecture, adapter, weights, held),
            weights,
            dtype=dtype,
            quantised=quantised,
            quantization=requantize,
        )
    except (OSError, RuntimeError, SafetensorError) as error:  # as each library has it
        raise ExportError(f"{folder.parent}: cannot be written: {error}") from error
    write_json(folder / "config.json", config)
    for name in COPIED:
        if (files.folder / name).is_file():
            shutil.copyfile(files.folder / name, folder / name)
    write_json(folder / "generation_config.json", generation)


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
