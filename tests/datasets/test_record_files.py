"""Every kind of file, and every way in which one can be broken."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_local.datasets import record_files
from qwen_local.datasets.formats import Example, examples
from qwen_local.datasets.record_files import Record, read
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

LINE_HINT = '\n\nhint: write one object per line, such as {"prompt": "Hi", "completion": "Hello."}'
FILE_HINT = "\n\nhint: `python -m json.tool FILE` reports the same place"


def test_every_invalid_line_is_reported_and_the_others_are_read() -> None:
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


def test_json_that_only_python_accepts_is_reported() -> None:
    lines = [
        '{"text": "1", "text": "2"}',
        '{"text": "1", "a": NaN, "b": [-Infinity]}',
        '{"text": "a\\u0000b", "c": {"d": ["\\ud83d"]}}',
        '{"a\\ud83d": "\\u0000"}',
        '{"n": ' + "1" * 5000 + "}",
    ]
    assert said("a.jsonl", "\n".join(lines)) == [
        "a.jsonl:1: the key 'text' occurs more than once in one object\n\nhint: remove one of them",
        "a.jsonl:2: NaN is not valid JSON\n\nhint: write null or remove the key",
        "a.jsonl:2: -Infinity is not valid JSON\n\nhint: write null or remove the key",
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


def test_a_list_is_read_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces, the records, their lines and the faults are the same."""
    text = (
        '[\n{"text": "é\\n\\u00e9"},\r\n  {"n": [12.5e+3, -0, true], "text": "2"}\n\n,'
        '{"text":\n"3"}\n{"text": "4"}]'
    )
    whole = said("a.json", "\ufeff" + text)
    assert whole == [
        ("a.json:2", {"text": "é\né"}),
        ("a.json:3", {"n": [12500.0, 0, True], "text": "2"}),
        ("a.json:5", {"text": "3"}),
        "a.json:7: not valid JSON: Expecting ']' at column 1; found '{\"text\": \"4\"}]'"
        + FILE_HINT,
    ]
    for size in (1, 2, 3, 7, 16, 50):
        monkeypatch.setattr(record_files, "READ_CHUNK_BYTES", size)
        assert said("a.json", "\ufeff" + text) == whole


def test_a_record_of_a_list_without_end_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 30)
    monkeypatch.setattr(record_files, "READ_CHUNK_BYTES", 8)
    assert said("a.json", '[{"text": "1"},\n{"text": "' + "x" * 900 + '"}]') == [
        ("a.json:1", {"text": "1"}),
        "a.json:2: expected at most 30 characters in a record",
    ]
    assert said("a.json", '[{"text": "1"},\n' + " " * 900 + '{"text": "2"}]') == [
        ("a.json:1", {"text": "1"}),
        ("a.json:2", {"text": "2"}),
    ]


def test_a_row_of_a_table_without_end_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 30)
    many = "\n".join(["text", "1", *['"']] + ["x"] * 90)
    assert said("a.csv", many) == [
        ("a.csv:2", {"text": "1"}),
        "a.csv:3: expected at most 30 bytes in a row\n\n"
        "hint: look for a double quote that is not closed",
    ]
    assert len(said("a.csv", "text\n" + "123456789\n" * 50)) == 50


def test_a_carriage_return_ends_a_line_of_a_table() -> None:
    assert said("a.csv", "text\r1\r2\r") == [
        ("a.csv:2", {"text": "1"}),
        ("a.csv:3", {"text": "2"}),
    ]


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 20)
    lines = ['{"text": "1"}', '{"text": "' + "x" * 90 + '"}', '{"text": "3"}']
    assert said("a.jsonl", "\n".join(lines)) == [
        ("a.jsonl:1", {"text": "1"}),
        "a.jsonl:2: expected at most 20 bytes on a line" + LINE_HINT,
        ("a.jsonl:3", {"text": "3"}),
    ]


LATIN = "\n\nhint: save the file as UTF-8 (it may be Latin-1 or Windows-1252)"


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
def test_utf_16_and_32_are_reported_once(kind: str, width: str) -> None:
    assert said(f"a.{kind}", ('{"text": "1"}\n' * 3).encode(f"utf-{width}")) == [
        f"a.{kind}:1: expected UTF-8; found UTF-{width} (byte order mark at byte 0)\n\n"
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
        "hint: write each list of records to a separate file",
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
        "\n\nhint: write each list of records to a separate file"
    ]


def test_a_table_without_a_header_or_with_ragged_rows_is_refused() -> None:
    assert said("a.csv", "prompt,prompt\na,b\n") == [
        "a.csv:1: expected a header with different column names; found 'prompt', 'prompt'\n\n"
        "hint: write the column names in the first line"
    ]
    assert said("a.csv", "prompt,completion\na,b,c\nd,e\n") == [
        "a.csv:2: expected 2 fields, as in the header; found 3\n\n"
        "hint: put double quotes around fields that contain a comma",
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
        f"{path}: expected unique column names; found several named prompt\n\n"
        "hint: rename or remove all but one"
    ]


# --- compressed files ---

ROWS = b'{"text": "1"}\n{"text": "2"}\n'


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


PACK = {"gz": gzip.compress, "zst": zstd}
PROGRAM = {"gz": "gzip", "zst": "zstd"}


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_files_of_text_are_read_like_others(suffix: str) -> None:
    pack = PACK[suffix]
    assert said(f"a.jsonl.{suffix}", pack(ROWS)) == [
        (f"a.jsonl.{suffix}:1", {"text": "1"}),
        (f"a.jsonl.{suffix}:2", {"text": "2"}),
    ]
    assert said(f"a.JSON.{suffix}", pack(b'[{"text": "1"}]')) == [
        (f"a.JSON.{suffix}:1", {"text": "1"})
    ]
    assert said(f"a.csv.{suffix}", pack(b"text\n1\n")) == [(f"a.csv.{suffix}:2", {"text": "1"})]
    assert said(f"two.jsonl.{suffix}", pack(ROWS) + pack(ROWS))[-1] == (
        f"two.jsonl.{suffix}:4",
        {"text": "2"},
    )
    assert said(f"a.jsonl.{suffix}", pack(b"")) == said(f"a.jsonl.{suffix}", b"") == []


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("suffix", PACK)
def test_a_truncated_compressed_file_is_reported(suffix: str, kind: str) -> None:
    name = f"a.{kind}.{suffix}"
    packed = PACK[suffix](ROWS)[:-6]
    *_, last = said(name, packed)
    place, _, problem = str(last).partition(": ")
    assert place.rpartition(":")[0] == name
    assert problem == (
        "cannot be decompressed: the file is truncated\n\n"
        f"hint: copy the file again; `{PROGRAM[suffix]} -t FILE` tests it"
    )


def test_a_truncated_stream_is_reported_at_the_last_line() -> None:
    lines = b"".join(b'{"text": "%d %s"}\n' % (n, random(n)) for n in range(20_000))
    packed = gzip.compress(lines)
    *good, last = said("a.jsonl.gz", packed[: len(packed) // 2])
    assert str(last).startswith(f"a.jsonl.gz:{len(good) + 1}: cannot be decompressed")
    assert 5_000 < len(good) < 15_000


def random(seed: int) -> bytes:
    """Hexadecimal digits that do not compress well."""
    return hashlib.sha256(b"%d" % seed).hexdigest().encode()


@pytest.mark.parametrize("suffix", PACK)
def test_a_damaged_or_uncompressed_file_is_reported(suffix: str) -> None:
    hint = f"hint: copy the file again; `{PROGRAM[suffix]} -t FILE` tests it"
    [plain] = said(f"a.jsonl.{suffix}", ROWS)
    assert str(plain).startswith(
        f"a.jsonl.{suffix}:1: cannot be decompressed: damaged or not compressed: "
    )
    assert str(plain).endswith(hint)
    packed = bytearray(PACK[suffix](ROWS * 50))
    packed[len(packed) // 2] ^= 0xFF
    assert "cannot be decompressed" in str(said(f"a.jsonl.{suffix}", bytes(packed))[-1])


@pytest.mark.parametrize("suffix", PACK)
def test_a_file_that_unpacks_without_end_stays_within_the_line(
    suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 2**16)
    packed = PACK[suffix](b'{"text": "1"}\n{"text": "' + b"x" * 2**24)
    tracemalloc.start()
    found = said(f"a.jsonl.{suffix}", packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [
        (f"a.jsonl.{suffix}:1", {"text": "1"}),
        f"a.jsonl.{suffix}:2: expected at most 65536 bytes on a line" + LINE_HINT,
    ]
    assert peak < 2**20


def test_another_encoding_within_a_compressed_file_is_named() -> None:
    assert said("a.jsonl.gz", gzip.compress('{"text": "1"}'.encode("utf-16"))) == [
        "a.jsonl.gz:1: expected UTF-8; found UTF-16 (byte order mark at byte 0)\n\n"
        "hint: convert it: gzip -dc a.jsonl.gz | iconv -f UTF-16 -t UTF-8 > a.utf8.jsonl"
    ]


def test_a_pipe_is_not_waited_for() -> None:
    os.mkfifo("a.jsonl")
    [item] = read(Path("a.jsonl"))
    hint = "write the data to a file and use its path"
    assert item == (Fault("a.jsonl", "expected a regular file; found a pipe", hint),)


# --- anything at all ---

KINDS = [*(f"a{kind}" for kind in record_files.READERS), *(f"a.jsonl.{suffix}" for suffix in PACK)]


def read_to_the_end(name: str, content: bytes) -> None:
    """Reads what may be anything: every item is an example, or faults with words."""
    for item in examples(read(write(name, content))):
        assert isinstance(item, Example) or all(fault.where and fault.problem for fault in item)


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_random_bytes_are_no_crash(name: str, content: bytes) -> None:
    read_to_the_end(name, content)


NAMES = """
messages conversations role content from value tools functions tool_calls function_call function
name arguments type text prompt completion instruction input output history system weight thinking
user assistant gpt human tool observation
"""
WORDS = st.sampled_from(NAMES.split())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(), inner),
    max_leaves=20,
)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.dictionaries(WORDS, JSON | WORDS), max_size=5), at=st.integers(0, 10**6))
def test_records_of_any_shape_are_no_crash(records: list[dict[str, Any]], at: int) -> None:
    """As they are, and with the file cut or broken anywhere."""
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    whole = json.dumps(records).encode()
    for name, content in (("a.jsonl", lines), ("a.json", whole)):
        at %= len(content) + 1
        for broken in (content, content[:at], content[:at] + b"\xff" + content[at:]):
            read_to_the_end(name, broken)
    for suffix, pack in PACK.items():
        packed = pack(lines)
        read_to_the_end(f"a.jsonl.{suffix}", packed[: at % (len(packed) + 1)])


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "tool", "system", "bot"]),
            "content": st.text() | JSON,
            "tool_calls": JSON | st.lists(st.fixed_dictionaries({"name": JSON, "arguments": JSON})),
            "weight": JSON,
            "reasoning": JSON,
        },
    )
    | JSON,
    max_size=5,
)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=MESSAGES, tools=JSON | JSON.map(json.dumps))
def test_conversations_of_any_shape_are_no_crash(messages: list[Any], tools: Any) -> None:
    record = {"messages": messages, "tools": tools}
    read_to_the_end("a.jsonl", json.dumps(record).encode())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), byte=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_parquet_file_is_no_crash(at: int, byte: int, cut: bool) -> None:
    table = pa.Table.from_pylist([{"text": str(n), "tools": [{"name": "x"}]} for n in range(50)])
    pq.write_table(table, "whole.parquet")
    content = bytearray(Path("whole.parquet").read_bytes())
    at %= len(content)
    content[at] ^= byte
    read_to_the_end("a.parquet", bytes(content[:at] if cut else content))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_line_of_ten_megabytes_is_read(name: str) -> None:
    long = "x" * 10 * 2**20
    content = {
        "a.jsonl": f'{{"text": "{long}"}}',
        "a.json": f'[{{"text": "{long}"}}]',
        "a.csv": f"text\n{long}\n",
    }
    [item] = said(name, content[name])
    assert item[1] == {"text": long}
