"""Facts for a model card, from an adapter's folder and from the run that it belongs to.

A missing or damaged file is left out, because a card must not make anything else fail. A card has
only the last part of a path.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from qwen_local.adapters.lora import Origin
from qwen_local.adapters.store import folder_of, named_base
from qwen_local.cards.card import (
    PROOF_FIGURES,
    BaseFacts,
    CardFacts,
    DataFacts,
    Form,
    Losses,
    SetFacts,
    SourceFacts,
    card,
)
from qwen_local.datasets.sources import HUB_ID as DATA_ID
from qwen_local.embedded import SAMPLE_DATA, TINY_MODEL, tiny_model_path
from qwen_local.errors import InputError
from qwen_local.files import expanded, replace_file
from qwen_local.models.licenses import license_in, license_of
from qwen_local.models.published import PUBLISHED
from qwen_local.models.source import HUB_ID, ModelFiles
from qwen_local.runs.events import AdapterEvent, EvalEvent, TrainEvent
from qwen_local.runs.run import Run
from qwen_local.runs.run_data import DataSource

CARD = "README.md"

COMMIT = re.compile(r"[0-9a-f]{7,64}")


def card_facts(
    adapter: Path,
    form: Form,
    *,
    base: ModelFiles | None = None,
    weights: str | None = None,
    weights_engine: Literal["mlx", "cuda"] | None = None,
    file: str | None = None,
    proof: Mapping[str, float] | None = None,
) -> CardFacts:
    """Collect the facts about an adapter, or about a model made from it.

    Args:
        adapter: a run, its `adapter/` folder or a part of that, or an adapter of another tool.
        form: kind of artifact.
        base: the base model, if known; else it is taken from the adapter.
        weights: number type of merged weights or of a GGUF file.
        weights_engine: the engine that reads them, if there is only one.
        file: name of the GGUF file.
        proof: figures of its proof.
    """
    name, origin, trained_here = _origin(adapter)
    rank, dora = _rank_and_kind(adapter)
    run = Run.of_adapter(adapter)
    data = None if run is None else _data(run)
    given = origin if trained_here else None
    facts = _base_facts(name, given) if base is None else _base_facts_of(base)
    return CardFacts(
        form=form,
        base=facts,
        rank=rank,
        dora=dora,
        engine=origin.backend,
        base_quantization=origin.quantization,
        weights=weights,
        weights_engine=weights_engine,
        file=file or "MODEL.gguf",
        template_sha256=origin.template_sha256,
        enable_thinking=origin.enable_thinking,
        trained_here=trained_here,
        job=None if run is None else _job(run, facts.name, data),
        data=data,
        losses=None if run is None else _losses(run),
        proof=proof and {key: proof[key] for key in PROOF_FIGURES if key in proof},
    )


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write README.md into a folder, replacing an older one.

    Raises:
        OSError: it cannot be written.
    """
    replace_file(folder / CARD, card(facts).encode())


def hub_base(name: str, origin: Origin | None) -> str | None:
    """Return the hub id of an adapter's base model; None if it is, or may be, a local folder.

    A name such as `models/qwen` can be both. Our adapters record the commit of a base from the hub;
    in adapters of other tools, a name that is no folder here counts as an id.

    Args:
        name: as in adapter_config.json.
        origin: of one of our adapters; None for others.
    """
    if not HUB_ID.fullmatch(name) or name == TINY_MODEL:
        return None
    if origin is not None and origin.commit is not None:
        return name
    if os.path.isdir(name):  # noqa: PTH112 - Path raises for a name that is too long
        return None
    return name if origin is None or name in PUBLISHED else None


def without_folders(name: str) -> str:
    """Return the last part of a path, but `~` for a home folder, which has the user's name.

    >>> without_folders("/home/somebody/data/train.jsonl"), without_folders("~somebody")
    ('train.jsonl', '~')
    """
    place = os.path.expanduser(name).rstrip("/\\")  # noqa: PTH111 - Path raises for `~nobody`
    home = os.path.expanduser("~").rstrip("/\\")  # noqa: PTH111
    last = re.split(r"[/\\]", place)[-1]
    return "~" if place == home or last.startswith("~") else last or "/"


def _base_facts_of(files: ModelFiles) -> BaseFacts:
    """Facts about a local model; it is from the hub if it has a commit."""
    if files.commit is None:
        name = files.name if files.name == TINY_MODEL else without_folders(files.name)
        return BaseFacts(name=name, on_hub=False, license=license_in(files.folder))
    license = license_of(files.name) or license_in(files.folder)
    return BaseFacts(name=files.name, on_hub=True, commit=_hex(files.commit), license=license)


def _base_facts(name: str, origin: Origin | None) -> BaseFacts:
    """Facts about the model that the adapter names."""
    if (hub := hub_base(name, origin)) is not None:
        commit = None if origin is None else _hex(origin.commit)
        return BaseFacts(name=hub, on_hub=True, commit=commit, license=license_of(hub))
    if name == TINY_MODEL:
        return BaseFacts(name=name, on_hub=False, license=license_in(tiny_model_path()))
    folder = expanded(name)
    license = license_in(folder) if name else None
    return BaseFacts(name=without_folders(name) if name else "", on_hub=False, license=license)


def _hex(commit: str | None) -> str | None:
    return commit if commit and COMMIT.fullmatch(commit) else None


def _origin(adapter: Path) -> tuple[str, Origin, bool]:
    """Return (name of its base model, its origin, True if it is one of ours)."""
    try:
        name, origin = named_base(adapter)
    except InputError:
        return "", Origin(), False
    return name, origin, origin.template_sha256 is not None


def _rank_and_kind(adapter: Path) -> tuple[int | None, bool]:
    """Return (rank, True for DoRA), from either layout."""
    try:
        config = _json(folder_of(adapter) / "adapter_config.json")
    except InputError:
        return None, False
    inner = config.get("lora_parameters")
    rank = inner.get("rank") if isinstance(inner, dict) else config.get("r")
    dora = config.get("use_dora") is True or config.get("fine_tune_type") == "dora"
    return rank if isinstance(rank, int) else None, dora


def _job(run: Run, model: str, data: DataFacts | None) -> str | None:
    """Return the job with every path reduced to its last part.

    Args:
        run: the run.
        model: name of the base model to show.
        data: has the sources that are on the hub.
    """
    if (job := run.job) is None:
        return None
    on_hub = {source.dataset for source in data.sources} if data else set()

    def shown(name: str) -> str:
        hub = DATA_ID.fullmatch(name)
        public = name == SAMPLE_DATA or (hub is not None and hub.group(1) in on_hub)
        return name if public else without_folders(name)

    def all_shown(given: Any) -> Any:  # a name, some sources, or none
        if isinstance(given, tuple):
            return tuple(source.model_copy(update={"name": shown(source.name)}) for source in given)
        return None if given is None else shown(given)

    names = {"train": all_shown(job.data.train), "eval": all_shown(job.data.eval)}
    changed = {
        "model": job.model.model_copy(update={"name": model}),
        "data": job.data.model_copy(update=names),
        "output": None if job.output is None else without_folders(job.output),
    }
    return job.model_copy(update=changed).to_yaml()


def _data(run: Run) -> DataFacts | None:
    """Facts from data.json."""
    if (data := run.data) is None:
        return None
    return DataFacts(
        sources=tuple(map(_source, data.sources)),
        train=SetFacts(**data.train.model_dump()),
        eval=None if data.eval is None else SetFacts(**data.eval.model_dump()),
    )


def _source(source: DataSource) -> SourceFacts:
    hub = None if source.commit is None else DATA_ID.fullmatch(source.name)
    return SourceFacts(
        name=source.name if hub else without_folders(source.name),
        dataset=hub.group(1) if hub else None,
        version=source.commit if hub else source.sha256,
        records=source.records,
        usable=source.usable.rows,
        dropped=source.dropped,
        cut=source.cut,
    )


def _losses(run: Run) -> Losses | None:
    """Losses from metrics.jsonl."""
    train = {e.step: e.loss for e in run.events_of(TrainEvent) if math.isfinite(e.loss)}
    evaluated = {e.step: e.loss for e in run.events_of(EvalEvent) if math.isfinite(e.loss)}
    if not train:
        return None
    saved = next((event.step for event in reversed([*run.events_of(AdapterEvent)])), None)
    return Losses(
        steps=max(train),
        first_train=train[min(train)],
        last_train=train[max(train)],
        first_eval=evaluated.get(0),
        last_eval=evaluated[max(evaluated)] if evaluated else None,
        saved_step=saved,
        saved_eval=None if saved is None else evaluated.get(saved),
    )


def _json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; an empty one if it is missing or unreadable."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
