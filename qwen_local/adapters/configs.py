"""The settings of an adapter that another tool wrote: what we can hold, and refusal of the rest.

The keys are those of PEFT's `LoraConfig` and of mlx-lm's `tuner/utils.py:load_adapters`.
LLaMA-Factory, TRL, Axolotl and Unsloth write PEFT's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from qwen_local.adapters.lora import Origin, Place
from qwen_local.errors import Fault, ModelError
from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.architecture import LINEARS, block_path

log = logging.getLogger("qwen_local")

PATHS = {block_path(name): name for name in LINEARS}

NOT_HELD = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""Keys of PEFT that change the result and have no counterpart here."""
WITHOUT_EFFECT = (
    "auto_mapping",  # refused below where it names anything but transformers
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",  # the arrays say what was left out
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
)
"""Keys of PEFT that are nothing to one who applies the adapter."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base, and how it is computed, as they are."""
MERGE = "merge it where it was made (merge_and_unload) and take the merged model"
OWN_BASE = (
    "where it was made, save it with path_initial_model_for_weight_conversion, which makes a plain "
    "LoRA of most kinds, or merge it"
)


def _path(name: str) -> str:
    if name not in PATHS:
        raise ValueError(f"expected one of {', '.join(PATHS)}")
    return name


Rank = Annotated[int, Field(ge=1, le=1024)]
Multiplier = Annotated[float, Field(gt=0, le=1e6)]
Dropout = Annotated[float, Field(ge=0, lt=1)] | None
Names = Annotated[list[str], Field(min_length=1)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Peft(_Config):
    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Multiplier
    use_rslora: bool = False
    use_dora: bool = False
    lora_dropout: Dropout = None
    bias: Literal["none"] = "none"
    target_modules: str | Names
    layers_to_transform: int | list[int] | None = None
    init_lora_weights: bool | str | None = None


class _MlxParameters(_Config):
    rank: Rank
    scale: Multiplier
    dropout: Dropout = None
    keys: Annotated[list[Annotated[str, AfterValidator(_path)]], Field(min_length=1)] | None = None


class _Mlx(_Config):
    fine_tune_type: Literal["lora", "dora"] = "lora"
    num_layers: int
    lora_parameters: _MlxParameters


class _Origin(_Config):
    commit: str | None = None
    backend: Literal["mlx", "cuda"] | None = None
    quantization: Quantization = "none"
    template_sha256: str | None = None
    thinking: Literal["auto", "keep", "drop", "empty"] = "auto"
    enable_thinking: bool | None = None
    max_length: int | None = Field(default=None, ge=1)


Config = TypeVar("Config", bound=_Config)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What an `adapter_config.json` says, whichever tool wrote it."""

    rank: int
    alpha: float
    rslora: bool = False
    dropout: float
    dora: bool
    places: frozenset[Place] | None
    """The linear layers that it names; None where only the arrays tell (a pattern, or nothing)."""
    all_there: bool
    """Whether each of them must have its arrays: mlx-lm begins those that have none at zero."""

    def lora(self, places: tuple[Place, ...], layers: int) -> LoraSpec:
        """The same as an engine is told it, for arrays of these linear layers.

        Args:
            places: at least one.
            layers: blocks of the base model.
        """
        lowest = min(layer for layer, _ in places)
        return LoraSpec(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=tuple(name for name in LINEARS if any(name == t for _, t in places)),
            layers=layers - lowest if lowest else "all",
            rslora=self.rslora,
        )


def settings_of_peft(config: Mapping[str, Any], layers: int, where: str) -> Settings:
    """The settings of PEFT's `adapter_config.json`.

    A regular expression in `target_modules` is not run: the arrays tell what it found.

    Args:
        config: its content.
        layers: blocks of the base model.
        where: how messages name the file.

    Raises:
        ModelError: a setting is missing, malformed, or not one that we can hold; all at once.
    """
    faults = [
        Fault(f"{where}: {key}", "this adapter cannot be loaded with it set", MERGE)
        for key in NOT_HELD
        if config.get(key)
    ]
    faults += _code_named(config.get("auto_mapping"), where)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start not in PLAIN_STARTS:
        problem = f"{start!r} changes the base, or how it is computed: this is no plain LoRA"
        faults.append(Fault(f"{where}: init_lora_weights", problem, OWN_BASE))
    faults += _unknown_targets(config.get("target_modules"), where)
    read = _read(_Peft, config, where, faults)
    known = (*NOT_HELD, *WITHOUT_EFFECT, *_Peft.model_fields)
    for key in sorted(key for key, value in config.items() if value and key not in known):
        log.warning("%s: %s: not known here; should it matter, answers will differ", where, key)
    return Settings(
        rank=read.r,
        alpha=read.lora_alpha,
        rslora=read.use_rslora,
        dropout=read.lora_dropout or 0.0,
        dora=read.use_dora,
        places=_peft_places(read, config, layers, where),
        all_there=True,
    )


def _code_named(mapping: object, where: str) -> list[Fault]:
    """`auto_mapping` names a class and where to import it from; Unsloth writes the model's own."""
    if not mapping:
        return []
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if isinstance(library, str) and library.startswith("transformers.models.qwen"):
        return []
    problem = f"names code to import: {str(mapping)[:60]}"
    return [Fault(f"{where}: auto_mapping", problem, "remove it from a copy of the adapter")]


def _unknown_targets(given: object, where: str) -> list[Fault]:
    """Which of a list of target modules are no linear layers of a block."""
    names = given if isinstance(given, list) else []
    return [
        Fault(
            f"{where}: target_modules.{number}",
            f"expected one of {', '.join(LINEARS)}; found {name!r:.80}",
            MERGE,
        )
        for number, name in enumerate(names)
        if isinstance(name, str) and name.rpartition(".")[2] not in LINEARS
    ]


def _peft_places(
    read: _Peft, config: Mapping[str, Any], layers: int, where: str
) -> frozenset[Place] | None:
    """The linear layers that `target_modules` names, as PEFT reads it: ends of their paths."""
    given = read.layers_to_transform
    blocks = [given] if isinstance(given, int) else given or list(range(layers))
    if not set(blocks) <= set(range(layers)):
        problem = f"expected some of the {layers} blocks, counted from 0; found {given}"
        raise ModelError.at(f"{where}: layers_to_transform", problem)
    names = list(LINEARS) if read.target_modules == "all-linear" else read.target_modules
    if isinstance(names, str) or config.get("exclude_modules"):
        return None
    return frozenset(
        (layer, target)
        for layer in blocks
        for path, target in PATHS.items()
        if any(f".model.layers.{layer}.{path}".endswith(f".{name}") for name in names)
    )


def settings_of_mlx(config: Mapping[str, Any], layers: int, where: str) -> Settings:
    """The settings of mlx-lm's `adapter_config.json`; arguments and errors as above."""
    read = _read(_Mlx, config, where, [])
    parameters = read.lora_parameters
    count = read.num_layers if 0 < read.num_layers < layers else layers  # mlx-lm: 0, -1: all
    places = None
    if parameters.keys is not None:  # before it wrote them, no keys meant q and v
        names = [PATHS[key] for key in parameters.keys]
        places = frozenset((n, name) for n in range(layers - count, layers) for name in names)
    return Settings(
        rank=parameters.rank,
        alpha=alpha_of(parameters.scale, parameters.rank),
        dropout=parameters.dropout or 0.0,
        dora=read.fine_tune_type == "dora",
        places=places,
        all_there=False,
    )


def alpha_of(scale: float, rank: int) -> float:
    """The alpha whose quotient by the rank is this scale, to the last bit where there is one.

    >>> alpha_of(0.1 / 49, 49)
    0.1
    """
    product = scale * rank
    near = (math.nextafter(product, toward) for toward in (0.0, math.inf))
    some = (float(f"{product:.12g}"), product, *near)
    return next((alpha for alpha in some if alpha / rank == scale), product)


def read_origin(config: dict[str, Any], where: str) -> Origin:
    """The content of the `qwen_local.json` beside an adapter; arguments and errors as above."""
    return Origin(**_read(_Origin, config, where, []).model_dump())


def _read(kind: type[Config], config: Mapping[str, Any], where: str, faults: list[Fault]) -> Config:
    try:
        read = kind.model_validate(config)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            key = ".".join(map(str, found["loc"]))
            problem = found["msg"].removeprefix("Value error, ")
            problem = problem.replace("Input should be", "expected")
            problem = problem[0].lower() + problem[1:]
            seen = "" if found["type"] == "missing" else f"; found {found['input']!r:.80}"
            hint = MERGE if key in ("bias", "peft_type", "fine_tune_type") else None
            faults.append(Fault(f"{where}: {key}", f"{problem}{seen}", hint))
        raise ModelError(faults) from None
    if faults:
        raise ModelError(faults)
    return read
