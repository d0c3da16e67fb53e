"""Reading `adapter_config.json` of other tools: supported settings, and refusal of the rest.

The keys are those of PEFT's `LoraConfig` and of mlx-lm's `tuner/utils.py:load_adapters`.
LLaMA-Factory, TRL, Axolotl and Unsloth write PEFT's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen_local.adapters.lora import Origin, all_places, target_names
from qwen_local.errors import Fault, ModelError
from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.architecture import Block, Place, block_prefix, linear_paths

log = logging.getLogger("qwen_local")

Blocks = tuple[Block, ...]

UNSUPPORTED = (
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
"""Keys of PEFT that change the result and are not supported."""
WITHOUT_EFFECT = (
    "auto_mapping",  # refused below if it names anything but transformers
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",  # the arrays show which layers were excluded
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
"""Keys of PEFT that do not matter when an adapter is applied."""
PLAIN_INITIALIZATIONS = ("gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that do not change the base model or its computation."""
MERGE = "merge it where it was made (merge_and_unload) and use the merged model"
OWN_BASE = (
    "where it was made, save it with path_initial_model_for_weight_conversion, which makes a plain "
    "LoRA of most kinds, or merge it"
)


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
    keys: Names | None = None


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
    """Content of an `adapter_config.json`, whichever tool wrote it."""

    rank: int
    alpha: float
    rslora: bool = False
    dropout: float
    dora: bool
    places: frozenset[Place] | None
    """The layers that it lists; None if only the arrays show them (a pattern, or no list)."""
    all_required: bool
    """True if each of them must have arrays; mlx-lm starts those without at zero."""

    def lora(self, places: tuple[Place, ...], blocks: Blocks) -> LoraSpec:
        """Return the settings for an engine.

        Args:
            places: linear layers that have arrays, at least one.
            blocks: of the base model.
        """
        lowest = min(block for block, _ in places)
        return LoraSpec(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=target_names(places, blocks),
            layers=len(blocks) - lowest if lowest else "all",
            rslora=self.rslora,
        )


def settings_of_peft(config: Mapping[str, Any], blocks: Blocks, where: str) -> Settings:
    """Read PEFT's `adapter_config.json`.

    A regular expression in `target_modules` is not run: the arrays show what it matched.

    Args:
        config: its content.
        blocks: of the base model.
        where: name of the file in messages.

    Raises:
        ModelError: settings are missing, malformed or unsupported; all faults together.
    """
    faults = [
        Fault(f"{where}: {key}", "not supported: the adapter cannot be loaded", MERGE)
        for key in UNSUPPORTED
        if config.get(key)
    ]
    faults += _code_faults(config.get("auto_mapping"), where)
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization not in PLAIN_INITIALIZATIONS:
        problem = f"{initialization!r} changes the base model or its computation: not a plain LoRA"
        faults.append(Fault(f"{where}: init_lora_weights", problem, OWN_BASE))
    faults += _target_faults(config.get("target_modules"), blocks, where)
    read = _read(_Peft, config, where, faults)
    known = (*UNSUPPORTED, *WITHOUT_EFFECT, *_Peft.model_fields)
    for key in sorted(key for key, value in config.items() if value and key not in known):
        log.warning("%s: %s: unknown setting; ignored, though it may change answers", where, key)
    return Settings(
        rank=read.r,
        alpha=read.lora_alpha,
        rslora=read.use_rslora,
        dropout=read.lora_dropout or 0.0,
        dora=read.use_dora,
        places=_peft_places(read, config, blocks, where),
        all_required=True,
    )


def _code_faults(mapping: object, where: str) -> list[Fault]:
    """Check `auto_mapping`: a class and its module. Unsloth writes the model's own class."""
    if not mapping:
        return []
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if isinstance(library, str) and library.startswith("transformers.models.qwen"):
        return []
    problem = f"names code to import: {str(mapping)[:60]}"
    return [Fault(f"{where}: auto_mapping", problem, "remove it from a copy of the adapter")]


def _target_faults(given: object, blocks: Blocks, where: str) -> list[Fault]:
    """List target modules that no block has."""
    names = given if isinstance(given, list) else []
    known = linear_paths(blocks)
    return [
        Fault(
            f"{where}: target_modules.{number}",
            f"expected one of {', '.join(known)}; found {name!r:.80}",
            MERGE,
        )
        for number, name in enumerate(names)
        if isinstance(name, str) and name.rpartition(".")[2] not in known
    ]


def _peft_places(
    read: _Peft, config: Mapping[str, Any], blocks: Blocks, where: str
) -> frozenset[Place] | None:
    """Return the linear layers that `target_modules` lists, as PEFT reads it: ends of paths."""
    given = read.layers_to_transform
    numbers = [given] if isinstance(given, int) else given or list(range(len(blocks)))
    if not set(numbers) <= set(range(len(blocks))):
        problem = f"expected some of the {len(blocks)} blocks, counted from 0; found {given}"
        raise ModelError.at(f"{where}: layers_to_transform", problem)
    names = read.target_modules
    if config.get("exclude_modules") or (isinstance(names, str) and names != "all-linear"):
        return None
    places = [(number, path) for number, path in all_places(blocks) if number in numbers]
    if isinstance(names, str):
        return frozenset(places)
    return frozenset(
        (number, path)
        for number, path in places
        if any(f".{block_prefix(number)}{path}".endswith(f".{name}") for name in names)
    )


def settings_of_mlx(config: Mapping[str, Any], blocks: Blocks, where: str) -> Settings:
    """Read mlx-lm's `adapter_config.json`; arguments and errors as above."""
    paths = list(linear_paths(blocks).values())
    read = _read(_Mlx, config, where, _key_faults(config, paths, where))
    parameters = read.lora_parameters
    total = len(blocks)
    count = read.num_layers if 0 < read.num_layers < total else total  # mlx-lm: 0, -1: all
    places = None
    if parameters.keys is not None:  # in files of older versions, no keys means q and v
        places = frozenset(
            (number, path)
            for number, path in all_places(blocks)
            if number >= total - count and path in parameters.keys
        )
    return Settings(
        rank=parameters.rank,
        alpha=alpha_of(parameters.scale, parameters.rank),
        dropout=parameters.dropout or 0.0,
        dora=read.fine_tune_type == "dora",
        places=places,
        all_required=False,
    )


def _key_faults(config: Mapping[str, Any], paths: list[str], where: str) -> list[Fault]:
    """List `keys` that no block has."""
    parameters = config.get("lora_parameters")
    keys = parameters.get("keys") if isinstance(parameters, dict) else None
    return [
        Fault(
            f"{where}: lora_parameters.keys.{number}",
            f"expected one of {', '.join(paths)}; found {key!r:.80}",
        )
        for number, key in enumerate(keys if isinstance(keys, list) else [])
        if isinstance(key, str) and key not in paths
    ]


def alpha_of(scale: float, rank: int) -> float:
    """Return the alpha with alpha / rank == scale, exact to the last bit if there is one.

    >>> alpha_of(0.1 / 49, 49)
    0.1
    """
    product = scale * rank
    neighbors = (math.nextafter(product, toward) for toward in (0.0, math.inf))
    candidates = (float(f"{product:.12g}"), product, *neighbors)
    return next((alpha for alpha in candidates if alpha / rank == scale), product)


def read_origin(config: dict[str, Any], where: str) -> Origin:
    """Read the `qwen_local.json` beside an adapter; arguments and errors as above."""
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
