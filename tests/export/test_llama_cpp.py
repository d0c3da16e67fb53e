"""llama.cpp itself on the files that we write: it says what the live adapter says.

Run where `pip install 'qwen-local[llamacpp]'` has compiled it.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from qwen_local.adapters.lora import Adapter
from qwen_local.adapters.store import load_adapter
from qwen_local.backends.base import Backend, Setup
from qwen_local.backends.open import open_backend, open_weights
from qwen_local.backends.select import Choice
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import TINY_MODEL, sample_data_path, tiny_model_path
from qwen_local.export.gguf_about import About
from qwen_local.export.gguf_adapter import write_adapter
from qwen_local.export.gguf_encoding import Outtype
from qwen_local.export.gguf_model import write_model
from qwen_local.export.merge import merged_tensors
from qwen_local.files import write_arrays
from qwen_local.job.schema import LoraSpec, read_job
from qwen_local.models.source import ModelFiles, fetch, find_model
from qwen_local.training.run import train
from tests.export.gguf_files import VOCABULARY, model_files, random_adapter, random_tensors

llama_cpp = pytest.importorskip("llama_cpp")

pytestmark = pytest.mark.slow

CHOICE = Choice("cuda", "cpu", "a test")
TINY = fetch(find_model(TINY_MODEL))
LONGEST = 64
"""Tokens of an answer."""
ROUNDING = {"f16": 0.03, "bf16": 0.2, "q8_0": 1.0}
"""Largest logit difference: llama.cpp rounds what goes into a product as it holds the weights.
The adapter moves logits by more than 20."""


@contextmanager
def llama(model: Path, lora: Path | None = None, **options: Any) -> Iterator[Any]:
    """A model of llama.cpp."""
    given = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **options}
    loras = {} if lora is None else {"lora_path": str(lora)}
    with closing(llama_cpp.Llama(model_path=str(model), **loras, **given)) as opened:
        yield opened


def continuation(model: Any, prompt: Sequence[int], stops: Sequence[int]) -> list[int]:
    model.reset()
    said: list[int] = []
    for token in model.generate(list(prompt), temp=0.0, repeat_penalty=1.0):
        if token in stops or len(said) == LONGEST:
            break
        said.append(token)
    return said


def logits(model: Any, ids: Sequence[int], last: int) -> np.ndarray:
    """float32 [last, V], of a model opened with `logits_all`."""
    model.reset()
    model.eval(list(ids))
    return np.array(model.scores[len(ids) - last : len(ids)])


def questions(name: str, count: int) -> list[str]:
    lines = (sample_data_path() / name).read_text("utf-8").splitlines()[:count]
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def conversations() -> list[list[dict[str, str]]]:
    lines = (sample_data_path() / "train.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


@dataclass(frozen=True)
class Exports:
    """A run's files, and what its live adapter says."""

    folder: Path
    tokenizer: ChatTokenizer
    live: Backend
    prompts: list[list[int]]
    """Ten of the training data, ten fresh ones."""
    answers: list[list[int]]

    def model(self, outtype: str) -> Path:
        return self.folder / f"{outtype}.gguf"

    @property
    def base(self) -> Path:
        return self.folder / "base.gguf"

    @property
    def lora(self) -> Path:
        return self.folder / "lora.gguf"


def live_engine(files: ModelFiles, adapter: Adapter) -> Backend:
    setup = Setup(model=files, lora=adapter.lora, device="cpu", dtype="float32")
    engine = open_backend(CHOICE, setup)
    engine.load_adapter(adapter.arrays)
    return engine


def write(path: Path, files: ModelFiles, adapter: Adapter, outtype: Outtype) -> None:
    tensors = merged_tensors(files.architecture, adapter, open_weights(CHOICE, files), "none")
    about = About(base=find_model(TINY_MODEL))
    write_model(path, files=files, tensors=tensors, outtype=outtype, about=about)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The embedded job, trained in full and exported in every way."""
    folder = tmp_path_factory.mktemp("exports")
    run = folder / "run"
    train(read_job(None, flags={"output": str(run)}), backend="cuda", device="cpu", quiet=True)
    adapter = load_adapter(run, TINY.architecture)
    for outtype in ("f16", "bf16", "q8_0"):
        write(folder / f"{outtype}.gguf", TINY, adapter, outtype)
    write(folder / "base.gguf", TINY, replace(adapter, arrays={}), "f16")
    write_adapter(
        folder / "lora.gguf",
        adapter=adapter,
        architecture=TINY.architecture,
        about=About(base=find_model(TINY_MODEL), title="trained"),
    )
    tokenizer = ChatTokenizer.load(TINY.folder)
    asked = questions("train.jsonl", 10) + questions("heldout.jsonl", 10)
    prompts = [tokenizer.encode_prompt([{"role": "user", "content": text}]) for text in asked]
    live = live_engine(TINY, adapter)
    said = live.generate(prompts, max_tokens=LONGEST, stop_ids=tokenizer.stop_ids)
    return Exports(folder, tokenizer, live, prompts, [list(answer.ids) for answer in said])


def equal_answers(model: Any, exports: Exports) -> int:
    stops = exports.tokenizer.stop_ids
    return sum(
        continuation(model, prompt, stops) == answer
        for prompt, answer in zip(exports.prompts, exports.answers, strict=True)
    )


def largest_difference(model: Any, exports: Exports) -> float:
    differences = []
    for prompt, answer in zip(exports.prompts, exports.answers, strict=True):
        ids, last = [*prompt, *answer], len(answer) + 1
        truth = exports.live.logits(ids, last=last)
        differences.append(np.abs(logits(model, ids, last) - truth).max())
    return float(max(differences))


def test_the_merged_model_answers_twenty_prompts_as_the_live_adapter_does(
    exports: Exports,
) -> None:
    with llama(exports.model("f16")) as model:
        assert equal_answers(model, exports) == 20


def test_so_does_the_base_with_the_adapter_beside_it(exports: Exports) -> None:
    with llama(exports.base, exports.lora) as model:
        assert equal_answers(model, exports) == 20


def test_the_base_alone_answers_otherwise(exports: Exports) -> None:
    with llama(exports.base) as model:
        assert equal_answers(model, exports) < 5


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
def test_logits_of_the_merged_model_differ_by_rounding(exports: Exports, outtype: str) -> None:
    with llama(exports.model(outtype), logits_all=True) as model:
        assert largest_difference(model, exports) < ROUNDING[outtype]


def test_so_do_those_of_the_base_with_the_adapter(exports: Exports) -> None:
    with llama(exports.base, exports.lora, logits_all=True) as model:
        assert largest_difference(model, exports) < ROUNDING["f16"]


def test_the_files_own_template_and_end_serve_a_chat(exports: Exports) -> None:
    """llama-cpp-python renders the template and knows where to stop, told nothing."""
    question = questions("heldout.jsonl", 1)[0]
    expected = exports.tokenizer.decode(exports.answers[10])
    with llama(exports.model("f16")) as model:
        said = model.create_chat_completion(
            [{"role": "user", "content": question}], temperature=0.0, repeat_penalty=1.0
        )
        assert model.token_eos() == exports.tokenizer.end_of_turn
    assert said["choices"][0]["message"]["content"] == expected
    assert said["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("family", "tied"), [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]
)
def test_every_kind_of_model_is_computed_as_the_engine_does(
    family: str, tied: bool, tmp_path: Path
) -> None:
    """With biases and without, with an adapter of two blocks and rsLoRA's scale."""
    files = model_files(tmp_path, family, tied)
    tensors = {name: 8 * array for name, array in random_tensors(files.architecture)}
    write_arrays(tmp_path / "model.safetensors", tensors, made_for="pt")
    files = fetch(find_model(str(tmp_path)))
    adapter = random_adapter(files.architecture, LoraSpec(rank=4, alpha=6, layers=2, rslora=True))
    about = About(base=find_model(str(tmp_path)))
    write(tmp_path / "base.gguf", files, replace(adapter, arrays={}), "f16")
    write(tmp_path / "merged.gguf", files, adapter, "f16")
    write_adapter(
        tmp_path / "lora.gguf", adapter=adapter, architecture=files.architecture, about=about
    )
    ids = list(range(2, 42))
    truth = live_engine(files, adapter).logits(ids, last=40)
    bare = live_engine(files, replace(adapter, arrays=zeros(adapter))).logits(ids, last=40)
    scale = np.abs(truth).max()
    for model, lora, expected in (
        ("base", None, bare),
        ("merged", None, truth),
        ("base", tmp_path / "lora.gguf", truth),
    ):
        with llama(tmp_path / f"{model}.gguf", lora, logits_all=True) as opened:
            assert np.abs(logits(opened, ids, 40) - expected).max() < 0.01 * scale
    assert np.abs(truth - bare).max() > 0.2 * scale


def zeros(adapter: Adapter) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(array) for name, array in adapter.arrays.items()}


# --- tokens ---

HARD = (
    "",
    " ",
    "  \n\n  x",
    "\r\n\r\n a",
    "\t\tif x:\n\t\t\treturn 1\n",
    "It's I'LL we'Ve 'tis 'S",
    "12345 3.14 1,000 ½ ² Ⅷ",
    "请用一句话介绍北京。 日本語 かな 한국어",
    "🙂🙃 👩‍👩‍👧 a\u200db",
    "naïve café Ὀδυσσεύς नमस्ते שלום ﬁ",
    "\u00a0x\u3000y\u2028z\u2029",
    "…—“”",
    "ĠĊ \x01\x7f",
    "x" * 300,
    "<think>\n\nok\n</think>\n\n<tool_call>\n{}\n</tool_call>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|fim_pad|>b <|repo_name|>[PAD2049]",
)
ALPHABET = "abz 019'\n\t.,!?-_()[]{}éßñ中文字かな🙂\rsTtLlVe"


def texts() -> list[str]:
    """Rendered conversations, hard cases and random ones: 517."""
    tokenizer, generator = ChatTokenizer.load(TINY.folder), random.Random(0)
    rendered = [tokenizer.render(conversation) for conversation in conversations()]
    chance = ["".join(generator.choices(ALPHABET, k=generator.randint(1, 60))) for _ in range(300)]
    return [*rendered, *HARD, *chance]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """llama.cpp's tokenizer from a file of ours, of a model with more embeddings than tokens."""
    folder = tmp_path_factory.mktemp("vocabulary")
    files = model_files(folder)
    path = folder / "model.gguf"
    tensors = random_tensors(files.architecture)
    write_model(
        path,
        files=files,
        tensors=tensors,
        outtype="f16",
        about=About(base=find_model(TINY_MODEL)),
    )
    with llama(path, vocab_only=True) as model:
        assert model.n_vocab() == VOCABULARY
        yield model


def theirs(model: Any, text: str, *, special: bool = True) -> list[int]:
    ids: list[int] = model.tokenize(text.encode(), add_bos=False, special=special)
    return ids


def test_llama_cpp_makes_the_same_tokens_of_every_text(vocabulary: Any) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model_path() / "tokenizer.json"))
    for text in texts():
        assert theirs(vocabulary, text) == tokenizer.encode(text).ids, text


def test_llama_cpp_makes_the_same_tokens_of_every_letter(vocabulary: Any) -> None:
    """All of Unicode's first three planes: the classes of its pattern are those of the library."""
    tokenizer = Tokenizer.from_file(str(tiny_model_path() / "tokenizer.json"))
    for code in [*range(0x20, 0xD800), *range(0xE000, 0x30000)]:
        text = f"a{chr(code)}b 1{chr(code)} {chr(code)}{chr(code)}"
        if unicodedata.is_normalized("NFC", text):
            assert theirs(vocabulary, text) == tokenizer.encode(text).ids, hex(code)


def test_it_reads_rows_as_they_were_trained(vocabulary: Any) -> None:
    tokenizer = ChatTokenizer.load(TINY.folder)
    for conversation in conversations():
        ids = tokenizer.encode_conversation(conversation)[0].ids
        assert theirs(vocabulary, tokenizer.render(conversation))[: len(ids)] == ids


def test_control_tokens_in_plain_text_stay_text(vocabulary: Any) -> None:
    text = "a<|im_end|>b<think>"
    ids = ChatTokenizer.load(TINY.folder).encode_text(text).ids[:-1]
    assert theirs(vocabulary, text, special=False) == ids


def test_what_is_decomposed_it_does_not_compose(vocabulary: Any) -> None:
    """The one difference, which docs/export.md names: it normalizes nothing."""
    tokenizer = Tokenizer.from_file(str(tiny_model_path() / "tokenizer.json"))
    text = unicodedata.normalize("NFD", "café")
    assert theirs(vocabulary, text) != tokenizer.encode(text).ids
    composed = unicodedata.normalize("NFC", text)
    assert theirs(vocabulary, composed) == tokenizer.encode(text).ids
