"""The settings of an adapter that another tool wrote: what we can hold, and refusal of the rest.

The keys are those of PEFT's `LoraConfig` and of mlx-lm's `tuner/utils.py:load_adapters`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from qwen_local.adapters.lora import Origin
from qwen_local.errors import Fault, ModelError
from qwen_local.job import LoraSpec, Quantization
from qwen_local.models.architecture import LINEARS, block_path

PATHS = {block_path(name): name for name in LINEARS}

NOT_HELD = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "exclude_modules",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
)
"""Keys of PEFT that change the result and have no counterpart here."""


def _linear(name: str) -> str:
    if name not in LINEARS:
        raise ValueError(f"expected one of {', '.join(LINEARS)}")
    return name


def _path(name: str) -> str:
    if name not in PATHS:
        raise ValueError(f"expected one of {', '.join(PATHS)}")
    return name


Rank = Annotated[int, Field(ge=1, le=1024)]
Multiplier = Annotated[float, Field(gt=0, le=1e6)]
Dropout = Annotated[float, Field(ge=0, lt=1)] | None


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Peft(_Config):
    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Multiplier
    use_rslora: bool = False
    lora_dropout: Dropout = None
    bias: Literal["none"] = "none"
    target_modules: Annotated[list[Annotated[str, AfterValidator(_linear)]], Field(min_length=1)]
    layers_to_transform: int | list[int] | None = None


class _MlxParameters(_Config):
    rank: Rank
    scale: Multiplier
    dropout: Dropout = None
    # mlx-lm: no keys means every linear layer.
    keys: Annotated[list[Annotated[str, AfterValidator(_path)]], Field(min_length=1)] = list(PATHS)


class _Mlx(_Config):
    fine_tune_type: Literal["lora"]
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


def lora_of_peft(config: dict[str, Any], layers: int, where: str) -> LoraSpec:
    """The settings of PEFT's `adapter_config.json`.

    Args:
        config: its content.
        layers: blocks of the base model.
        where: how messages name the file.

    Raises:
        ModelError: a setting is missing, malformed, or not one that we can hold.
    """
    faults = [
        Fault(f"{where}: {key}", "this adapter cannot be loaded with it set")
        for key in NOT_HELD
        if config.get(key)
    ]
    read = _read(_Peft, config, where, faults)
    given = read.layers_to_transform
    chosen = sorted({given} if isinstance(given, int) else given or range(layers))
    if chosen != list(range(layers - len(chosen), layers)):
        problem = f"expected the last blocks of {layers}; found {given}"
        raise ModelError.at(f"{where}: layers_to_transform", problem)
    return LoraSpec(
        rank=read.r,
        alpha=read.lora_alpha,
        dropout=read.lora_dropout or 0.0,
        targets=tuple(name for name in LINEARS if name in read.target_modules),
        layers=len(chosen) if len(chosen) < layers else "all",
        rslora=read.use_rslora,
    )


def lora_of_mlx(config: dict[str, Any], layers: int, where: str) -> LoraSpec:
    """The settings of mlx-lm's `adapter_config.json`; arguments and errors as above."""
    read = _read(_Mlx, config, where, [])
    parameters = read.lora_parameters
    count = read.num_layers  # mlx-lm: 0 and -1 mean all
    return LoraSpec(
        rank=parameters.rank,
        alpha=parameters.scale * parameters.rank,
        dropout=parameters.dropout or 0.0,
        targets=tuple(name for path, name in PATHS.items() if path in parameters.keys),
        layers=count if 0 < count < layers else "all",
    )


def read_origin(config: dict[str, Any], where: str) -> Origin:
    """The content of the `qwen_local.json` beside an adapter; arguments and errors as above."""
    return Origin(**_read(_Origin, config, where, []).model_dump())


def _read(kind: type[Config], config: dict[str, Any], where: str, faults: list[Fault]) -> Config:
    try:
        read = kind.model_validate(config)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            key = ".".join(map(str, found["loc"]))
            problem = found["msg"].removeprefix("Value error, ")
            problem = problem.replace("Input should be", "expected")
            problem = problem[0].lower() + problem[1:]
            seen = "" if found["type"] == "missing" else f"; found {found['input']!r:.80}"
            faults.append(Fault(f"{where}: {key}", f"{problem}{seen}"))
        raise ModelError(faults) from None
    if faults:
        raise ModelError(faults)
    return read
