"""LLaMA-Factory: its training of one YAML file, `stage: sft`, on an Alpaca-shaped file."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from benchmarks.peers.sides.watch import Watch, trainer_settings
from benchmarks.peers.work import Work, read_work

tuner: Any = importlib.import_module("llamafactory.train.tuner")


def main() -> None:
    """Train; the template is the tokenizer's own, which LLaMA-Factory reads where none is named."""
    work, watch = read_work(), Watch()
    data = Path(work.folder) / "data"
    data.mkdir()
    columns = {"prompt": "prompt", "query": None, "response": "completion"}
    (data / "dataset_info.json").write_text(
        json.dumps({"rows": {"file_name": "rows.json", "columns": columns}}), encoding="utf-8"
    )
    (data / "rows.json").write_text(json.dumps(work.rows()), encoding="utf-8")
    special = {**tool_settings(work), "dataset": "rows"}
    tuner.run_exp(
        {**trainer_settings(work), **special, "dataset_dir": str(data)}, callbacks=[watch]
    )
    watch.report(work, ("llamafactory", "trl"), special)


def tool_settings(work: Work) -> dict[str, Any]:
    """What is LLaMA-Factory's own."""
    on_gpu = work.device == "gpu"
    flash = on_gpu and importlib.util.find_spec("flash_attn") is not None
    return {
        "model_name_or_path": work.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": work.rank,
        "lora_alpha": work.alpha,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "cutoff_len": work.max_length,
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "flash_attn": "fa2" if flash else "sdpa",
        "enable_liger_kernel": on_gpu and importlib.util.find_spec("liger_kernel") is not None,
        "overwrite_cache": True,
    }


if __name__ == "__main__":
    main()
