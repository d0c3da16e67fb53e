"""How fast a data file becomes rows, beside TRL and mlx-lm, and how much memory that takes.

    python -m benchmarks.data_rates
    python -m benchmarks.data_rates --rows 100000 --peer-rows 20000 --output -

One file of generated conversations, about 100 tokens each. Ours reads, checks, renders, masks and
tokenizes all of it on all cores, and once more from the cache; `data check` looks at all of it. TRL
(`SFTTrainer`, assistant tokens alone, a process for each core) and mlx-lm (`ChatDataset`, prompt
masked, the one process that it has) prepare the first rows of the same file, in turn with ours on
those rows, three times; the rates are medians. Every measurement is a process of its own; memory is
the largest sum over its process and all children, shared pages counted once (PSS, Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.result import RESULTS, machine, write

RESULT = RESULTS / "data_rates.json"
PACKAGES = ("trl", "mlx-lm", "transformers", "tokenizers", "datasets", "pyarrow")
TIMES = 3
LOOK_EVERY = 0.2
"""Seconds between two looks at the memory."""
WORDS = 20_000


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peer-rows", type=int, default=50_000)
    parser.add_argument("--output", default=str(RESULT), help="a file, or - to print")
    parser.add_argument("--one", nargs=2, metavar=("WHO", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        who, file = given.one
        print(json.dumps(PREPARERS[who](Path(file))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result = measure_all(folder, given.rows, given.peer_rows)
    write(result, given.output)


def measure_all(folder: Path, rows: int, peer_rows: int) -> dict[str, Any]:
    """All figures."""
    every, first = folder / "every.jsonl", folder / "first.jsonl"
    tokenizer = make_model(folder / "model")
    write_rows(every, rows)
    write_rows(first, peer_rows)
    peers: dict[str, list[float]] = {"ours": [], "trl": [], "mlx-lm": []}
    for _ in range(TIMES):
        for who, seconds in peers.items():
            shutil.rmtree(folder / "cache", ignore_errors=True)
            seconds.append(measured(who, first, folder)["seconds"])
            print(f"{who}: {peer_rows / seconds[-1]:,.0f} rows/s", file=sys.stderr)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    whole = {}
    for name, who in (("first", "ours"), ("second", "ours"), ("check", "check")):
        whole[name] = measured(who, every, folder)
        print(f"{name} of {rows:,}: {whole[name]}", file=sys.stderr)
    rates = {who: round(peer_rows / statistics.median(taken)) for who, taken in peers.items()}
    return {
        "command": " ".join(["python", "-m", "benchmarks.data_rates", *sys.argv[1:]]),
        "date": f"{datetime.date.today()}",
        "machine": machine("cpu", PACKAGES),
        "tokenizer": tokenizer,
        "side_by_side": {
            "rows": peer_rows,
            "rows_per_second": rates,
            "seconds": peers,
            "times_trl": round(rates["ours"] / rates["trl"], 2),
            "times_mlx_lm": round(rates["ours"] / rates["mlx-lm"], 2),
        },
        "whole": {"rows": rows, **whole},
    }


def measured(who: str, file: Path, folder: Path) -> dict[str, Any]:
    """What a process of its own says, and the peak of its memory and its children's."""
    caches = {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.data_rates", "--one", who, str(file)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **caches}
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(LOOK_EVERY)
    assert process.stdout is not None
    said = process.stdout.read()
    if process.returncode:
        sys.exit(f"{who} ended {process.returncode}")
    return {**json.loads(said), "peak_memory_bytes": peak}


def tree_bytes(pid: int) -> int:
    """PSS of a process and all that it started; 0 where there is no /proc."""
    total = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text("ascii").split():
                total += tree_bytes(int(child))
    return total


# --- data ---


def make_model(folder: Path) -> str:
    """A folder that all three take: the embedded model under Qwen3's chat template."""
    from qwen_local.embedded import tiny_model_path

    shutil.copytree(tiny_model_path(), folder)
    trl = importlib.util.find_spec("trl")
    assert trl is not None and trl.origin is not None
    template = Path(trl.origin).parent / "chat_templates" / "qwen3.jinja"
    shutil.copyfile(template, folder / "chat_template.jinja")
    return "qwen-local/tiny (2,048 tokens) under Qwen3's chat template"


def write_rows(file: Path, rows: int) -> None:
    """Conversations of made-up words, the same ones at every time."""
    draw = random.Random(0)
    letters = "aeioubcdfglmnprst"
    words = ["".join(draw.choices(letters, k=draw.randint(1, 4))) for _ in range(WORDS)]
    with file.open("w", encoding="utf-8") as out:
        for _ in range(rows):
            asked, said = (" ".join(draw.choices(words, k=k)) for k in (14, 28))
            turns = [("user", asked), ("assistant", said)]
            messages = [{"role": role, "content": text} for role, text in turns]
            out.write(json.dumps({"messages": messages}) + "\n")


# --- who prepares ---


def ours(file: Path) -> dict[str, Any]:
    """`qwen_local.datasets.prepare`, as `train` calls it."""
    from qwen_local.datasets.prepare import prepare
    from qwen_local.datasets.row_builder import TokenizeConfig
    from qwen_local.datasets.sources import SourceSpec
    from qwen_local.datasets.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(file.with_name("model"))
    began = time.monotonic()
    config = TokenizeConfig(
        tokenizer=tokenizer,
        max_length=2048,
        overlong="drop",
        train_on="assistant",
    )
    prepared = prepare(
        config, train=[SourceSpec(name=str(file))], eval=[], eval_fraction=0.0, seed=0
    )
    assert prepared.train.sha256
    took = time.monotonic() - began
    return {"seconds": round(took, 3), "rows": len(prepared.train), "tokens": prepared.train.tokens}


def check(file: Path) -> dict[str, Any]:
    """`qwen-local data check`."""
    command = [sys.executable, "-m", "qwen_local", "data", "check", str(file), "--json"]
    command += ["--model", str(file.with_name("model"))]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    took = time.monotonic() - began
    return {"seconds": round(took, 3), "rows": json.loads(done.stdout)["rows"]}


def trl(file: Path) -> dict[str, Any]:
    """`trl.SFTTrainer`, the part that prepares the data."""
    import transformers
    from trl import SFTConfig, SFTTrainer

    import datasets as hugging_face

    folder = str(file.with_name("model"))
    rows = hugging_face.load_dataset("json", data_files=str(file), split="train")
    settings = SFTConfig(
        output_dir=str(file.with_name("trl")),
        assistant_only_loss=True,
        dataset_num_proc=os.cpu_count(),
        max_length=2048,
        report_to=[],
        use_cpu=True,
    )
    took: list[float] = []
    prepare: Callable[..., Any] = SFTTrainer._prepare_dataset

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        prepared = prepare(*args, **kwargs)
        took.append(time.monotonic() - began)
        return prepared

    SFTTrainer._prepare_dataset = timed
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with contextlib.redirect_stdout(sys.stderr):
        trainer = SFTTrainer(
            model=model, args=settings, train_dataset=rows, processing_class=tokenizer
        )
    return {"seconds": round(took[0], 3), "rows": len(trainer.train_dataset)}


def mlx_lm(file: Path) -> dict[str, Any]:
    """`mlx_lm.tuner.datasets`: it tokenizes a row when it is first touched."""
    import transformers
    from mlx_lm.tuner.datasets import CacheDataset, ChatDataset

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.with_name("model")))
    began = time.monotonic()
    with file.open(encoding="utf-8") as lines:
        rows = CacheDataset(
            ChatDataset([json.loads(line) for line in lines], tokenizer, mask_prompt=True)
        )
    tokens = sum(len(rows[index][0]) for index in range(len(rows)))
    took = time.monotonic() - began
    return {"seconds": round(took, 3), "rows": len(rows), "tokens": tokens}


PREPARERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ours": ours,
    "check": check,
    "trl": trl,
    "mlx-lm": mlx_lm,
}

if __name__ == "__main__":
    main()
