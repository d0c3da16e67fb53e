"""What the three tools have in common that are built on the trainer of transformers.

Needs torch and transformers. Unsloth wants to be imported before them, so import this after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.peers.work import (
    FIRST,
    WARM_UP,
    Report,
    Work,
    now,
    peak_rss,
    versions,
    write_report,
)

PACKAGES = ("torch", "transformers", "peft", "accelerate", "flash-attn", "liger-kernel")


class Watch(transformers.TrainerCallback):  # type: ignore[misc]
    """Notes the end of each step, the losses of the first, and what each batch holds.

    Losses are asked for at the first steps alone, because each of them makes a GPU wait; for the
    same reason tokens are counted where the batches are put together.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.supervised: list[int] = []
        self.tokens: list[int] = []
        # Ours does the same (see `backends/cuda/engine.py`): left on, it would plan each new length
        # anew on compute capability 9.0, and the comparison would flatter us.
        torch.backends.cuda.enable_cudnn_sdp(False)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any
    ) -> None:
        """Have the batches counted."""
        # Accelerate wraps the loader that puts the batches together.
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        loader.collate_fn = self._counting(loader.collate_fn)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time; a GPU is waited for where the counted time begins and ends."""
        if state.global_step in (WARM_UP, state.max_steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(now())
        if state.global_step <= FIRST:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """The mean loss since it was last asked for: of one step."""
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def report(self, work: Work, packages: tuple[str, ...], settings: dict[str, Any]) -> None:
        """Write the report; batches that were fetched ahead are not part of it."""
        on_cpu = work.device == "cpu"
        report = Report(
            ends=self.ends,
            losses=self.losses,
            supervised=self.supervised[: len(self.ends)],
            tokens=self.tokens[: len(self.ends)],
            peak_memory_bytes=peak_rss() if on_cpu else torch.cuda.max_memory_reserved(),
            packages=versions((*packages, *PACKAGES)),
            settings={**trainer_settings(work), **settings},
        )
        write_report(work, report)

    def _counting(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counting(rows: Any) -> Any:
            batch = collate(rows)
            self.supervised.append(int((batch["labels"] != -100).sum()))
            # Without padding there may be no mask: then every position is a token.
            held = batch["attention_mask"].sum() if "attention_mask" in batch else None
            self.tokens.append(int(batch["input_ids"].numel() if held is None else held))
            return batch

        return counting


def trainer_settings(work: Work) -> dict[str, Any]:
    """What `transformers.TrainingArguments` and its descendants are given."""
    return {
        "output_dir": f"{work.folder}/out",
        "per_device_train_batch_size": work.batch_size,
        "max_steps": work.steps,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": work.max_grad_norm,
        "logging_strategy": "no",
        # It looks at the loss of every step, and a GPU would be waited for.
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": work.device == "cpu",
        "bf16": work.dtype == "bfloat16",
        "disable_tqdm": True,
        "seed": work.seed,
    }
