"""`plan` refuses what `train` refuses, in the same words; what it can do without it reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_local.embedded import tiny_model_path

Cli = Callable[..., Any]
Args = list[str | Path]
Input = Callable[[Path], Args]


def tiny_copy(folder: Path, **config: object) -> Path:
    """A copy of the embedded model with other values in its config.json."""
    copy = folder / "model"
    shutil.copytree(tiny_model_path(), copy)
    file = copy / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return copy


def with_model(copy: Path) -> Args:
    return ["--model", copy, "--data", "qwen-local/python-functions"]


def no_such_model(folder: Path) -> Args:
    return ["--model", "./nope"]


def hub_model_without_network(folder: Path) -> Args:
    return ["--model", "somebody/qwen3-something"]


def revision_of_a_folder(folder: Path) -> Args:
    return [*with_model(tiny_copy(folder)), "--set", "model.revision=main"]


def gguf_file(folder: Path) -> Args:
    (folder / "model.gguf").write_bytes(b"GGUF")
    return with_model(folder / "model.gguf")


def model_with_code(folder: Path) -> Args:
    return with_model(tiny_copy(folder, auto_map={"AutoModel": "evil.py"}))


def unknown_family(folder: Path) -> Args:
    return with_model(tiny_copy(folder, model_type="llama"))


def folder_without_config(folder: Path) -> Args:
    (folder / "empty").mkdir()
    return with_model(folder / "empty")


def folder_without_tokenizer(folder: Path) -> Args:
    copy = tiny_copy(folder)
    (copy / "tokenizer.json").unlink()
    return with_model(copy)


def folder_without_weights(folder: Path) -> Args:
    copy = tiny_copy(folder)
    (copy / "model.safetensors").unlink()
    return with_model(copy)


def tokenizer_beyond_the_embedding(folder: Path) -> Args:
    copy = tiny_copy(folder)
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"][-1]["id"] = 5000
    file.write_text(json.dumps(content))
    return with_model(copy)


def weights_of_another_shape(folder: Path) -> Args:
    copy = tiny_copy(folder)
    arrays = {name: array.view(np.uint16) for name, array in bfloat16(copy).items()}
    arrays["model.norm.weight"] = np.zeros(8, np.uint16)
    save_file({name: array for name, array in arrays.items()}, copy / "model.safetensors")
    return with_model(copy)


def bfloat16(copy: Path) -> dict[str, np.ndarray]:
    """Any arrays of the model's names; their types and shapes are wrong in any case."""
    try:
        found: dict[str, np.ndarray] = load_file(copy / "model.safetensors")
    except (KeyError, TypeError, ValueError):
        return {"model.embed_tokens.weight": np.zeros((2, 2), np.uint16)}
    return {name: np.zeros(array.shape, np.uint16) for name, array in found.items()}


def damaged_weights(folder: Path) -> Args:
    copy = tiny_copy(folder)
    (copy / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}garbag")
    return with_model(copy)


def no_such_data(folder: Path) -> Args:
    return ["--data", "rows.jsonl", "--eval-data", "other.jsonl"]


def model_and_data_missing(folder: Path) -> Args:
    return ["--model", "./nope", "--data", "rows.jsonl"]


def broken_rows(folder: Path) -> Args:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1}\n{\n')
    return ["--data", "rows.jsonl"]


def no_rows(folder: Path) -> Args:
    (folder / "rows.jsonl").write_text("")
    return ["--data", "rows.jsonl"]


def every_row_too_long(folder: Path) -> Args:
    return ["--max-length", "4", "--set", "data.overlong=drop"]


def more_positions_than_the_model(folder: Path) -> Args:
    return ["--max-length", "4096"]


def more_blocks_than_the_model(folder: Path) -> Args:
    return ["--set", "lora.layers=9"]


def several_faults_of_the_job(folder: Path) -> Args:
    (folder / "job.yaml").write_text("train: {epocs: 1, batch_size: 0}\nlora: {rank: x}\n")
    return ["job.yaml"]


def quantization_of_a_quantized_model(folder: Path) -> Args:
    copy = tiny_copy(folder, quantization={"bits": 4, "group_size": 64})
    return [*with_model(copy), "--quantization", "4bit"]


def thinking_that_the_template_lacks(folder: Path) -> Args:
    copy = tiny_copy(folder)
    file = copy / "tokenizer_config.json"
    file.write_text(file.read_text().replace("enable_thinking is false", "false"))
    return [*with_model(copy), "--set", "data.thinking=empty"]


def no_gpu(folder: Path) -> Args:
    return ["--backend", "mlx", "--device", "gpu"]


def columns_that_are_not_there(folder: Path) -> Args:
    (folder / "rows.jsonl").write_text('{"q": "a", "a": "b"}\n')
    return ["--data", "rows.jsonl", "--set", "data.columns={prompt: question, completion: a}"]


REFUSED: list[Input] = [
    no_such_model,
    hub_model_without_network,
    revision_of_a_folder,
    gguf_file,
    model_with_code,
    unknown_family,
    folder_without_config,
    folder_without_tokenizer,
    folder_without_weights,
    tokenizer_beyond_the_embedding,
    weights_of_another_shape,
    damaged_weights,
    no_such_data,
    model_and_data_missing,
    broken_rows,
    no_rows,
    every_row_too_long,
    more_positions_than_the_model,
    more_blocks_than_the_model,
    several_faults_of_the_job,
    quantization_of_a_quantized_model,
    thinking_that_the_template_lacks,
    no_gpu,
    columns_that_are_not_there,
]


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_plan_and_train_refuse_the_same_input_in_the_same_words(
    make: Input, cli: Cli, tmp_path: Path
) -> None:
    args = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    planned = cli("plan", "--backend", "cuda", "--device", "cpu", *args)
    trained = cli("train", "--backend", "cuda", "--device", "cpu", *args)
    assert (trained.code, trained.out) == (2, "")
    assert trained.err
    assert planned == trained
    assert sorted(tmp_path.rglob("*")) == before


def output_with_a_file(folder: Path) -> Args:
    (folder / "taken").mkdir()
    (folder / "taken/file").touch()
    return ["--output", "taken"]


def output_with_a_run(folder: Path) -> Args:
    (folder / "taken").mkdir()
    (folder / "taken/job.yaml").touch()
    return ["--output", "taken"]


def output_that_is_a_file(folder: Path) -> Args:
    (folder / "taken").touch()
    return ["--output", "taken"]


def no_data_given(folder: Path) -> Args:
    return ["--model", tiny_copy(folder)]


def output_taken_and_no_data(folder: Path) -> Args:
    return [*output_with_a_file(folder), *no_data_given(folder)]


REPORTED: list[Input] = [
    output_with_a_file,
    output_with_a_run,
    output_that_is_a_file,
    no_data_given,
    output_taken_and_no_data,
]


@pytest.mark.parametrize("make", REPORTED, ids=lambda make: make.__name__)
def test_what_a_plan_can_do_without_it_reports_in_the_words_of_train(
    make: Input, cli: Cli, tmp_path: Path
) -> None:
    args = make(tmp_path)
    planned = cli("plan", "--json", "--backend", "cuda", "--device", "cpu", *args)
    trained = cli("train", "--backend", "cuda", "--device", "cpu", *args)
    assert planned.code == 0
    assert trained.code == 2
    assert json.loads(planned.out)["refusals"]
    assert "\n\n".join(json.loads(planned.out)["refusals"]) == trained.err.strip()


def test_a_disk_without_room_is_reported_by_a_plan_and_refused_by_train(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_local.training.plan.free_bytes", lambda folder: 10**6)
    planned = cli("plan", "--json", "--backend", "cuda", "--device", "cpu")
    trained = cli("train", "--backend", "cuda", "--device", "cpu")
    assert (planned.code, trained.code) == (0, 1)
    [refusal] = json.loads(planned.out)["refusals"]
    assert refusal == trained.err.strip()
