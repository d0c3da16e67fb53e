"""Whether other programs say with our exports what the live adapter says, greedily, 20 times.

    python -m benchmarks.outside_programs

The whole embedded job is trained, and exported by the command line in every form. The programs are
PEFT, mlx-lm (library and command), transformers on the fused folder, and llama.cpp where
`pip install 'qwen-local[llamacpp]'` has compiled it: merged f16, bf16 and q8_0, and the base's f16
with the LoRA file. All but llama.cpp compute in float32.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.result import RESULTS, machine, write

LONGEST = 96
"""Tokens of an answer."""
Prompts = Sequence[Sequence[int]]


def main() -> None:
    """Ask everyone and write how many answers are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default=str(RESULTS / "outside_programs.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outside-") as place:
        found = ask_everyone(Path(place))
    result = {
        "command": "python -m benchmarks.outside_programs",
        "date": datetime.date.today().isoformat(),
        "machine": machine("cpu"),
        **found,
    }
    write(result, options.output)


def ask_everyone(folder: Path) -> dict[str, Any]:
    """How many answers of each program are those of the live adapter."""
    from qwen_local.datasets.tokenizer import ChatTokenizer
    from qwen_local.embedded import tiny_model_path

    run = folder / "run"
    ours("train", "--output", run)
    for to in ("peft", "mlx", "gguf-lora"):
        ours("export", "--adapter", run, "--to", to, "--output", folder / to)
    for outtype in ("f16", "bf16", "q8_0"):
        place = folder / outtype
        ours("export", "--adapter", run, "--to", "gguf", "--outtype", outtype, "--output", place)
    ours("fuse", "--adapter", run, "--dtype", "float32", "--output", folder / "fused")
    tokenizer = ChatTokenizer.load(tiny_model_path())
    questions = twenty_questions()
    prompts = [tokenizer.encode_prompt([{"role": "user", "content": q}]) for q in questions]
    live = [ours("generate", "--adapter", run, "--greedy", "--prompt", q) for q in questions]
    bare = [
        ours("generate", "--model", "qwen-local/tiny", "--greedy", "--prompt", q) for q in questions
    ]
    answers = {
        "PEFT": with_peft(folder / "peft", tokenizer, prompts),
        "transformers, fused folder": with_transformers(folder / "fused", tokenizer, prompts),
        "mlx-lm": with_mlx_lm(folder / "mlx", prompts),
        "mlx_lm.generate": [mlx_lm_command(folder / "mlx", question) for question in questions],
        "the bare base": bare,
    }
    try:
        import llama_cpp
    except ImportError:
        version = None
    else:
        version = llama_cpp.__version__
        answers |= with_llama(folder, tokenizer, prompts)
    return {
        "llama_cpp_python": version,
        "prompts": len(prompts),
        "same_as_the_live_adapter": {
            name: sum(one.strip() == other.strip() for one, other in zip(said, live, strict=True))
            for name, said in answers.items()
        },
    }


def ours(*arguments: str | Path) -> str:
    """What a command of ours prints."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen_local", *map(str, arguments), "--device", "cpu"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def twenty_questions() -> list[str]:
    """Ten that were trained on, and ten that were held out."""
    from qwen_local.embedded import sample_data_path

    questions = []
    for name in ("train.jsonl", "heldout.jsonl"):
        lines = (sample_data_path() / name).read_text("utf-8").splitlines()[:10]
        questions += [json.loads(line)["messages"][0]["content"] for line in lines]
    return questions


def with_peft(adapter: Path, tokenizer: Any, prompts: Prompts) -> list[str]:
    """`PeftModel.from_pretrained`."""
    import peft
    import torch
    import transformers

    from qwen_local.embedded import tiny_model_path

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_path(), dtype=torch.float32)
    return continued(peft.PeftModel.from_pretrained(base, adapter), tokenizer, prompts)


def with_transformers(model: Path, tokenizer: Any, prompts: Prompts) -> list[str]:
    """`AutoModelForCausalLM.from_pretrained`."""
    import transformers

    return continued(transformers.AutoModelForCausalLM.from_pretrained(model), tokenizer, prompts)


def continued(model: Any, tokenizer: Any, prompts: Prompts) -> list[str]:
    """The greedy answers of transformers."""
    import torch

    answers = []
    for prompt in prompts:
        out = model.generate(
            input_ids=torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=LONGEST,
            do_sample=False,
            eos_token_id=list(tokenizer.stop_ids),
            pad_token_id=tokenizer.end_of_text,
        )
        answers.append(tokenizer.decode(out[0, len(prompt) :].tolist()))
    return answers


def with_mlx_lm(adapter: Path, prompts: Prompts) -> list[str]:
    """`mlx_lm.load` and `mlx_lm.generate`."""
    import mlx.core as mx
    import mlx_lm

    from qwen_local.embedded import tiny_model_path

    model, tokenizer = mlx_lm.load(str(tiny_model_path()), adapter_path=str(adapter))[:2]
    model.set_dtype(mx.float32)
    return [mlx_lm.generate(model, tokenizer, prompt=list(p), max_tokens=LONGEST) for p in prompts]


def mlx_lm_command(adapter: Path, question: str) -> str:
    """`mlx_lm.generate`, which computes in bfloat16."""
    from qwen_local.embedded import tiny_model_path

    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(tiny_model_path())]
    command += ["--adapter-path", str(adapter), "--prompt", question, "--verbose", "False"]
    done = subprocess.run(
        [*command, "--max-tokens", str(LONGEST)], check=True, capture_output=True, text=True
    )
    return done.stdout


def with_llama(folder: Path, tokenizer: Any, prompts: Prompts) -> dict[str, list[str]]:
    """llama.cpp on every GGUF file."""
    from qwen_local.backends.cuda.weights import TorchWeights
    from qwen_local.embedded import TINY_MODEL, tiny_model_path
    from qwen_local.export.gguf_about import About
    from qwen_local.export.gguf_model import write_model
    from qwen_local.models.source import fetch, find_model

    tiny, weights = fetch(find_model(TINY_MODEL)), TorchWeights(tiny_model_path(), "cpu")
    write_model(
        folder / "base.gguf",
        files=tiny,
        tensors=((name, weights.read(name)) for name in tiny.architecture.weight_shapes()),
        outtype="f16",
        about=About(base=find_model(TINY_MODEL)),
    )
    [lora] = (folder / "gguf-lora").glob("*.gguf")
    answers = {
        "llama.cpp, base f16 + LoRA": by_llama(folder / "base.gguf", lora, tokenizer, prompts)
    }
    for outtype in ("f16", "bf16", "q8_0"):
        [file] = (folder / outtype).glob("*.gguf")
        answers[f"llama.cpp, merged {outtype}"] = by_llama(file, None, tokenizer, prompts)
    return answers


def by_llama(model: Path, lora: Path | None, tokenizer: Any, prompts: Prompts) -> list[str]:
    """The greedy answers of llama.cpp."""
    import llama_cpp

    adapter = {} if lora is None else {"lora_path": str(lora)}
    opened = llama_cpp.Llama(model_path=str(model), n_ctx=512, verbose=False, **adapter)
    answers = []
    for prompt in prompts:
        opened.reset()
        said: list[int] = []
        for token in opened.generate(list(prompt), temp=0.0, repeat_penalty=1.0):
            if token in tokenizer.stop_ids or len(said) == LONGEST:
                break
            said.append(token)
        answers.append(tokenizer.decode(said))
    return answers


if __name__ == "__main__":
    main()
