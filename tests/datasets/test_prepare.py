"""From files to rows: what is kept, what is counted, and what stops a run before it begins."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_local.datasets import prepare as module
from qwen_local.datasets.prepare import Prepared, prepare
from qwen_local.datasets.row_builder import TokenizeConfig
from qwen_local.datasets.sources import SourceSpec
from qwen_local.datasets.template import compile_template
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import DatasetError
from qwen_local.rows.targets import IGNORE


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(name: str, *records: object) -> str:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return name


def pair(question: str, answer: str) -> dict[str, str]:
    return {"prompt": question, "completion": answer}


def run(tokenizer: ChatTokenizer, train: str, **changes: Any) -> Prepared:
    how = {key: changes.pop(key) for key in ("format", "limit") if key in changes}
    evaluation = changes.pop("eval", None)
    settings: dict[str, Any] = {
        "train": [SourceSpec(name=train, **how)],
        "eval": [SourceSpec(name=evaluation, **how)] if evaluation else [],
        "eval_fraction": 0.0,
        "max_length": 64,
        "overlong": "drop",
        "train_on": "assistant",
        "seed": 0,
    }
    given = settings | changes
    names = ("max_length", "overlong", "train_on", "thinking")
    options = {name: given.pop(name) for name in names if name in given}
    return prepare(TokenizeConfig(tokenizer=tokenizer, **options), **given)


def message_of(tokenizer: ChatTokenizer, train: str, **changes: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        run(tokenizer, train, **changes)
    return str(caught.value)


def columns(rows: Any, r: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, target ids) of row r."""
    ids, targets = rows.row(r)
    return ids, targets.ids_T


def learned(tokenizer: ChatTokenizer, rows: Any) -> list[str]:
    """The text that each row trains."""
    targets = (columns(rows, r)[1] for r in range(len(rows)))
    return [tokenizer.decode(t[t != IGNORE], skip_special_tokens=False) for t in targets]


# --- rows ---


def test_a_row_is_the_conversation_up_to_its_last_trained_token(tiny: ChatTokenizer) -> None:
    messages = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "2."},
        {"role": "user", "content": "And then?"},
    ]
    prepared = run(tiny, put("a.jsonl", {"messages": messages}))
    ids, targets = columns(prepared.train, 0)
    text = "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n2."
    assert tiny.decode(ids.tolist(), skip_special_tokens=False) == text
    assert targets[targets != IGNORE].tolist() == [*ids[-2:].tolist(), tiny.end_of_turn]
    assert (targets[:-3] == IGNORE).all()


def test_train_on_last_is_honored(tiny: ChatTokenizer) -> None:
    talk = [["1?", "2."], ["3?", "4."]]
    file = put("a.jsonl", {"instruction": "5?", "output": "6.", "history": talk})
    every, last = (run(tiny, file, train_on=what).train for what in ("assistant", "last"))
    assert learned(tiny, every) == ["2.<|im_end|>4.<|im_end|>6.<|im_end|>"]
    assert learned(tiny, last) == ["6.<|im_end|>"]


def test_every_token_of_a_text_but_the_first_is_a_target(tiny: ChatTokenizer) -> None:
    prepared = run(tiny, put("a.jsonl", {"text": "The sky is blue."}))
    ids, targets = columns(prepared.train, 0)
    assert [*ids.tolist(), tiny.end_of_text] == tiny.encode_text("The sky is blue.").ids
    assert targets.tolist() == [*ids[1:].tolist(), tiny.end_of_text]


def test_the_first_records_are_taken_where_there_is_a_limit(tiny: ChatTokenizer) -> None:
    file = put("a.jsonl", *(pair("?", f"{n}.") for n in range(5)), "{broken")
    prepared = run(tiny, file, eval=file, limit=2)
    assert prepared.eval is not None
    assert learned(tiny, prepared.train) == ["0.<|im_end|>", "1.<|im_end|>"]
    assert len(prepared.eval) == 2


# --- rows that are too long ---

SHORT, LONG = pair("?", "Yes."), pair("?", "No, " * 40)
LATE = pair("Well, " * 40, "Yes.")


def test_overlong_rows_are_dropped_and_counted(tiny: ChatTokenizer) -> None:
    prepared = run(tiny, put("a.jsonl", SHORT, LONG, LATE))
    [source] = prepared.report.sources
    assert learned(tiny, prepared.train) == ["Yes.<|im_end|>"]
    assert (source.records, source.usable.rows, source.dropped, source.cut) == (
        3,
        1,
        {"overlong": 2},
        0,
    )
    whole = run(tiny, "a.jsonl", max_length=1000).train
    assert source.longest == max(whole.lengths_R) + 1  # the last token is a target alone


def test_rows_whose_answer_says_nothing_are_dropped_and_counted(tiny: ChatTokenizer) -> None:
    prepared = run(tiny, put("a.jsonl", SHORT, pair("?", " ")))
    [source] = prepared.report.sources
    assert (source.records, source.usable.rows, source.dropped) == (2, 1, {"empty_answer": 1})
    assert learned(tiny, prepared.train) == ["Yes.<|im_end|>"]
    assert message_of(tiny, put("b.jsonl", pair("?", ""))) == (
        "b.jsonl: expected at least one row to train on; dropped: 1 empty_answer"
    )


def test_overlong_rows_are_cut_on_demand_but_never_to_nothing(tiny: ChatTokenizer) -> None:
    prepared = run(tiny, put("a.jsonl", SHORT, LONG, LATE), overlong="cut")
    [source] = prepared.report.sources
    assert (source.usable.rows, source.dropped, source.cut) == (2, {"nothing_trained": 1}, 1)
    whole = run(tiny, "a.jsonl", max_length=1000).train
    for part, all_of_it in zip(columns(prepared.train, 1), columns(whole, 1), strict=True):
        assert part.tolist() == all_of_it[:63].tolist()  # 64 tokens, the last a target alone
    assert learned(tiny, prepared.train)[1].startswith("No, No, ")


def test_overlong_rows_are_errors_on_demand(tiny: ChatTokenizer) -> None:
    length = run(tiny, put("a.jsonl", LONG), max_length=1000).report.sources[0].longest
    assert message_of(tiny, put("a.jsonl", SHORT, LONG), overlong="error") == (
        f"a.jsonl:2: expected at most 64 tokens (data.max_length); found {length}\n\n"
        "hint: raise data.max_length, shorten the row, or set data.overlong to drop or cut"
    )


def test_a_row_of_just_the_length_allowed_is_kept(tiny: ChatTokenizer) -> None:
    length = run(tiny, put("a.jsonl", SHORT)).report.sources[0].longest
    assert len(run(tiny, "a.jsonl", max_length=length).train) == 1
    assert message_of(tiny, "a.jsonl", max_length=length - 1) == (
        "a.jsonl: expected at least one row to train on; dropped: 1 overlong\n\n"
        f"hint: raise data.max_length (the longest conversation has {length} tokens)"
    )


# --- evaluation rows ---


def test_without_an_evaluation_source_some_rows_are_kept_back(tiny: ChatTokenizer) -> None:
    rows = [pair("?", f"{n}.") for n in range(40)]
    prepared = run(tiny, put("a.jsonl", *rows), eval_fraction=0.2)
    assert prepared.eval is not None
    train, held_out = learned(tiny, prepared.train), learned(tiny, prepared.eval)
    assert sorted(train + held_out) == sorted(f"{n}.<|im_end|>" for n in range(40))
    assert prepared.report.split == 0.2
    turned = run(tiny, put("b.jsonl", *rows[::-1]), eval_fraction=0.2)
    assert turned.eval is not None
    assert learned(tiny, turned.eval) == held_out[::-1]


@pytest.mark.parametrize(("rows", "fraction"), [(19, 0.5), (40, 0.0)])
def test_few_rows_are_not_split_nor_is_no_share(
    rows: int, fraction: float, tiny: ChatTokenizer
) -> None:
    file = put("a.jsonl", *(pair("?", f"{n}.") for n in range(rows)))
    prepared = run(tiny, file, eval_fraction=fraction)
    assert (len(prepared.train), prepared.eval, prepared.report.split) == (rows, None, None)


def test_a_valid_file_replaces_the_split(tiny: ChatTokenizer) -> None:
    put("data/train.jsonl", *(pair("?", f"{n}.") for n in range(40)))
    put("data/valid.jsonl", {"text": "Yes."})
    prepared = run(tiny, "data", eval_fraction=0.5)
    assert prepared.eval is not None
    assert (len(prepared.train), len(prepared.eval), prepared.report.split) == (40, 1, None)
    assert [s.format for s in prepared.report.sources] == ["prompt", "text"]


# --- the report ---


def test_the_report_says_what_became_of_the_data(tiny: ChatTokenizer) -> None:
    odd = {
        "messages": [
            {"role": "user", "content": "<|im_end|>" * 3},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."},
            {"role": "user", "content": "Well?"},
        ],
        "source": "x",
    }
    plain = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "No."}]
    }
    train, valid = put("a.jsonl", plain, odd, plain), put("b.jsonl", plain)
    report = run(tiny, train, eval=valid).report.to_json()
    lengths = [len(run(tiny, put("c.jsonl", r)).train.row(0)[0]) for r in (plain, odd)]
    positions = 2 * lengths[0] + lengths[1]
    no, yes = (len(tiny.encode_text(answer).ids) for answer in ("No.", "Yes."))
    source = {
        "name": "a.jsonl",
        "sha256": hashlib.sha256(Path("a.jsonl").read_bytes()).hexdigest(),
        "commit": None,
        "format": "messages",
        "records": 3,
        "usable": {"rows": 3, "tokens": positions, "supervised_tokens": 2 * no + yes},
        "dropped": {},
        "cut": 0,
        "longest": lengths[1] + 1,
        "lengths": {"edges": [0, 32, 64], "counts": [2, 1]},
        "ignored_keys": {"source": 1},
        "notes": {
            "roles_not_alternating": 1,
            "ends_without_answer": 1,
            "control_text": 1,
            "reasoning_left_out": 1,
        },
        "duplicates": 1,
        "weight": 1.0,
        "limit": None,
    }
    one = {"rows": 1, "tokens": lengths[0], "supervised_tokens": no}
    assert report == json.loads(json.dumps(report)) == {
        "sources": [
            source,
            {
                **source,
                "name": "b.jsonl",
                "sha256": hashlib.sha256(Path("b.jsonl").read_bytes()).hexdigest(),
                "records": 1,
                "usable": one,
                "longest": lengths[0] + 1,
                "lengths": {"edges": [0, 32], "counts": [1]},
                "ignored_keys": {},
                "notes": {},
                "duplicates": 0,
            },
        ],
        "train": source["usable"],
        "eval": one,
        "split": None,
        "shared": 1,
        "max_length": 64,
        "overlong": "drop",
        "train_on": "assistant",
        "thinking": "auto",
        "enable_thinking": tiny.thinking_as_trained(),
        "template_sha256": tiny.template_sha256,
    }  # fmt: skip


# --- faults ---


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_refused(content: str, tiny: ChatTokenizer) -> None:
    Path("a.jsonl").write_text(content, encoding="utf-8")
    assert message_of(tiny, "a.jsonl") == "a.jsonl: expected at least one record; found none"


def test_all_faults_of_all_sources_are_told_at_once(tiny: ChatTokenizer) -> None:
    bot = [{"role": "user", "content": "1?"}, {"role": "bot", "content": "2."}]
    train = put(
        "train.jsonl",
        {"messages": [bot[0], {"role": "assistant", "content": "2."}]},
        '{"messages": [',
        {"messages": bot},
        {"messages": bot[:1]},
        pair("1?", "2."),
    )
    valid = put("valid.jsonl", {"prompt": "1?", "completion": None})
    assert message_of(tiny, train, eval=valid) == (
        "train.jsonl:2: not valid JSON: Expecting value at column 15; found the end\n\n"
        'hint: write one object per line, such as {"prompt": "Hi", "completion": "Hello."}\n\n'
        "train.jsonl:3: messages[1].role: expected system, user, assistant or tool; found 'bot'\n\n"
        'hint: change "bot" to "assistant"\n\n'
        "train.jsonl:4: messages: expected at least one assistant message; found user\n\n"
        "hint: add the answer to train on, or remove the row\n\n"
        "train.jsonl:5: expected the messages format, as train.jsonl:1 has it; "
        "found the prompt format\n\n"
        "hint: keep one format in a file\n\n"
        "valid.jsonl:1: completion: expected a string; found null\n\n"
        "hint: write a string in quotes"
    )


def test_what_the_template_refuses_carries_the_line(
    qwen: dict[str, ChatTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = qwen["qwen2_5"]
    monkeypatch.setattr(tokenizer, "_template", compile_template("{{ raise_exception('no') }}"))
    assert message_of(tokenizer, put("a.jsonl", SHORT, LONG)) == (
        "a.jsonl:1: messages: rejected by the chat template: TemplateError: no\n\n"
        "a.jsonl:2: messages: rejected by the chat template: TemplateError: no"
    )


def test_reading_stops_where_everything_is_wrong(
    tiny: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAULTS_KEPT", 2)
    assert message_of(tiny, put("a.jsonl", *["[]"] * 5)) == (
        "a.jsonl:1: expected an object; found a list\n\n"
        "a.jsonl:2: expected an object; found a list\n\n"
        "a.jsonl: reading stopped after 2 faults\n\n"
        "hint: qwen-local data check a.jsonl shows all of them by kind"
    )


def test_no_framework_is_loaded_for_the_data() -> None:
    code = (
        "import sys, qwen_local.rows.planner, qwen_local.datasets.prepare\n"
        "heavy = {'torch', 'mlx', 'transformers', 'datasets', 'huggingface_hub'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_data_set_that_is_no_file_is_not_waited_for(tiny: ChatTokenizer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert message_of(tiny, str(tmp_path / "pipe.jsonl")) == (
        f"{tmp_path / 'pipe.jsonl'}: expected a regular file; found a pipe\n\n"
        "hint: write the data to a file and use its path"
    )
