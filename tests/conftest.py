"""Fixtures that several tests share, the environment of all, and which tests are slow."""

from __future__ import annotations

import tests.isolation  # isort: skip  # noqa: F401  # before anything reads the environment

import importlib.util
import io
import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import qwen_local
import qwen_local.backends.mlx.before_import  # before mlx.core is imported
from qwen_local.backends import open as engine_opener
from qwen_local.backends.base import Backend, Setup
from qwen_local.backends.machine import Engine
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles, fetch, find_model
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import IGNORE, Targets

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")

VOCABULARY = 320

MakeModel = Callable[[str, bool], ModelFiles]
MakeRows = Callable[..., Rows]
OpenEngine = Callable[..., Backend]


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """(*args, stdin=b"") -> what `qwen-local` says, in an empty folder and without a network.

    It runs in this process; an error that the command line does not explain comes through.
    """
    from huggingface_hub import constants

    from qwen_local.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path.with_name("no-cache")))
    # On a Mac every run would be a process of its own, beyond the reach of a test's patches.
    monkeypatch.setattr("qwen_local.training.restart.RESTARTS_ON_METAL", 0)

    def run(*args: str | Path, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "argv", ["qwen-local", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, *capfd.readouterr())

    return run


ENGINES: tuple[Engine, ...] = ("mlx", "cuda")
MODULE_OF = {"mlx": "mlx.core", "cuda": "torch"}
collect_ignore = ["golden/make_adapters.py"]  # a program, for --doctest-modules a module
ON_PEFT = [
    *(Path(engine_opener.__file__).parent / name for name in ENGINES),
    Path(qwen_local.__file__).parent / "embedded/make",
]
"""Modules of the package whose imports take seconds."""
FAKE_GPU = Path(__file__).with_name("fake_gpu")
SLOW_FIXTURES = {"engine", "open_engine", "endless_model"}
"""A test that asks for one of these runs an engine."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engines",
        default=",".join(ENGINES),
        help="engines that the tests run on, separated by commas; one that is absent is an error",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: trains, runs an engine or takes over a second")
    if _fast(config):  # this file's hook below does not see the package
        config.option.ignore = [*(config.option.ignore or []), *ON_PEFT]
    for name in _asked_for(config):
        if name not in ENGINES:
            raise pytest.UsageError(f"--engines: expected {' or '.join(ENGINES)}; found {name!r}")
        if importlib.util.find_spec(MODULE_OF[name].partition(".")[0]) is None:
            raise pytest.UsageError(f"--engines: {name} is asked for, but not installed here")


def _fast(config: pytest.Config) -> bool:
    """Only the fast tests are asked for; what the others import takes ten seconds per process."""
    return bool(config.option.markexpr == "not slow")


def _asked_for(config: pytest.Config) -> list[str]:
    return str(config.getoption("--engines")).split(",")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out of the fast tests, unread, the files whose tests are all slow: see `_fast`.

    And everywhere the tests on a card that computes nothing, unless they are asked for.
    """
    if collection_path == FAKE_GPU and "QWEN_LOCAL_FAKE_GPU" not in os.environ:
        return True
    if not _fast(config) or collection_path.suffix != ".py":
        return None
    slow = b"\npytestmark = pytest.mark.slow\n" in collection_path.read_bytes()
    return True if slow else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what runs an engine as slow; skip, visibly, what runs one that was not asked for."""
    asked_for = _asked_for(config)
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        spec = getattr(item, "callspec", None)
        name = spec.params.get("engine") if spec is not None else None
        if name in ENGINES and name not in asked_for:
            item.add_marker(pytest.mark.skip(reason=f"{name} was not asked for (--engines)"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Opening an engine fails a test not marked as slow: so the mark cannot be forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("slow") is None:
            patch.setattr(engine_opener, "load_engine", _refuse)
        return (yield)


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("this test opens an engine: mark it with pytest.mark.slow")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    name: Engine = request.param
    return name


@pytest.fixture(scope="session")
def open_engine(random_model: MakeModel) -> OpenEngine:
    """(engine, model=qwen3 tied, rank=8, dropout=0, **setup) -> an engine on the CPU."""

    def open_it(
        engine: Engine,
        model: ModelFiles | None = None,
        *,
        lora: LoraSpec | None = LoraSpec(rank=8, dropout=0.0),
        **setup: Any,
    ) -> Backend:
        given: dict[str, Any] = {"dtype": "float32", "max_grad_norm": 1.0, "device": "cpu", **setup}
        files = model or random_model("qwen3", True)
        return open_backend(Choice(engine, "cpu", "a test"), Setup(model=files, lora=lora, **given))

    return open_it


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """(model_type, tied) -> a saved random model, made once."""
    made: dict[tuple[str, bool], ModelFiles] = {}

    def make(model_type: str, tied: bool) -> ModelFiles:
        if (model_type, tied) not in made:
            folder = tmp_path_factory.mktemp(f"{model_type}-{'tied' if tied else 'untied'}")
            save_random_model(folder, model_type, tied=tied)
            made[model_type, tied] = fetch(find_model(str(folder)))
        return made[model_type, tied]

    return make


def save_random_model(folder: Path, model_type: str, *, tied: bool, intermediate: int = 96) -> None:
    """A model whose widths all differ, so that a transposed matrix cannot go unseen."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = {
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }[model_type](
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=intermediate,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16 if model_type == "qwen2" else 24,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)


@pytest.fixture
def changing_adapter(tmp_path: Path) -> Path:
    """A folder with an adapter of the embedded model that changes what it says."""
    from qwen_local.adapters.lora import Adapter, Origin, initial_arrays
    from qwen_local.adapters.store import save_adapter
    from qwen_local.embedded import TINY_MODEL

    architecture = fetch(find_model(TINY_MODEL)).architecture
    lora = LoraSpec(rank=4, dropout=0.0)
    generator = np.random.default_rng(0)
    arrays = {
        name: array + generator.normal(0, 0.2, array.shape).astype(np.float32)
        for name, array in initial_arrays(architecture, lora, 0).items()
    }
    adapter = Adapter(
        base=TINY_MODEL,
        lora=lora,
        blocks=architecture.blocks,
        arrays=arrays,
        origin=Origin(max_length=77),
    )
    save_adapter(adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(scope="session")
def random_rows() -> MakeRows:
    """(count, seed=0, shortest=6, longest=24) -> rows with a supervised stretch each."""
    return make_random_rows


def make_random_rows(count: int, *, seed: int = 0, shortest: int = 6, longest: int = 24) -> Rows:
    """Rows of random tokens; their second part is supervised, as in a conversation."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        length = int(generator.integers(shortest, longest + 1))
        ids = generator.integers(2, VOCABULARY, length + 1)
        start = int(generator.integers(1, length - 2))
        targets = np.where(np.arange(length) >= start, ids[1:], IGNORE)
        pairs.append((ids[:-1], Targets.of(targets)))
    return Rows.from_pairs(pairs)


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose every answer is `ENDLESS`, the last part again and again: see there."""
    folder = tmp_path_factory.mktemp("endless")
    save_reciting_model(folder, ENDLESS, positions=100_000)
    return folder


ENDLESS = ("<think>ok</think>", "\x1b[31mred", "🙂日語é ")
"""Thoughts, a control character, then wide characters for ever."""


def save_reciting_model(folder: Path, parts: Sequence[str], *, positions: int) -> None:
    """A model that says these parts, whatever it is asked, and then the last of them for ever.

    Nothing in it attends to anything: the residual stream is the embedding of the last token, and
    the head is its successor's. So no token may stand in two places.
    """
    import shutil

    import torch
    import transformers

    from qwen_local.datasets.tokenizer import ChatTokenizer
    from qwen_local.embedded import tiny_model_path

    tokenizer = ChatTokenizer.load(tiny_model_path())
    start = tokenizer.encode_prompt([{"role": "user", "content": "?"}])[-1]
    spoken = [tokenizer.encode_text(part).ids[:-1] for part in parts]
    path = [start, *(id for ids in spoken for id in ids)]
    assert len(set(path)) == len(path), [tokenizer.decode([id]) for id in path]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.Qwen3Config(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=positions,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    )
    with torch.no_grad():
        block = model.model.layers[0]
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.zero_()
        for before, after in zip(path, [*path[1:], spoken[-1][0]], strict=True):
            model.lm_head.weight[after] += model.model.embed_tokens.weight[before]
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_path() / name, folder)
