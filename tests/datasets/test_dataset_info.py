"""LLaMA-Factory's list of data sets: what of its entries is read, and what is refused by name."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_local.datasets.dataset_info import read_entry
from qwen_local.datasets.formats import Example
from qwen_local.datasets.sources import Source, SourceSpec, locate
from qwen_local.errors import DatasetError

hugging_face: Any = importlib.import_module("datasets")

REAL = Path(__file__).parents[3] / "shared/data/llama-factory"
PAIR = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2."}]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()


def put(entry: object, *records: object) -> None:
    """A list with one entry, `poems`, and its file."""
    Path("data/dataset_info.json").write_text(json.dumps({"poems": entry}))
    Path("data/poems.json").write_text(json.dumps(records))


def find(name: str = "data#poems", **how: Any) -> Source:
    [source], evaluation = locate([SourceSpec(name=name, **how)])
    assert evaluation == []
    return source


def read(name: str = "data#poems") -> list[Example]:
    examples = list(find(name).examples())
    assert all(isinstance(example, Example) for example in examples), examples
    return [example for example in examples if isinstance(example, Example)]


def message_of(name: str = "data#poems", **how: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        find(name, **how)
    return "\n\n".join(map(str, caught.value.faults))


# --- what is read ---


def test_an_entry_is_named_behind_its_list_or_the_folder_of_it() -> None:
    put({"file_name": "poems.json"}, {"instruction": "1?", "output": "2."})
    for name in ("data#poems", "data/dataset_info.json#poems"):
        source = find(name)
        assert (source.name, source.format) == ("data/poems.json", "alpaca")
        assert [
            example.content for example in source.examples() if isinstance(example, Example)
        ] == [PAIR]


def test_columns_of_the_alpaca_format() -> None:
    columns = {
        "prompt": "a",
        "query": "b",
        "response": "c",
        "history": "d",
        "system": "e",
        "tools": "f",
    }
    record = {"a": "Add.", "b": "1, 1", "c": "2.", "d": [["1?", "2."]], "e": "Be.", "f": "[]"}
    put({"file_name": "poems.json", "formatting": "alpaca", "columns": columns}, record)
    [example] = read()
    assert example.content == [
        {"role": "system", "content": "Be."},
        *PAIR,
        {"role": "user", "content": "Add.\n1, 1"},
        {"role": "assistant", "content": "2."},
    ]
    assert example.ignored == ()


def test_tags_of_the_sharegpt_format() -> None:
    tags = {
        "role_tag": "who",
        "content_tag": "what",
        "user_tag": "me",
        "assistant_tag": "you",
        "observation_tag": "seen",
        "function_tag": "do",
        "system_tag": "rules",
    }
    said = [
        ("rules", "Be brief."),
        ("me", "1?"),
        ("do", '{"name": "add", "arguments": {}}'),
        ("seen", "2"),
        ("you", "2."),
    ]
    record = {"talk": [{"who": who, "what": what} for who, what in said]}
    columns = {"messages": "talk"}
    put(
        {"file_name": "poems.json", "formatting": "sharegpt", "columns": columns, "tags": tags},
        record,
        {"talk": [{"who": "human", "what": "1?"}, {"who": "you", "what": "2."}]},
    )
    good, bad = find().examples()
    assert isinstance(good, Example)
    assert [message["role"] for message in good.content if isinstance(message, dict)] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert isinstance(bad, tuple)
    assert [str(fault) for fault in bad] == [
        "data/poems.json:1: talk[0].who: expected me, you, seen, do or rules; found 'human'"
        "\n\nhint: name the role"
    ]


def test_an_entry_on_the_hub_has_a_subset_and_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def builder(*name: str) -> SimpleNamespace:
        asked.append(name)
        rows = [{"instruction": "1?", "output": "2."}]
        splits = {"train": rows, "dev": rows, "validation": rows}
        return SimpleNamespace(
            hash="c0ffee", download_and_prepare=lambda: None, as_dataset=lambda: splits
        )

    monkeypatch.setattr(hugging_face, "load_dataset_builder", builder)
    put({"hf_hub_url": "owner/name", "ms_hub_url": "x", "subset": "en", "split": "dev"})
    assert find().name == "owner/name:en[dev]"
    put({"hf_hub_url": "name"})
    assert find().name == "name[train]"
    put({"hf_hub_url": "owner/name", "file_name": "poems.json"})
    assert find().name == "data/poems.json"
    put({"hf_hub_url": "owner/name", "file_name": "absent.json"})
    assert find().name == "owner/name[train]"
    assert asked == [("owner/name", "en"), ("name",), ("owner/name",)]


def test_conversations_with_tools_are_read_without_a_fault() -> None:
    """In the form of LLaMA-Factory's glaive_toolcall_en_demo: tools as text, calls as turns."""
    tool = {"name": "find", "description": "Find.", "parameters": {"type": "object"}}
    conversation = [
        {"from": "human", "value": "Find a recipe."},
        {"from": "function_call", "value": '{"name": "find", "arguments": {"with": ["rice"]}}'},
        {"from": "observation", "value": '{"recipes": ["Rice"]}'},
        {"from": "gpt", "value": "Rice."},
    ]
    columns = {"messages": "conversations", "tools": "tools"}
    put(
        {"file_name": "poems.json", "formatting": "sharegpt", "columns": columns},
        {"conversations": conversation, "tools": json.dumps([tool])},
        {"conversations": [conversation[0], conversation[-1]], "tools": "[]"},
    )
    examples = read()
    assert [bool(example.tools) for example in examples] == [True, False]
    assert {example.ignored + example.notes for example in examples} == {()}


if REAL.is_dir():  # not in a clone, which has the same forms above

    @pytest.mark.parametrize(
        ("name", "rows", "with_tools"),
        [("alpaca_en_demo", 999, 0), ("glaive_toolcall_en_demo", 300, 191)],
    )
    def test_real_entries_are_read_without_a_fault(name: str, rows: int, with_tools: int) -> None:
        examples = read(f"{REAL}#{name}")
        assert (len(examples), sum(bool(e.tools) for e in examples)) == (rows, with_tools)
        assert {e.ignored + e.notes for e in examples} == {()}


# --- what is refused ---


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (5, ": expected an object; found 5"),
        ({}, ": expected file_name or hf_hub_url; found neither"),
        ({"ms_hub_url": "x"}, ": expected file_name or hf_hub_url; found ms_hub_url"),
        ({"file_name": 5}, ".file_name: expected a string; found 5"),
        ({"file_name": "absent.json"}, ".file_name: no such file: data/absent.json"),
        (
            {"file_name": "poems.json", "formating": "x"},
            '.formating: unknown key\n\nhint: did you mean "formatting"?',
        ),
        (
            {"file_name": "poems.json", "formatting": "openai"},
            ".formatting: expected alpaca or sharegpt; found 'openai'",
        ),
        (
            {"file_name": "poems.json", "columns": {"promt": "x", "query": 5}},
            '.columns.promt: unknown key\n\nhint: did you mean "prompt"?\n\n'
            "data/dataset_info.json: poems.columns.query: expected a string; found 5",
        ),
        (
            {"file_name": "poems.json", "tags": {"role_tag": "x"}},
            ".tags: only valid with the sharegpt format",
        ),
        (
            {"file_name": "poems.json", "formatting": "sharegpt", "tags": []},
            ".tags: expected an object; found a list",
        ),
        (
            {"script_url": "poems.py"},
            ".script_url: loading scripts are not supported\n\n"
            "hint: use an entry with plain conversations",
        ),
        (
            {"file_name": "poems.json", "num_samples": 5, "ranking": False},
            ".num_samples: sampling is not supported\n\n"
            "hint: remove the key and set the limit of the source",
        ),
        (
            {"file_name": "poems.json", "ranking": True, "columns": {"chosen": "a"}},
            ".ranking: preference data (a chosen and a rejected answer) are not supported\n\n"
            "hint: use an entry with plain conversations\n\n"
            "data/dataset_info.json: poems.columns.chosen: preference data (a chosen and a "
            "rejected answer) are not supported\n\nhint: use an entry with plain conversations",
        ),
        (
            {"file_name": "poems.json", "columns": {"images": "images"}},
            ".columns.images: images are not supported\n\n"
            "hint: use an entry with plain conversations",
        ),
    ],
)
def test_each_rule_has_its_message(entry: object, message: str) -> None:
    put(entry)
    assert message_of() == f"data/dataset_info.json: poems{message}"


def test_a_name_that_is_not_listed_suggests_the_nearest() -> None:
    put({"file_name": "poems.json"})
    assert message_of("data#poem") == (
        "data/dataset_info.json: no entry 'poem'\n\nhint: did you mean \"poems\"?"
    )
    assert message_of("data#x") == (
        "data/dataset_info.json: no entry 'x'\n\nhint: available entries: poems"
    )
    assert message_of("data/dataset_info.json") == (
        "data/dataset_info.json: expected one of the data sets that it lists\n\n"
        "hint: name it as data/dataset_info.json#NAME; it has poems"
    )


def test_a_missing_list_is_reported() -> None:
    hint = "\n\nhint: name a dataset_info.json, or the folder that holds it, before the #"
    assert message_of("data#poems") == f"data#poems: no dataset_info.json in data{hint}"
    assert message_of("no/dataset_info.json#poems") == (
        f"no/dataset_info.json#poems: no dataset_info.json in no/dataset_info.json{hint}"
    )


def test_only_the_entry_decides_the_format() -> None:
    put({"file_name": "poems.json"})
    hint = "\n\nhint: give this source `format: auto`"
    assert message_of(format="alpaca") == (
        "data#poems: expected no data.format, because the entry defines the format of its records"
        + hint
    )
    assert message_of(format="prompt", columns={"prompt": "x"}) == (
        "data#poems: expected no data.columns, because the entry defines the format of its records"
        + hint
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", ": expected an object of entries; found a list"),
        (b"{\n'a'}", ":2: not valid JSON: Expecting property name enclosed in double quotes at "
                     "column 1; found \"'a'}\""),
        (b'{"a": 1, "a": 2}', ": the key 'a' occurs more than once in one object\n\n"
                              "hint: remove one of them"),
        (b'{"a": "\xff"}', ":1: expected UTF-8; found byte 0xff\n\nhint: save the file as UTF-8"),
        (b"[" * 100_000, ":1: expected at most 64 levels of nesting"),
    ],
)  # fmt: skip
def test_a_list_is_strict_json(content: bytes, message: str) -> None:
    Path("dataset_info.json").write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read_entry(Path("dataset_info.json"), "a")
    assert str(caught.value) == f"dataset_info.json{message}"
