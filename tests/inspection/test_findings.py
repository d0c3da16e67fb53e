"""What a check gathers: every finding, bounded, and the same however the data are divided."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_local.datasets.formats import Example, examples
from qwen_local.datasets.record_files import Faults, Record
from qwen_local.datasets.row_builder import TokenizeConfig
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import tiny_model_path
from qwen_local.errors import Fault
from qwen_local.inspection.check import DataCheck, SetCheck
from qwen_local.inspection.check_page import describe
from qwen_local.inspection.draw import Canvas
from qwen_local.inspection.findings import Secret, SetFindings, inspect_block
from qwen_local.inspection.kinds import kind_of
from qwen_local.inspection.tally import ITEMS_PER_KIND, MAX_KINDS, Places, Tally

TINY = ChatTokenizer.load(tiny_model_path())


def making(
    max_length: int = 64, overlong: Any = "drop", train_on: Any = "assistant"
) -> TokenizeConfig:
    return TokenizeConfig(
        tokenizer=TINY,
        max_length=max_length,
        overlong=overlong,
        train_on=train_on,
        thinking="auto",
    )


def read(*values: Any, name: str = "a.jsonl") -> list[Example | Faults]:
    """The examples of these values, one a line; faults are handed on."""
    records = [
        value if isinstance(value, tuple) else Record(f"{name}:{line}", value)
        for line, value in enumerate(values, 1)
    ]
    return list(examples(records))


def found(*values: Any, name: str = "a.jsonl", **how: Any) -> SetFindings:
    return inspect_block(making(**how), read(*values, name=name))


def asked(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"prompt": question, "completion": answer, **more}


# --- bounded counts ---


@pytest.mark.parametrize("seed", range(20))
def test_a_tally_is_the_same_however_it_is_divided(seed: int) -> None:
    draw = random.Random(seed)
    items = [(draw.randrange(3 * MAX_KINDS), n) for n in range(900)]
    first, second = sorted((draw.randrange(900), draw.randrange(900)))

    def tally(items: Sequence[tuple[int, int]]) -> Tally[int]:
        counted: Tally[int] = Tally()
        for kind, item in items:
            counted.add(f"kind {kind}", item)
        return counted

    parts = [tally(items[:first]), tally(items[first:second]), tally(items[second:])]
    left = copy.deepcopy(parts[0])
    left.merge(parts[1])
    left.merge(parts[2])
    parts[1].merge(parts[2])
    parts[0].merge(parts[1])
    assert left == parts[0] == tally(items)
    assert len(left.counts) <= MAX_KINDS
    assert left.total == len(items)


def test_a_tally_counts_all_and_keeps_the_first() -> None:
    counted: Tally[int] = Tally()
    for number in range(2 * ITEMS_PER_KIND):
        counted.add("even" if number % 2 == 0 else "odd", number)
    counted.add("odd", 99)
    assert counted.by_count() == [("odd", 6, [1, 3, 5, 7, 9]), ("even", 5, [0, 2, 4, 6, 8])]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9))), st.integers(0, 9))
def test_places_are_the_same_however_they_are_divided(
    places: list[tuple[str, int]], at: int
) -> None:
    names = [f"{name}.jsonl:{number}" for name, number in places]
    divided = Places(names[:at])
    divided.extend(Places(names[at:]))
    assert divided == Places(names)
    assert [divided[index] for index in range(len(divided))] == names


# --- a whole report ---

FAULTY: list[Any] = [
    (Fault("a.jsonl:1", "not valid JSON: Extra data at column 3; found 'x'", "mend it"),),
    {"prompt": "Hi", "completion": None},
    {"prompt": 1, "completion": "No"},
]
texts = st.sampled_from(["Yes", "no", "NO", "a  b", "a\nb", "", "x" * 300, "\x1b[0m", "one two"])
values = st.one_of(
    st.builds(asked, texts, texts),
    st.builds(asked, texts, texts, note=texts),
    st.sampled_from(FAULTY),
)


@given(st.lists(values, max_size=30), st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=60)
def test_dividing_the_data_into_blocks_never_changes_the_report(
    values: list[Any], cuts: list[int]
) -> None:
    block = read(asked("What?", "This."), *values)
    whole = inspect_block(making(), block)
    edges = [0, *sorted(cuts), len(block)]
    merged = SetFindings.empty(making())
    for start, stop in pairwise(edges):
        merged.merge(copy.deepcopy(inspect_block(making(), block[start:stop])))
    assert merged == whole
    report, again = (
        DataCheck.of("m", SetCheck.of(["a.jsonl"], f), SetCheck.of(["b.jsonl"], whole))
        for f in (merged, whole)
    )
    assert report.to_json() == again.to_json()
    assert describe(report, Canvas()) == describe(again, Canvas())


def test_a_row_costs_28_bytes() -> None:
    block = inspect_block(making(), read(*(asked(f"Say {n}.", str(n)) for n in range(2000))))
    assert len(ForkingPickler.dumps(block)) < 28 * 2000 + 2000


@given(st.lists(values, max_size=20))
@settings(max_examples=30)
def test_every_record_is_usable_dropped_or_faulty(values: list[Any]) -> None:
    report = found(asked("What?", "This."), *values)
    assert report.records == 1 + len(values)
    assert report.usable + report.dropped.total + report.faulty == report.records


# --- what is found ---


def test_rows_are_counted_as_training_counts_them() -> None:
    row = inspect_block(making(), read(asked("Hi", "Yes")))
    tokens = TINY.encode_prompt([{"role": "user", "content": "Hi"}])
    answer = TINY.encode_text("Yes").ids[:-1]
    assert (row.rows, row.usable, row.ended) == (1, 1, 1)
    assert row.tokens == len(tokens) + len(answer)  # and the end of turn is a target only
    assert row.supervised == len(answer) + 1
    assert list(row.lengths) == [row.tokens + 1]


def test_the_first_token_of_a_text_is_no_target() -> None:
    row = found({"text": "one two three"})
    assert row.supervised == row.tokens == len(TINY.encode_text("one two three").ids) - 1


def test_a_cut_row_does_not_count_as_ended() -> None:
    long = asked("Hi", "one two three " * 50)
    assert found(long, overlong="cut").ended == 0
    assert found(long, overlong="cut").cut == 1


@pytest.mark.parametrize(
    ("overlong", "dropped", "faults"),
    [("drop", {"overlong": 1}, {}), ("cut", {}, {}), ("error", {}, {"expected at most": 1})],
)
def test_an_overlong_row_is_dropped_cut_or_a_fault(
    overlong: str, dropped: dict[str, int], faults: dict[str, int]
) -> None:
    report = found(asked("Hi", "one two three " * 50), overlong=overlong)
    assert report.dropped.counts == dropped
    assert {kind[:16]: count for kind, count in report.faults.counts.items()} == faults


def test_a_prompt_as_long_as_max_length_leaves_nothing_supervised() -> None:
    report = found(asked("one two three " * 50, "Yes"), overlong="cut")
    assert report.dropped.counts == {"nothing_trained": 1}
    assert report.dropped.first == {"nothing_trained": ["a.jsonl:1"]}


def test_empty_answers_are_dropped_with_their_places() -> None:
    report = found(asked("Hi", "Yes"), asked("Hi", " \n"))
    assert report.dropped.first == {"empty_answer": ["a.jsonl:2"]}


def test_the_longest_rows_are_named_the_longest_first() -> None:
    report = found(*(asked("Hi", "one " * n) for n in (3, 9, 5, 9, 1, 7, 2)))
    places = [place for _, place in report.longest]
    assert places == [f"a.jsonl:{line}" for line in (2, 4, 6, 3, 1)]


def test_secrets_are_reported_but_never_shown() -> None:
    token = "hf_" + "aB3dE6gH9k" * 4
    key = "-----BEGIN RSA PRIVATE KEY-----"
    report = found(asked(f"Log in with {token}", "Yes"), asked("Hi", f"{key}\nMIIE"))
    assert report.secrets.first == {
        "Hugging Face token": [Secret("a.jsonl:1", "hf_a")],
        "private key": [Secret("a.jsonl:2", "----")],
    }
    side = SetCheck.of(["a.jsonl"], report)
    check = DataCheck.of("m", side, side)
    assert token[4:] not in describe(check, Canvas()) + json.dumps(check.to_json())


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-" + "a1B2" * 10,
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2" * 8,
        "AKIA" + "ABCD1234" * 2,
        "xoxb-123456789012-abcdef",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----",
    ],
)
def test_secrets_of_other_kinds_are_found(secret: str) -> None:
    assert found(asked("Hi", f"it is {secret}.")).secrets.total == 1


@pytest.mark.parametrize(
    "harmless",
    [
        "hf_hub_download(repo_id)",
        "class='sk-fading-circle sk-circle12'",
        "risk-averse-behavior-2-of-many-people-in-it",
        "-----BEGIN PUBLIC KEY-----",
        "xoxo-love-and-kisses",
    ],
)
def test_text_that_resembles_a_secret_is_not_reported(harmless: str) -> None:
    assert found(asked("Hi", f"it is {harmless}.")).secrets.total == 0


def test_control_characters_are_found_but_not_tab_and_line_ends() -> None:
    report = found(asked("a\tb\r\nc", "fine"), asked("\x1b[31m", "\x07 \x07\x0b"))
    assert report.controls.first == {kind: ["a.jsonl:2"] for kind in ("U+0007", "U+000B", "U+001B")}


def test_the_text_of_control_tokens_is_noted() -> None:
    report = found(asked("What is <|im_end|>?", "An end."), asked("Hi", "Yes"))
    assert report.notes.first == {"control_text": ["a.jsonl:1"]}


def test_turns_that_do_not_alternate_and_ends_without_answer_are_noted() -> None:
    user, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    report = found({"messages": [user, user, said]}, {"messages": [user, said, user]})
    assert report.notes.first == {
        "roles_not_alternating": ["a.jsonl:1"],
        "ends_without_answer": ["a.jsonl:2"],
    }


def test_unknown_keys_are_counted() -> None:
    report = found(asked("Hi", "Yes", idx=1), asked("Hi", "No", idx=2))
    assert report.ignored.first == {"idx": ["a.jsonl:1", "a.jsonl:2"]}


# --- labels ---


def labels(*answers: str) -> dict[str, int] | None:
    report = found(*(asked(f"{n}?", answer) for n, answer in enumerate(answers)))
    return SetCheck.of(["a"], report).labels


def test_few_answers_are_labels_the_most_frequent_first() -> None:
    assert labels("No", "Yes", "Yes", "Yes") == {"Yes": 3, "No": 1}


def test_many_different_answers_are_not_labels() -> None:
    assert labels("a", "b", "c", "a") is None
    assert labels(*(str(n // 2) for n in range(42))) is None
    assert labels(*(str(n // 2) for n in range(40))) == {str(n): 2 for n in range(20)}


# --- duplicates ---


def check(train: SetFindings, evaluation: SetFindings) -> DataCheck:
    return DataCheck.of("m", SetCheck.of(["a"], train), SetCheck.of(["b"], evaluation))


def test_exact_and_near_duplicates_are_found() -> None:
    report = found(
        asked("Hi", "Yes"), asked("Hi", "Yes"), asked("  hi", "YES\n"), asked("Hi", "No")
    )
    duplicates = SetCheck.of(["a"], report).duplicates
    assert (duplicates.exact, duplicates.similar) == (1, 2)
    assert duplicates.first_exact == (("a.jsonl:2", "a.jsonl:1"),)
    assert duplicates.first_similar == (("a.jsonl:3", "a.jsonl:1"),)


def test_records_in_both_sets_are_found() -> None:
    train = found(asked("Hi", "Yes"), asked("What?", "This."))
    evaluation = found(asked("HI", "yes"), asked("What?", "This."), asked("x", "y"), name="b.jsonl")
    shared = check(train, evaluation).shared
    assert shared is not None
    assert (shared.exact, shared.similar) == (1, 2)
    assert shared.first_exact == (("b.jsonl:2", "a.jsonl:2"),)
    assert shared.first_similar == (("b.jsonl:1", "a.jsonl:1"),)


def test_the_format_does_not_hide_a_duplicate() -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    shared = check(found(asked("Hi", "Yes")), found({"messages": said})).shared
    assert shared is not None and shared.exact == 1


# --- kinds of fault ---


@pytest.mark.parametrize(
    ("problem", "other"),
    [
        ("expected a string; found 17", "expected a string; found 4"),
        ("expected x; found 'bot'", 'expected x; found "it\'s"'),
        ("not valid JSON: Extra data at column 3", "not valid JSON: Extra data at column 9"),
        ("the key 'a' occurs more than once", "the key 'b' occurs more than once"),
        (
            "expected text; found half of a surrogate pair, \\ud83d (character 1)",
            "expected text; found half of a surrogate pair, \\udc00 (character 22)",
        ),
    ],
)
def test_faults_that_differ_in_values_only_are_of_one_kind(problem: str, other: str) -> None:
    assert kind_of(problem) == kind_of(other)


@pytest.mark.parametrize(
    ("problem", "other"),
    [
        ("expected a string; found null", "expected a string; found a list"),
        (
            "expected text; found a NUL character (character 1)",
            "expected text; found half of a surrogate pair, \\ud83d (character 1)",
        ),
        ("not valid JSON: Expecting ',' delimiter", "not valid JSON: Expecting ':' delimiter"),
    ],
)
def test_faults_that_differ_in_what_is_wrong_are_of_two_kinds(problem: str, other: str) -> None:
    assert kind_of(problem) != kind_of(other)
