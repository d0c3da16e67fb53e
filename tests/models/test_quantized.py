"""Codes that do not stand for their layer's weights are refused before an engine reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen_local.embedded import tiny_model_path
from qwen_local.errors import ModelError
from tests.models.quantized_folders import (
    SCHEMES,
    by_bitsandbytes,
    by_mlx,
    change_config,
    checked,
)

LAYER = "model.layers.1.mlp.up_proj"
"""512 x 192 weights: 1,536 blocks of 64, and 6 of 256 above."""
WEIGHT = f"{LAYER}.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"
AGAIN = "download or copy the model again"
UNQUANTIZED = "use the unquantized model, for example Qwen/Qwen3-0.6B, with model.quantization=4bit"

Tensors = dict[str, Tensor]
Change = Callable[[Tensors], Mapping[str, Tensor | None]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One for each scheme."""
    root = tmp_path_factory.mktemp("quantized")
    made = {scheme: by_bitsandbytes(root / scheme, scheme) for scheme in SCHEMES}
    return made | {"affine": by_mlx(root / "affine")}


@pytest.fixture
def copy(folders: Mapping[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """(scheme) -> a folder that a test may damage."""
    return lambda scheme: shutil.copytree(folders[scheme], tmp_path / "m")


def damage(folder: Path, change: Change) -> None:
    """Set tensors of a folder; None removes one."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    changed: Mapping[str, Tensor | None] = {**tensors, **change(tensors)}
    kept = {key: tensor.contiguous() for key, tensor in changed.items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})


def refusal(folder: Path) -> list[str]:
    with pytest.raises(ModelError) as raised:
        checked(folder)
    return [str(fault).replace(f"{folder}: ", "") for fault in raised.value.faults]


def encoded(content: object) -> Tensor:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return torch.tensor(list(text), dtype=torch.uint8)


def with_state(**changes: object) -> Change:
    """Another state; None removes a key."""

    def change(tensors: Tensors) -> Tensors:
        state = json.loads(bytes(tensors[STATE].tolist())) | changes
        return {STATE: encoded({k: v for k, v in state.items() if v is not None})}

    return change


def found(name: str, problem: str) -> str:
    return f"model.safetensors: {name}: {problem}\n\nhint: {AGAIN}"


def missing(name: str) -> str:
    return f"{name}: missing from the weights\n\nhint: {AGAIN}"


def unknown(name: str) -> str:
    return found(name, "not a tensor of a qwen3 model")


def test_what_the_libraries_write_is_taken(folders: Mapping[str, Path]) -> None:
    schemes = {name: checked(folder).architecture.stored for name, folder in folders.items()}
    assert {name: stored and (stored.scheme, stored.bits) for name, stored in schemes.items()} == {
        "nested": ("nf4", 4),
        "nf4": ("nf4", 4),
        "int8": ("int8", 8),
        "affine": ("affine", 4),
    }


NESTING = '["nested_blocksize", "nested_dtype", "nested_offset"]'


@pytest.mark.parametrize(
    "name",
    [
        STATE,
        *(f"{WEIGHT}.{part}" for part in ("quant_map", "nested_absmax", "nested_quant_map")),
    ],
)
def test_every_part_of_nf4_codes_is_needed(copy: Callable[[str], Path], name: str) -> None:
    folder = copy("nested")
    damage(folder, lambda _: {name: None})
    assert refusal(folder) == [missing(name)]


@pytest.mark.parametrize(
    ("scheme", "change", "expected"),
    [
        ("nf4", lambda _: {f"{WEIGHT}.absmax": None}, [missing(f"{WEIGHT}.absmax")]),
        (
            "nested",
            lambda _: {f"{WEIGHT}.absmax": None},
            [
                missing(f"{WEIGHT}.absmax"),
                unknown(f"{WEIGHT}.nested_absmax"),
                unknown(f"{WEIGHT}.nested_quant_map"),
                found(STATE, f"expected nothing more; found {NESTING}"),
            ],
        ),
        (
            "nf4",
            lambda t: {f"{WEIGHT}.absmax": t[f"{WEIGHT}.absmax"][:-1]},
            [found(f"{WEIGHT}.absmax", "expected shape (1536,); found (1535,)")],
        ),
        (
            "nf4",
            lambda t: {f"{WEIGHT}.absmax": t[f"{WEIGHT}.absmax"].half()},
            [found(f"{WEIGHT}.absmax", "expected F32 or U8; found F16")],
        ),
        (
            "nf4",
            lambda t: {f"{WEIGHT}.absmax": t[f"{WEIGHT}.absmax"].to(torch.uint8)},
            [
                missing(f"{WEIGHT}.nested_absmax"),
                missing(f"{WEIGHT}.nested_quant_map"),
                found(f"{STATE}: nested_blocksize", "expected 256; found nothing"),
                found(f"{STATE}: nested_dtype", 'expected "float32"; found nothing'),
                found(f"{STATE}: nested_offset", "expected a finite number; found nothing"),
            ],
        ),
        (
            "nested",
            lambda t: {f"{WEIGHT}.absmax": t[f"{WEIGHT}.absmax"].float()},
            [
                unknown(f"{WEIGHT}.nested_absmax"),
                unknown(f"{WEIGHT}.nested_quant_map"),
                found(STATE, f"expected nothing more; found {NESTING}"),
            ],
        ),
        (
            "nested",
            lambda t: {
                f"{WEIGHT}.nested_absmax": t[f"{WEIGHT}.nested_absmax"][:5],
                f"{WEIGHT}.nested_quant_map": t[f"{WEIGHT}.nested_quant_map"][:16],
                f"{WEIGHT}.quant_map": t[f"{WEIGHT}.quant_map"].double(),
            },
            [
                found(f"{WEIGHT}.nested_absmax", "expected shape (6,); found (5,)"),
                found(f"{WEIGHT}.nested_quant_map", "expected shape (256,); found (16,)"),
                found(f"{WEIGHT}.quant_map", "expected F32; found F64"),
            ],
        ),
        (
            "nf4",
            lambda t: {WEIGHT: t[WEIGHT].reshape(512, 96)},
            [found(WEIGHT, "expected shape (49152, 1); found (512, 96)")],
        ),
        (
            "int8",
            lambda t: {
                f"{LAYER}.SCB": t[f"{LAYER}.SCB"][:192],
                f"{LAYER}.weight_format": torch.tensor(2, dtype=torch.uint8),
            },
            [
                found(f"{LAYER}.SCB", "expected shape (512,); found (192,)"),
                found(f"{LAYER}.weight_format", "expected [0]; found [2]"),
            ],
        ),
        ("int8", lambda _: {f"{LAYER}.SCB": None}, [missing(f"{LAYER}.SCB")]),
        (
            "affine",
            lambda t: {f"{LAYER}.scales": None, f"{LAYER}.biases": t[f"{LAYER}.biases"][:, :2]},
            [
                found(f"{LAYER}.biases", "expected shape (512, 3); found (512, 2)"),
                missing(f"{LAYER}.scales"),
            ],
        ),
    ],
)
def test_parts_of_another_type_or_shape_are_named(
    copy: Callable[[str], Path], scheme: str, change: Change, expected: list[str]
) -> None:
    folder = copy(scheme)
    damage(folder, change)
    assert refusal(folder) == expected


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        ({"shape": [192, 512]}, "shape", "expected [512, 192]; found [192, 512]"),
        ({"shape": None}, "shape", "expected [512, 192]; found nothing"),
        ({"quant_type": "fp4"}, "quant_type", 'expected "nf4"; found "fp4"'),
        ({"blocksize": 128}, "blocksize", "expected 64; found 128"),
        ({"blocksize": 64.0}, "blocksize", "expected 64; found 64.0"),
        ({"dtype": "int4"}, "dtype", 'expected "bfloat16" or "float16" or "float32"; found "int4"'),
        ({"nested_blocksize": 64}, "nested_blocksize", "expected 256; found 64"),
        ({"nested_dtype": "cuda"}, "nested_dtype", 'expected "float32"; found "cuda"'),
        (
            {"nested_offset": float("nan")},
            "nested_offset",
            "expected a finite number; found NaN",
        ),
        ({"nested_offset": 1e300}, "nested_offset", "expected a finite number; found 1e+300"),
        ({"nested_offset": "0"}, "nested_offset", 'expected a finite number; found "0"'),
    ],
)
def test_a_state_that_tells_of_other_codes_is_refused(
    copy: Callable[[str], Path], changes: dict[str, Any], key: str, problem: str
) -> None:
    folder = copy("nested")
    damage(folder, with_state(**changes))
    assert refusal(folder) == [found(f"{STATE}: {key}", problem)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (encoded(b""), "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        (
            encoded(b"\xff\xfe"),
            "not valid JSON: 'utf-8' codec can't decode byte 0xff in position 0: "
            "invalid start byte",
        ),
        (encoded(b"[64]"), "expected a JSON object; found [64]"),
        (encoded(b" " * 1_001), "expected at most 1,000 bytes; found 1,001"),
        (torch.zeros(80), "expected U8; found F32"),
    ],
)
def test_a_state_that_cannot_be_read_is_one_fault(
    copy: Callable[[str], Path], content: Tensor, problem: str
) -> None:
    folder = copy("nf4")
    damage(folder, lambda _: {STATE: content})
    assert refusal(folder) == [found(STATE, problem)]


def test_a_state_may_not_hold_what_stands_beside_it(copy: Callable[[str], Path]) -> None:
    """bitsandbytes would take it for the scales."""
    folder = copy("nf4")
    damage(folder, with_state(absmax=[1.0], more="x"))
    assert refusal(folder) == [found(STATE, 'expected nothing more; found ["absmax", "more"]')]


@pytest.mark.parametrize("scheme", ["nf4", "int8", "affine"])
def test_a_config_that_speaks_of_codes_where_files_hold_floats_is_refused(
    copy: Callable[[str], Path], scheme: str
) -> None:
    folder = copy(scheme)
    shutil.copy(tiny_model_path() / "model.safetensors", folder)
    assert refusal(folder) == [
        "config.json: describes quantized layers, but the files hold floats\n\n"
        "hint: remove quantization and quantization_config from a copy of the model"
    ]
    change_config(folder, quantization=None, quantization_config=None)
    checked(folder)


@pytest.mark.parametrize("scheme", ["nested", "nf4", "int8"])
def test_a_head_in_codes_of_bitsandbytes_is_refused_in_one_line(
    tmp_path: Path, scheme: str
) -> None:
    folder = by_bitsandbytes(tmp_path / "m", scheme, tied=False, llm_int8_skip_modules=["q_proj"])
    assert refusal(folder) == [
        "model.safetensors: lm_head.weight: the head is quantized, which is supported for MLX "
        "folders only"
        f"\n\nhint: {UNQUANTIZED}"
    ]


@pytest.mark.parametrize("scheme", ["nested", "int8"])
def test_an_embedding_in_codes_of_bitsandbytes_is_refused_in_one_line(
    copy: Callable[[str], Path], scheme: str
) -> None:
    folder, embedding = copy(scheme), "model.embed_tokens"

    def as_the_layer(tensors: Tensors) -> Mapping[str, Tensor]:
        parts = {key: value for key, value in tensors.items() if key.startswith(f"{LAYER}.")}
        return {key.replace(LAYER, embedding): value.clone() for key, value in parts.items()}

    damage(folder, as_the_layer)
    assert refusal(folder) == [
        f"model.safetensors: {embedding}.weight: the embedding is quantized, which is "
        f"supported for MLX folders only\n\nhint: {UNQUANTIZED}"
    ]


def test_rows_that_are_no_whole_groups_are_never_codes_of_mlx(copy: Callable[[str], Path]) -> None:
    folder = copy("affine")
    change_config(folder, quantization={"group_size": 128, "bits": 4}, quantization_config=None)
    assert found(WEIGHT, "expected BF16 or F16 or F32; found U32") in refusal(folder)
