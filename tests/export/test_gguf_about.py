"""The names of GGUF files, by the rule of the format, and what files say of their models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.export.gguf_about import About, file_name, labels
from qwen_local.export.gguf_encoding import TYPES, Encoding
from qwen_local.models.source import ModelSource

RULE = re.compile(
    r"^(?:(?P<Sidecar>mmproj|mtp)-)?"
    r"(?P<BaseName>[A-Za-z0-9\s]*(?:(?:-(?:(?:[A-Za-z\s][A-Za-z0-9\s]*)|(?:[0-9\s]*)))*))-"
    r"(?:(?P<SizeLabel>(?:\d+x)?(?:\d+\.)?\d+[A-Za-z](?:-[A-Za-z]+(\d+\.)?\d+[A-Za-z]+)?)"
    r"(?:-(?P<FineTune>[A-Za-z0-9\s-]+))?)?-(?:(?P<Version>v\d+(?:\.\d+)*))"
    r"(?:-(?P<Encoding>(?!LoRA|vocab)[\w_]+))?(?:-(?P<Type>LoRA|vocab))?"
    r"(?:-(?P<Shard>\d{5}-of-\d{5}))?\.gguf$"
)
"""From docs/gguf.md of ggml, "Validating Above Naming Convention"."""


def hub(name: str) -> ModelSource:
    return ModelSource(kind="hub", name=name, folder=None, revision=None)


def folder(path: str) -> ModelSource:
    return ModelSource(kind="folder", name=path, folder=Path(path), revision=None)


@pytest.mark.parametrize(
    ("base", "parameters", "expected"),
    [
        (hub("Qwen/Qwen3-0.6B"), 596_049_920, "Qwen3-0.6B-my-run-v1.0-F16.gguf"),
        (
            hub("Qwen/Qwen2.5-Coder-1.5B-Instruct"),
            1_543_714_304,
            "Qwen2-5-Coder-1.5B-Instruct-my-run-v1.0-F16.gguf",
        ),
        (
            hub("Qwen/Qwen3-4B-Instruct-2507"),
            4_022_468_096,
            "Qwen3-4B-Instruct-2507-my-run-v1.0-F16.gguf",
        ),
        (folder("/somewhere/own model"), 2_164_928, "own-model-2.2M-my-run-v1.0-F16.gguf"),
        (folder("/somewhere/北京"), 2_164_928, "model-2.2M-my-run-v1.0-F16.gguf"),
    ],
)
def test_a_file_is_named_after_base_size_and_run(
    base: ModelSource, parameters: int, expected: str
) -> None:
    name = file_name(labels(About(base=base, title="my run"), parameters), "f16")
    assert name == expected
    assert RULE.match(name)


@given(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1),
    st.text(max_size=200),
    st.integers(1, 10**12),
    st.sampled_from(list(TYPES)),
    st.booleans(),
)
def test_every_name_keeps_to_the_rule_of_the_format(
    base: str, title: str, parameters: int, encoding: Encoding, lora: bool
) -> None:
    about = About(base=hub(f"somebody/{base}"), title=title)
    name = file_name(labels(about, parameters), encoding, lora=lora)
    match = RULE.match(name)
    assert match is not None, name
    assert (match["Encoding"], match["Type"]) == (encoding.upper(), "LoRA" if lora else None)
    assert match["Version"] == "v1.0"
    assert len(name) <= 255


def test_a_bare_base_has_no_title_in_its_name() -> None:
    said = labels(About(base=hub("Qwen/Qwen3-0.6B")), 596_049_920)
    assert (said.name, said.finetune) == ("Qwen3-0.6B", "")
    assert file_name(said, "bf16") == "Qwen3-0.6B-v1.0-BF16.gguf"
