"""Which license a base model is said to be under."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qwen_local.embedded import tiny_model_path
from qwen_local.models.licenses import License, license_in, license_of
from qwen_local.models.published import PUBLISHED

QWEN = "https://huggingface.co/Qwen"


def test_every_published_model_is_apache_but_the_3b_and_72b_of_qwen2_5() -> None:
    others = {}
    for name in PUBLISHED:
        license = license_of(name)
        assert license is not None
        if license != License(identifier="apache-2.0"):
            others[name] = license.name
    assert others == {
        "Qwen/Qwen2.5-3B": "qwen-research",
        "Qwen/Qwen2.5-3B-Instruct": "qwen-research",
        "Qwen/Qwen2.5-Coder-3B": "qwen-research",
        "Qwen/Qwen2.5-Coder-3B-Instruct": "qwen-research",
        "Qwen/Qwen2.5-72B": "qwen",
        "Qwen/Qwen2.5-72B-Instruct": "qwen",
    }


def test_a_license_without_an_identifier_has_a_name_and_a_link() -> None:
    assert license_of("Qwen/Qwen2.5-3B") == License(
        identifier="other", name="qwen-research", link=f"{QWEN}/Qwen2.5-3B/blob/main/LICENSE"
    )


def test_of_a_model_that_nobody_listed_none_is_known() -> None:
    assert license_of("somebody/Qwen3-0.6B") is None


def test_a_folders_own_page_says_its_license() -> None:
    assert license_in(tiny_model_path()) == License(identifier="apache-2.0")


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: mit", License(identifier="mit")),
        (
            "license: other\nlicense_name: own\nlicense_link: https://example.org/LICENSE",
            License(identifier="other", name="own", link="https://example.org/LICENSE"),
        ),
        (
            "license: other\nlicense_name: own\nlicense_link: LICENSE",  # leads nowhere from here
            License(identifier="other", name="own"),
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
    license: License | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n" if front else "# A\n")
    assert license_in(tmp_path) == license
    assert not caplog.messages


def test_a_folder_without_a_page_says_nothing(tmp_path: Path) -> None:
    assert license_in(tmp_path) is None
