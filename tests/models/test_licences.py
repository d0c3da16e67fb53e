"""Which licence a base model is said to be under."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qwen_local.embedded import tiny_model_path
from qwen_local.models.licences import Licence, licence_in, licence_of
from qwen_local.models.published import PUBLISHED

QWEN = "https://huggingface.co/Qwen"


def test_every_published_model_is_apache_but_the_3b_and_72b_of_qwen2_5() -> None:
    others = {}
    for name in PUBLISHED:
        licence = licence_of(name)
        assert licence is not None
        if licence != Licence(identifier="apache-2.0"):
            others[name] = licence.name
    assert others == {
        "Qwen/Qwen2.5-3B": "qwen-research",
        "Qwen/Qwen2.5-3B-Instruct": "qwen-research",
        "Qwen/Qwen2.5-Coder-3B": "qwen-research",
        "Qwen/Qwen2.5-Coder-3B-Instruct": "qwen-research",
        "Qwen/Qwen2.5-72B": "qwen",
        "Qwen/Qwen2.5-72B-Instruct": "qwen",
    }


def test_a_licence_without_an_identifier_has_a_name_and_a_link() -> None:
    assert licence_of("Qwen/Qwen2.5-3B") == Licence(
        identifier="other", name="qwen-research", link=f"{QWEN}/Qwen2.5-3B/blob/main/LICENSE"
    )


def test_of_a_model_that_nobody_listed_none_is_known() -> None:
    assert licence_of("somebody/Qwen3-0.6B") is None


def test_a_folders_own_page_says_its_licence() -> None:
    assert licence_in(tiny_model_path()) == Licence(identifier="apache-2.0")


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: mit", Licence(identifier="mit")),
        (
            "license: other\nlicense_name: own\nlicense_link: https://example.org/LICENSE",
            Licence(identifier="other", name="own", link="https://example.org/LICENSE"),
        ),
        (
            "license: other\nlicense_name: own\nlicense_link: LICENSE",  # leads nowhere from here
            Licence(identifier="other", name="own"),
        ),
        ("license: other", None),
        ("license: [mit, apache-2.0]", None),
        ('license: "mit\\n---\\n# Hello"', None),
        ("license: {", None),
        ("- mit", None),
        ("", None),
        ("language: en", None),
    ],
)
def test_what_a_page_says_is_taken_over_where_it_is_sound(
    front: str,
    licence: Licence | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n" if front else "# A\n")
    assert licence_in(tmp_path) == licence
    assert not caplog.messages


def test_a_folder_without_a_page_says_nothing(tmp_path: Path) -> None:
    assert licence_in(tmp_path) is None
