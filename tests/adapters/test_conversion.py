"""PEFT -> MLX -> PEFT: bit for bit, and with the same logits in both libraries.

What PEFT and mlx-lm write themselves (DoRA, scattered blocks, patterns) is made by them here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.tuner.utils
import mlx_lm.utils
import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from qwen_local.adapters.lora import Adapter, all_places, array_shapes, target_names
from qwen_local.adapters.mlx_layout import write_mlx
from qwen_local.adapters.peft_layout import write_peft
from qwen_local.adapters.store import load_adapter
from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Engine
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.errors import ModelError
from qwen_local.job.schema import LoraSpec
from qwen_local.models.architecture import Architecture, Place
from qwen_local.models.families.dense import PATHS
from qwen_local.models.families.family import Sizes
from qwen_local.models.families.qwen3 import QWEN3
from qwen_local.models.source import ModelFiles
from tests.conftest import MakeModel

pytestmark = pytest.mark.slow

IDS = [5, 17, 200, 3, 44, 91, 120, 7]
LAYERS = 3


def adapter_on(
    architecture: Architecture,
    places: tuple[Place, ...],
    *,
    rank: int = 4,
    alpha: float = 10.0,
    rslora: bool = False,
    dora: bool = False,
    seed: int = 0,
) -> Adapter:
    """A random adapter on these linear layers, large enough to move every logit."""
    generator = np.random.default_rng(seed)
    arrays = {
        name: generator.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in array_shapes(architecture, places, rank, dora=dora).items()
    }
    arrays |= {name: 1 + np.abs(array) for name, array in arrays.items() if array.ndim == 1}
    lowest = min(layer for layer, _ in places)
    lora = LoraSpec(
        rank=rank,
        alpha=alpha,
        dropout=0.0,
        targets=target_names(places, architecture.blocks),
        layers=architecture.layers - lowest if lowest else "all",
        rslora=rslora,
    )
    return Adapter("a/base", lora, architecture.blocks, arrays)


@st.composite
def adapters(draw: st.DrawFn, architecture: Architecture) -> Adapter:
    """Of any rank, on any linear layers: whole blocks, some blocks, or scattered."""
    everywhere = all_places(architecture.blocks)
    targets = draw(st.sets(st.sampled_from(list(PATHS.values())), min_size=1))
    blocks = draw(st.sets(st.integers(0, architecture.layers - 1), min_size=1))
    product = [(layer, name) for layer, name in everywhere if layer in blocks and name in targets]
    scattered = draw(st.sets(st.sampled_from(everywhere), min_size=1))
    places = draw(st.sampled_from([product, sorted(scattered)]))
    return adapter_on(
        architecture,
        tuple(places),
        rank=draw(st.integers(1, 20)),
        alpha=draw(st.floats(0.1, 100)),
        rslora=draw(st.booleans()),
        dora=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


SIZES: dict[str, Any] = {
    "sizes": Sizes(hidden=24, intermediate=40, heads=2, kv_heads=1, head_dim=16),
    "layers": LAYERS,
    "vocabulary": 64,
    "tied": True,
    "rope_theta": 1e4,
    "positions": 64,
}
ARCHITECTURE = QWEN3.architecture(**SIZES)


def written(adapter: Adapter, folder: Path, write: Callable[[Adapter, Path], None]) -> Path:
    folder.mkdir()
    write(adapter, folder)
    return folder


@settings(max_examples=150, deadline=None)
@given(adapters(ARCHITECTURE))
def test_from_peft_to_mlx_and_back_every_array_is_the_same_bit_by_bit(adapter: Adapter) -> None:
    with TemporaryDirectory() as place:
        first = written(adapter, Path(place) / "peft", write_peft)
        loaded = load_adapter(first, ARCHITECTURE)
        there = load_adapter(written(loaded, Path(place) / "mlx", write_mlx), ARCHITECTURE)
        again = written(there, Path(place) / "again", write_peft)
        name = "adapter_model.safetensors"
        assert (first / name).read_bytes() == (again / name).read_bytes()
        assert loaded.lora.scale == adapter.lora.scale
        if adapter.lora.rslora:  # alpha / sqrt(rank) is not the quotient by rank of every float64
            assert there.lora.scale == pytest.approx(adapter.lora.scale, rel=1e-15)
        else:
            assert there.lora.scale == adapter.lora.scale
        assert there.places == adapter.places
        before, after = (
            json.loads((folder / "adapter_config.json").read_text()) for folder in (first, again)
        )
        one_number = {"lora_alpha": 0, "use_rslora": 0}  # in MLX: the scale
        assert after | one_number == before | one_number


def logits_of_peft(model: ModelFiles, folder: Path, **options: Any) -> np.ndarray:
    """PEFT's own loader on transformers' own model, float32 [T, V]."""
    base = transformers.AutoModelForCausalLM.from_pretrained(
        model.folder, dtype=torch.float32, **options
    )
    for module in base.modules():  # see the engine: bitsandbytes repacks codes on some CPUs
        module.support_avx512bf16_for_cpu = False
    loaded = peft.PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        logits: np.ndarray = loaded(input_ids=torch.tensor([IDS])).logits[0].float().numpy()
    return logits


def logits_of_mlx_lm(model: ModelFiles, folder: Path, bits: int | None = None) -> np.ndarray:
    """mlx-lm's own loader, float32 [T, V]."""
    rope = {"rope_theta": model.architecture.rope_theta}  # see the engine: mlx-lm's qwen2
    loaded, _ = mlx_lm.utils.load_model(model.folder, model_config=rope)
    if bits is not None:
        nn.quantize(loaded, group_size=32, bits=bits)
    mlx_lm.tuner.utils.load_adapters(loaded, str(folder))
    loaded.eval()
    return np.array(loaded(mx.array([IDS]))[0].astype(mx.float32))


@pytest.mark.parametrize(("family", "tied"), [("qwen2", False), ("qwen3", True)])
def test_peft_and_mlx_lm_give_the_same_logits_with_whatever_adapter(
    family: str, tied: bool, random_model: MakeModel
) -> None:
    model = random_model(family, tied)
    bare = adapter_on(model.architecture, ((0, "self_attn.q_proj"),))
    zeros = {name: np.zeros_like(array) for name, array in bare.arrays.items()}

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(adapters(model.architecture))
    def run(adapter: Adapter) -> None:
        weak = {n: a * (0.1 if ".lora_B." in n else 1) for n, a in adapter.arrays.items()}
        adapter = replace(adapter, arrays=weak, lora=capped(adapter.lora))
        with TemporaryDirectory() as place:
            by_peft = logits_of_peft(model, written(adapter, Path(place) / "peft", write_peft))
            by_mlx = logits_of_mlx_lm(model, written(adapter, Path(place) / "mlx", write_mlx))
            none = written(replace(bare, arrays=zeros), Path(place) / "none", write_peft)
            assert np.abs(by_peft - by_mlx).max() <= 1e-4
            assert np.abs(by_peft - logits_of_peft(model, none)).max() > 1e-4

    run()


def capped(lora: LoraSpec) -> LoraSpec:
    """With a scale of at most 2: beyond it float32 itself errs by more than 1e-4."""
    return lora.model_copy(update={"alpha": min(lora.alpha, 2.0 * lora.rank), "rslora": False})


@pytest.mark.parametrize("dora", [False, True])
def test_on_a_base_in_4_bits_the_adapter_that_came_back_gives_the_same_logits(
    dora: bool, random_model: MakeModel, tmp_path: Path
) -> None:
    model = random_model("qwen3", False)
    places = tuple((layer, name) for layer in (1, 2) for name in PATHS.values())
    adapter = adapter_on(model.architecture, places, dora=dora)
    first = written(adapter, tmp_path / "peft", write_peft)
    there = written(load_adapter(first, model.architecture), tmp_path / "mlx", write_mlx)
    again = written(load_adapter(there, model.architecture), tmp_path / "again", write_peft)
    codes = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    one, other = (logits_of_peft(model, f, quantization_config=codes) for f in (first, again))
    np.testing.assert_array_equal(one, other)
    back = written(load_adapter(again, model.architecture), tmp_path / "back", write_mlx)
    one, other = (logits_of_mlx_lm(model, folder, bits=4) for folder in (there, back))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dora", [False, True])
def test_our_engines_answer_with_what_peft_saved_as_peft_does(
    dora: bool, engine: Engine, random_model: MakeModel, tmp_path: Path
) -> None:
    """Scattered blocks, rsLoRA and DoRA among it; the file is PEFT's own."""
    model = random_model("qwen3", True)
    torch.manual_seed(3)
    base = transformers.AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=3,
        lora_alpha=5,
        use_rslora=True,
        use_dora=dora,
        target_modules=["q_proj", "mlp.down_proj"],
        layers_to_transform=[0, 2],
        init_lora_weights=False,
    )
    made = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.3)
    made.save_pretrained(tmp_path / "theirs")
    expected = logits_of_peft(model, tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs", model.architecture)
    assert adapter.places == (
        (0, "self_attn.q_proj"),
        (0, "mlp.down_proj"),
        (2, "self_attn.q_proj"),
        (2, "mlp.down_proj"),
    )
    assert adapter.dora is dora
    setup = Setup(model=model, lora=adapter.lora, dora=dora, device="cpu", dtype="float32")
    ours = open_backend(Choice(engine, "cpu", "a test"), setup)
    bare = ours.logits(IDS, last=len(IDS))
    ours.load_adapter(adapter.arrays)
    assert np.abs(ours.logits(IDS, last=len(IDS)) - expected).max() <= 1e-4
    assert np.abs(bare - expected).max() > 1e-2
    ours.load_adapter({})
    np.testing.assert_array_equal(ours.logits(IDS, last=len(IDS)), bare)


@pytest.mark.parametrize("dora", [False, True])
def test_what_mlx_lm_saved_peft_answers_with_as_mlx_lm_does(
    dora: bool, random_model: MakeModel, tmp_path: Path
) -> None:
    model = random_model("qwen3", True)
    mx.random.seed(1)
    theirs, _ = mlx_lm.utils.load_model(model.folder)
    parameters = {"rank": 5, "scale": 1.7, "dropout": 0.0}  # no keys, as older releases wrote
    mlx_lm.tuner.utils.linear_to_lora_layers(theirs, 2, parameters, use_dora=dora)
    arrays = {
        name: array + mx.random.normal(array.shape) * 0.1
        for name, array in tree_flatten(theirs.parameters())
        if name.rpartition(".")[2] in ("lora_a", "lora_b", "m")
    }
    (tmp_path / "theirs").mkdir()
    mx.save_safetensors(str(tmp_path / "theirs/adapters.safetensors"), arrays)
    kind = "dora" if dora else "lora"
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (tmp_path / "theirs/adapter_config.json").write_text(json.dumps(config))
    adapter = load_adapter(tmp_path / "theirs", model.architecture)
    assert {layer for layer, _ in adapter.places} == {1, 2}
    expected = logits_of_mlx_lm(model, tmp_path / "theirs")
    found = logits_of_peft(model, written(adapter, tmp_path / "peft", write_peft))
    assert np.abs(found - expected).max() <= 1e-4


@pytest.mark.parametrize(
    "targets",
    [
        "all-linear",
        r".*\.(self_attn\.(q_proj|k_proj)|mlp\.up_proj)",
        ["self_attn.v_proj", "model.layers.1.mlp.gate_proj"],
    ],
)
def test_whatever_way_peft_names_its_targets_is_read(
    targets: str | list[str], random_model: MakeModel, tmp_path: Path
) -> None:
    model = random_model("qwen2", True)
    base = transformers.AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=targets, init_lora_weights=False
    )
    made = peft.get_peft_model(base, config)
    made.save_pretrained(tmp_path / "theirs")
    saved = load_file(tmp_path / "theirs/adapter_model.safetensors")
    adapter = load_adapter(tmp_path / "theirs", model.architecture)
    assert adapter.arrays.keys() == saved.keys()
    again = written(adapter, tmp_path / "again", write_peft)
    np.testing.assert_array_equal(
        logits_of_peft(model, again), logits_of_peft(model, tmp_path / "theirs")
    )


# --- what cannot be held ---


@pytest.fixture
def saved(random_model: MakeModel, tmp_path: Path) -> tuple[Path, Architecture]:
    """An adapter as another tool left it, in both layouts, that a test may change."""
    architecture = random_model("qwen3", True).architecture
    places = tuple((layer, "self_attn.q_proj") for layer in range(LAYERS))
    adapter = adapter_on(architecture, places)
    written(adapter, tmp_path / "peft", write_peft)
    written(adapter, tmp_path / "mlx", write_mlx)
    return tmp_path, architecture


def change(folder: Path, **values: object) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return path


MERGE = "\n\nhint: merge it where it was made (merge_and_unload) and use the merged model"


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("rank_pattern", {"q_proj": 2}, f"not supported: the adapter cannot be loaded{MERGE}"),
        ("alpha_pattern", {"q_proj": 2}, f"not supported: the adapter cannot be loaded{MERGE}"),
        ("modules_to_save", ["lm_head"], f"not supported: the adapter cannot be loaded{MERGE}"),
        ("target_parameters", ["x"], f"not supported: the adapter cannot be loaded{MERGE}"),
        ("layer_replication", [[0, 2]], f"not supported: the adapter cannot be loaded{MERGE}"),
        ("bias", "all", f"expected 'none'; found 'all'{MERGE}"),
        ("r", 10**9, "expected less than or equal to 1024; found 1000000000"),
        (
            "init_lora_weights",
            "pissa_niter_4",
            "'pissa_niter_4' changes the base model or its computation: not a plain LoRA\n\n"
            "hint: where it was made, save it with path_initial_model_for_weight_conversion, which "
            "makes a plain LoRA of most kinds, or merge it",
        ),
        (
            "auto_mapping",
            {"base_model_class": "Popen", "parent_library": "subprocess"},
            "names code to import: {'base_model_class': 'Popen', 'parent_library': 'subprocess'"
            "\n\nhint: remove it from a copy of the adapter",
        ),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(
    key: str, value: object, problem: str, saved: tuple[Path, Architecture]
) -> None:
    folder, architecture = saved
    where = change(folder / "peft", **{key: value})
    with pytest.raises(ModelError) as refused:
        load_adapter(folder / "peft", architecture)
    assert str(refused.value) == f"{where}: {key}: {problem}"


def test_the_class_that_unsloth_names_is_that_of_the_model_and_read_over(
    saved: tuple[Path, Architecture],
) -> None:
    folder, architecture = saved
    library = "transformers.models.qwen3.modeling_qwen3"
    mapping = {"base_model_class": "Qwen3ForCausalLM", "parent_library": library}
    change(folder / "peft", auto_mapping=mapping | {"unsloth_fixed": True})
    assert len(load_adapter(folder / "peft", architecture).places) == LAYERS


def test_a_setting_that_is_not_known_here_is_told(
    saved: tuple[Path, Architecture], caplog: pytest.LogCaptureFixture
) -> None:
    folder, architecture = saved
    where = change(folder / "peft", use_tomorrow={"a": 1}, another=None)
    load_adapter(folder / "peft", architecture)
    assert [record.getMessage() for record in caplog.records] == [
        f"{where}: use_tomorrow: unknown setting; ignored, though it may change answers"
    ]


@pytest.mark.parametrize("layout", ["peft", "mlx"])
def test_a_file_of_square_matrices_alone_does_not_tell_which_way_they_lie(
    layout: str, tmp_path: Path
) -> None:
    square = QWEN3.architecture(**SIZES | {"sizes": replace(SIZES["sizes"], hidden=32)})
    adapter = adapter_on(square, ((0, "self_attn.q_proj"), (1, "self_attn.q_proj")), rank=32)
    write = {"peft": write_peft, "mlx": write_mlx}[layout]
    folder = written(adapter, tmp_path / layout, write)
    with pytest.raises(ModelError, match="holds square matrices only: nothing shows whether"):
        load_adapter(folder, square)
    (folder / "qwen_local.json").write_text("{}")  # ours lie as they should
    assert load_adapter(folder, square).arrays.keys() == adapter.arrays.keys()
    with_others = adapter_on(square, ((0, "self_attn.q_proj"), (0, "mlp.up_proj")), rank=32)
    others = written(with_others, tmp_path / "others", write)
    assert load_adapter(others, square).arrays.keys() == with_others.arrays.keys()


def test_the_keys_of_an_mlx_config_and_its_arrays_must_agree(
    saved: tuple[Path, Architecture],
) -> None:
    folder, architecture = saved
    parameters = {"rank": 4, "scale": 2.5, "dropout": 0.0, "keys": ["self_attn.k_proj"]}
    change(folder / "mlx", lora_parameters=parameters)
    with pytest.raises(ModelError) as refused:
        load_adapter(folder / "mlx", architecture)
    assert "q_proj.lora_A.weight: not an adapter matrix of this model" in str(refused.value)
