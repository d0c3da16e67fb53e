"""`export` from the command line: what it writes, that others load it, and that it is proved."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx_lm
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from qwen_local.adapters.lora import Adapter, array_shapes, lora_name, lora_shapes
from qwen_local.adapters.peft_layout import write_peft
from qwen_local.adapters.store import load_adapter, save_adapter
from qwen_local.backends.machine import Engine
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import TINY_MODEL, sample_data_path, tiny_model_path
from qwen_local.errors import RunBusyError
from qwen_local.export import export as exporting
from qwen_local.export import merge
from qwen_local.export.export import export
from qwen_local.export.fuse import fuse
from qwen_local.export.merge import ExportError, merged
from qwen_local.export.opening import ExportRequest, new_folder
from qwen_local.export.proof import measure
from qwen_local.job.schema import LoraSpec, Quantization, read_job
from qwen_local.models.source import fetch, find_model
from qwen_local.training.run import train
from tests.conftest import Cli, MakeModel

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).resolve().parents[2] / "adapters"
TINY = fetch(find_model(TINY_MODEL))
IDS = [5, 17, 200, 3, 44, 91, 120, 7]
FILES = {
    "peft": {"adapter_config.json", "adapter_model.safetensors", "qwen_local.json"},
    "mlx": {"adapter_config.json", "adapters.safetensors", "qwen_local.json"},
    "gguf": {"tiny-2.2M-run-v1.0-F16.gguf"},
    "gguf-lora": {"tiny-2.2M-run-v1.0-F32-LoRA.gguf"},
    "ollama": {"Modelfile", "tiny-2.2M-run-v1.0-F16.gguf"},
}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole embedded job: held-out questions are answered word for word after it."""
    output = tmp_path_factory.mktemp("runs") / "run"
    draft = read_job(None, flags={"output": str(output)})
    train(draft, backend="cuda", device="cpu", quiet=True)
    return output


def held_out() -> list[str]:
    """Twenty questions, half of which were trained on."""
    questions = []
    for name in ("train.jsonl", "heldout.jsonl"):
        lines = (sample_data_path() / name).read_text("utf-8").splitlines()[:10]
        questions += [json.loads(line)["messages"][0]["content"] for line in lines]
    return questions


@pytest.mark.parametrize("to", FILES)
def test_every_export_is_proved_described_and_whole(
    to: str, engine: Engine, run: Path, tmp_path: Path, cli: Cli
) -> None:
    said = cli(
        "export", "--adapter", run, "--to", to, "--output", "out", "--backend", engine,
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = json.loads(said.out)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == FILES[to] | {"README.md", "proof.json"} == set(found["files"])
    proof = json.loads((tmp_path / "out/proof.json").read_text())
    assert proof == {**found, "adapter": str(run)}
    assert proof["top1_agreement"] == 1.0
    assert proof["loss_live"] < proof["loss_base"] - 0.1
    assert proof["rms_adapter_effect"] > 0.1
    if to in ("gguf", "ollama"):
        assert proof["merge_logit_difference"] <= proof["allowed_logit_difference"]
        assert 0 < proof["max_logit_difference"] < 0.1
    else:
        assert proof["merge_logit_difference"] is None
        assert proof["max_logit_difference"] <= 1e-4
    assert "largest logit difference" in said.err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("writer", ["peft", "mlx"])
def test_the_golden_adapters_go_both_ways_and_say_what_their_own_tools_said(
    writer: str, tmp_path: Path
) -> None:
    expected = load_file(GOLDEN / writer / "expected.safetensors")["logits"]
    for to in ("peft", "mlx"):
        given = ExportRequest(adapter=GOLDEN / writer, output=tmp_path / to, device="cpu")
        export(given, to=to)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_path(), dtype=torch.float32)
    in_peft = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    with torch.no_grad():
        found = in_peft(input_ids=torch.tensor([IDS])).logits[0, -1].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    model, _ = mlx_lm.load(str(tiny_model_path()), adapter_path=str(tmp_path / "mlx"))[:2]
    model.set_dtype(mx.float32)
    np.testing.assert_allclose(np.array(model(mx.array([IDS]))[0, -1]), expected, atol=1e-4)


def test_peft_mlx_lm_and_transformers_continue_twenty_prompts_alike(
    run: Path, tmp_path: Path, cli: Cli
) -> None:
    """In float32, which the embedded model's files are not: its weights are those of bfloat16."""
    given = ("--adapter", run, "--device", "cpu")
    for to in ("peft", "mlx"):
        assert cli("export", *given, "--to", to, "--output", to).code == 0
    assert cli("fuse", *given, "--output", "fused", "--dtype", "float32").code == 0
    tokenizer = ChatTokenizer.load(tiny_model_path())
    prompts = [tokenizer.encode_prompt([{"role": "user", "content": q}]) for q in held_out()]
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_path(), dtype=torch.float32)
    bare = [continued(base, prompt, tokenizer) for prompt in prompts]
    in_peft = peft.PeftModel.from_pretrained(base, tmp_path / "peft")
    answers = [continued(in_peft, prompt, tokenizer) for prompt in prompts]
    assert sum(one != other for one, other in zip(answers, bare, strict=True)) >= 18
    fused = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fused")
    assert [continued(fused, prompt, tokenizer) for prompt in prompts] == answers
    model, theirs = mlx_lm.load(str(tiny_model_path()), adapter_path=str(tmp_path / "mlx"))[:2]
    model.set_dtype(mx.float32)
    said = [mlx_lm.generate(model, theirs, prompt=p, max_tokens=96) for p in prompts]
    assert said == answers


def continued(model: Any, prompt: list[int], tokenizer: ChatTokenizer) -> str:
    """The greedy answer of transformers."""
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=96,
        do_sample=False,
        eos_token_id=list(tokenizer.stop_ids),
        pad_token_id=tokenizer.end_of_text,
    )
    return tokenizer.decode(out[0, len(prompt) :].tolist())


def test_the_command_of_mlx_lm_answers_with_the_adapter(run: Path, tmp_path: Path) -> None:
    export(ExportRequest(adapter=run, output=tmp_path / "mlx", device="cpu"), to="mlx")
    question = held_out()[-1]
    said = subprocess.run(
        [sys.executable, "-m", "mlx_lm", "generate", "--model", tiny_model_path(),
         "--adapter-path", tmp_path / "mlx", "--prompt", question, "--verbose", "False",
         "--max-tokens", "96"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = (sample_data_path() / "heldout.jsonl").read_text("utf-8").splitlines()
    expected = json.loads(lines[9])["messages"][1]["content"]
    assert expected in said.stdout


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_an_adapter_of_a_quantized_base_is_exported_as_it_was_trained(
    quantization: Quantization, tmp_path: Path
) -> None:
    sets = [f"model.quantization={quantization}", "train.steps=6"]
    draft = read_job(None, sets=sets, flags={"output": str(tmp_path / "run")})
    train(draft, backend="cuda", device="cpu", quiet=True)
    given = ExportRequest(adapter=tmp_path / "run", output=tmp_path / "mlx", device="cpu")
    found = export(given, to="mlx")
    assert (found.quantization, found.backend) == (quantization, "cuda")
    assert found.proof.max_logit_difference == 0.0
    proof = export(replace(given, output=tmp_path / "gguf"), to="gguf").proof
    assert proof.merge_logit_difference is not None
    assert proof.merge_logit_difference <= proof.allowed_logit_difference


# --- DoRA ---


@pytest.fixture
def dora(tmp_path: Path) -> Path:
    """An adapter with magnitudes, on two scattered blocks."""
    draw = np.random.default_rng(0)
    places = ((0, "self_attn.q_proj"), (2, "mlp.down_proj"))
    arrays = {
        name: draw.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in array_shapes(TINY.architecture, places, 4, dora=True).items()
    }
    for place in places:
        name = lora_name(*place, "m")
        arrays[name] = 2 + np.abs(arrays[name])
    lora = LoraSpec(rank=4, dropout=0.0, targets=("q_proj", "down_proj"))
    adapter = Adapter(TINY_MODEL, lora, TINY.architecture.blocks, arrays)
    (tmp_path / "dora").mkdir()
    write_peft(adapter, tmp_path / "dora")
    return tmp_path / "dora"


@pytest.mark.parametrize("to", ["mlx", "peft", "gguf"])
def test_a_dora_is_converted_and_merged(to: Any, engine: Engine, dora: Path) -> None:
    given = ExportRequest(adapter=dora, output=dora.parent / to, backend=engine, device="cpu")
    proof = export(given, to=to).proof
    assert proof.rms_adapter_effect > 0.1
    assert proof.rms_logit_difference < 0.01 * proof.rms_adapter_effect


def test_a_dora_is_answered_with_and_merged_as_peft_does(dora: Path, cli: Cli) -> None:
    given = ("--adapter", dora, "--device", "cpu")
    assert cli("fuse", *given, "--output", "fused", "--dtype", "float32").code == 0
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_path(), dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, dora).eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([IDS])).logits
        ours = transformers.AutoModelForCausalLM.from_pretrained("fused")
        assert (ours(torch.tensor([IDS])).logits - expected).abs().max() <= 1e-4
    said = cli("generate", *given, "--prompt", "Hello", "--max-tokens", "4")
    assert said.code == 0, said.err


def test_a_dora_is_no_lora_for_llama_cpp(dora: Path, cli: Cli) -> None:
    said = cli("export", "--adapter", dora, "--to", "gguf-lora", "--output", "out", "--quiet")
    assert (said.code, said.err) == (
        2,
        "--adapter: has DoRA magnitudes, which llama.cpp does not support\n\nhint: merge it: "
        "`qwen-local export --to gguf`\n",
    )
    assert not Path("out").exists()


# --- Ollama ---


def test_the_gguf_beside_a_modelfile_has_no_template_of_its_own(run: Path, tmp_path: Path) -> None:
    """Ollama would prefer it to the Modelfile's."""
    fields = {}
    for to in ("gguf", "ollama"):
        export(ExportRequest(adapter=run, output=tmp_path / to, device="cpu"), to=to)
        [file] = (tmp_path / to).glob("*.gguf")
        fields[to] = gguf.GGUFReader(file).fields.keys()
    assert fields["gguf"] - fields["ollama"] == {"tokenizer.chat_template"}
    lines = (tmp_path / "ollama/Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./tiny-2.2M-run-v1.0-F16.gguf"
    assert "PARAMETER num_ctx 2048" in lines  # all that the model was made for


# --- what is refused ---


def test_arrays_that_were_not_written_as_they_are_are_an_error(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carelessly(adapter: Adapter, folder: Path) -> None:
        name = lora_name(1, "self_attn.v_proj", "B")
        arrays = {**adapter.arrays, name: adapter.arrays[name] * np.float32(1.001)}
        write_peft(replace(adapter, arrays=arrays), folder)

    monkeypatch.setattr(exporting, "write_peft", carelessly)
    with pytest.raises(ExportError) as refused:
        export(ExportRequest(adapter=run, output=tmp_path / "out", device="cpu"), to="peft")
    assert str(refused.value) == "the written adapter differs from the original"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [0.0, 1.05])
def test_an_adapter_with_another_scale_is_an_error(
    scale: float, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if alpha had been read for the multiplier; 0 would say what the bare base says."""
    monkeypatch.setattr(exporting, "_check_same", lambda *_: None)

    def other(folder: Path, architecture: Any) -> Adapter:
        found = load_adapter(folder, architecture)
        arrays = {
            name: array * np.float32(scale if ".lora_B." in name else 1)
            for name, array in found.arrays.items()
        }
        return replace(found, arrays=arrays)

    monkeypatch.setattr(exporting, "load_adapter", other)
    with pytest.raises(ExportError, match=r"^the logits of the exported adapter differ by"):
        export(ExportRequest(adapter=run, output=tmp_path / "out", device="cpu"), to="mlx")
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_of_a_faulty_merge_is_an_error(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(weight: np.ndarray, adapter: Adapter, layer: int, target: str) -> np.ndarray:
        return weight if layer == 1 else merged(weight, adapter, layer, target)

    monkeypatch.setattr(merge, "merged", short)
    with pytest.raises(ExportError, match=r"^the logits of the merge differ by"):
        export(ExportRequest(adapter=run, output=tmp_path / "out", device="cpu"), to="gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            ("--to", "mlx", "--outtype", "F16", "--name", "x", "--no-thinking"),
            "--outtype: applies to a merged GGUF, which --to mlx does not write\n\n"
            "hint: leave it out\n\n"
            "--name: applies to a GGUF, which --to mlx does not write\n\nhint: leave it out\n\n"
            "--thinking: applies to a Modelfile, which --to mlx does not write\n\n"
            "hint: leave it out\n",
        ),
        (
            ("--to", "mlx", "--private"),
            "--private: expected --push-to-hub, without which nothing is uploaded; it is missing"
            "\n\nhint: add --push-to-hub OWNER/NAME\n",
        ),
    ],
)
def test_flags_that_would_have_no_effect_are_refused(
    flags: tuple[str, ...], problem: str, cli: Cli
) -> None:
    said = cli("export", "--adapter", "nowhere", "--output", "out", *flags)
    assert (said.code, said.err) == (2, problem)


def test_a_push_that_cannot_be_is_told_before_anything_is_computed(run: Path, cli: Cli) -> None:
    said = cli(
        "export", "--adapter", run, "--to", "peft", "--output", "out",
        "--push-to-hub", "no id", "--quiet",
    )  # fmt: skip
    assert said.code == 2
    assert said.err.startswith("--push-to-hub no id: not a valid hub id")
    assert not Path("out").exists()


def test_an_adapter_moved_to_another_name_of_its_base_says_so(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_model_path(), tmp_path / "base")
    given = ExportRequest(adapter=run, output=tmp_path / "out", model=str(moved), device="cpu")
    export(given, to="peft")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(moved)
    card = (tmp_path / "out/README.md").read_text()
    assert str(tmp_path) not in card


# --- disks, and other processes ---


def test_a_disk_that_fills_up_in_the_proof_is_told_and_nothing_is_left(
    engine: Engine, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(*given: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            return measure(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(exporting, "measure", on_a_full_disk)
    given = ExportRequest(adapter=run, output=tmp_path / "out", backend=engine, device="cpu")
    with pytest.raises(ExportError, match=rf"^{tmp_path}: cannot be written: .*\n\nhint: make"):
        export(given, to="gguf-lora")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleared_away_and_one_that_runs_is_not(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / ".new-out/.scratch").mkdir(parents=True)
    (tmp_path / ".new-out/model.safetensors").write_bytes(b"half")
    given = ExportRequest(adapter=run, output=tmp_path / "out", device="cpu")
    with new_folder(tmp_path / "out") as new:
        assert list(new.iterdir()) == []
        with pytest.raises(RunBusyError) as refused:
            export(given, to="peft")
        busy = f"{tmp_path / 'out'}: another process is writing it"
        assert str(refused.value) == f"{busy}\n\nhint: wait for it, or stop it first"
        (new / "mine").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_name_that_is_not_utf_8_is_refused_at_once(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^output: its name is not UTF-8: "):
        export(ExportRequest(adapter=run, output=tmp_path / "\udcff", device="cpu"), to="peft")


# --- Qwen2 bases of transformers 5, whose rope_theta mlx-lm does not find ---


def test_a_fused_qwen2_is_the_same_in_mlx_lm(random_model: MakeModel, tmp_path: Path) -> None:
    model = random_model("qwen2", True)
    assert "rope_theta" not in model.config
    shutil.copytree(model.folder, tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_path() / file, tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    architecture = replace(model.architecture, vocabulary=TINY.architecture.vocabulary)
    grown = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    grown.resize_token_embeddings(architecture.vocabulary)
    grown.save_pretrained(tmp_path / "base")
    assert config["rope_parameters"]["rope_theta"] == 50_000.0
    lora = LoraSpec(rank=4, dropout=0.0)
    arrays = {
        name: np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
        for name, shape in lora_shapes(architecture, lora).items()
    }
    save_adapter(
        Adapter(str(tmp_path / "base"), lora, architecture.blocks, arrays), tmp_path / "adapter"
    )
    fuse(
        ExportRequest(adapter=tmp_path / "adapter", output=tmp_path / "fused", device="cpu"),
        dtype="float32",
    )
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fused")
    theirs, _ = mlx_lm.load(str(tmp_path / "fused"))[:2]
    with torch.no_grad():
        expected = ours(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(np.array(theirs(mx.array([IDS]))[0]) - expected).max() <= 1e-4
