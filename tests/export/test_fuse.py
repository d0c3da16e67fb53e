"""`fuse` on trained adapters: what it writes, that others load it, and that it is proved."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_local.adapters.lora import Adapter
from qwen_local.adapters.store import load_adapter, save_adapter
from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Engine
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.embedded import TINY_MODEL, tiny_model_path
from qwen_local.export import fuse as fusing
from qwen_local.export import merge
from qwen_local.export.fuse import Fused, fuse, with_stops
from qwen_local.export.merge import ExportError, merged, write_shards
from qwen_local.export.opening import ExportRequest
from qwen_local.export.samples import CONVERSATIONS
from qwen_local.job.schema import Quantization, read_job
from qwen_local.models.architecture import NORM
from qwen_local.models.source import fetch, find_model
from qwen_local.training.run import train
from tests.conftest import Cli

pytestmark = pytest.mark.slow

Trained = Callable[[Engine, Quantization], Path]
TINY = fetch(find_model(TINY_MODEL))
SLOW = (("mlx", "4bit"), ("mlx", "8bit"))
"""On a CPU, where MLX's quantized product is a plain loop."""
QUESTION = "Create a function that lists the squares of the negative days in a list."


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """(engine, quantization) -> a short run on the sample data, made once."""
    runs: dict[tuple[Engine, Quantization], Path] = {}

    def run(engine: Engine, quantization: Quantization = "none") -> Path:
        if (engine, quantization) not in runs:
            output = tmp_path_factory.mktemp("runs") / f"{engine}-{quantization}"
            steps = 12 if (engine, quantization) in SLOW else 24
            sets = [f"model.quantization={quantization}", f"train.steps={steps}"]
            draft = read_job(None, sets=sets, flags={"output": str(output)})
            train(draft, backend=engine, device="cpu", quiet=True)
            runs[engine, quantization] = output
        return runs[engine, quantization]

    return run


def fused(run: Path, output: Path, **options: Any) -> Fused:
    ours = {name: options.pop(name) for name in ("requantize", "dtype") if name in options}
    return fuse(ExportRequest(adapter=run, output=output, device="cpu", **options), **ours)


def config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text("utf-8"))
    return content


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_in_float32_only_rounding_lies_between_the_fused_model_and_the_live_adapter(
    engine: Engine, quantization: Quantization, trained: Trained, tmp_path: Path
) -> None:
    """After training on a quantized base, too: it is merged into the dequantized one."""
    run = trained(engine, quantization)
    result = fused(run, tmp_path / "out", dtype="float32", backend=engine)
    proof = result.proof
    assert proof.max_logit_difference <= 1e-4
    assert proof.merge_logit_difference == pytest.approx(proof.max_logit_difference, abs=1e-5)
    assert proof.top1_agreement == 1.0
    assert proof.loss_export == pytest.approx(proof.loss_live, abs=1e-5)
    assert proof.loss_live < proof.loss_base - 0.1
    assert proof.rms_adapter_effect > 0.1
    assert config(tmp_path / "out", "proof.json") == {**result.to_json(), "adapter": str(run)}
    assert result.quantization == quantization
    assert result.backend == engine


@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_by_default_it_has_the_dtype_of_the_base_and_still_says_the_same(
    engine: Engine, quantization: Quantization, trained: Trained, tmp_path: Path
) -> None:
    result = fused(trained(engine, quantization), tmp_path / "out", backend=engine)
    assert (result.dtype, config(tmp_path / "out")["dtype"]) == ("bfloat16", "bfloat16")
    assert result.proof.top1_agreement > 0.97
    assert result.proof.rms_logit_difference < 0.05 * result.proof.rms_adapter_effect
    assert result.proof.merge_logit_difference is not None
    assert result.proof.merge_logit_difference <= 1e-4


def test_after_qlora_bfloat16_errs_no_more_than_rounding_the_merge_into_the_dequantized_base(
    engine: Engine, trained: Trained, tmp_path: Path
) -> None:
    """The live adapter on its quantized base is the truth; all runs in float32."""
    import torch
    import transformers

    run, ids = trained(engine, "4bit"), list(range(300, 340))
    adapter = load_adapter(run, TINY.architecture)
    setup = Setup(model=TINY, lora=adapter.lora, device="cpu", dtype="float32", quantization="4bit")
    live = open_backend(Choice(engine, "cpu", "a test"), setup)
    live.load_adapter(adapter.arrays)
    truth = live.logits(ids, last=40)
    for dtype in ("float32", "bfloat16"):
        fused(run, tmp_path / dtype, dtype=dtype)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "float32")
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "bfloat16").float()
    with torch.no_grad():
        exact = merged(torch.tensor([ids])).logits[0].numpy()
        found = ours(torch.tensor([ids])).logits[0].numpy()
        rounded = merged.to(torch.bfloat16).float()(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(exact - truth).max() <= 1e-4
    assert 0 < np.abs(found - truth).max() <= 1.5 * np.abs(rounded - truth).max()


def test_merged_into_the_original_base_a_qlora_adapter_would_be_further_off(
    engine: Engine, trained: Trained, tmp_path: Path
) -> None:
    """Why the dequantized weights are the ones: the others are not what the adapter was fit to."""
    run = trained(engine, "4bit")
    right = fused(run, tmp_path / "right", backend=engine)
    live_engine_says = fused(run, tmp_path / "wrong", backend=engine, quantization="none")
    lost = abs(live_engine_says.proof.loss_live - right.proof.loss_live)
    assert lost > 10 * abs(right.proof.loss_export - right.proof.loss_live)


def test_the_folder_holds_all_that_other_programs_need(trained: Trained, tmp_path: Path) -> None:
    fused(trained("cuda", "none"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "proof.json",
        "qwen_local.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert config(tmp_path / "out") == dict(TINY.config)
    tokenizer = (tmp_path / "out/tokenizer.json").read_bytes()
    assert tokenizer == (tiny_model_path() / "tokenizer.json").read_bytes()
    end_of_turn, end_of_text = 2024, 2022
    generation = config(tmp_path / "out", "generation_config.json")
    assert generation["eos_token_id"] == [end_of_turn, end_of_text]
    assert fetch(find_model(str(tmp_path / "out"))).architecture == TINY.architecture


def test_transformers_mlx_lm_and_we_ourselves_answer_with_it_alike(
    trained: Trained, tmp_path: Path, cli: Cli
) -> None:
    import mlx_lm
    import transformers

    run = trained("cuda", "none")
    fused(run, tmp_path / "out", dtype="float32")
    live = cli(
        "generate", "--backend", "cuda", "--device", "cpu", "--model", TINY_MODEL,
        "--adapter", run, "--prompt", QUESTION,
    )  # fmt: skip
    ours = cli(
        "generate", "--backend", "mlx", "--device", "cpu", "--model", tmp_path / "out",
        "--prompt", QUESTION,
    )  # fmt: skip
    assert (ours.code, ours.out) == (0, live.out)
    model, tokenizer = mlx_lm.load(str(tmp_path / "out"))[:2]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True
    )
    said = mlx_lm.generate(model, tokenizer, prompt=prompt, max_tokens=256)
    assert said == live.out.removesuffix("\n")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = auto.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = loaded.generate(**inputs, max_new_tokens=256)
    written = auto.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert written == live.out.removesuffix("\n")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_requantizing_says_what_it_costs_and_loads_where_it_was_made(
    engine: Engine, bits: Quantization, trained: Trained, tmp_path: Path, cli: Cli
) -> None:
    run = trained(engine, "none")
    result = fused(run, tmp_path / "out", backend=engine, requantize=bits)
    proof = result.proof
    assert result.requantized == bits
    assert proof.merge_logit_difference is None
    assert 0.01 < proof.rms_logit_difference < proof.rms_adapter_effect
    lost = proof.loss_export - proof.loss_live
    assert 0 < abs(lost) < 0.1 * (proof.loss_base - proof.loss_live)
    assert (tmp_path / "out/model.safetensors").stat().st_size < 0.8 * (
        tiny_model_path() / "model.safetensors"
    ).stat().st_size
    said = cli(
        "generate", "--backend", engine, "--device", "cpu", "--model", tmp_path / "out",
        "--prompt", "What colour is the sky?",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert load_elsewhere(engine, tmp_path / "out").shape == (1, 4, TINY.architecture.vocabulary)


def load_elsewhere(engine: Engine, folder: Path) -> np.ndarray:
    """Logits of a quantized folder in the library that its format belongs to."""
    if engine == "mlx":
        import mlx.core as mx
        import mlx_lm

        model = mlx_lm.load(str(folder))[0]
        return np.array(model(mx.array([[5, 6, 7, 8]])).astype(mx.float32))
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]])).logits.float().numpy()


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_model_that_is_quantized_in_its_files_trains_and_fuses(
    engine: Engine, bits: Quantization, trained: Trained, tmp_path: Path
) -> None:
    """As `mlx-community/...-4bit` and `...-bnb-4bit` folders are: here one that we requantized."""
    fused(trained(engine, "none"), tmp_path / "base", backend=engine, requantize=bits)
    flags = {"model": str(tmp_path / "base"), "output": str(tmp_path / "run")}
    flags["data"] = "qwen-local/sample"
    draft = read_job(None, sets=["train.steps=4", "train.learning_rate=2e-3"], flags=flags)
    assert train(draft, backend="auto", device="cpu", quiet=True).backend == engine
    result = fused(tmp_path / "run", tmp_path / "out", dtype="float32")
    assert result.backend == engine  # the one that reads these codes
    assert result.proof.max_logit_difference <= 1e-4
    assert "quantization_config" not in config(tmp_path / "out")
    other = {"mlx": "cuda", "cuda": "mlx"}[engine]
    with pytest.raises(ValueError, match=f"which only `backend={engine}` reads"):
        fused(tmp_path / "run", tmp_path / "other", backend=other)


# --- what is refused ---


def spoilt(adapter: Adapter, how: str) -> Adapter:
    """The adapter as a faulty merge would take it."""
    factor = {"nothing of it": 0.0, "too little": 0.9, "too much": 1.1}.get(how, 1.0)
    blocks: dict[str, list[int | None]] = {
        "a block short": [0, 1, None, 3],
        "blocks swapped": [0, 2, 1, 3],
    }
    taken = blocks.get(how)
    arrays = {}
    for name, array in adapter.arrays.items():
        head, _, tail = name.partition(".layers.")
        layer, _, rest = tail.partition(".")
        other = int(layer) if taken is None else taken[int(layer)]
        if other is None:
            arrays[name] = np.zeros_like(array)
        else:
            scale = factor if "lora_B" in name else 1.0
            arrays[name] = np.float32(scale) * adapter.arrays[f"{head}.layers.{other}.{rest}"]
    return replace(adapter, arrays=arrays)


def merge_as_if(how: str) -> Callable[..., Any]:
    def faulty(weight: np.ndarray, adapter: Adapter, layer: int, target: str) -> np.ndarray:
        return merged(weight, spoilt(adapter, how), layer, target)

    return faulty


@pytest.mark.parametrize(
    "how", ["nothing of it", "too little", "too much", "a block short", "blocks swapped"]
)
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_faulty_merge_is_an_error_and_leaves_nothing(
    how: str, dtype: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "merged", merge_as_if(how))
    with pytest.raises(ExportError, match=r"^the logits of the merge differ by"):
        fused(trained("cuda", "none"), tmp_path / "out", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_hold_the_merge_is_an_error(
    engine: Engine, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carelessly(folder: Path, tensors: Any, weights: Any, **options: Any) -> None:
        write_shards(
            folder, ((n, a * (1 + 0.01 * (n == NORM))) for n, a in tensors), weights, **options
        )

    monkeypatch.setattr(fusing, "write_shards", carelessly)
    with pytest.raises(ExportError) as refused:
        fused(trained(engine, "none"), tmp_path / "out", backend=engine)
    assert str(refused.value) == f"{NORM}: the file differs from the computed tensor"
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_merge_that_lost_the_adapter_is_an_error(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "merged", merge_as_if("nothing of it"))
    with pytest.raises(ExportError, match="loses more than half of the adapter's effect"):
        fused(trained("cuda", "none"), tmp_path / "out", requantize="4bit")


def changed(run: Path, folder: Path, scale: float) -> Path:
    """The run's adapter with its effect scaled."""
    adapter = load_adapter(run, TINY.architecture)
    arrays = {n: a * (scale if "lora_B" in n else 1) for n, a in adapter.arrays.items()}
    arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
    save_adapter(Adapter(adapter.base, adapter.lora, adapter.blocks, arrays), folder)
    return folder


def test_an_adapter_that_does_nothing_is_told_so(trained: Trained, tmp_path: Path) -> None:
    nothing = changed(trained("cuda", "none"), tmp_path / "adapter", 0.0)
    with pytest.raises(ExportError) as refused:
        fused(nothing, tmp_path / "out")
    assert str(refused.value) == (
        "the adapter has no effect: its logits equal those of the base model"
    )


def test_an_adapter_smaller_than_bfloat16_is_not_rounded_away_in_silence(
    trained: Trained, tmp_path: Path
) -> None:
    small = changed(trained("cuda", "none"), tmp_path / "adapter", 1e-3)
    with pytest.raises(ExportError) as refused:
        fused(small, tmp_path / "out")
    assert "rounding loses the adapter" in str(refused.value)
    assert str(refused.value).endswith("\n\nhint: pass `dtype=float32`")
    assert fused(small, tmp_path / "out", dtype="float32").proof.top1_agreement == 1.0


def test_an_adapter_of_a_quantized_base_is_fused_by_the_engine_that_knows_its_codes(
    trained: Trained, tmp_path: Path
) -> None:
    run = trained("cuda", "4bit")
    with pytest.raises(ValueError) as refused:
        fused(run, tmp_path / "out", backend="mlx")
    assert str(refused.value) == (
        "backend mlx: the adapter was trained on a 4bit base model of `backend=cuda`, whose "
        "weights no other engine has\n\nhint: pass `backend=cuda`, or leave it out"
    )


def test_an_output_that_is_taken_is_refused_before_anything_is_loaded(
    tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    said = cli("fuse", "--adapter", tmp_path / "nowhere", "--output", "out")
    assert (said.code, said.err) == (
        2,
        "--output: out is not empty\n\nhint: choose another folder with --output, or remove this "
        "one\n",
    )


@pytest.mark.parametrize("output", ["~/new/out", "link", "."])
def test_an_output_may_be_under_home_behind_a_link_or_this_folder(
    output: str, trained: Trained, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("home", "target", "here"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "target")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if output == ".":
        (tmp_path / "here/link").unlink()
    monkeypatch.chdir(tmp_path / "here")
    given = ("--adapter", trained("cuda", "none"), "--device", "cpu")
    said = cli("fuse", *given, "--output", output, "--quiet")
    assert (said.code, said.out) == (0, f"{output}\n"), said.err
    place = {"~/new/out": "home/new/out", "link": "target", ".": "here"}[output]
    assert (tmp_path / place / "proof.json").is_file()
    assert (tmp_path / place).stat().st_mode == (tmp_path / "home").stat().st_mode


def test_a_disk_without_room_is_told_before_anything_is_computed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("cuda", "none")  # which needs room itself
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(fusing, "_write", None)
    with pytest.raises(ExportError) as refused:
        fused(run, tmp_path / "out")
    assert str(refused.value) == (
        f"{tmp_path / 'out'}: the export needs 0.01 GB, and 0.00 GB are free\n\nhint: make room, "
        "or choose another disk with `output`"
    )


def test_a_disk_that_fills_up_is_told_and_nothing_is_left(
    engine: Engine, trained: Trained, tmp_path: Path
) -> None:
    run = trained(engine, "none")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(ExportError, match=rf"^{tmp_path}: cannot be written: "):
            fused(run, tmp_path / "out", backend=engine)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_has_moved_is_named_with_the_mend(
    trained: Trained, tmp_path: Path, cli: Cli
) -> None:
    shutil.copytree(trained("cuda", "none") / "adapter/peft", tmp_path / "adapter")
    settings = config(tmp_path / "adapter", "adapter_config.json")
    settings["base_model_name_or_path"] = "/gone/model"
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    said = cli("fuse", "--adapter", "adapter", "--output", "out")
    assert (said.code, said.err) == (
        2,
        "--adapter adapter: its base model /gone/model: expected an existing folder or a hub "
        "id; found neither\n\nhint: pass --model with its current location\n",
    )


def test_a_generation_config_that_is_no_json_is_told_before_anything_is_computed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(tiny_model_path(), tmp_path / "base")
    (base / "generation_config.json").write_text("[1]")
    monkeypatch.setattr(fusing, "_write", None)
    with pytest.raises(ValueError, match=r"generation_config.json: expected an object; found"):
        fused(trained("cuda", "none"), tmp_path / "out", model=str(base))


def test_an_adapter_that_names_no_base_needs_a_model(
    trained: Trained, tmp_path: Path, cli: Cli
) -> None:
    shutil.copytree(trained("cuda", "none") / "adapter/peft", tmp_path / "adapter")
    settings = config(tmp_path / "adapter", "adapter_config.json")
    settings["base_model_name_or_path"] = None
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    said = cli("fuse", "--adapter", "adapter", "--output", "out")
    assert (said.code, said.err) == (
        2,
        "--model: adapter does not name its base model\n\nhint: pass --model\n",
    )
    given = ("--adapter", "adapter", "--model", TINY_MODEL, "--device", "cpu")
    assert cli("fuse", *given, "--output", "out").code == 0


def test_fuse_prints_its_folder_and_says_the_figures(trained: Trained, cli: Cli) -> None:
    given = ("--adapter", trained("cuda", "none"), "--device", "cpu")
    said = cli("fuse", *given, "--output", "out")
    assert (said.code, said.out) == (0, "out\n")
    assert "largest logit difference" in said.err
    quiet = cli("fuse", *given, "--output", "two", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "two\n", "")


@pytest.mark.parametrize(
    ("known", "expected"),
    [({}, [5, 7]), ({"eos_token_id": 7}, [5, 7]), ({"eos_token_id": [9, 5]}, [5, 7, 9])],
)
def test_generation_stops_where_the_adapter_was_taught_to(
    known: dict[str, Any], expected: list[int]
) -> None:
    assert with_stops(known | {"top_p": 0.8}, (5, 7)) == {"top_p": 0.8, "eos_token_id": expected}


def test_the_questions_are_of_several_kinds() -> None:
    assert len(set(CONVERSATIONS)) == len(CONVERSATIONS) >= 8
