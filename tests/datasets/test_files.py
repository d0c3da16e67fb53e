"""Every kind of file, and every way in which one can be broken."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from qwen_local.datasets import files
from qwen_local.datasets.files import Record, read
from qwen_local.errors import Fault


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def said(name: str, content: str | bytes) -> list[str | tuple[str, object]]:
    """Each item that is read: a record as (place, value), faults as their messages."""
    said: list[str | tuple[str, object]] = []
    for item in read(write(name, content)):
        if isinstance(item, Record):
            said.append((item.where, item.value))
        else:
            said += [str(fault) for fault in item]
    return said


# --- what is read ---


def test_jsonl_records_know_their_lines() -> None:
    assert said("a.jsonl", '{"text": "1"}\n\n  \n{"text": "2"}') == [
        ("a.jsonl:1", {"text": "1"}),
        ("a.jsonl:4", {"text": "2"}),
    ]


def test_only_a_new_line_ends_a_line() -> None:
    text = "a\u2028b\u0085c"
    assert said("a.jsonl", json.dumps({"text": text}, ensure_ascii=False)) == [
        ("a.jsonl:1", {"text": text})
    ]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_windows_line_ends_are_fine(mark: str, end: str) -> None:
    lines = end.join(['{"text": "ü"}', '{"text": "2"}', ""])
    assert said("a.jsonl", mark + lines) == [
        ("a.jsonl:1", {"text": "ü"}),
        ("a.jsonl:2", {"text": "2"}),
    ]
    assert said("a.csv", mark + end.join(["text", "ü", ""])) == [("a.csv:2", {"text": "ü"})]
    assert said("a.json", mark + end.join(["[", '{"text": "ü"}', "]"])) == [
        ("a.json:2", {"text": "ü"})
    ]


def test_json_is_a_list_of_objects_or_an_object_with_one_list() -> None:
    records = [("a.json:2", {"text": "1"}), ("a.json:4", {"text": "2"})]
    assert said("a.json", '[\n{"text": "1"},\n\n{"text":\n"2"}]\n') == records
    assert (
        said("a.json", '{"v": 1, "rows": [\n{"text": "1"},\n\n{"text": "2"}], "w": {}}') == records
    )
    assert said("a.json", "[]") == said("a.json", '{"rows": []}') == said("a.json", "") == []


def test_csv_records_know_the_line_on_which_they_begin() -> None:
    table = 'prompt,completion\n"a\nb","c, ""d"""\n\ne,f\n'
    assert said("a.csv", table) == [
        ("a.csv:2", {"prompt": "a\nb", "completion": 'c, "d"'}),
        ("a.csv:5", {"prompt": "e", "completion": "f"}),
    ]


def test_csv_fields_may_be_long() -> None:
    long = "x" * 200_000
    assert said("a.csv", f"text\n{long}\n") == [("a.csv:2", {"text": long})]


def test_parquet_records_know_their_rows() -> None:
    rows = [
        {"messages": [{"role": "user", "content": "1"}]},
        {"messages": [{"role": "user", "content": "ü"}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    assert [(r.where, r.value) for r in read(Path("a.parquet")) if isinstance(r, Record)] == [
        ("a.parquet:1", rows[0]),
        ("a.parquet:2", rows[1]),
    ]


# --- what is refused ---

LINE_HINT = '\n\nhint: write one object a line, such as {"prompt": "Hi", "completion": "Hello."}'
FILE_HINT = "\n\nhint: `python -m json.tool FILE` points at the same place"


def test_every_broken_line_is_told_and_the_others_are_read() -> None:
    lines = ['{"text": "1" "a": 2}', '{"text": "2"}', '{"text": "3"', "[1]", "7", "{} {}"]
    assert said("a.jsonl", "\n".join(lines)) == [
        "a.jsonl:1: not valid JSON: Expecting ',' delimiter at column 14; found '\"a\": 2}'"
        + LINE_HINT,
        ("a.jsonl:2", {"text": "2"}),
        "a.jsonl:3: not valid JSON: Expecting ',' delimiter at column 13; found the end"
        + LINE_HINT,
        "a.jsonl:4: expected an object; found a list",
        "a.jsonl:5: expected an object; found 7",
        "a.jsonl:6: not valid JSON: Extra data at column 4; found '{}'" + LINE_HINT,
    ]


def test_what_python_lets_pass_is_told_as_well() -> None:
    lines = [
        '{"text": "1", "text": "2"}',
        '{"text": "1", "a": NaN, "b": [-Infinity]}',
        '{"text": "a\\u0000b", "c": {"d": ["\\ud83d"]}}',
        '{"a\\ud83d": "\\u0000"}',
        '{"n": ' + "1" * 5000 + "}",
    ]
    assert said("a.jsonl", "\n".join(lines)) == [
        "a.jsonl:1: the key 'text' occurs more than once in one object\n\nhint: keep one of them",
        "a.jsonl:2: NaN is not JSON\n\nhint: write null, or leave the key out",
        "a.jsonl:2: -Infinity is not JSON\n\nhint: write null, or leave the key out",
        "a.jsonl:3: text: expected text; found a NUL character (character 2)\n\nhint: remove it",
        "a.jsonl:3: c.d[0]: expected text; found half of a surrogate pair, \\ud83d (character 1)"
        "\n\nhint: remove it",
        "a.jsonl:4: 'a\\ud83d': expected text; found a NUL character (character 1)"
        "\n\nhint: remove it",
        "a.jsonl:4: a key: expected text; found half of a surrogate pair, \\ud83d (character 2)"
        "\n\nhint: remove it",
        "a.jsonl:5: not valid JSON: Exceeds the limit (4300 digits) for integer string conversion: "
        "value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit",
    ]


@pytest.mark.parametrize("depth", [65, 1_000, 200_000])
def test_deep_nesting_is_a_fault_and_no_crash(depth: int) -> None:
    deep = '{"text": ' + "[" * depth + "]" * depth + "}"
    assert said("a.jsonl", deep) == ["a.jsonl:1: expected at most 64 levels of nesting"]
    assert said("a.json", f"\n[{deep}]") == ["a.json:2: expected at most 64 levels of nesting"]


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 20)
    lines = ['{"text": "1"}', '{"text": "' + "x" * 90 + '"}', '{"text": "3"}']
    assert said("a.jsonl", "\n".join(lines)) == [
        ("a.jsonl:1", {"text": "1"}),
        "a.jsonl:2: expected at most 20 bytes on a line" + LINE_HINT,
        ("a.jsonl:3", {"text": "3"}),
    ]


LATIN = "\n\nhint: save the file as UTF-8 (it may be Latin-1 or Windows-1252 now)"


def test_other_encodings_are_named_with_their_offset() -> None:
    lines = '{"text": "1"}\n{"text": "é"}\n{"text": "3"}\n{"text": "é"}'.encode("latin-1")
    assert said("a.jsonl", lines) == [
        ("a.jsonl:1", {"text": "1"}),
        "a.jsonl:2: expected UTF-8; found byte 0xe9 at offset 24" + LATIN,
        ("a.jsonl:3", {"text": "3"}),
        "a.jsonl:4: expected UTF-8; found byte 0xe9 at offset 52" + LATIN,
    ]
    assert said("a.csv", "text\né".encode("latin-1")) == [
        "a.csv:2: expected UTF-8; found byte 0xe9 at offset 5" + LATIN
    ]
    assert said("a.json", '\ufeff[\n"'.encode() + b"\xff") == [
        "a.json:2: expected UTF-8; found byte 0xff at offset 6" + LATIN
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("width", ["16", "32"])
def test_utf_16_and_32_are_told_once(kind: str, width: str) -> None:
    assert said(f"a.{kind}", ('{"text": "1"}\n' * 3).encode(f"utf-{width}")) == [
        f"a.{kind}:1: expected UTF-8; found UTF-{width} (its mark is at byte 0)\n\n"
        f"hint: convert it: iconv -f UTF-{width} -t UTF-8 a.{kind} > a.utf8.{kind}"
    ]


def test_a_json_file_stops_at_what_is_no_json() -> None:
    assert said("a.json", '[\n{"text": "1"}\n{"text": "2"}]') == [
        ("a.json:2", {"text": "1"}),
        "a.json:3: not valid JSON: Expecting ']' at column 1; found '{\"text\": \"2\"}]'"
        + FILE_HINT,
    ]
    assert said("a.json", '{"text": "1"}\n{"text": "2"}') == [
        "a.json: expected a list of records, or an object with one list in it; found none\n\n"
        "hint: write each list of records to a file of its own",
        'a.json:2: not valid JSON: Extra data at column 1; found \'{"text": "2"}\'' + FILE_HINT,
    ]
    assert said("a.json", '"text"') == [
        "a.json:1: not valid JSON: Expecting '{' at column 1; found '\"text\"'" + FILE_HINT
    ]
    assert said("a.json", '{"train": [1], "train": [], "x": ') == [
        "a.json:1: not valid JSON: Expecting value at column 34; found the end" + FILE_HINT
    ]


def test_a_json_object_with_several_lists_is_ambiguous() -> None:
    assert said("a.json", '{"train": [{"text": "1"}], "test": []}') == [
        "a.json: expected a list of records, or an object with one list in it; found train, test"
        "\n\nhint: write each list of records to a file of its own"
    ]


def test_a_table_without_a_header_or_with_ragged_rows_is_refused() -> None:
    assert said("a.csv", "prompt,prompt\na,b\n") == [
        "a.csv:1: expected a header of different column names; found 'prompt', 'prompt'\n\n"
        "hint: name the columns in the first line"
    ]
    assert said("a.csv", "prompt,completion\na,b,c\nd,e\n") == [
        "a.csv:2: expected 2 fields, as in the header; found 3\n\n"
        "hint: put a field that holds a comma into double quotes",
        ("a.csv:3", {"prompt": "d", "completion": "e"}),
    ]
    assert said("a.csv", 'text\n"a\n') == ["a.csv:2: not valid CSV: unexpected end of data"]


def test_a_file_that_is_no_parquet_is_refused() -> None:
    [message] = said("a.parquet", "text")
    assert str(message).startswith("a.parquet:1: cannot be read as Parquet: ")


def test_a_file_that_cannot_be_opened_is_a_fault() -> None:
    [item] = read(Path("a.jsonl"))
    assert item == (Fault("a.jsonl", "cannot be read: No such file or directory"),)


def test_a_parquet_file_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:

    path = tmp_path / "twice.parquet"
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.table(columns, names=["prompt", "completion", "prompt"]), path)
    (faults,) = read(path)
    assert isinstance(faults, tuple)
    assert [str(fault) for fault in faults] == [
        f"{path}: expected each column once; found several named prompt\n\n"
        "hint: rename or remove all but one"
    ]
