"""mlx-lm: `mlx_lm.lora --train --mask-prompt --num-layers -1`."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.peers.work import Report, now, peak_rss, read_work, versions, write_report


def main() -> None:
    """Train as its command does.

    On a Linux CPU MLX's own BLAS is slow beyond comparison; where this project is installed, mlx-lm
    is lent the same fast one that this project uses.
    """
    work = read_work()
    lent = lend_blas()
    import mlx.core as mx
    from mlx_lm import lora

    mx.set_default_device(mx.cpu if work.device == "cpu" else mx.gpu)
    watch = Watch()
    # `run` takes a callback, and puts this in its place.
    lora.get_reporting_callbacks = lambda *_, **__: watch
    data = Path(work.folder) / "data"
    data.mkdir()
    shutil.copy(work.data, data / "train.jsonl")
    given = {
        "model": work.model,
        "train": True,
        "data": str(data),
        "mask_prompt": True,
        "num_layers": -1,
        "batch_size": work.batch_size,
        "iters": work.steps,
        "learning_rate": work.learning_rate,
        "optimizer": "adamw",
        "optimizer_config": {"adamw": {"weight_decay": 0.0, "bias_correction": True}},
        # Without keys: every linear layer of the blocks.
        "lora_parameters": {"rank": work.rank, "dropout": 0.0, "scale": work.alpha / work.rank},
        "steps_per_report": 1,
        "save_every": work.steps + 1,
        # It cuts a batch that is padded beyond this.
        "max_seq_length": work.max_length + 64,
        "adapter_path": f"{work.folder}/adapter",
        "seed": work.seed,
    }
    with contextlib.redirect_stdout(sys.stderr):
        lora.run(SimpleNamespace(**{**lora.CONFIG_DEFAULTS, **given}))
    report = Report(
        ends=watch.ends,
        losses=watch.losses,
        # It trains one pad token of every row (mlx-lm PR #1697), and counts it.
        supervised=[
            after - before - work.batch_size
            for before, after in zip([0, *watch.trained], watch.trained, strict=False)
        ],
        peak_memory_bytes=peak_rss() if work.device == "cpu" else int(mx.get_peak_memory()),
        arrays_bytes=int(mx.get_peak_memory()) if work.device == "cpu" else None,
        packages=versions(("mlx", "mlx-lm", "transformers")),
        settings={"fast_blas_lent": lent, **given},
    )
    write_report(work, report)


class Watch:
    """Notes what mlx-lm reports after each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.trained: list[int] = []

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        """A step is done and its loss known."""
        self.ends.append(now())
        self.losses.append(float(info["train_loss"]))
        self.trained.append(int(info["trained_tokens"]))

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        """Never: there are no evaluation data."""


def lend_blas() -> bool:
    """Whether mlx-lm computes with a faster BLAS than MLX's wheel has."""
    try:
        from qwen_local.backends.mlx.blas import lend_fast_blas
    except ImportError:
        return False
    return lend_fast_blas()


if __name__ == "__main__":
    main()
