"""The job: the schema of every option, and the function that reads a job.

Reading takes two steps, because the preset depends on the size of the model, and the model is known
only after the first step:

    draft = read_job(Path("job.yaml"), sets=["train.epochs=1"])   # reports every fault at once
    job = draft.complete(parameters)                              # fills the rest from the preset

Precedence: flag > `set` > file > preset > default.

Values are strict: `true` and `"8"` are not numbers, and 8.0 is not a whole number. A whole number
is accepted as a number. null is accepted only by keys whose description defines it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import metadata
from io import StringIO
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from qwen_local.datasets.column_map import FormatName, resolve_format
from qwen_local.embedded import SAMPLE_DATA, TINY_MODEL
from qwen_local.errors import DatasetError, Fault, JobError
from qwen_local.job.faults import explain
from qwen_local.job.presets import PRESET_NAMES, PresetName, preset_for
from qwen_local.job.reader import (
    FLAGS,
    Layer,
    Order,
    Schema,
    Setting,
    file_layer,
    flag_layer,
    set_layer,
    show,
)
from qwen_local.models.families import TARGETS

Text: TypeAlias = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Count: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]

Quantization: TypeAlias = Literal["none", "4bit", "8bit"]

ONE_OF_TWO = {"steps": "epochs", "warmup_steps": "warmup_ratio"}
"""Pairs of `train` keys that express the same quantity: exactly one of each pair is set."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSpec(_Section):
    """The base model."""

    name: Text = Field(default=TINY_MODEL, description="local folder, Hub id or the embedded model")
    revision: Text | None = Field(
        default=None,
        description="commit, branch or tag of a Hub model; null = the newest commit",
        examples=["main"],
    )
    quantization: Quantization = Field(
        default="none", description="weight quantization of the blocks' linear layers"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="compute dtype of the frozen base model"
    )


class EvalSource(_Section):
    """One evaluation source, and how to read it."""

    name: Text = Field(description="file, folder or Hub id", examples=["data/more.jsonl"])
    format: FormatName | None = Field(
        default=None,
        description="record format; null = data.format and data.columns",
        examples=["auto"],
    )
    columns: dict[str, str] | None = Field(default=None)
    limit: Count | None = Field(
        default=None, description="maximum number of records to read", examples=[1000]
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _known_keys(cls, columns: object, info: ValidationInfo) -> object:
        return _columns(columns, info.data.get("format") or "auto")


class TrainSource(EvalSource):
    """One training source, how to read it, and its weight in an epoch."""

    weight: float = Field(
        default=1.0, gt=0, le=1000, description="number of times each row counts in an epoch"
    )


class DataSpec(_Section):
    """The training and evaluation data."""

    train: Text | tuple[TrainSource, ...] = Field(
        default=SAMPLE_DATA,
        description="file, folder, Hub id, the sample data, or a list of these",
    )
    eval: Text | tuple[EvalSource, ...] | None = Field(
        default=None,
        description="evaluation data; null = the source's validation split, or a held-out fraction",
        examples=["data/valid.jsonl"],
    )
    eval_fraction: Share = Field(
        default=0.05, description="fraction of the training rows to hold out; 0 = none"
    )
    format: FormatName = Field(
        default="auto", description="record format; auto = detect it from the first record"
    )
    columns: dict[str, str] | None = Field(
        default=None,
        description="column name for each format key; null = the format's own names",
        examples=["{prompt: question, completion: answer}"],
    )
    max_length: int = Field(default=2048, ge=8, description="maximum row length in tokens")
    overlong: Literal["drop", "cut", "error"] = Field(
        default="drop", description="action for rows longer than max_length"
    )
    limit: Count | None = Field(
        default=None,
        description="maximum number of records to read; null = all",
        examples=[1000],
    )
    train_on: Literal["assistant", "last"] = Field(
        default="assistant",
        description="supervised turns: all assistant turns, or only the last one",
    )
    thinking: Literal["auto", "keep", "drop", "empty"] = Field(
        default="auto", description="handling of the assistant's reasoning; see docs/data.md"
    )

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _name_or_list(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str) or (value is None and info.field_name == "eval"):
            return value
        model, more = (
            (TrainSource, ", weight: 2") if info.field_name == "train" else (EvalSource, "")
        )
        hint = f"write a name, or a list such as [a.jsonl, {{name: b.jsonl{more}, limit: 500}}]"
        if not isinstance(value, list | tuple):
            kinds = "text, a list or null" if info.field_name == "eval" else "text or a list"
            raise _fault(f"expected {kinds}; found {show(value)}", hint)
        if not value:
            raise _fault("expected at least one source; found an empty list", hint)
        return _sources(value, model, hint)

    @field_validator("columns", mode="before")
    @classmethod
    def _known_keys(cls, columns: object, info: ValidationInfo) -> object:
        return _columns(columns, info.data.get("format", "auto"))


class LoraSpec(_Section):
    """The low-rank update W + scale * B A, shared by both engines."""

    rank: int = Field(default=16, ge=1, le=1024, description="rank of the LoRA matrices")
    alpha: float = Field(
        default=None,  # becomes 2 x rank below, before it is checked
        gt=0,
        validate_default=True,
        description="numerator of the LoRA scale, alpha / rank; null = 2 x rank",
        examples=[32],
    )
    dropout: Share = Field(default=0.05, description="dropout probability of the adapter's inputs")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="all-linear, or a list of linear layers"
    )
    layers: Literal["all"] | Count = Field(
        default="all",
        description="number of blocks with an adapter, counted from the last",
        examples=[8],
    )
    rslora: bool = Field(default=False, description="true = scale by alpha / sqrt(rank)")

    @field_validator("alpha", mode="before")
    @classmethod
    def _twice_the_rank(cls, alpha: object, info: ValidationInfo) -> object:
        # An invalid rank is missing from the data and is reported by itself: any alpha will do.
        return 2 * info.data.get("rank", 1) if alpha is None else alpha

    @field_validator("targets", mode="before")
    @classmethod
    def _known_layers(cls, targets: object) -> object:
        if targets == "all-linear":
            return targets
        hint = f"the linear layers are {', '.join(TARGETS)}"
        if not isinstance(targets, list | tuple) or not targets:
            found = "an empty list" if targets in ([], ()) else show(targets)
            raise _fault(f"expected all-linear or a list of linear layers; found {found}", hint)
        return _each_once(targets, TARGETS, "a linear layer", hint)

    @property
    def scale(self) -> float:
        """Multiplier of the update (MLX stores this; PEFT stores alpha, rank and rslora)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Short names of the adapted layers, in block order."""
        return tuple(
            name for name in TARGETS if self.targets == "all-linear" or name in self.targets
        )

    def blocks(self, total: int) -> range:
        """Return the indices of the blocks with an adapter: all of `total`, or the last ones.

        >>> LoraSpec(layers=4).blocks(28)
        range(24, 28)

        Raises:
            JobError: the model has fewer blocks than requested.
        """
        count = total if self.layers == "all" else self.layers
        if count > total:
            problem = f"must be at most {total}, the model's number of blocks; found {count}"
            raise JobError.at("lora.layers", problem, f"write all, or a number up to {total}")
        return range(total - count, total)


class EarlyStopping(_Section):
    """The rule that ends a run before its last step; see `training/stopping.py`."""

    patience: Count = Field(
        default=3, description="number of consecutive evaluations without improvement"
    )
    min_delta: float = Field(
        default=0.0, ge=0, description="smallest loss decrease that counts as an improvement"
    )


class TrainSpec(_Section):
    """Length, optimizer, batches, evaluation and checkpoints."""

    epochs: Count | None = Field(
        default=3, description="number of passes over the data; null if steps is set"
    )
    steps: Count | None = Field(
        default=None,
        validate_default=True,
        description="number of optimizer steps; null if epochs is set",
        examples=[1000],
    )
    batch_size: Count = Field(default=8, description="number of rows per optimizer step")
    learning_rate: float = Field(
        default=2e-4, gt=0, lt=1, description="peak learning rate, reached after warm-up"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning rate schedule after warm-up"
    )
    warmup_ratio: Share | None = Field(
        default=0.03,
        description="fraction of the steps used for warm-up; null if warmup_steps is set",
    )
    warmup_steps: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None,
        validate_default=True,
        description="number of warm-up steps; null if warmup_ratio is set",
        examples=[100],
    )
    weight_decay: float = Field(default=0.0, ge=0, lt=1, description="AdamW weight decay")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=1.0, description="maximum gradient norm; null = no clipping"
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="seed of the row order, adapter initialization and dropout",
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        default="auto",
        description="recompute activations to save memory; auto = only if needed",
        examples=[True],
    )
    cuda_graphs: Literal["auto"] | bool = Field(
        default="auto",
        description="record micro-batches as CUDA graphs on an NVIDIA card; "
        "auto = where the card would wait for the host",
        examples=[False],
    )
    micro_batch_tokens: Literal["auto"] | Count = Field(
        default="auto",
        description="maximum number of tokens per micro-batch, including padding",
        examples=[4096],
    )
    eval_every: Literal["auto"] | Count = Field(
        default="auto",
        description="number of steps between evaluations; auto = under 10 % of the time",
        examples=[50],
    )
    save_every: Literal["auto"] | Count = Field(
        default="auto",
        description="number of steps between checkpoints; auto = every ten minutes",
        examples=[100],
    )
    keep: Count = Field(
        default=2, description="number of newest checkpoints to keep, in addition to the best"
    )
    early_stopping: EarlyStopping | None = Field(
        default=EarlyStopping(),
        description="mapping of patience and min_delta; null = train all steps",
    )
    restarts: Literal["auto"] | Annotated[int, Field(ge=0, le=100)] = Field(
        default="auto",
        description="maximum number of restarts from the last checkpoint after a crash; "
        "auto = 3 on a Mac's GPU, else 0",
        examples=[3],
    )
    report_to: tuple[Literal["tensorboard"], ...] = Field(
        default=(), description="list of other places that receive the training curves"
    )

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _two_keys_or_null(cls, value: object) -> object:
        hint = "write {patience: 3, min_delta: 0.0}, or null to train all steps"
        if value is None or isinstance(value, EarlyStopping):
            return value
        if not isinstance(value, dict):
            raise _fault(f"expected a mapping or null; found {show(value)}", hint)
        for key in value:
            if key not in EarlyStopping.model_fields:
                raise _fault(f"unknown key {show(key)}", hint)
        try:
            return EarlyStopping.model_validate(value)
        except ValidationError as error:
            first, *_ = error.errors(include_url=False)
            key = str(first["loc"][0])
            problem, hint = explain(key, EarlyStopping.model_fields[key], [first])
            raise _fault(f"{key}: {problem}", hint) from None

    @field_validator("report_to", mode="before")
    @classmethod
    def _known_and_installed(cls, names: object) -> object:
        hint = "write [tensorboard], or [] for metrics.jsonl only"
        if not isinstance(names, list | tuple):
            raise _fault(f"expected a list; found {show(names)}", hint)
        known = _each_once(names, ("tensorboard",), "tensorboard", hint)
        try:
            if known:
                metadata.version("tensorboard")
        except metadata.PackageNotFoundError:
            raise _fault("tensorboard is not installed", "pip install tensorboard") from None
        return known

    @model_validator(mode="before")
    @classmethod
    def _a_count_replaces_the_default(cls, values: Any) -> Any:
        """Unset `epochs` if only `steps` is given; likewise for the two warm-up keys."""
        given = values if isinstance(values, dict) else {}
        unset = {other for key, other in ONE_OF_TWO.items() if given.get(key) is not None}
        return dict.fromkeys(unset) | given if unset else values

    @field_validator(*ONE_OF_TWO)
    @classmethod
    def _one_of_two(cls, value: int | None, info: ValidationInfo) -> int | None:
        key = cast(str, info.field_name)
        other = ONE_OF_TWO[key]
        if other not in info.data:  # invalid, and already reported
            return value
        if value is not None and info.data[other] is not None:
            raise _fault(f"expected {other} or {key}; found both", "remove one of them")
        if value is None and info.data[other] is None:
            raise _fault(f"expected {other} or {key}; found neither", "set one of them")
        return value

    def total_steps(self, rows: int) -> int:
        """Return the number of optimizer steps; an epoch has ceil(rows / batch_size).

        >>> TrainSpec(epochs=3, batch_size=8).total_steps(100)
        39
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * math.ceil(rows / self.batch_size)

    def warm_up(self, steps: int) -> int:
        """Return the number of warm-up steps: floor(ratio x steps), or `warmup_steps`.

        >>> TrainSpec(warmup_ratio=0.29).warm_up(100)  # 29, though 0.29 * 100 < 29 in floats
        29
        """
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.floor(Fraction(str(self.warmup_ratio)) * steps)


class Job(_Section):
    """All options of one run."""

    model: ModelSpec = Field(default=ModelSpec(), description="the base model")
    data: DataSpec = Field(default=DataSpec(), description="the training and evaluation data")
    lora: LoraSpec = Field(default=LoraSpec(), description="the adapter")
    train: TrainSpec = Field(default=TrainSpec(), description="the training options")
    output: Text | None = Field(
        default=None,
        description="run directory; null = runs/<model>-<date>-<n>",
        examples=["runs/my-run"],
    )

    def to_yaml(self) -> str:
        """Return YAML with every value; `read_job` with preset `none` reads it back."""
        from ruamel.yaml import YAML

        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.width = 2**16  # a long path stays on its line
        text = StringIO()
        yaml.dump(self.model_dump(mode="json"), text)
        return text.getvalue()


SECTIONS: Mapping[str, type[_Section]] = {
    "model": ModelSpec,
    "data": DataSpec,
    "lora": LoraSpec,
    "train": TrainSpec,
}
SCHEMA: Schema = {
    name: tuple(SECTIONS[name].model_fields) if name in SECTIONS else ()
    for name in Job.model_fields
}
FLAG_KEYS: Mapping[str, str] = {
    "model": "model.name",
    "data": "data.train",
    "eval_data": "data.eval",
    "epochs": "train.epochs",
    "steps": "train.steps",
    "batch_size": "train.batch_size",
    "learning_rate": "train.learning_rate",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "quantization": "model.quantization",
    "max_length": "data.max_length",
    "seed": "train.seed",
    "output": "output",
}
"""Job key of each flag, by its name in Python. Only the most common keys have one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A valid job to which the preset has not been applied yet."""

    job: Job
    """The job without the preset."""
    preset: PresetName
    layers: tuple[Layer, ...]
    """The user's settings, lowest precedence first."""

    @property
    def model(self) -> ModelSpec:
        """The base model; presets never change it."""
        return self.job.model

    def sets(self, key: str) -> bool:
        """Return True if the user set this dotted key in the file or on the command line."""
        return any(key in layer.settings for layer in self.layers)

    def where(self, key: str) -> str:
        """Return the place of a setting, such as `job.yaml:3: lora.rank`; the key if not set."""
        found = [layer.settings[key].where for layer in self.layers if key in layer.settings]
        return found[-1] if found else key

    def complete(self, parameters: int) -> Job:
        """Apply the preset for a model with this many parameters."""
        preset = preset_for(self.preset, parameters)
        values = {} if preset is None else preset.values
        below = Layer({k: Setting(v, f"preset: {k}", Order(-1, 0)) for k, v in values.items()})
        return _check([below, *self.layers])


def read_job(
    path: Path | None,
    *,
    sets: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    preset: str = "auto",
) -> Draft:
    """Read and check a job.

    Args:
        path: the job file; None for the default job.
        sets: `key=value` strings.
        flags: value by flag (the keys of `FLAG_KEYS`); None means not given.
        preset: one of `presets.PRESET_NAMES`.

    Raises:
        JobError: all faults of the file, `sets` and the flags together.
    """
    layers = [
        Layer() if path is None else file_layer(path, SCHEMA),
        set_layer(sets, SCHEMA),
        flag_layer(flags or {}, FLAG_KEYS),
    ]
    if preset not in PRESET_NAMES:
        *most, last = PRESET_NAMES
        problem = f"expected {', '.join(most)} or {last}; found {show(preset)}"
        hint = "use auto to choose by model size"
        layers[-1].fault(Order(FLAGS, len(FLAG_KEYS)), "preset", problem, hint)
    job = _check(layers)
    return Draft(job=job, preset=cast(PresetName, preset), layers=tuple(layers))


def _check(layers: Iterable[Layer]) -> Job:
    """Merge the layers (lowest precedence first) and validate; raise all faults together."""
    faults = [fault for layer in layers for fault in layer.faults]
    settings = _merge(layer.settings for layer in layers)
    tree: dict[str, Any] = {}
    for dotted, setting in settings.items():
        section, _, key = dotted.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = setting.value
    try:
        job = Job.model_validate(tree)
    except ValidationError as error:
        faults += _faults(error, settings)
    if faults:
        raise JobError(fault for _, fault in sorted(faults, key=itemgetter(0)))
    return job


def _merge(layers: Iterable[Mapping[str, Setting]]) -> dict[str, Setting]:
    """Keep the setting with the highest precedence for every key and every `ONE_OF_TWO` pair."""
    merged: dict[str, Setting] = {}
    for layer in layers:
        merged |= layer
    for names in ONE_OF_TWO.items():
        keys = [f"train.{name}" for name in names]
        given = [key for key in keys if key in merged and merged[key].value is not None]
        if len(given) == 2:
            weaker, stronger = sorted(given, key=lambda key: merged[key].order.source)
            if merged[weaker].order.source < merged[stronger].order.source:
                del merged[weaker]
    return merged


def _faults(
    error: ValidationError, settings: Mapping[str, Setting]
) -> Iterable[tuple[Order, Fault]]:
    by_key: dict[str, list[ErrorDetails]] = defaultdict(list)
    for details in error.errors(include_url=False):
        top, *rest = map(str, details["loc"])  # after the key: the members of a union type
        by_key[f"{top}.{rest[0]}" if top in SECTIONS else top].append(details)
    for dotted, errors in by_key.items():
        section, _, key = dotted.rpartition(".")
        model = SECTIONS[section] if section else Job
        problem, hint = explain(key, model.model_fields[key], errors)
        # With only `epochs: null`, pydantic reports `steps`, which has no setting of its own.
        setting = settings.get(dotted) or settings[f"{section}.{ONE_OF_TWO[key]}"]
        yield setting.order, Fault(setting.where, problem, hint)


def _sources(items: Sequence[object], model: type[EvalSource], hint: str) -> tuple[EvalSource, ...]:
    """Validate a list of sources, each a name or a mapping of the model's fields.

    Raises:
        PydanticCustomError: all problems of the list, with a hint for the first.
    """
    sources: list[EvalSource] = []
    problems: list[tuple[str, str]] = []
    for position, item in enumerate(items, 1):
        given = {"name": item} if isinstance(item, str) else item
        if not isinstance(given, dict | model):
            problem = f"item {position}: expected a name or a mapping; found {show(given)}"
            problems.append((problem, hint))
            continue
        try:
            sources.append(model.model_validate(given))
        except ValidationError as error:
            by_key: dict[str, list[ErrorDetails]] = defaultdict(list)
            for details in error.errors(include_url=False):
                by_key[str(details["loc"][0])].append(details)
            for key, errors in by_key.items():
                problem, item_hint = _explain_item(key, errors, model, hint)
                problems.append((f"item {position}: {problem}", item_hint))
    if problems:
        raise _fault("; ".join(problem for problem, _ in problems), problems[0][1])
    return tuple(sources)


def _explain_item(
    key: str, errors: Sequence[ErrorDetails], model: type[EvalSource], hint: str
) -> tuple[str, str]:
    """Return (problem, hint) for one key of an item."""
    match errors[0]["type"]:
        case "missing":
            return f"{key} is missing", hint
        case "extra_forbidden":
            return f"unknown key {show(key)}", hint
        case _:
            problem, field_hint = explain(key, model.model_fields[key], errors)
            return f"{key}: {problem}", field_hint


def _columns(columns: object, format: FormatName) -> object:
    """Return the column map if its keys belong to one format.

    Raises:
        PydanticCustomError: the map is invalid.
    """
    hint = "map each format key to a column, such as {prompt: question, completion: answer}"
    if columns is None:
        return None
    if not isinstance(columns, dict):
        raise _fault(f"expected a mapping or null; found {show(columns)}", hint)
    for key, column in columns.items():
        if not isinstance(column, str) or not column:
            raise _fault(f"{key}: expected a column name; found {show(column)}", hint)
    try:
        resolve_format(columns, format)
    except DatasetError as error:
        [fault] = error.faults
        raise _fault(fault.problem, fault.hint or hint) from None
    return columns


def _each_once(
    names: Sequence[object], known: Sequence[str], what: str, hint: str
) -> tuple[object, ...]:
    """Check that every item of a list is known and occurs once.

    Args:
        names: items as the user wrote them.
        known: allowed items.
        what: description of one allowed item, for the message.
        hint: hint for an unknown item.

    Raises:
        PydanticCustomError: the first item that is unknown or repeated.
    """
    for position, name in enumerate(names):
        if name not in known:
            raise _fault(f"expected {what} at item {position + 1}; found {show(name)}", hint)
        if name in names[:position]:
            raise _fault(f"{name} occurs twice", "remove one of them")
    return tuple(names)


def _fault(problem: str, hint: str) -> PydanticCustomError:
    """Make an error that `explain` passes on unchanged."""
    return PydanticCustomError("job", "{problem}", {"problem": problem, "hint": hint})
