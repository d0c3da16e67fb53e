"""`data check` and `data show`: faults with their lines, supervised tokens, repairs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_local.cli import output
from qwen_local.cli.data import FORMATS, OVERLONG, TRAIN_ON
from qwen_local.datasets.column_map import KEYS
from qwen_local.embedded import tiny_model_path
from qwen_local.inspection import fix
from qwen_local.inspection.draw import Canvas, marked
from qwen_local.job.schema import DataSpec

Cli = Callable[..., Any]

GOOD = '{"prompt": "Hi", "completion": "Yes"}'
OTHER = '{"prompt": "Hello", "completion": "No"}'
TALK = "Lengths are in tokens of qwen-local/tiny; choose another model with --model.\n"


def lines(*content: str | bytes) -> Path:
    """A file with these lines."""
    path = Path("a.jsonl")
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in content))
    return path


def messages(*turns: tuple[str, Any]) -> str:
    result = [{"role": role, "content": content} for role, content in turns]
    return json.dumps({"messages": result})


def check(cli: Cli, *arguments: str | Path) -> Any:
    result = cli("data", "check", *arguments, "--json")
    report = json.loads(result.out)
    assert result.code == (0 if report["accepted"] or report["fixed"] else 2), result.err
    return report


def faults(report: Any) -> list[tuple[str, str]]:
    return [(f["where"], f["problem"]) for kind in report["faults"] for f in kind["first"]]


# --- every fault, at its line ---

QUESTION_AND_ANSWER = ("user", "Hi"), ("assistant", "Yes")
FAULTY: dict[str, tuple[str | bytes, str, str]] = {
    "not JSON": (
        "{oops",
        "a.jsonl:2",
        "not valid JSON: Expecting property name enclosed in double quotes at column 2; "
        "found 'oops'",
    ),
    "UTF-8 that is none": (
        b'{"prompt": "\xff", "completion": "b"}',
        "a.jsonl:2",
        f"expected UTF-8; found byte 0xff at offset {len(GOOD) + 1 + 12}",
    ),
    "half of a surrogate pair": (
        '{"prompt": "\\ud83d", "completion": "b"}',
        "a.jsonl:2: prompt",
        "expected text; found half of a surrogate pair, \\ud83d (character 1)",
    ),
    "NUL": (
        '{"prompt": "a", "completion": "b\\u0000"}',
        "a.jsonl:2: completion",
        "expected text; found a NUL character (character 2)",
    ),
    "a line too long": (
        '{"prompt": "' + "a" * 2**24 + '"}',
        "a.jsonl:2",
        "expected at most 16777216 bytes on a line",
    ),
    "NaN": ('{"prompt": NaN}', "a.jsonl:2", "NaN is not valid JSON"),
    "Infinity": ('{"prompt": -Infinity}', "a.jsonl:2", "-Infinity is not valid JSON"),
    "a key twice": (
        '{"prompt": "a", "prompt": "b"}',
        "a.jsonl:2",
        "the key 'prompt' occurs more than once in one object",
    ),
    "deep nesting": (
        "[" * 100_000,
        "a.jsonl:2",
        "expected at most 64 levels of nesting",
    ),
    "no object": ('["Hi"]', "a.jsonl:2", "expected an object; found a list"),
    "a null content": (
        '{"prompt": "a", "completion": null}',
        "a.jsonl:2: completion",
        "expected a string; found null",
    ),
    "a number as content": (
        '{"prompt": 3, "completion": "b"}',
        "a.jsonl:2: prompt",
        "expected a string; found 3",
    ),
    "another format": (
        messages(*QUESTION_AND_ANSWER),
        "a.jsonl:2",
        "expected the prompt format, as a.jsonl:1 has it; found the messages format",
    ),
}
TURNS: dict[str, tuple[str, str, str]] = {
    "no messages": (
        '{"messages": []}',
        "a.jsonl:2: messages",
        "expected at least one message; the list is empty",
    ),
    "messages that are no list": (
        '{"messages": "Hi"}',
        "a.jsonl:2: messages",
        "expected a list; found 'Hi'",
    ),
    "an unknown role": (
        messages(("user", "Hi"), ("bot", "Yes")),
        "a.jsonl:2: messages[1].role",
        "expected system, user, assistant or tool; found 'bot'",
    ),
    "system not first": (
        messages(("user", "Hi"), ("system", "Be."), ("assistant", "Yes")),
        "a.jsonl:2: messages[1].role",
        "expected the system message first, and only one",
    ),
    "no assistant": (
        messages(("user", "Hi"), ("user", "Hi")),
        "a.jsonl:2: messages",
        "expected at least one assistant message; found user, user",
    ),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_each_fault_is_found_at_its_line(kind: str, cli: Cli) -> None:
    line, where, problem = FAULTY[kind]
    report = check(cli, lines(GOOD, line, OTHER))
    assert faults(report) == [(where, problem)]
    assert (report["rows"], report["usable"], report["faulty"]) == (3, 2, 1)


@pytest.mark.parametrize("kind", TURNS)
def test_each_fault_of_a_conversation_is_found_at_its_line(kind: str, cli: Cli) -> None:
    line, where, problem = TURNS[kind]
    assert faults(check(cli, lines(messages(*QUESTION_AND_ANSWER), line))) == [(where, problem)]


def test_all_faults_are_found_in_one_pass_and_grouped(cli: Cli) -> None:
    report = check(cli, lines(GOOD, *(FAULTY[kind][0] for kind in FAULTY), *["{oops"] * 2_000))
    assert report["faulty"] == len(FAULTY) + 2_000
    kinds = {kind["problem"]: kind["count"] for kind in report["faults"]}
    assert len(kinds) == len(FAULTY)
    assert max(kinds.values()) == 2_001


def test_the_text_report_lists_kinds_lines_and_hints(cli: Cli) -> None:
    bot = messages(("user", "Hi"), ("bot", "Yes"))
    result = cli("data", "check", lines(messages(*QUESTION_AND_ANSWER), bot, bot, "[]"))
    assert (result.code, result.err) == (2, TALK)
    assert (
        result.out.partition("faults\n")[2]
        == """\
      2  expected system, user, assistant or tool; found ...
           a.jsonl:2: messages[1].role: found 'bot'
           a.jsonl:3: messages[1].role: found 'bot'
         hint: change "bot" to "assistant"
      1  expected an object; found a list
           a.jsonl:4: found a list

Training refuses a.jsonl: 3 faults in 3 records.
"""
    )


# --- files ---


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it has no records"),
        (b"\n \n\n", "it has no records"),
        (b'{"prompt": "a", "completion": " "}\n', "it has no usable rows"),
    ],
)
def test_a_file_without_records_is_refused(content: bytes, problem: str, cli: Cli) -> None:
    Path("a.jsonl").write_bytes(content)
    result = cli("data", "check", "a.jsonl")
    assert result.code == 2
    assert result.out.endswith(f"\nTraining refuses a.jsonl: {problem}.\n")


def test_a_missing_file_is_an_error_with_a_suggestion(cli: Cli) -> None:
    lines(GOOD)
    result = cli("data", "check", "b.jsonl")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"{TALK}b.jsonl: no such file or folder\n\nhint: did you mean a.jsonl?\n"


def test_a_folder_without_data_is_an_error(cli: Cli) -> None:
    Path("rows").mkdir()
    result = cli("data", "check", "rows")
    assert result.code == 2
    assert "rows: expected one file named train (" in result.err


def test_many_faults_of_a_kind_are_counted_and_the_first_listed(cli: Cli) -> None:
    result = cli("data", "check", lines(GOOD, *["[]"] * 1_200))
    assert "\n  1,200  expected an object; found a list\n" in result.out
    assert result.out.count("found a list") == 1 + 5
    assert "\n           ... and 1,195 more\n" in result.out


def test_places_do_not_repeat_the_folder_of_the_heading(cli: Cli) -> None:
    Path("rows").mkdir()
    lines(GOOD, GOOD).rename("rows/a.jsonl")
    result = cli("data", "check", "rows/a.jsonl")
    assert result.out.startswith("rows/a.jsonl: 2 records, 2 usable\n")
    assert "\n      1  records that repeat another exactly: a.jsonl:2 = a.jsonl:1\n" in result.out


def test_quiet_prints_nothing_on_stderr(cli: Cli) -> None:
    assert cli("data", "check", lines(GOOD), "--quiet").err == ""


def test_a_folder_gives_both_sets(cli: Cli) -> None:
    Path("rows").mkdir()
    Path("rows/train.jsonl").write_text(GOOD + "\n")
    Path("rows/valid.jsonl").write_text(GOOD + "\n")
    report = check(cli, "rows")
    assert report["eval"]["rows"] == 1
    assert report["shared"] == {
        "exact": 1,
        "normalized": 1,
        "first": [{"place": "rows/valid.jsonl:1", "repeats": "rows/train.jsonl:1"}],
    }


def test_a_byte_order_mark_and_windows_line_endings_are_accepted(cli: Cli) -> None:
    Path("a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n{OTHER}\r\n".encode())
    report = check(cli, "a.jsonl")
    assert (report["accepted"], report["usable"]) == (True, 2)


def test_utf_16_is_one_fault_that_names_it(cli: Cli) -> None:
    Path("a.jsonl").write_bytes(f"{GOOD}\n{OTHER}\n".encode("utf-16"))
    assert faults(check(cli, "a.jsonl")) == [
        ("a.jsonl:1", "expected UTF-8; found UTF-16 (byte order mark at byte 0)")
    ]


def test_the_evaluation_data_may_have_another_format(cli: Cli) -> None:
    Path("b.jsonl").write_text(messages(*QUESTION_AND_ANSWER) + "\n")
    report = check(cli, lines(GOOD), "--eval-data", "b.jsonl")
    assert report["accepted"]
    assert report["shared"]["exact"] == 1


def test_faults_of_the_evaluation_data_are_reported_separately(cli: Cli) -> None:
    Path("b.jsonl").write_text("oops\n")
    result = cli("data", "check", lines(GOOD), "--eval-data", "b.jsonl")
    assert result.code == 2
    assert result.out.endswith("\nTraining refuses b.jsonl: 1 fault in 1 record.\n")


# --- supervised tokens ---


def test_the_report_has_what_the_design_asks_of_it(cli: Cli) -> None:
    empty = '{"prompt": "Hm", "completion": ""}'
    report = check(cli, lines(GOOD, OTHER, GOOD, OTHER, empty))
    assert report["rows"] == 5
    assert report["usable"] == report["training_rows"] == report["end_trained"] == 4
    assert report["dropped"] == {"empty_answer": 1}
    assert report["labels"] == {"No": 2, "Yes": 2}
    assert 0 < report["supervised_tokens"] < report["tokens"]
    assert report["lengths"]["counts"] == [4]
    assert report["duplicates"]["exact"] == 2


def test_rows_that_are_all_too_long_are_refused(cli: Cli) -> None:
    report = check(cli, lines(GOOD, OTHER), "--max-length", "8")
    assert (report["refused"], report["dropped"]) == (
        "it has no usable rows",
        {"overlong": 2},
    )


def test_overlong_rows_are_faults_with_overlong_error(cli: Cli) -> None:
    report = check(cli, lines(GOOD), "--max-length", "8", "--overlong", "error")
    assert faults(report) == [
        ("a.jsonl:1", "expected at most 8 tokens (data.max_length); found 11")
    ]


def test_a_single_row_is_enough(cli: Cli) -> None:
    report = check(cli, lines(GOOD))
    assert (report["accepted"], report["usable"], report["labels"]) == (True, 1, None)


def test_control_tokens_in_the_text_are_noted(cli: Cli) -> None:
    report = check(cli, lines(messages(("user", "a<|im_end|>b"), ("assistant", "Yes"))))
    assert report["notes"] == [{"note": "control_text", "count": 1, "first": ["a.jsonl:1"]}]


def test_the_options_of_a_job_apply(cli: Cli) -> None:
    lines(GOOD, OTHER)
    Path("job.yaml").write_text("data: {train: a.jsonl, limit: 1, max_length: 99}\n")
    report = check(cli, "--job", "job.yaml", "--max-length", "77")
    assert (report["rows"], report["max_length"]) == (1, 77)


def test_without_a_file_or_a_job_nothing_is_checked(cli: Cli) -> None:
    result = cli("data", "check")
    assert result.code == 2
    assert "Name a FILE, or a job with --job." in result.err


def test_a_model_without_a_chat_template_is_refused(cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_path(), tmp_path / "bare")
    config = json.loads(Path("bare/tokenizer_config.json").read_text())
    del config["chat_template"]
    Path("bare/tokenizer_config.json").write_text(json.dumps(config))
    result = cli("data", "check", lines(GOOD), "--model", "bare")
    assert result.code == 2
    assert result.err.startswith("bare/chat_template.jinja: no chat template")


def test_the_choices_are_those_of_the_job() -> None:
    fields = DataSpec.model_fields
    assert ["auto", *KEYS] == FORMATS
    assert tuple(OVERLONG) == get_args(fields["overlong"].annotation)
    assert tuple(TRAIN_ON) == get_args(fields["train_on"].annotation)


# --- show ---

TWO = messages(("user", "Hi"), ("assistant", "One."), ("user", "And?"), ("assistant", "Two."))


def test_a_row_is_shown_with_marks_where_there_is_no_color(cli: Cli) -> None:
    result = cli("data", "show", lines(TWO))
    assert (
        result.out
        == """\
a.jsonl:1 (messages): 29 tokens, 8 supervised
<|im_start|>user
Hi<|im_end|>
<|im_start|>assistant
⟦One.<|im_end|>⟧
<|im_start|>user
And?<|im_end|>
<|im_start|>assistant
⟦Two.<|im_end|>⟧
"""
    )
    assert result.err == f"{TALK}(context, ⟦supervised⟧, ⟦cut: removed⟧)\n"


def test_what_is_cut_off_is_shown(cli: Cli) -> None:
    result = cli("data", "show", lines(TWO), "--max-length", "27", "--overlong", "cut")
    assert result.out.endswith("⟦Two⟧⟦cut: .<|im_end|>⟧\n")


def test_a_dropped_row_shows_the_reason(cli: Cli) -> None:
    result = cli("data", "show", lines(TWO), "--max-length", "10")
    assert result.out.splitlines()[1] == "dropped: longer than 10 tokens"


def test_an_empty_answer_shows_the_reason(cli: Cli) -> None:
    result = cli("data", "show", lines('{"prompt": "Hi", "completion": ""}'))
    assert result.out.splitlines()[1] == "dropped: an answer is empty or whitespace"


def test_a_question_that_leaves_no_room_is_shown_cut(cli: Cli) -> None:
    result = cli("data", "show", lines(GOOD), "--max-length", "8", "--overlong", "cut")
    first, why, *_ = result.out.splitlines()
    assert first.endswith("11 tokens, 0 supervised, 3 cut off")
    assert why == "dropped: no supervised token is left"


def test_the_last_turn_alone_can_be_trained(cli: Cli) -> None:
    result = cli("data", "show", lines(TWO), "--train-on", "last")
    assert "\nOne.<|im_end|>\n" in result.out and "⟦Two.<|im_end|>⟧" in result.out


def test_a_row_is_found_by_its_number_and_by_its_line(cli: Cli) -> None:
    for which in (("--line", "3"), ("--row", "2")):
        result = cli("data", "show", lines(GOOD, "", OTHER), *which)
        assert result.out.startswith("a.jsonl:3 (prompt): ")
        assert "⟦No<|im_end|>⟧" in result.out


def test_a_line_without_a_record_is_an_error(cli: Cli) -> None:
    result = cli("data", "show", lines(GOOD, "", OTHER, GOOD), "--line", "2")
    assert result.code == 2
    assert result.err == (f"{TALK}--line: no record starts at line 2\n\nhint: try --line 3\n")


def test_a_number_beyond_the_last_record_is_an_error(cli: Cli) -> None:
    result = cli("data", "show", lines(GOOD, "", OTHER), "--row", "3")
    assert result.code == 2
    assert result.err == f"{TALK}--row: expected at most 2, the last record; found 3\n"


def test_number_and_line_are_not_given_together(cli: Cli) -> None:
    result = cli("data", "show", lines(GOOD), "--row", "1", "--line", "1")
    assert result.code == 2
    assert "Name a record by --row or by --line, not by both." in result.err


def test_a_faulty_record_is_shown_as_its_faults(cli: Cli) -> None:
    result = cli("data", "show", lines(GOOD, '{"prompt": "a"}'), "--row", "2")
    assert result.code == 2
    assert "a.jsonl:2: completion: expected a string; it is missing" in result.err


def test_ids_are_listed_token_by_token(cli: Cli) -> None:
    result = cli("data", "show", lines(GOOD), "--ids")
    listed = [line.split(maxsplit=2) for line in result.out.splitlines()[1:]]
    assert [(part, text) for _, part, text in listed if part == "supervised"] == [
        ("supervised", "'Yes'"),
        ("supervised", "'<|im_end|>'"),
    ]
    assert all(id.isdigit() for id, _, _ in listed)


def test_a_row_in_json_has_its_parts_and_ids(cli: Cli) -> None:
    result = cli("data", "show", lines(GOOD), "--ids", "--json")
    shown = json.loads(result.out)
    [row] = shown["rows"]
    assert [part["text"] for part in row["text"] if part["part"] == "trained"] == ["Yes<|im_end|>"]
    assert len(row["ids"]) == len(row["parts"]) == row["tokens"]
    assert (row["trained"], row["cut"], row["dropped"]) == (2, 0, None)


def test_a_row_is_shown_with_its_id_and_category(cli: Cli) -> None:
    row = lines('{"prompt": "Hi", "completion": "Yes", "id": 7, "category": "po\\u001bems"}')
    said = cli("data", "show", row)
    first = "a.jsonl:1 (prompt, id 7, category po␛ems): 11 tokens, 2 supervised"
    assert said.out.splitlines()[0] == first
    shown = json.loads(cli("data", "show", row, "--json").out)
    assert (shown["id"], shown["category"]) == (7, "po\x1bems")


def test_data_cannot_drive_the_terminal(cli: Cli) -> None:
    wild = messages(("user", "\x1b]0;owned\x07"), ("assistant", "\x9b31m\x08"))
    lines(wild, '{"messages": [], "\\u001b": 1}')
    for arguments in (["show"], ["show", "--ids"], ["check"]):
        result = cli("data", *arguments, "a.jsonl")
        assert result.out
        assert not [c for c in result.out if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0]


def test_a_terminal_that_has_no_unicode_gets_ascii(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "takes", lambda text, encoding: False)
    assert "[[Yes<|im_end|>]]" in cli("data", "show", lines(GOOD)).out
    assert " #####" in cli("data", "check", "a.jsonl").out


@pytest.mark.slow
def test_characters_that_stdout_cannot_take_become_their_codes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(messages(("user", "é"), ("assistant", "日")))
    done = subprocess.run(
        [sys.executable, "-m", "qwen_local", "data", "show", "a.jsonl"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"\\xe9<|im_end|>" in done.stdout
    assert b"[[\\u65e5<|im_end|>]]" in done.stdout


def test_parts_have_different_colors_on_a_terminal() -> None:
    canvas = Canvas(color=True)
    assert marked("context", "a\nb", canvas) == "\x1b[2ma\x1b[22m\n\x1b[2mb\x1b[22m"
    assert marked("trained", "a", canvas) == "\x1b[32ma\x1b[39m"
    assert marked("cut", "a", canvas) == "\x1b[31;9ma\x1b[39;29m"


@pytest.mark.parametrize(
    ("environment", "color"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_no_color_and_dumb_terminals_are_obeyed(
    environment: dict[str, str], color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert output.canvas_of_stdout().color is color


# --- fix ---


def test_repairable_faults_are_repaired_and_reported(cli: Cli) -> None:
    content = "\r\n".join(
        [
            "\ufeff" + messages(*QUESTION_AND_ANSWER),
            messages(("user", "Hi"), ("bot", "No")),
            messages(*QUESTION_AND_ANSWER),
            messages(("user", "a\0b"), ("assistant", "c")),
            '{"messages": [{"role": "user", "content": "x"}, '
            '{"role": "assistant", "content": "y\\ud83d"}], "n": NaN}',
            messages(("user", "Hi"), ("assistant", "")),
            "oops",
        ]
    )
    Path("a.jsonl").write_bytes(content.encode())
    before = Path("a.jsonl").read_bytes()
    result = cli("data", "check", "a.jsonl", "--fix", "b.jsonl")
    assert result.code == 0
    assert (
        result.out.partition("records.\n\n")[2]
        == """\
b.jsonl: 4 records written
      6  repaired: Windows line endings removed: a.jsonl:1, a.jsonl:2, a.jsonl:3, ...
      1  repaired: NUL characters removed: a.jsonl:4
      1  repaired: NaN and Infinity replaced by null: a.jsonl:5
      1  repaired: byte order mark removed: a.jsonl
      1  repaired: halves of surrogate pairs removed: a.jsonl:5
      1  repaired: roles renamed: a.jsonl:2
      1  left out: an answer is empty or whitespace: a.jsonl:6
      1  left out: not valid JSON: Expecting value at column ...; found ...: a.jsonl:7
      1  left out: repeats an earlier record exactly: a.jsonl:3
"""
    )
    assert Path("a.jsonl").read_bytes() == before
    written = [json.loads(line) for line in Path("b.jsonl").read_text("utf-8").splitlines()]
    assert [row["messages"][1] for row in written] == [
        {"role": "assistant", "content": text} for text in ("Yes", "No", "c", "y")
    ]
    assert written[3]["n"] is None
    assert check(cli, "b.jsonl")["accepted"]


def test_no_file_is_ever_overwritten(cli: Cli) -> None:
    lines("oops", GOOD)
    result = cli("data", "check", "a.jsonl", "--fix", "a.jsonl")
    assert (result.code, result.out) == (2, "")
    assert result.err == "--fix: expected the name of a new file; a.jsonl exists\n"
    assert Path("a.jsonl").read_text() == f"oops\n{GOOD}\n"


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("link.jsonl", "expected the name of a new file; link.jsonl exists"),
        ("b.json", "expected a .jsonl file; found b.json"),
        ("nowhere/b.jsonl", "no such folder: nowhere"),
    ],
)
def test_a_copy_has_a_place_of_its_own(output: str, problem: str, cli: Cli) -> None:
    lines(GOOD)
    Path("link.jsonl").symlink_to("not-there")
    result = cli("data", "check", "a.jsonl", "--fix", output)
    assert (result.code, result.err) == (2, f"--fix: {problem}\n")
    assert sorted(path.name for path in Path().iterdir()) == ["a.jsonl", "link.jsonl"]


def test_a_copy_that_was_interrupted_is_not_there(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fix, "sync_folder", full)
    assert cli("data", "check", lines(GOOD), "--fix", "b.jsonl").code == 1
    assert [path.name for path in Path().iterdir()] == ["a.jsonl"]


def test_roles_are_renamed_as_the_format_has_them(cli: Cli) -> None:
    result = [{"from": "human", "value": "Hi"}, {"from": "bot", "value": "Yes"}]
    lines(json.dumps({"conversations": result}))
    assert check(cli, "a.jsonl", "--fix", "b.jsonl")["fixed"]["repaired"] == {"roles renamed": 1}
    [row] = [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()]
    assert row["conversations"][1] == {"from": "gpt", "value": "Yes"}


def test_without_usable_records_no_file_is_written(cli: Cli) -> None:
    result = cli("data", "check", lines("oops"), "--fix", "b.jsonl")
    assert result.code == 2
    assert result.err.endswith("--fix: no usable record is left; nothing is written\n")
    assert sorted(path.name for path in Path().iterdir()) == ["a.jsonl"]


def test_ambiguous_records_are_left_out(cli: Cli) -> None:
    twice = '{"prompt": "a", "prompt": "b", "completion": "c"}'
    fixed = check(cli, lines(GOOD, twice), "--fix", "b.jsonl")["fixed"]
    assert (fixed["rows"], fixed["repaired"]) == (1, {})
    assert sum(fixed["left_out"].values()) == 1


def test_a_record_that_is_left_out_does_not_count_as_repaired(cli: Cli) -> None:
    null = '{"messages": [{"role": "bot", "content": null}]}'
    again = messages(("user", "H\0i"), ("assistant", "Yes"))
    fixed = check(cli, lines(messages(*QUESTION_AND_ANSWER), null, again), "--fix", "b.jsonl")[
        "fixed"
    ]
    assert (fixed["rows"], fixed["repaired"]) == (1, {})
    assert sum(fixed["left_out"].values()) == 2


def test_lines_are_repaired_anywhere_in_the_file(cli: Cli) -> None:
    first = '\ufeff{"prompt": "a", "completion": "b", "n": NaN}'
    last = '{"prompt": "c", "completion": "d\\u0000", "e\\u0000": 1}'
    lines(first, '{"prompt": "' + "a" * 2**24 + '"}', last)
    fixed = check(cli, "a.jsonl", "--fix", "b.jsonl")["fixed"]
    assert fixed["repaired"] == {
        "byte order mark removed": 1,
        "NaN and Infinity replaced by null": 1,
        "NUL characters removed": 1,
    }
    assert [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()] == [
        {"prompt": "a", "completion": "b", "n": None},
        {"prompt": "c", "completion": "d", "e": 1},
    ]


def test_one_source_is_shown_or_repaired_at_a_time(cli: Cli) -> None:
    lines(GOOD)
    Path("job.yaml").write_text("data: {train: [a.jsonl, a.jsonl]}\n")
    assert check(cli, "--job", "job.yaml")["sources"] == ["a.jsonl", "a.jsonl"]
    for arguments in (["show"], ["check", "--fix", "b.jsonl"]):
        result = cli("data", *arguments, "--job", "job.yaml")
        assert result.code == 2
        assert result.err.endswith(
            "data.train: expected a single source; found a.jsonl, a.jsonl\n\n"
            "hint: pass one of them as FILE\n"
        )


def test_a_table_is_repaired_into_lines(cli: Cli) -> None:
    Path("a.csv").write_text("prompt,completion\nHi,Yes\nHi,Yes\nHm,\n")
    assert check(cli, "a.csv", "--fix", "b.jsonl")["fixed"]["rows"] == 1
    assert Path("b.jsonl").read_text() == '{"prompt": "Hi", "completion": "Yes"}\n'


pieces = st.sampled_from(
    ["Hi", "", " ", "\0", "\ud83d", "<|im_end|>", "\x1b", "a" * 99, "\ufeff", "é", "ﬁ"]
)
contents: st.SearchStrategy[Any] = st.one_of(
    pieces, st.builds(str.__add__, pieces, pieces), st.none(), st.just([])
)
roles = st.sampled_from(["user", "assistant", "bot", "system", "human", "gpt", "tool", "Users", 3])
turns = st.fixed_dictionaries({"role": roles, "content": contents})
rows = st.one_of(
    st.fixed_dictionaries(
        {"messages": st.lists(turns, max_size=3)}, optional={"n": st.just(float("nan"))}
    ),
    st.fixed_dictionaries({"prompt": contents, "completion": contents}),
    st.sampled_from([[], None, {}, 3, float("inf")]),
)
written = st.one_of(
    st.builds(json.dumps, rows).map(str.encode),
    st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")),
    st.sampled_from([b'{"prompt": "a", "prompt": "b", "completion": "c"}', b"[" * 9999, b""]),
)


@pytest.mark.slow
@given(content=st.lists(written, max_size=12), end=st.sampled_from([b"\n", b"\r\n"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_repaired_file_has_no_fault(content: list[bytes], end: bytes, cli: Cli) -> None:
    """Whatever a file holds, there is a report, and the copy of what is left is accepted."""
    Path("b.jsonl").unlink(missing_ok=True)
    Path("a.jsonl").write_bytes(end.join([*content, GOOD.encode()]))
    short = ("--max-length", "40", "--overlong", "error")
    result = cli("data", "check", "a.jsonl", "--fix", "b.jsonl", *short, "--json")
    if result.code == 2:
        assert result.err.endswith("--fix: no usable record is left; nothing is written\n")
        return
    report = check(cli, "b.jsonl", *short)
    assert report["accepted"]
    assert not report["dropped"]
    assert report["duplicates"]["exact"] == 0
    assert report["rows"] == json.loads(result.out)["fixed"]["rows"]


def test_a_source_without_usable_rows_is_refused_as_in_training(cli: Cli) -> None:
    Path("b.jsonl").write_text('{"prompt": "?", "completion": " "}', encoding="utf-8")
    job = ("--set", f"data.train=[{lines(GOOD)}, b.jsonl]", "--set", "data.eval_fraction=0")
    Path("job.yaml").write_text("{}", encoding="utf-8")
    result = cli("data", "check", "--job", "job.yaml", *job, "--json")
    assert (result.code, json.loads(result.out)["refused"]) == (2, "no usable rows in b.jsonl")
    assert cli("plan", "job.yaml", *job).code == 2


def test_a_conversation_without_supervised_tokens_is_reported(cli: Cli) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "weight": 0}]
    result = cli("data", "show", lines(json.dumps({"messages": turns})))
    assert result.out == (
        "a.jsonl:1 (messages): no supervised tokens (every answer has weight 0)\n"
    )
