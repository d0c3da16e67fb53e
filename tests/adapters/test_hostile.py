"""Adapters that nobody should load: each is refused in one line, and nothing of it is run or read.

The header of a safetensors file is 8 bytes of length, and JSON with a type, a shape and a place for
each tensor.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_local.adapters.lora import Adapter, initial_arrays
from qwen_local.adapters.peft_layout import write_peft
from qwen_local.adapters.store import load_adapter
from qwen_local.errors import ModelError
from qwen_local.job.schema import LoraSpec
from qwen_local.models.families.family import Sizes
from qwen_local.models.families.qwen3 import QWEN3
from tests.conftest import Cli

ARCHITECTURE = QWEN3.architecture(
    Sizes(hidden=24, intermediate=40, heads=2, kv_heads=1, head_dim=16),
    layers=2,
    vocabulary=64,
    tied=True,
    rope_theta=1e4,
    positions=64,
)
LORA = LoraSpec(rank=2, dropout=0.0, targets=("q_proj",))
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
WEIGHTS = "adapter_model.safetensors"


def write_good(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    arrays = initial_arrays(ARCHITECTURE, LORA, seed=0)
    write_peft(Adapter("a/base", LORA, ARCHITECTURE.blocks, arrays), folder)
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_good(tmp_path / "adapter")


def refusal(folder: Path) -> str:
    """The first line of what is said; the rest is the mend."""
    with pytest.raises(ModelError) as refused:
        load_adapter(folder, ARCHITECTURE)
    for fault in refused.value.faults:
        assert "\n" not in f"{fault.where}: {fault.problem}"
    return "\n".join(f"{fault.where}: {fault.problem}" for fault in refused.value.faults)


Header = dict[str, Any]


def with_header(folder: Path, change: Callable[[Header], object]) -> None:
    """Write the weights again with a changed header."""
    content = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def renamed(name: str) -> Callable[[Header], object]:
    return lambda header: header.update({name: header.pop(NAME)})


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        NAME.replace("layers.0", "layers.00"),
        NAME.replace("layers.0", "layers.-1"),
        NAME.replace("layers.0", "layers.2"),
        NAME.replace("self_attn", "mlp"),
        NAME.replace("q_proj", "q_proj.default"),
        NAME.replace("q_proj", "__class__"),
        "lm_head.weight",
        "",
        "\x1b[31m",
    ],
)
def test_a_name_that_is_none_of_this_models_is_refused(name: str, good: Path) -> None:
    with_header(good, renamed(name))
    assert f"{good / WEIGHTS}: {name}: not an adapter matrix of this model" in refusal(good)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda h: h[NAME].update(data_offsets=[0, 10**12]), "not a readable safetensors file"),
        (lambda h: h[NAME].update(data_offsets=[8, 0]), "not a readable safetensors file"),
        (lambda h: h[NAME].update(data_offsets=[0, 0]), "not a readable safetensors file"),
        (lambda h: h[NAME].update(data_offsets=[-8, 8]), "not a readable safetensors file"),
        (lambda h: h[NAME].update(shape=[2**62, 2**62]), "not a readable safetensors file"),
        (lambda h: h[NAME].update(shape=[-1]), "not a readable safetensors file"),
        (lambda h: h[NAME].update(dtype="PICKLE"), "not a readable safetensors file"),
        (lambda h: h[NAME].update(dtype="I32"), "has type I32; expected floats"),
        (lambda h: h.pop(NAME), "not a readable safetensors file"),
        (lambda h: h.update({NAME: 5}), "not a readable safetensors file"),
    ],
)
def test_a_header_that_lies_is_refused(
    change: Callable[[Header], object], problem: str, good: Path
) -> None:
    with_header(good, change)
    assert problem in refusal(good)


def test_tensors_that_overlap_are_refused(good: Path) -> None:
    def onto_each_other(header: Header) -> None:
        other = NAME.replace("layers.0", "layers.1")
        header[other]["data_offsets"] = header[NAME]["data_offsets"]

    with_header(good, onto_each_other)
    assert "not a readable safetensors file" in refusal(good)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{",
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        b"\x80\x04\x95cos\nsystem\n",
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(content: bytes, good: Path) -> None:
    (good / WEIGHTS).write_bytes(content)
    assert refusal(good).startswith(f"{good / WEIGHTS}: not a readable safetensors file: ")


def test_a_file_cut_short_anywhere_is_refused(good: Path) -> None:
    content = (good / WEIGHTS).read_bytes()
    for length in {0, 4, 8, 9, 100, len(content) // 2, len(content) - 1}:
        (good / WEIGHTS).write_bytes(content[:length])
        assert refusal(good).startswith(f"{good / WEIGHTS}: not a readable safetensors file: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not readable as JSON"),
        ("[]", "expected an object; found list"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"r": 1e999}', "peft_type: field required"),
        (" " * 11_000_000, "more than 10,000,000 bytes"),
        ("\udcff", "not readable as JSON"),
    ],
)
def test_a_config_that_is_none_is_refused(content: str, problem: str, good: Path) -> None:
    (good / "adapter_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert problem in refusal(good)


@pytest.mark.parametrize("rank", [10**9, 0, -1, 2**64, "2", True, 2.0])
def test_a_rank_that_is_none_is_refused(rank: object, good: Path) -> None:
    config = json.loads((good / "adapter_config.json").read_text())
    (good / "adapter_config.json").write_text(json.dumps(config | {"r": rank}))
    assert f"{good / 'adapter_config.json'}: r: expected" in refusal(good)


def test_a_base_at_an_absolute_path_that_is_not_there_is_told(good: Path, cli: Cli) -> None:
    config = json.loads((good / "adapter_config.json").read_text())
    changed = config | {"base_model_name_or_path": "/../../nowhere/model"}
    (good / "adapter_config.json").write_text(json.dumps(changed))
    said = cli("generate", "--adapter", good, "--prompt", "x")
    assert said.code == 2
    assert said.err.count("\n") <= 3
    assert "Traceback" not in said.err


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_whatever_becomes_of_its_bytes_a_file_is_refused_or_read_as_floats(
    data: st.DataObject,
) -> None:
    """No other exception, and nothing but finite arrays of the right shapes."""
    with TemporaryDirectory() as place:
        good = write_good(Path(place) / "adapter")
        content = bytearray((good / WEIGHTS).read_bytes())
        header = 8 + struct.unpack("<Q", content[:8])[0]
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, header - 1))
            how = data.draw(st.sampled_from(["set", "cut", "put"]))
            byte = data.draw(st.integers(0, 255))
            if how == "set":
                content[at] = byte
            elif how == "cut":
                del content[at : at + data.draw(st.integers(1, 9))]
            else:
                content[at:at] = bytes([byte]) * data.draw(st.integers(1, 9))
        (good / WEIGHTS).write_bytes(content)
        try:
            adapter = load_adapter(good, ARCHITECTURE)
        except ModelError:
            return
        assert adapter.arrays.keys() == initial_arrays(ARCHITECTURE, LORA, seed=0).keys()
        assert all(np.isfinite(array).all() for array in adapter.arrays.values())


CONFIG_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_dropout", "bias"),
    *("target_modules", "layers_to_transform", "init_lora_weights", "auto_mapping"),
    *("rank_pattern", "exclude_modules", "base_model_name_or_path", "modules_to_save"),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), CONFIG_VALUES, min_size=1))
def test_whatever_a_config_says_it_is_refused_or_taken(values: Header) -> None:
    with TemporaryDirectory() as place:
        good = write_good(Path(place) / "adapter")
        config = json.loads((good / "adapter_config.json").read_text())
        (good / "adapter_config.json").write_text(json.dumps(config | values))
        try:
            load_adapter(good, ARCHITECTURE)
        except ModelError:
            return
