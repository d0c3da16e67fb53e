"""The job: accepted values, error messages, and the precedence of sources."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from qwen_local.datasets.sources import SourceSpec
from qwen_local.embedded import sample_data_path
from qwen_local.errors import JobError
from qwen_local.job.schema import (
    FLAG_KEYS,
    SCHEMA,
    SECTIONS,
    DataSpec,
    EarlyStopping,
    EvalSource,
    Job,
    LoraSpec,
    ModelSpec,
    TrainSource,
    TrainSpec,
    read_job,
)
from qwen_local.models.families import TARGETS
from qwen_local.training.job_data import data_sources


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that places read `job.yaml:3`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str) -> Path:
    path = Path("job.yaml")
    path.write_text(text, encoding="utf-8")
    return path


def job_of(
    text: str = "",
    *,
    sets: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    preset: str = "none",
    parameters: int = 600_000_000,
) -> Job:
    return read_job(write(text), sets=sets, flags=flags, preset=preset).complete(parameters)


def message(
    text: str = "",
    *,
    sets: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    preset: str = "auto",
) -> str:
    with pytest.raises(JobError) as raised:
        read_job(write(text), sets=sets, flags=flags, preset=preset)
    return "\n\n".join(map(str, raised.value.faults))


# ------------------------------------------------------------------------------ defaults


def test_no_job_is_the_embedded_job() -> None:
    assert read_job(None, preset="none").complete(1) == Job()
    assert Job().model_dump() == {
        "model": {
            "name": "qwen-local/tiny",
            "revision": None,
            "quantization": "none",
            "dtype": "auto",
        },
        "data": {
            "train": "qwen-local/sample",
            "eval": None,
            "eval_fraction": 0.05,
            "format": "auto",
            "columns": None,
            "max_length": 2048,
            "overlong": "drop",
            "limit": None,
            "train_on": "assistant",
            "thinking": "auto",
        },
        "lora": {
            "rank": 16,
            "alpha": 32,
            "dropout": 0.05,
            "targets": "all-linear",
            "layers": "all",
            "rslora": False,
        },
        "train": {
            "epochs": 3,
            "steps": None,
            "batch_size": 8,
            "learning_rate": 2e-4,
            "schedule": "cosine",
            "warmup_ratio": 0.03,
            "warmup_steps": None,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "seed": 0,
            "gradient_checkpointing": "auto",
            "cuda_graphs": "auto",
            "micro_batch_tokens": "auto",
            "eval_every": "auto",
            "save_every": "auto",
            "keep": 2,
            "early_stopping": {"patience": 3, "min_delta": 0.0},
            "restarts": "auto",
            "report_to": (),
        },
        "output": None,
    }


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "---\n", "~", "train:\n", "model: {}\nlora:\n  # rank: 8\n"]
)
@pytest.mark.usefixtures("here")
def test_an_empty_file_or_section_leaves_the_defaults(text: str) -> None:
    assert job_of(text) == Job()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{patience: 5}", EarlyStopping(patience=5)),
        ("{min_delta: 1e-3}", EarlyStopping(min_delta=1e-3)),
        ("null", None),
    ],
)
@pytest.mark.usefixtures("here")
def test_early_stopping_is_a_mapping_or_null(text: str, expected: EarlyStopping | None) -> None:
    assert job_of(f"train: {{early_stopping: {text}}}").train.early_stopping == expected
    draft = read_job(None, sets=[f"train.early_stopping={text}"])
    assert draft.job.train.early_stopping == expected


@pytest.mark.usefixtures("here")
def test_data_may_come_from_several_sources() -> None:
    text = """\
data:
  train:
  - a.jsonl
  - {name: b.csv, weight: 0.5, columns: {prompt: question, completion: answer}, limit: 5}
  - name: &c c
    format: alpaca
  eval: [b.csv, {name: *c, limit: 7}]
"""
    several = DataSpec(
        train=(
            TrainSource(name="a.jsonl"),
            TrainSource(
                name="b.csv",
                weight=0.5,
                columns={"prompt": "question", "completion": "answer"},
                limit=5,
            ),
            TrainSource(name="c", format="alpaca"),
        ),
        eval=(EvalSource(name="b.csv"), EvalSource(name="c", limit=7)),
    )
    assert job_of(text).data == several
    inline = "[a.jsonl, {name: b.jsonl, weight: 2}]"
    assert job_of(sets=[f"data.train={inline}"]).data.train == (
        TrainSource(name="a.jsonl"),
        TrainSource(name="b.jsonl", weight=2),
    )


@pytest.mark.usefixtures("here")
def test_columns_decide_the_format_or_belong_to_it() -> None:
    columns = {"prompt": "question", "completion": "answer"}
    text = "data: {columns: {prompt: question, completion: answer}}"
    assert job_of(text).data == DataSpec(columns=columns)
    with_format = "data: {format: sharegpt, columns: {system: rules}}"
    assert job_of(with_format).data == DataSpec(format="sharegpt", columns={"system": "rules"})
    assert message("data: {format: sharegpt, columns: {prompt: q}}") == (
        "job.yaml:1: data.columns: expected a key of the sharegpt format; found 'prompt'\n\n"
        "hint: valid keys: category, conversations, functions, id, system, tools"
    )


@pytest.mark.usefixtures("here")
def test_a_cyclic_value_is_reported() -> None:
    for text in ("data: {train: [&a {name: *a}]}", "data: {columns: &a {prompt: *a}}"):
        assert message(text).startswith("job.yaml:1: data.")


@pytest.mark.usefixtures("here")
def test_the_draft_knows_the_model_before_the_preset_is_applied() -> None:
    draft = read_job(write("model: {name: Qwen/Qwen3-0.6B, revision: main, dtype: float32}"))
    assert draft.model == ModelSpec(name="Qwen/Qwen3-0.6B", revision="main", dtype="float32")


def test_every_option_has_a_description_and_an_example() -> None:
    sections: list[type[BaseModel]] = [Job, *SECTIONS.values()]
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description, name
            assert field.examples or field.default is not None, name


# ------------------------------------------------------------------------------ precedence


@pytest.mark.usefixtures("here")
def test_a_flag_beats_set_beats_the_file_beats_the_preset_beats_the_default() -> None:
    def rank(text: str = "", **sources: Any) -> int:
        return job_of(text, preset="large", **sources).lora.rank

    assert Job().lora.rank == 16
    assert rank() == 32
    assert rank("lora: {rank: 4}") == 4
    assert rank("lora: {rank: 4}", sets=["lora.rank=5"]) == 5
    assert rank("lora: {rank: 4}", sets=["lora.rank=5"], flags={"lora_rank": 6}) == 6


@pytest.mark.usefixtures("here")
def test_the_last_set_of_a_key_wins() -> None:
    assert job_of(sets=["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.usefixtures("here")
def test_a_flag_that_was_not_given_sets_nothing() -> None:
    assert job_of("lora: {rank: 4}", flags=dict.fromkeys(FLAG_KEYS)) == Job(lora=LoraSpec(rank=4))


def test_every_flag_names_a_key() -> None:
    keys = {f"{top}.{key}" if key else top for top, keys in SCHEMA.items() for key in keys or ("",)}
    assert set(FLAG_KEYS.values()) <= keys


@pytest.mark.usefixtures("here")
def test_every_flag_reaches_its_key() -> None:
    flags = {
        "model": "m",
        "data": "d",
        "eval_data": "e",
        "epochs": 2,
        "batch_size": 3,
        "learning_rate": 0.5,
        "lora_rank": 4,
        "lora_alpha": 5.0,
        "lora_dropout": 0.25,
        "quantization": "8bit",
        "max_length": 9,
        "seed": 7,
        "output": "o",
    }
    assert set(flags) | {"steps"} == set(FLAG_KEYS)
    assert job_of(flags=flags) == Job(
        model=ModelSpec(name="m", quantization="8bit"),
        data=DataSpec(train="d", eval="e", max_length=9),
        lora=LoraSpec(rank=4, alpha=5, dropout=0.25),
        train=TrainSpec(epochs=2, batch_size=3, learning_rate=0.5, seed=7),
        output="o",
    )


@pytest.mark.usefixtures("here")
def test_alpha_follows_a_rank_that_the_user_chose_whatever_the_preset() -> None:
    assert job_of("lora: {rank: 4}", preset="large").lora.alpha == 8


# ------------------------------------------------------------------------------ one of two


@pytest.mark.parametrize("preset", ["none", "small"])
@pytest.mark.usefixtures("here")
def test_steps_replace_the_epochs_of_preset_and_default(preset: str) -> None:
    train = job_of("train: {steps: 5}", preset=preset).train
    assert (train.epochs, train.steps) == (None, 5)


@pytest.mark.usefixtures("here")
def test_the_source_with_higher_precedence_decides_between_epochs_and_steps() -> None:
    train = job_of("train: {epochs: 2}", flags={"steps": 5}).train
    assert (train.epochs, train.steps) == (None, 5)
    train = job_of("train: {steps: 5}", flags={"epochs": 2}).train
    assert (train.epochs, train.steps) == (2, None)
    train = job_of("train: {steps: 5}", sets=["train.epochs=null"]).train
    assert (train.epochs, train.steps) == (None, 5)
    train = job_of("train: {epochs: null, steps: 5}").train
    assert (train.epochs, train.steps) == (None, 5)


@pytest.mark.usefixtures("here")
def test_warm_up_steps_replace_the_ratio() -> None:
    train = job_of("train: {warmup_steps: 0}", preset="tiny").train
    assert (train.warmup_ratio, train.warmup_steps) == (None, 0)


@pytest.mark.usefixtures("here")
def test_setting_both_keys_of_a_pair_in_one_source_is_a_fault() -> None:
    assert message("train:\n  epochs: 1\n  steps: 2\n", sets=["train.seed=1"]) == (
        "job.yaml:3: train.steps: expected epochs or steps; found both\n\nhint: remove one of them"
    )
    assert message(flags={"epochs": 1, "steps": 2}) == (
        "steps: expected epochs or steps; found both\n\nhint: remove one of them"
    )
    assert message(sets=["train.warmup_ratio=0", "train.warmup_steps=0"]) == (
        "set train.warmup_steps=0: expected warmup_ratio or warmup_steps; found both\n\n"
        "hint: remove one of them"
    )


@pytest.mark.usefixtures("here")
def test_setting_neither_key_of_a_pair_is_a_fault() -> None:
    assert message("train: {epochs: null}") == (
        "job.yaml:1: train.epochs: expected epochs or steps; found neither\n\nhint: set one of them"
    )


@pytest.mark.usefixtures("here")
def test_null_removes_steps_of_a_lower_precedence_source() -> None:
    train = job_of("train: {steps: 5}", sets=["train.steps=null"], preset="small").train
    assert (train.epochs, train.steps) == (5, None)


# ------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("yaml", "value"),
    [
        ("1e-4", 1e-4),  # text in YAML 1.1
        ("1E-4", 1e-4),
        (".5", 0.5),
        ("+0.5", 0.5),
        ("5.e-1", 0.5),
    ],
)
@pytest.mark.usefixtures("here")
def test_numbers_are_those_of_yaml_1_2(yaml: str, value: float) -> None:
    assert job_of(f"train: {{learning_rate: {yaml}}}").train.learning_rate == value
    assert job_of(sets=[f"train.learning_rate={yaml}"]).train.learning_rate == value


@pytest.mark.parametrize(
    ("yaml", "value"), [("010", 10), ("0x1F", 31), ("0o17", 15), ("1_000", 1000)]
)
@pytest.mark.usefixtures("here")
def test_whole_numbers_are_those_of_yaml_1_2(yaml: str, value: int) -> None:
    assert job_of(f"data: {{max_length: {yaml}}}").data.max_length == value


@pytest.mark.parametrize("text", ["yes", "2026-01-01", "'8'", "'null'", "=", "<<", "1:30", "a=b"])
@pytest.mark.usefixtures("here")
def test_text_that_resembles_something_else_is_text(text: str) -> None:
    assert job_of(f"output: {text}").output == text.strip("'")
    assert job_of(sets=[f"output={text}"]).output == text.strip("'")


@pytest.mark.usefixtures("here")
def test_a_value_left_empty_is_null() -> None:
    assert job_of("output:\n", sets=["data.eval="]) == Job()


@pytest.mark.usefixtures("here")
def test_aliases_are_read_and_cycles_end() -> None:
    assert job_of("model: {name: &n x}\noutput: *n").output == "x"
    assert message("lora: {targets: &t [*t]}") == (
        "job.yaml:1: lora.targets: expected all-linear or a list of linear layers; "
        "found a list of lists\n\n"
        "hint: the linear layers are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )


@pytest.mark.usefixtures("here")
def test_a_byte_order_mark_and_crlf_are_accepted(here: Path) -> None:
    (here / "job.yaml").write_bytes(b"\xef\xbb\xbflora:\r\n  rank: 4\r\n")
    assert read_job(Path("job.yaml"), preset="none").complete(1).lora.rank == 4


RANK = "hint: rank: rank of the LoRA matrices; for example 16"
RATE = "hint: learning_rate: peak learning rate, reached after warm-up; for example 0.0002"
EPOCHS = "hint: epochs: number of passes over the data; null if steps is set; for example 3"
DROPOUT = "hint: dropout: dropout probability of the adapter's inputs; for example 0.05"
CLIP = "hint: max_grad_norm: maximum gradient norm; null = no clipping; for example 1.0"

SOURCES = "hint: write a name, or a list such as [a.jsonl, {name: b.jsonl, weight: 2, limit: 500}]"
EVAL_SOURCES = "hint: write a name, or a list such as [a.jsonl, {name: b.jsonl, limit: 500}]"
COLUMNS = "hint: map each format key to a column, such as {prompt: question, completion: answer}"
STOPPING = "hint: write {patience: 3, min_delta: 0.0}, or null to train all steps"
REPORT_TO = "hint: write [tensorboard], or [] for metrics.jsonl only"


@pytest.mark.parametrize(
    ("key", "yaml", "expected"),
    [
        ("train.learning_rate", "fast", f"expected a number; found 'fast'\n\n{RATE}"),
        ("train.learning_rate", "0", f"must be above 0; found 0\n\n{RATE}"),
        ("train.learning_rate", "2e4", f"must be below 1; found 20000.0\n\n{RATE}"),
        ("train.learning_rate", "true", f"expected a number; found true\n\n{RATE}"),
        ("train.learning_rate", "null", f"expected a number; found null\n\n{RATE}"),
        ("train.learning_rate", ".nan", f"expected a finite number; found nan\n\n{RATE}"),
        (
            "train.learning_rate",
            "'1e-4'",
            "expected a number; found '1e-4'\n\nhint: write 1e-4 without quotes",
        ),
        ("lora.rank", "0", f"must be at least 1; found 0\n\n{RANK}"),
        ("lora.rank", "1025", f"must be at most 1024; found 1025\n\n{RANK}"),
        ("lora.rank", "[8]", f"expected a whole number; found a list\n\n{RANK}"),
        ("lora.rank", "{r: 8}", f"expected a whole number; found a mapping\n\n{RANK}"),
        ("lora.rank", "8.0", "expected a whole number; found 8.0\n\nhint: write 8"),
        ("lora.rank", "8.5", f"expected a whole number; found 8.5\n\n{RANK}"),
        (
            "lora.rank",
            "'8'",
            "expected a whole number; found '8'\n\nhint: write 8 without quotes",
        ),
        (
            "lora.rank",
            "!!int '8'",
            f"expected a whole number; found a value with the tag !!int\n\n{RANK}",
        ),
        (
            "lora.rank",
            "!!python/object/apply:os.system [x]",
            "expected a whole number; found a value with the tag "
            f"!!python/object/apply:os.system\n\n{RANK}",
        ),
        ("lora.rank", "9" * 5000, f"expected a whole number; found '{'9' * 58}…\n\n{RANK}"),
        ("lora.dropout", "1", f"must be below 1; found 1\n\n{DROPOUT}"),
        ("lora.dropout", "-0.1", f"must be at least 0; found -0.1\n\n{DROPOUT}"),
        (
            "lora.rslora",
            "yes",
            "expected true or false; found 'yes'\n\n"
            "hint: rslora: true = scale by alpha / sqrt(rank); for example false",
        ),
        (
            "lora.layers",
            "0",
            "must be at least 1; found 0\n\nhint: layers: number of blocks with an adapter, "
            "counted from the last; for example 8",
        ),
        (
            "lora.layers",
            "al",
            "expected all or a whole number; found 'al'\n\nhint: did you mean all?",
        ),
        (
            "lora.targets",
            "[q_proj, lm_head]",
            "expected a linear layer at item 2; found 'lm_head'\n\nhint: the linear layers are "
            "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
        (
            "lora.targets",
            "[]",
            "expected all-linear or a list of linear layers; found an empty list\n\nhint: the "
            "linear layers are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
        (
            "lora.targets",
            "[q_proj, q_proj]",
            "q_proj occurs twice\n\nhint: remove one of them",
        ),
        ("train.epochs", "0.5", f"expected a whole number or null; found 0.5\n\n{EPOCHS}"),
        ("train.epochs", "-1", f"must be at least 1; found -1\n\n{EPOCHS}"),
        (
            "train.schedule",
            "cosin",
            "expected cosine, linear or constant; found 'cosin'\n\nhint: did you mean cosine?",
        ),
        ("train.max_grad_norm", "0", f"must be above 0; found 0\n\n{CLIP}"),
        (
            "train.seed",
            "4294967296",
            "must be at most 4294967295; found 4294967296\n\nhint: seed: seed of the row order, "
            "adapter initialization and dropout; for example 0",
        ),
        (
            "train.eval_every",
            "never",
            "expected auto or a whole number; found 'never'\n\nhint: eval_every: number of "
            "steps between evaluations; auto = under 10 % of the time; for example 50",
        ),
        (
            "train.report_to",
            "tensorboard",
            f"expected a list; found 'tensorboard'\n\n{REPORT_TO}",
        ),
        ("train.report_to", "null", f"expected a list; found null\n\n{REPORT_TO}"),
        (
            "train.report_to",
            "[tensorboard, wandb]",
            f"expected tensorboard at item 2; found 'wandb'\n\n{REPORT_TO}",
        ),
        (
            "train.report_to",
            "[tensorboard, tensorboard]",
            "tensorboard occurs twice\n\nhint: remove one of them",
        ),
        (
            "train.early_stopping",
            "3",
            f"expected a mapping or null; found 3\n\n{STOPPING}",
        ),
        (
            "train.early_stopping",
            "{patients: 5}",
            f"unknown key 'patients'\n\n{STOPPING}",
        ),
        (
            "train.early_stopping",
            "{patience: 0}",
            "patience: must be at least 1; found 0\n\nhint: patience: number of consecutive "
            "evaluations without improvement; for example 3",
        ),
        (
            "train.early_stopping",
            "{patience: 1, patience: 2}",
            f"expected a mapping or null; found a mapping with a duplicate key\n\n{STOPPING}",
        ),
        (
            "train.restarts",
            "-1",
            "must be at least 0; found -1\n\nhint: restarts: maximum number of restarts from the "
            "last checkpoint after a crash; auto = 3 on a Mac's GPU, else 0; for example 3",
        ),
        (
            "data.max_length",
            "7",
            "must be at least 8; found 7\n\n"
            "hint: max_length: maximum row length in tokens; for example 2048",
        ),
        (
            "data.train",
            "''",
            "must not be empty; found ''\n\nhint: train: file, folder, Hub id, the sample "
            "data, or a list of these; for example qwen-local/sample",
        ),
        ("data.train", "5", f"expected text or a list; found 5\n\n{SOURCES}"),
        ("data.train", "null", f"expected text or a list; found null\n\n{SOURCES}"),
        ("data.train", "[]", f"expected at least one source; found an empty list\n\n{SOURCES}"),
        ("data.train", "[[a]]", f"expected text or a list; found a list of lists\n\n{SOURCES}"),
        ("data.train", "{name: a}", f"expected text or a list; found a mapping\n\n{SOURCES}"),
        (
            "data.train",
            "[a, 5, {weight: 0}, {name: '', nam: x}, {name: b, columns: {promt: q}}]",
            "item 2: expected a name or a mapping; found 5; item 3: name is missing; "
            "item 3: weight: must be above 0; found 0; item 4: name: must not be empty; found ''; "
            "item 4: unknown key 'nam'; "
            f"item 5: columns: expected a key of a format; found 'promt'\n\n{SOURCES}",
        ),
        (
            "data.train",
            "[{name: a, weight: 1001}]",
            "item 1: weight: must be at most 1000; found 1001\n\n"
            "hint: weight: number of times each row counts in an epoch; for example 1.0",
        ),
        (
            "data.train",
            "[{name: a, name: b}]",
            "item 1: expected a name or a mapping; found a mapping with a duplicate key\n\n"
            f"{SOURCES}",
        ),
        (
            "data.eval",
            "[{name: a, weight: 2}]",
            f"item 1: unknown key 'weight'\n\n{EVAL_SOURCES}",
        ),
        ("data.eval", "5", f"expected text, a list or null; found 5\n\n{EVAL_SOURCES}"),
        ("data.columns", "question", f"expected a mapping or null; found 'question'\n\n{COLUMNS}"),
        (
            "data.columns",
            "{prompt: [q]}",
            f"prompt: expected a column name; found a list\n\n{COLUMNS}",
        ),
        (
            "data.columns",
            "{zzz: q}",
            "expected a key of a format; found 'zzz'\n\nhint: valid keys: category, "
            "completion, conversations, functions, history, id, input, instruction, messages, "
            "output, prompt, system, text, tools",
        ),
        (
            "data.columns",
            "{promt: q}",
            "expected a key of a format; found 'promt'\n\nhint: did you mean \"prompt\"?",
        ),
        (
            "data.columns",
            "{system: q}",
            "the keys fit several formats: alpaca and sharegpt\n\nhint: set the format too",
        ),
        (
            "data.columns",
            "{prompt: q, input: i}",
            "no format has all of these keys: prompt, input\n\nhint: use the keys of one format",
        ),
        (
            "output",
            r'"a\0b"',
            r"expected text without control characters or null; found 'a\x00b'"
            "\n\nhint: output: run directory; null = runs/<model>-<date>-<n>; "
            "for example runs/my-run",
        ),
        (
            "data.eval",
            r'"a\x85b"',
            r"expected text without control characters or null; found 'a\x85b'"
            "\n\nhint: eval: evaluation data; null = the source's validation split, or a held-out "
            "fraction; for example data/valid.jsonl",
        ),
    ],
)
@pytest.mark.usefixtures("here")
def test_an_invalid_value_is_reported_with_its_place_and_a_hint(
    key: str, yaml: str, expected: str
) -> None:
    section, _, name = key.rpartition(".")
    nested = f"# a job\n{section}:\n  {name}: {yaml}\n" if section else f"\n\n{name}: {yaml}\n"
    assert message(nested) == f"job.yaml:3: {key}: {expected}"
    assert message(sets=[f"{key}={yaml}"]) == f"set {key}={yaml}: {expected}"


@pytest.mark.usefixtures("here")
def test_a_missing_report_to_package_is_reported_with_the_other_faults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert job_of("train: {report_to: []}") == Job()
    assert message("lora: {rank: 0}\ntrain:\n  report_to: [tensorboard]\n") == (
        f"job.yaml:1: lora.rank: must be at least 1; found 0\n\n{RANK}\n\n"
        "job.yaml:3: train.report_to: tensorboard is not installed\n\n"
        "hint: pip install tensorboard"
    )


@pytest.mark.usefixtures("here")
def test_a_fault_names_the_flag() -> None:
    assert message("lora: {rank: 4}", flags={"learning_rate": 3.0, "lora_rank": 0}) == (
        f"learning_rate: must be below 1; found 3.0\n\n{RATE}\n\n"
        f"lora_rank: must be at least 1; found 0\n\n{RANK}"
    )


@pytest.mark.usefixtures("here")
def test_a_name_that_is_not_unicode_is_a_fault() -> None:
    assert message(flags={"output": "runs/\udcff"}) == (
        "output: expected text that is valid Unicode or null; found 'runs/\\udcff'\n\n"
        "hint: output: run directory; null = runs/<model>-<date>-<n>; "
        "for example runs/my-run"
    )


@pytest.mark.usefixtures("here")
def test_an_unknown_preset_is_a_fault() -> None:
    assert message(preset="huge") == (
        "preset: expected auto, tiny, small, medium, large or none; found 'huge'\n\n"
        "hint: use auto to choose by model size"
    )


# ------------------------------------------------------------------------------ keys


TRAIN = (
    "epochs, steps, batch_size, learning_rate, schedule, warmup_ratio, warmup_steps, "
    "weight_decay, max_grad_norm, seed, gradient_checkpointing, cuda_graphs, micro_batch_tokens, "
    "eval_every, save_every, keep, early_stopping, restarts and report_to"
)


@pytest.mark.parametrize(
    ("section", "key", "hint"),
    [
        ("train", "learning_rat", "did you mean learning_rate?"),
        ("train", "Learning-Rate", "did you mean learning_rate?"),
        ("train", "rank", "rank belongs under lora"),
        ("train", "output", "output is a top-level key"),
        ("train", "ouput", "output is a top-level key"),
        ("train", "foo", f"keys of train: {TRAIN}"),
        ("", "epochs", "epochs belongs under train"),
        ("", "learning_rat", "learning_rate belongs under train"),
        ("", "train.epochs", "epochs belongs under train"),
        ("", "trian", "did you mean train?"),
        ("", "foo", "top-level keys: model, data, lora, train and output"),
    ],
)
@pytest.mark.usefixtures("here")
def test_an_unknown_key_has_a_hint_with_the_likely_key(section: str, key: str, hint: str) -> None:
    text = f"{section}:\n  {key}: 1\n" if section else f"\n{key}: 1\n"
    dotted = f"{section}.{key}" if section else key
    assert message(text) == f"job.yaml:2: {dotted}: unknown key\n\nhint: {hint}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.learning_rat=1", "unknown key\n\nhint: did you mean train.learning_rate?"),
        ("learning_rate=1", "unknown key\n\nhint: did you mean train.learning_rate?"),
        ("train.rank=1", "unknown key\n\nhint: did you mean lora.rank?"),
        ("train.foo=1", f"unknown key\n\nhint: keys of train: {TRAIN}"),
        ("foo=1", "unknown key\n\nhint: top-level keys: model, data, lora, train and output"),
        ("=1", "unknown key\n\nhint: top-level keys: model, data, lora, train and output"),
        (
            "model={name: x}",
            "model is a section\n\n"
            "hint: set one of its keys: name, revision, quantization and dtype",
        ),
        ("train.epochs", "expected KEY=VALUE\n\nhint: for example `set=train.epochs=3`"),
        (
            "lora.targets=[q_proj",
            "not valid YAML: expected ',' or ']', but got '<stream end>'\n\n"
            "hint: quote text with special characters: '...'",
        ),
    ],
)
@pytest.mark.usefixtures("here")
def test_an_invalid_set_option_is_reported(text: str, expected: str) -> None:
    assert message(sets=[text]) == f"set {text}: {expected}"


@pytest.mark.usefixtures("here")
def test_a_duplicate_key_is_reported_with_both_lines() -> None:
    assert message("lora:\n  rank: 8\n  rank: 9\n") == (
        "job.yaml:3: lora.rank: duplicate key; first on line 2\n\nhint: remove one of them"
    )
    assert message("lora: {rank: 8}\ntrain:\nlora: {}\n") == (
        "job.yaml:3: lora: duplicate key; first on line 1\n\nhint: remove one of them"
    )


@pytest.mark.usefixtures("here")
def test_a_key_that_is_not_text_is_unknown() -> None:
    assert message("1: x\n? [a]\n: y") == (
        "job.yaml:1: 1: unknown key\n\n"
        "hint: top-level keys: model, data, lora, train and output\n\n"
        "job.yaml:2: a list: unknown key\n\n"
        "hint: top-level keys: model, data, lora, train and output"
    )


@pytest.mark.usefixtures("here")
def test_every_fault_is_reported_at_once_in_the_order_of_the_sources() -> None:
    text = """\
train:
  learning_rate: fast
  learning_rat: 1
epochs: 3
lora: {rank: 0, rank: 8}
data: many
"""
    assert message(text, sets=["x"], flags={"seed": -1}, preset="huge").split("\n\n")[::2] == [
        "job.yaml:2: train.learning_rate: expected a number; found 'fast'",
        "job.yaml:3: train.learning_rat: unknown key",
        "job.yaml:4: epochs: unknown key",
        "job.yaml:5: lora.rank: duplicate key; first on line 5",
        "job.yaml:5: lora.rank: must be at least 1; found 0",
        "job.yaml:6: data: expected a mapping; found 'many'",
        "set x: expected KEY=VALUE",
        "seed: must be at least 0; found -1",
        "preset: expected auto, tiny, small, medium, large or none; found 'huge'",
    ]


# ------------------------------------------------------------------------------ files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"train:\n\tepochs: 1\n",
            "job.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token\n\n"
            "hint: indent with spaces, not tabs",
        ),
        (
            b"lora: {rank: 8\n",
            "job.yaml:2:1: not valid YAML: expected ',' or '}', but got '<stream end>'\n\n"
            "hint: quote text with special characters: '...'",
        ),
        (
            b"output: *run\n",
            "job.yaml:1:9: not valid YAML: found undefined alias 'run'\n\n"
            "hint: quote text with special characters: '...'",
        ),
        (
            b"a: 1\n---\nb: 1\n",
            "job.yaml:2:1: not valid YAML: expected a single document in the stream, "
            "but found another document\n\nhint: quote text with special characters: '...'",
        ),
        (
            b"lora:\n  rank: \x01\n",
            "job.yaml:2:9: not valid YAML: the character U+0001 is not allowed\n\nhint: remove it",
        ),
        pytest.param(
            b"[" * 5000,
            "job.yaml:1:1: not valid YAML: nested too deeply\n\n"
            "hint: a job has two levels: section, key",
            marks=pytest.mark.slow,
        ),
        (
            b"- 1\n",
            "job.yaml:1: expected a mapping; found a list\n\n"
            "hint: write `key: value` lines with model, data, lora, train and output",
        ),
        (
            b"\n!!python/object:os.system {}\n",
            "job.yaml:2: expected a mapping; found a value with the tag !!python/object:os.system"
            "\n\nhint: write `key: value` lines with model, data, lora, train and output",
        ),
        (
            b"output: caf\xe9\n",
            "job.yaml: expected UTF-8; found byte 0xe9 at 11\n\nhint: save the file as UTF-8",
        ),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_file_that_cannot_be_read_is_one_fault(content: bytes, expected: str) -> None:
    Path("job.yaml").write_bytes(content)
    with pytest.raises(JobError) as raised:
        read_job(Path("job.yaml"))
    assert str(raised.value) == expected


@pytest.mark.usefixtures("here")
def test_a_missing_file_or_a_folder_is_one_fault() -> None:
    with pytest.raises(JobError) as raised:
        read_job(Path("none.yaml"))
    assert str(raised.value) == (
        "none.yaml: cannot be read: no such file or directory\n\nhint: give the path of a job file"
    )
    with pytest.raises(JobError) as raised:
        read_job(Path())
    assert str(raised.value) == (
        ".: cannot be read: is a directory\n\nhint: give the path of a job file"
    )


# ------------------------------------------------------------------------------ the round trip


def text_values() -> st.SearchStrategy[str]:
    """Any text without control characters: names of files and of models."""
    return st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1)


def counts(most: int = 2**31 - 1) -> st.SearchStrategy[int]:
    return st.integers(1, most)


def shares() -> st.SearchStrategy[float]:
    return st.floats(0, 1, exclude_max=True)


def or_null(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def one_of_two(
    one: tuple[str, st.SearchStrategy[Any]], other: tuple[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    """Exactly one of two keys, the other null."""
    return st.fixed_dictionaries({one[0]: one[1], other[0]: st.none()}) | st.fixed_dictionaries(
        {one[0]: st.none(), other[0]: other[1]}
    )


MODELS = st.builds(
    ModelSpec,
    name=text_values(),
    revision=or_null(text_values()),
    quantization=st.sampled_from(["none", "4bit", "8bit"]),
    dtype=st.sampled_from(["auto", "bfloat16", "float16", "float32"]),
)
COLUMN_MAPS = st.fixed_dictionaries({"prompt": text_values()}) | st.fixed_dictionaries(
    {"messages": text_values()}, optional={"tools": text_values()}
)
SOURCE: dict[str, st.SearchStrategy[Any]] = {
    "name": text_values(),
    "format": or_null(st.just("auto")),
    "columns": or_null(COLUMN_MAPS),
    "limit": or_null(counts()),
}
TRAIN_SOURCES = st.lists(
    st.builds(TrainSource, weight=st.floats(0, 1000, exclude_min=True), **SOURCE), min_size=1
)
DATA = st.builds(
    DataSpec,
    train=text_values() | TRAIN_SOURCES,
    eval=or_null(text_values() | st.lists(st.builds(EvalSource, **SOURCE), min_size=1)),
    eval_fraction=shares(),
    format=st.sampled_from(["auto", "messages", "prompt", "alpaca", "sharegpt", "text"]),
    max_length=st.integers(8, 2**31 - 1),
    overlong=st.sampled_from(["drop", "cut", "error"]),
    limit=or_null(counts()),
    train_on=st.sampled_from(["assistant", "last"]),
)
LORA = st.builds(
    LoraSpec,
    rank=counts(1024),
    alpha=or_null(st.floats(0, exclude_min=True, allow_infinity=False)),
    dropout=shares(),
    targets=st.just("all-linear") | st.lists(st.sampled_from(TARGETS), min_size=1, unique=True),
    layers=st.just("all") | counts(),
    rslora=st.booleans(),
)
TRAIN_SPECS = st.builds(
    lambda length, warm_up, **rest: TrainSpec(**length, **warm_up, **rest),
    length=one_of_two(("epochs", counts()), ("steps", counts())),
    warm_up=one_of_two(("warmup_ratio", shares()), ("warmup_steps", st.integers(0, 2**31 - 1))),
    batch_size=counts(),
    learning_rate=st.floats(0, 1, exclude_min=True, exclude_max=True),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    weight_decay=shares(),
    max_grad_norm=or_null(st.floats(0, exclude_min=True, allow_infinity=False)),
    seed=st.integers(0, 2**32 - 1),
    gradient_checkpointing=st.just("auto") | st.booleans(),
    cuda_graphs=st.just("auto") | st.booleans(),
    micro_batch_tokens=st.just("auto") | counts(),
    eval_every=st.just("auto") | counts(),
    save_every=st.just("auto") | counts(),
    keep=counts(),
    early_stopping=or_null(
        st.builds(
            EarlyStopping,
            patience=counts(),
            min_delta=st.floats(0, allow_infinity=False),
        )
    ),
    restarts=st.just("auto") | st.integers(0, 100),
    report_to=st.sampled_from([(), ("tensorboard",)]),
)
JOBS = st.builds(
    Job, model=MODELS, data=DATA, lora=LORA, train=TRAIN_SPECS, output=or_null(text_values())
)


@pytest.mark.slow
@given(job=JOBS)
def test_a_job_survives_a_round_trip_through_yaml(
    job: Job, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(job.to_yaml(), encoding="utf-8")
    assert read_job(path, preset="none").complete(1) == job
    assert read_job(path, preset="auto").complete(1) == job  # nothing is left for a preset to fill


def test_a_job_is_written_with_every_value_in_the_order_of_the_schema() -> None:
    job = Job(
        lora=LoraSpec(targets=("v_proj", "q_proj")), train=TrainSpec(steps=10), output="runs/a"
    )
    assert (
        job.to_yaml()
        == """\
model:
  name: qwen-local/tiny
  revision: null
  quantization: none
  dtype: auto
data:
  train: qwen-local/sample
  eval: null
  eval_fraction: 0.05
  format: auto
  columns: null
  max_length: 2048
  overlong: drop
  limit: null
  train_on: assistant
  thinking: auto
lora:
  rank: 16
  alpha: 32.0
  dropout: 0.05
  targets:
  - v_proj
  - q_proj
  layers: all
  rslora: false
train:
  epochs: null
  steps: 10
  batch_size: 8
  learning_rate: 0.0002
  schedule: cosine
  warmup_ratio: 0.03
  warmup_steps: null
  weight_decay: 0.0
  max_grad_norm: 1.0
  seed: 0
  gradient_checkpointing: auto
  cuda_graphs: auto
  micro_batch_tokens: auto
  eval_every: auto
  save_every: auto
  keep: 2
  early_stopping:
    patience: 3
    min_delta: 0.0
  restarts: auto
  report_to: []
output: runs/a
"""
    )


def test_a_long_path_stays_on_its_line() -> None:
    path = "a long path " * 40 + "end"
    assert f"\noutput: {path}\n" in Job(output=path).to_yaml()


# ------------------------------------------------------------------------------ what follows


def test_scale_is_alpha_over_rank_or_over_its_root() -> None:
    assert LoraSpec(rank=16, alpha=64).scale == 4  # reference run R4
    assert LoraSpec(rank=16, alpha=64, rslora=True).scale == 64 / math.sqrt(16)
    assert LoraSpec(rank=8).scale == 2


def test_target_names_are_in_block_order() -> None:
    assert LoraSpec().target_names == TARGETS
    assert LoraSpec(targets=("down_proj", "q_proj")).target_names == ("q_proj", "down_proj")


def test_layers_counts_blocks_from_the_last() -> None:
    assert LoraSpec().blocks(28) == range(28)
    assert LoraSpec(layers=4).blocks(28) == range(24, 28)
    assert LoraSpec(layers=28).blocks(28) == range(28)
    with pytest.raises(JobError) as raised:
        LoraSpec(layers=29).blocks(28)
    assert str(raised.value) == (
        "lora.layers: must be at most 28, the model's number of blocks; found 29\n\n"
        "hint: write all, or a number up to 28"
    )


@pytest.mark.parametrize(
    ("train", "rows", "steps", "warm_up"),
    [
        (TrainSpec(epochs=3, batch_size=8, warmup_steps=10), 100, 39, 10),  # R1, run 3
        (TrainSpec(epochs=3, batch_size=1, warmup_ratio=0.03), 78_271, 234_813, 7_044),  # R4
        (TrainSpec(steps=7), 100, 7, 0),
        (TrainSpec(epochs=1, batch_size=8), 1, 1, 0),
        (TrainSpec(epochs=1, batch_size=1, warmup_ratio=0.29), 100, 100, 29),
    ],
)
def test_steps_and_warm_up_are_those_of_the_reference_runs(
    train: TrainSpec, rows: int, steps: int, warm_up: int
) -> None:
    assert train.total_steps(rows) == steps
    assert train.warm_up(steps) == warm_up


@pytest.mark.usefixtures("here")
def test_a_source_without_format_and_columns_uses_those_of_the_section() -> None:
    text = """\
data:
  format: prompt
  columns: {prompt: question}
  limit: 100
  train: [a.jsonl, {name: b.jsonl, format: auto}, {name: c.jsonl, columns: {text: body}, limit: 5}]
  eval: {eval}
"""
    job = job_of(text.replace("{eval}", "d.jsonl"))
    own: dict[str, Any] = {"format": "prompt", "columns": {"prompt": "question"}, "limit": 100}
    assert data_sources(job) == (
        [
            SourceSpec(name="a.jsonl", **own),
            SourceSpec(name="b.jsonl", limit=100),
            SourceSpec(name="c.jsonl", format="text", columns={"text": "body"}, limit=5),
        ],
        [SourceSpec(name="d.jsonl", **own)],
    )
    sample = str(sample_data_path() / "train.jsonl")
    job = job_of(sets=["data.train=[qwen-local/sample, {name: x, weight: 2}]"])
    assert data_sources(job) == ([SourceSpec(name=sample), SourceSpec(name="x", weight=2)], [])


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Job().train.seed = 1


def test_importing_the_job_loads_no_framework_and_no_yaml() -> None:
    heavy = ["torch", "mlx", "transformers", "datasets", "ruamel", "huggingface_hub", "numpy"]
    code = f"import sys, qwen_local.job.schema; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
