"""What we write, PEFT and mlx-lm load as it is, and both give the same logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

from qwen_local.adapters.lora import Adapter, initial_arrays, lora_shapes
from qwen_local.adapters.mlx_layout import to_mlx, to_peft
from qwen_local.adapters.store import base_of, load_adapter, save_adapter
from qwen_local.backends.base import Backend
from qwen_local.backends.machine import Engine
from qwen_local.errors import ModelError
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles
from qwen_local.rows.rows import Rows

MakeModel = Callable[[str, bool], ModelFiles]
OpenEngine = Callable[..., Backend]
MakeRows = Callable[..., Rows]

IDS = [5, 17, 200, 3, 44, 91, 120, 7]
LORA = LoraSpec(rank=8, alpha=24, dropout=0.0)
SOME = LoraSpec(
    rank=4, dropout=0.1, targets=("q_proj", "o_proj", "down_proj"), layers=2, rslora=True
)


def logits_of_peft(model: ModelFiles, folder: Path) -> np.ndarray:
    """PEFT's own loader on transformers' own model, float32 [T, V]."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, folder)
    with torch.no_grad():
        logits: np.ndarray = loaded(input_ids=torch.tensor([IDS])).logits[0].numpy()
    return logits


def logits_of_mlx_lm(model: ModelFiles, folder: Path | None) -> np.ndarray:
    """mlx-lm's own loader, float32 [T, V]."""
    import mlx_lm.tuner.utils
    import mlx_lm.utils

    rope = {"rope_theta": model.architecture.rope_theta}  # see the engine: mlx-lm's qwen2
    loaded, _ = mlx_lm.utils.load_model(model.folder, model_config=rope)
    if folder is not None:
        mlx_lm.tuner.utils.load_adapters(loaded, str(folder))
        loaded.eval()
    return np.array(loaded(mx.array([IDS]))[0].astype(mx.float32))


def trained(
    engine: Engine, model: ModelFiles, lora: LoraSpec, open_engine: OpenEngine, rows: Rows
) -> Adapter:
    """An adapter after five steps, every matrix away from zero."""
    backend = open_engine(engine, model, lora=lora)
    for _ in range(5):
        backend.step(rows, lr=5e-3, tokens=rows.supervised)
    return Adapter(
        base=model.name, lora=lora, blocks=model.architecture.blocks, arrays=backend.adapter()
    )


@pytest.mark.parametrize("lora", [LORA, SOME], ids=["all", "some"])
@pytest.mark.parametrize(("model_type", "tied"), [("qwen2", False), ("qwen3", True)])
def test_what_one_engine_trained_both_libraries_load_with_the_same_logits(
    engine: Engine,
    model_type: str,
    tied: bool,
    lora: LoraSpec,
    random_model: MakeModel,
    open_engine: OpenEngine,
    random_rows: MakeRows,
    tmp_path: Path,
) -> None:
    model = random_model(model_type, tied)
    adapter = trained(engine, model, lora, open_engine, random_rows(8))
    save_adapter(adapter, tmp_path / "adapter")
    by_peft = logits_of_peft(model, tmp_path / "adapter/peft")
    by_mlx_lm = logits_of_mlx_lm(model, tmp_path / "adapter/mlx")
    assert np.abs(by_peft - by_mlx_lm).max() <= 1e-4
    assert np.abs(by_peft - logits_of_mlx_lm(model, None)).max() > 1e-2  # the adapter acts


@pytest.mark.parametrize("layout", ["peft", "mlx"])
@pytest.mark.parametrize("lora", [LORA, SOME], ids=["all", "some"])
def test_an_adapter_comes_back_from_either_layout_bit_by_bit(
    layout: str, lora: LoraSpec, random_model: MakeModel, tmp_path: Path
) -> None:
    architecture = random_model("qwen3", True).architecture
    arrays = {
        name: np.random.default_rng(1).normal(size=array.shape).astype(np.float32)
        for name, array in initial_arrays(architecture, lora, seed=0).items()
    }
    save_adapter(Adapter("a/base", lora, architecture.blocks, arrays), tmp_path / "adapter")
    back = load_adapter(tmp_path / "adapter" / layout, architecture)
    assert back.base == "a/base"
    assert back.lora.scale == pytest.approx(lora.scale, rel=1e-12)
    assert back.lora.target_names == lora.target_names
    assert back.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)


def test_a_run_its_adapter_folder_and_a_layout_folder_all_name_the_same_adapter(
    random_model: MakeModel, tmp_path: Path
) -> None:
    architecture = random_model("qwen3", True).architecture
    arrays = initial_arrays(architecture, LORA, seed=0)
    save_adapter(Adapter("a/base", LORA, architecture.blocks, arrays), tmp_path / "adapter")
    for path in ("", "adapter", "adapter/peft", "adapter/mlx"):
        assert load_adapter(tmp_path / path, architecture).arrays.keys() == arrays.keys()


def test_the_files_are_as_readable_as_any_other(random_model: MakeModel, tmp_path: Path) -> None:
    architecture = random_model("qwen3", True).architecture
    arrays = initial_arrays(architecture, LORA, seed=0)
    save_adapter(Adapter("a/base", LORA, architecture.blocks, arrays), tmp_path / "adapter")
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "other").stat().st_mode}


def test_saving_again_replaces_both_layouts(random_model: MakeModel, tmp_path: Path) -> None:
    architecture = random_model("qwen3", True).architecture
    for seed in (0, 1):
        arrays = initial_arrays(architecture, LORA, seed=seed)
        save_adapter(Adapter("a/base", LORA, architecture.blocks, arrays), tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    name = next(iter(arrays))
    np.testing.assert_array_equal(load_adapter(tmp_path, architecture).arrays[name], arrays[name])


def test_both_libraries_start_from_the_distribution_that_we_start_from(
    random_model: MakeModel,
) -> None:
    """PEFT's kaiming_uniform(a = sqrt 5) and mlx-lm's U(+-1/sqrt(in)) have one bound."""
    architecture = random_model("qwen3", True).architecture
    arrays = initial_arrays(architecture, LoraSpec(rank=64), seed=0)
    for name, array in arrays.items():
        bound = 1 / np.sqrt(array.shape[1])
        if ".lora_B." in name:
            assert not array.any()
        else:
            assert np.abs(array).max() <= bound
            assert array.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_a_new_target_leaves_the_start_of_the_others_as_it_was(random_model: MakeModel) -> None:
    architecture = random_model("qwen3", True).architecture
    few = initial_arrays(architecture, LoraSpec(targets=("q_proj",)), seed=3)
    all_of_them = initial_arrays(architecture, LoraSpec(), seed=3)
    for name, array in few.items():
        np.testing.assert_array_equal(array, all_of_them[name])


def test_names_translate_both_ways(random_model: MakeModel) -> None:
    for name in lora_shapes(random_model("qwen3", True).architecture, LORA):
        assert to_peft(to_mlx(name)) == name


# --- refusals ---


@pytest.fixture
def saved(random_model: MakeModel, tmp_path: Path) -> tuple[Path, ModelFiles]:
    """An adapter in both layouts that a test may damage."""
    model = random_model("qwen3", True)
    arrays = initial_arrays(model.architecture, SOME, seed=0)
    adapter = Adapter("a/base", SOME, model.architecture.blocks, arrays)
    save_adapter(adapter, tmp_path / "adapter")
    return tmp_path / "adapter", model


def change(folder: Path, **values: object) -> Path:
    """Change keys of an adapter_config.json; the file's path."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return path


def test_a_folder_without_an_adapter_says_what_was_looked_for(
    random_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        load_adapter(tmp_path, random_model("qwen3", True).architecture)
    assert str(error.value) == (
        f"adapter {tmp_path}: found neither adapter_model.safetensors (PEFT) nor "
        "adapters.safetensors (mlx-lm)\n\n"
        "hint: pass a run folder, or the folder that holds one of these files"
    )


def test_a_pickled_adapter_is_refused_unread(random_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(ModelError) as error:
        load_adapter(tmp_path, random_model("qwen3", True).architecture)
    assert str(error.value) == (
        f"{tmp_path / 'adapter_model.bin'}: a pickle file, which can run code when it is loaded\n\n"
        "hint: load it where it was made and save it again with safe_serialization=True"
    )


def test_every_fault_of_a_peft_config_is_told_at_once(saved: tuple[Path, ModelFiles]) -> None:
    folder, model = saved
    where = change(
        folder / "peft",
        peft_type="IA3",
        r=10**9,
        lora_alpha="x",
        use_rslora="no",
        lora_dropout=1.5,
        target_modules=["lm_head"],
        layers_to_transform=5.0,
        rank_pattern={"q_proj": 2},
    )
    with pytest.raises(ModelError) as error:
        load_adapter(folder / "peft", model.architecture)
    assert str(error.value).split("\n\n") == [
        f"{where}: rank_pattern: not supported: the adapter cannot be loaded",
        "hint: merge it where it was made (merge_and_unload) and use the merged model",
        f"{where}: target_modules.0: expected one of q_proj, k_proj, v_proj, o_proj, gate_proj, "
        "up_proj, down_proj; found 'lm_head'",
        "hint: merge it where it was made (merge_and_unload) and use the merged model",
        f"{where}: peft_type: expected 'LORA'; found 'IA3'",
        "hint: merge it where it was made (merge_and_unload) and use the merged model",
        f"{where}: r: expected less than or equal to 1024; found 1000000000",
        f"{where}: lora_alpha: expected a valid number; found 'x'",
        f"{where}: use_rslora: expected a valid boolean; found 'no'",
        f"{where}: lora_dropout: expected less than 1; found 1.5",
        f"{where}: layers_to_transform.int: expected a valid integer; found 5.0",
        f"{where}: layers_to_transform.list[int]: expected a valid list; found 5.0",
    ]


@pytest.mark.parametrize("given", [[2, 3], 3, [-1]])
def test_blocks_that_the_model_does_not_have_are_told(
    given: object, saved: tuple[Path, ModelFiles]
) -> None:
    folder, model = saved
    where = change(folder / "peft", layers_to_transform=given)
    with pytest.raises(ModelError) as error:
        load_adapter(folder / "peft", model.architecture)
    assert str(error.value) == (
        f"{where}: layers_to_transform: expected some of the 3 blocks, counted from 0; found "
        f"{given}"
    )


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": []},
        {"lora_alpha": 10**400},
        {"layers_to_transform": {"a": 1}},
        {"layer_replication": [[0, 2]]},
    ],
)
def test_a_malformed_setting_is_never_a_traceback(
    values: dict[str, object], saved: tuple[Path, ModelFiles]
) -> None:
    folder, model = saved
    change(folder / "peft", **values)
    with pytest.raises(ModelError, match=next(iter(values))):
        load_adapter(folder / "peft", model.architecture)


def test_every_fault_of_an_mlx_config_is_told_at_once(saved: tuple[Path, ModelFiles]) -> None:
    folder, model = saved
    where = change(
        folder / "mlx",
        fine_tune_type="full",
        num_layers=True,
        lora_parameters={"rank": 0, "scale": 1e308, "keys": []},
    )
    with pytest.raises(ModelError) as error:
        load_adapter(folder / "mlx", model.architecture)
    assert str(error.value).split("\n\n") == [
        f"{where}: fine_tune_type: expected 'lora' or 'dora'; found 'full'",
        "hint: merge it where it was made (merge_and_unload) and use the merged model",
        f"{where}: num_layers: expected a valid integer; found True",
        f"{where}: lora_parameters.rank: expected greater than or equal to 1; found 0",
        f"{where}: lora_parameters.scale: expected less than or equal to 1000000; found 1e+308",
        f"{where}: lora_parameters.keys: list should have at least 1 item after validation, not 0; "
        "found []",
    ]


def test_arrays_that_do_not_fit_the_model_are_each_named(saved: tuple[Path, ModelFiles]) -> None:
    from safetensors.numpy import load_file, save_file

    folder, model = saved
    path = folder / "peft/adapter_model.safetensors"
    arrays = load_file(path)
    first, second = sorted(arrays)[:2]
    del arrays[first]
    arrays[second] = arrays[second][:1]
    arrays["another"] = np.zeros(1, np.float32)
    save_file(arrays, path)
    with pytest.raises(ModelError) as error:
        load_adapter(folder / "peft", model.architecture)
    wanted = lora_shapes(model.architecture, SOME)[second]
    assert str(error.value).split("\n\n") == [
        f"adapter {folder / 'peft'}: made for a/base; its matrices do not fit this model",
        f"{path}: another: not an adapter matrix of this model",
        "hint: merge it where it was made (merge_and_unload) and use the merged model",
        f"{path}: {first}: missing",
        f"{path}: {second}: expected shape {wanted}; found {arrays[second].shape}",
    ]


def test_numbers_that_are_not_finite_are_told_of_each_array(
    saved: tuple[Path, ModelFiles],
) -> None:
    from safetensors.numpy import load_file, save_file

    folder, model = saved
    path = folder / "peft/adapter_model.safetensors"
    arrays = load_file(path)
    first, second = sorted(arrays)[:2]
    arrays[first] = np.full_like(arrays[first], np.nan)
    arrays[second] = np.full_like(arrays[second], np.inf)
    save_file(arrays, path)
    with pytest.raises(ModelError) as error:
        load_adapter(folder / "peft", model.architecture)
    assert str(error.value).split("\n\n") == [
        f"{path}: {first}: holds values that are not finite",
        f"{path}: {second}: holds values that are not finite",
    ]


def test_an_adapter_in_bfloat16_loads_as_float32(saved: tuple[Path, ModelFiles]) -> None:
    """As other tools save it; safetensors.numpy cannot read it."""
    import safetensors.torch

    folder, model = saved
    path = folder / "peft/adapter_model.safetensors"
    half = {n: a.bfloat16() for n, a in safetensors.torch.load_file(path).items()}
    path.write_bytes(safetensors.torch.save(half))
    for name, array in load_adapter(folder / "peft", model.architecture).arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, half[name].float().numpy())


def test_arrays_of_another_kind_are_refused(saved: tuple[Path, ModelFiles]) -> None:
    from safetensors.numpy import save_file

    folder, model = saved
    path = folder / "peft/adapter_model.safetensors"
    save_file({"codes": np.zeros(2, np.int8)}, path)
    with pytest.raises(ModelError) as error:
        load_adapter(folder / "peft", model.architecture)
    assert str(error.value) == (
        f"{path}: not a readable safetensors file: codes has type I8; expected floats"
    )


def test_a_file_that_is_no_safetensors_is_told(saved: tuple[Path, ModelFiles]) -> None:
    folder, model = saved
    path = folder / "peft/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_adapter(folder / "peft", model.architecture)


def test_two_adapters_in_one_folder_are_not_guessed_between(
    saved: tuple[Path, ModelFiles],
) -> None:
    folder, model = saved
    (folder / "peft/adapters.safetensors").write_bytes(b"")
    with pytest.raises(ModelError) as error:
        load_adapter(folder / "peft", model.architecture)
    assert str(error.value) == (
        f"{folder / 'peft'}: holds two adapters, adapter_model.safetensors and "
        "adapters.safetensors, but one adapter_config.json\n\nhint: move one of them to another "
        "folder"
    )


def test_an_adapter_one_folder_deeper_is_pointed_to(saved: tuple[Path, ModelFiles]) -> None:
    folder, model = saved
    (folder / "peft").rename(folder / "default")
    shutil.rmtree(folder / "mlx")
    with pytest.raises(ModelError, match=rf"\n\nhint: there is one in {folder / 'default'}$"):
        load_adapter(folder, model.architecture)


def test_a_merged_model_is_no_adapter_and_is_told_so(saved: tuple[Path, ModelFiles]) -> None:
    _, model = saved
    with pytest.raises(ModelError) as error:
        load_adapter(model.folder, model.architecture)
    assert str(error.value) == (
        f"adapter {model.folder}: expected an adapter; found a model\n\nhint: pass it as "
        "`model`, or pass the run or adapter that it was made from"
    )


def test_another_rank_than_that_of_the_matrices_is_one_fault(
    saved: tuple[Path, ModelFiles],
) -> None:
    folder, model = saved
    where = change(folder / "peft", r=16)
    with pytest.raises(ModelError) as error:
        load_adapter(folder / "peft", model.architecture)
    assert str(error.value) == (
        f"{where}: rank is 16, but the matrices beside it have 4\n\nhint: copy both files from "
        "the same folder"
    )


def test_names_of_peft_in_a_file_for_mlx_lm_are_refused(saved: tuple[Path, ModelFiles]) -> None:
    """mlx-lm would refuse them, and transposed they would pass for its own."""
    folder, model = saved
    shutil.copy(folder / "peft/adapter_model.safetensors", folder / "mlx/adapters.safetensors")
    with pytest.raises(ModelError, match="not a name of an adapter array in mlx-lm"):
        load_adapter(folder / "mlx", model.architecture)


def test_a_folder_that_a_base_was_is_never_looked_up_on_the_hub(
    saved: tuple[Path, ModelFiles], tmp_path: Path
) -> None:
    folder, _ = saved
    for file in (folder / "peft/adapter_config.json", folder / "mlx/adapter_config.json"):
        key = "model" if "mlx" in file.parts else "base_model_name_or_path"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: "models/qwen"}))
        (file.parent / "qwen_local.json").write_text('{"max_length": 64}')
        with pytest.raises(ModelError) as error:
            base_of(None, None, file.parent)
        assert str(error.value) == (
            f"adapter {file.parent}: its base model models/qwen: was a local folder in training, "
            "which does not exist here\n\nhint: pass `model` with its current location"
        )
