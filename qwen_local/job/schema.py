"""The job: every option, said once, and how a job is read.

A job is read in two steps, because a preset depends on the model's size, which is known only once
the model's name is:

    draft = read_job(Path("job.yaml"), sets=["train.epochs=1"])   # every fault of the user's
    job = draft.complete(parameters)                              # the preset fills what is left

Precedence: flag > `--set` > file > preset > default.

Values are strict: `true` is no number, `"8"` no number either, and 8.0 is no whole number; a whole
number does for a number. null means what the key's description says, and only where it says so.
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

from qwen_local.datasets.column_map import FormatName, settle
from qwen_local.embedded import SAMPLE_DATA, TINY_MODEL
from qwen_local.errors import DatasetError, Fault, JobError
from qwen_local.job.faults import explain
from qwen_local.job.presets import CHOICES, Choice, choose
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
"""Keys of `train` that say the same thing in two ways: exactly one of each pair is set."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSpec(_Section):
    """The model that is trained."""

    name: Text = Field(
        default=TINY_MODEL, description="a local folder, a hub id or the embedded model"
    )
    revision: Text | None = Field(
        default=None,
        description="the commit, branch or tag of a hub model, or null for the newest",
        examples=["main"],
    )
    quantization: Quantization = Field(
        default="none", description="what the blocks' linear layers are held in while training"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="the number type that the frozen model computes in"
    )


class EvalSource(_Section):
    """One of several sources, and how it is read."""

    name: Text = Field(description="a file, a folder or a hub id", examples=["data/more.jsonl"])
    format: FormatName | None = Field(
        default=None,
        description="how its records are written, or null for format and columns of the section",
        examples=["auto"],
    )
    columns: dict[str, str] | None = Field(default=None)
    limit: Count | None = Field(
        default=None, description="how many records of it are read", examples=[1000]
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _known_keys(cls, columns: object, info: ValidationInfo) -> object:
        return _columns(columns, info.data.get("format") or "auto")


class TrainSource(EvalSource):
    """One of several sources, how it is read, and how often it is learned."""

    weight: float = Field(
        default=1.0, gt=0, le=1000, description="how many times its rows count in an epoch"
    )


class DataSpec(_Section):
    """What is learned, and what is held out."""

    train: Text | tuple[TrainSource, ...] = Field(
        default=SAMPLE_DATA,
        description="a file, a folder, a hub id, the sample data or a list of these",
    )
    eval: Text | tuple[EvalSource, ...] | None = Field(
        default=None,
        description="the evaluation data, or null to split it from the training data",
        examples=["data/valid.jsonl"],
    )
    eval_fraction: Share = Field(
        default=0.05, description="the share of the rows that a split holds out, 0 for none"
    )
    format: FormatName = Field(
        default="auto", description="how a record is written; auto = as the first record"
    )
    columns: dict[str, str] | None = Field(
        default=None,
        description="the columns that stand for keys of the format, or null where they are those",
        examples=["{prompt: question, completion: answer}"],
    )
    max_length: int = Field(default=2048, ge=8, description="the longest row, in tokens")
    overlong: Literal["drop", "cut", "error"] = Field(
        default="drop", description="what becomes of a row that is longer than max_length"
    )
    limit: Count | None = Field(
        default=None, description="how many records are read, or null for all", examples=[1000]
    )
    train_on: Literal["assistant", "last"] = Field(
        default="assistant",
        description="which turns are learned: all of the assistant's, or the last",
    )
    thinking: Literal["auto", "keep", "drop", "empty"] = Field(
        default="auto", description="what becomes of the assistant's reasoning: see docs/data.md"
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
    """The low-rank update W + scale * B A, said once for every engine."""

    rank: int = Field(default=16, ge=1, le=1024, description="the rank of the update")
    alpha: float = Field(
        default=None,  # becomes 2 x rank below, before it is checked
        gt=0,
        validate_default=True,
        description="the rank times the scale of the update, or null for 2 x rank",
        examples=[32],
    )
    dropout: Share = Field(
        default=0.05, description="the share of the adapter's inputs that is dropped"
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="all-linear, or a list of linear layers"
    )
    layers: Literal["all"] | Count = Field(
        default="all",
        description="how many blocks carry the adapter, counted from the last",
        examples=[8],
    )
    rslora: bool = Field(default=False, description="whether scale is alpha / sqrt(rank)")

    @field_validator("alpha", mode="before")
    @classmethod
    def _twice_the_rank(cls, alpha: object, info: ValidationInfo) -> object:
        # A faulty rank is not in the data, and has a fault of its own: any alpha will do.
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
        """The multiplier itself (MLX stores this; PEFT stores alpha, rank and rslora)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The short names of the adapted layers, in the order of a block."""
        return tuple(
            name for name in TARGETS if self.targets == "all-linear" or name in self.targets
        )

    def blocks(self, total: int) -> range:
        """The blocks that carry the adapter, out of `total`: all of them or the last ones.

        >>> LoraSpec(layers=4).blocks(28)
        range(24, 28)

        Raises:
            JobError: the model has fewer blocks than were asked for.
        """
        count = total if self.layers == "all" else self.layers
        if count > total:
            problem = f"must be at most {total}, the blocks of this model; found {count}"
            raise JobError.at("lora.layers", problem, f"write all, or a number up to {total}")
        return range(total - count, total)


class EarlyStopping(_Section):
    """When a run ends before its last step: see `training/stopping.py` for the rule."""

    patience: Count = Field(
        default=3, description="the evaluations in a row without a gain that end the run"
    )
    min_delta: float = Field(
        default=0.0, ge=0, description="the fall of the evaluation loss that counts as a gain"
    )


class TrainSpec(_Section):
    """How long, how fast and in what portions."""

    epochs: Count | None = Field(
        default=3, description="the number of passes over the data, or null where steps is set"
    )
    steps: Count | None = Field(
        default=None,
        validate_default=True,
        description="the number of optimizer steps, or null where epochs is set",
        examples=[1000],
    )
    batch_size: Count = Field(default=8, description="the number of rows of an optimizer step")
    learning_rate: float = Field(
        default=2e-4, gt=0, lt=1, description="the highest learning rate, reached after the warm-up"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="how the learning rate goes on after the warm-up"
    )
    warmup_ratio: Share | None = Field(
        default=0.03,
        description="the share of the steps that warms up, or null where warmup_steps is set",
    )
    warmup_steps: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None,
        validate_default=True,
        description="the steps that warm up, or null where warmup_ratio is set",
        examples=[100],
    )
    weight_decay: float = Field(default=0.0, ge=0, lt=1, description="AdamW's weight decay")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=1.0, description="the norm that gradients are clipped to, or null for no clipping"
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="what the order, the adapter's start and dropout follow from",
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        default="auto",
        description="whether activations are computed twice to save memory; auto = where it helps",
        examples=[True],
    )
    micro_batch_tokens: Literal["auto"] | Count = Field(
        default="auto",
        description="the most tokens that are computed at once, with padding where there is any",
        examples=[4096],
    )
    eval_every: Literal["auto"] | Count = Field(
        default="auto",
        description="the number of steps between evaluations; auto = under 10 % of the time",
        examples=[50],
    )
    save_every: Literal["auto"] | Count = Field(
        default="auto",
        description="the number of steps between checkpoints; auto = every ten minutes",
        examples=[100],
    )
    keep: Count = Field(
        default=2, description="the number of newest checkpoints that stay, beside the best"
    )
    early_stopping: EarlyStopping | None = Field(
        default=EarlyStopping(),
        description="a mapping of patience and min_delta, or null to train all steps",
    )
    restarts: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0, description="how often a run that dies is begun again from its last checkpoint"
    )
    report_to: tuple[Literal["tensorboard"], ...] = Field(
        default=(), description="where else the curves of metrics.jsonl go, a list"
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
            problem, mend = explain(key, EarlyStopping.model_fields[key], [first])
            raise _fault(f"{key}: {problem}", mend) from None

    @field_validator("report_to", mode="before")
    @classmethod
    def _known_and_installed(cls, names: object) -> object:
        hint = "write [tensorboard], or [] for metrics.jsonl alone"
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
        """`steps` without `epochs` unsets the latter; so do the two of the warm-up."""
        given = values if isinstance(values, dict) else {}
        unset = {other for key, other in ONE_OF_TWO.items() if given.get(key) is not None}
        return dict.fromkeys(unset) | given if unset else values

    @field_validator(*ONE_OF_TWO)
    @classmethod
    def _one_of_two(cls, value: int | None, info: ValidationInfo) -> int | None:
        key = cast(str, info.field_name)
        other = ONE_OF_TWO[key]
        if other not in info.data:  # faulty, and told so
            return value
        if value is not None and info.data[other] is not None:
            raise _fault(f"expected {other} or {key}; found both", "remove one of the two")
        if value is None and info.data[other] is None:
            raise _fault(f"expected {other} or {key}; found neither", "set one of the two")
        return value

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the run: an epoch has ceil(rows / batch_size).

        >>> TrainSpec(epochs=3, batch_size=8).total_steps(100)
        39
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * math.ceil(rows / self.batch_size)

    def warm_up(self, steps: int) -> int:
        """Optimizer steps of the warm-up, out of `steps`: floor(ratio x steps), or as set.

        >>> TrainSpec(warmup_ratio=0.29).warm_up(100)  # 29, though 0.29 * 100 < 29 in floats
        29
        """
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.floor(Fraction(str(self.warmup_ratio)) * steps)


class Job(_Section):
    """One run, completely."""

    model: ModelSpec = Field(default=ModelSpec(), description="the model that is trained")
    data: DataSpec = Field(default=DataSpec(), description="what is learned")
    lora: LoraSpec = Field(default=LoraSpec(), description="the adapter")
    train: TrainSpec = Field(default=TrainSpec(), description="how it is trained")
    output: Text | None = Field(
        default=None,
        description="the run's folder, or null for runs/<model>-<date>-<n>",
        examples=["runs/my-run"],
    )

    def to_yaml(self) -> str:
        """The job with every value written out; `read_job` with preset `none` reads it back."""
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
    "--model": "model.name",
    "--data": "data.train",
    "--eval-data": "data.eval",
    "--epochs": "train.epochs",
    "--steps": "train.steps",
    "--batch-size": "train.batch_size",
    "--learning-rate": "train.learning_rate",
    "--lora-rank": "lora.rank",
    "--lora-alpha": "lora.alpha",
    "--lora-dropout": "lora.dropout",
    "--quantization": "model.quantization",
    "--max-length": "data.max_length",
    "--seed": "train.seed",
    "--output": "output",
}
"""The keys that have a flag, because they are changed most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A job whose every value is sound, before the preset has filled what the user left out."""

    job: Job
    """Before the preset."""
    preset: Choice
    layers: tuple[Layer, ...]
    """What the user set, the weakest source first."""

    @property
    def model(self) -> ModelSpec:
        """The model, which no preset changes."""
        return self.job.model

    def sets(self, key: str) -> bool:
        """Whether the user set this dotted key, in the file or on the command line."""
        return any(key in layer.settings for layer in self.layers)

    def where(self, key: str) -> str:
        """Where a dotted key is set, as `job.yaml:3: lora.rank`; the key itself where it is not."""
        found = [layer.settings[key].where for layer in self.layers if key in layer.settings]
        return found[-1] if found else key

    def complete(self, parameters: int) -> Job:
        """The job for a model with this many parameters."""
        preset = choose(self.preset, parameters)
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
    """Read what the user wrote.

    Args:
        path: the job file; None for a job of defaults.
        sets: `key=value`, as given to `--set`.
        flags: values by flag, the keys of `FLAG_KEYS`; None is a flag that was not given.
        preset: one of `presets.CHOICES`.

    Raises:
        JobError: every fault of the file, of `--set` and of the flags at once.
    """
    layers = [
        Layer() if path is None else file_layer(path, SCHEMA),
        set_layer(sets, SCHEMA),
        flag_layer(flags or {}, FLAG_KEYS),
    ]
    if preset not in CHOICES:
        *most, last = CHOICES
        problem = f"expected {', '.join(most)} or {last}; found {show(preset)}"
        hint = "auto chooses by the size of the model"
        layers[-1].fault(Order(FLAGS, len(FLAG_KEYS)), "--preset", problem, hint)
    job = _check(layers)
    return Draft(job=job, preset=cast(Choice, preset), layers=tuple(layers))


def _check(layers: Iterable[Layer]) -> Job:
    """The job that the layers make, the weakest first; every fault at once."""
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
    """The strongest setting of every key, and of two keys that say the same thing the stronger."""
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
        top, *rest = map(str, details["loc"])  # beyond the key: which of several types it was not
        by_key[f"{top}.{rest[0]}" if top in SECTIONS else top].append(details)
    for dotted, errors in by_key.items():
        section, _, key = dotted.rpartition(".")
        model = SECTIONS[section] if section else Job
        problem, hint = explain(key, model.model_fields[key], errors)
        # `steps` is at fault, too, where only `epochs: null` was written.
        setting = settings.get(dotted) or settings[f"{section}.{ONE_OF_TWO[key]}"]
        yield setting.order, Fault(setting.where, problem, hint)


def _sources(items: Sequence[object], model: type[EvalSource], hint: str) -> tuple[EvalSource, ...]:
    """The items of a list of sources: names, or mappings of what the model takes.

    Raises:
        PydanticCustomError: everything that is wrong with them, and how to mend the first.
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
                problem, mend = _explain_item(key, errors, model, hint)
                problems.append((f"item {position}: {problem}", mend))
    if problems:
        raise _fault("; ".join(problem for problem, _ in problems), problems[0][1])
    return tuple(sources)


def _explain_item(
    key: str, errors: Sequence[ErrorDetails], model: type[EvalSource], hint: str
) -> tuple[str, str]:
    """(problem, hint) for one key of an item."""
    match errors[0]["type"]:
        case "missing":
            return f"{key} is missing", hint
        case "extra_forbidden":
            return f"unknown key {show(key)}", hint
        case _:
            problem, mend = explain(key, model.model_fields[key], errors)
            return f"{key}: {problem}", mend


def _columns(columns: object, format: FormatName) -> object:
    """The columns, if the keys that they stand for are those of one format.

    Raises:
        PydanticCustomError: they are not.
    """
    hint = (
        "write {prompt: question, completion: answer}: the key, and the column that stands for it"
    )
    if columns is None:
        return None
    if not isinstance(columns, dict):
        raise _fault(f"expected a mapping or null; found {show(columns)}", hint)
    for key, column in columns.items():
        if not isinstance(column, str) or not column:
            raise _fault(f"{key}: expected the name of a column; found {show(column)}", hint)
    try:
        settle(columns, format)
    except DatasetError as error:
        [fault] = error.faults
        raise _fault(fault.problem, fault.hint or hint) from None
    return columns


def _each_once(
    names: Sequence[object], known: Sequence[str], what: str, hint: str
) -> tuple[object, ...]:
    """The items of a list, each of them known and given once.

    Args:
        names: as the user wrote them.
        known: what may stand there.
        what: one of these, in words.
        hint: the mend for an item that is none.

    Raises:
        PydanticCustomError: the first item that may not stand there.
    """
    for position, name in enumerate(names):
        if name not in known:
            raise _fault(f"expected {what} at item {position + 1}; found {show(name)}", hint)
        if name in names[:position]:
            raise _fault(f"{name} is given twice", "keep one of the two")
    return tuple(names)


def _fault(problem: str, hint: str) -> PydanticCustomError:
    """A rule of this file that a value breaks, for `explain` to hand on as it is."""
    return PydanticCustomError("job", "{problem}", {"problem": problem, "hint": hint})
