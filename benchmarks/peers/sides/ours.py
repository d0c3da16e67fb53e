"""`qwen-local train` as a person runs it. `BACKEND` in the environment says which engine."""

from __future__ import annotations

import os
import sys

from benchmarks.peers.work import Report, Work, now, peak_rss, read_work, versions, write_report

PACKAGES = ("torch", "transformers", "mlx", "mlx-lm", "flash-attn", "liger-kernel")


def main() -> None:
    """Run the command in this process, and note when each of its steps is written down."""
    from qwen_local import cli
    from qwen_local.runs.events import Event, EventWriter, TrainEvent

    work, backend = read_work(), os.environ["BACKEND"]
    ends: list[float] = []
    events: list[TrainEvent] = []
    write = EventWriter.write

    def watched(self: EventWriter, event: Event) -> None:
        if isinstance(event, TrainEvent):
            ends.append(now())
            events.append(event)
        write(self, event)

    EventWriter.write = watched  # type: ignore[method-assign]
    sys.argv = ["qwen-local", *arguments(work, backend)]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
    report = Report(
        ends=ends,
        losses=[event.loss for event in events],
        supervised=[event.supervised_tokens or 0 for event in events],
        # The command counts what goes in: the last token of a row does not.
        tokens=[(event.tokens or 0) + work.batch_size for event in events],
        peak_memory_bytes=peak_rss() if work.device == "cpu" else peak_on_gpu(backend),
        arrays_bytes=arrays_of_mlx() if (backend, work.device) == ("mlx", "cpu") else None,
        packages=versions(PACKAGES),
        settings={"command": " ".join(sys.argv).replace(work.folder, ".")},
    )
    write_report(work, report)


def arguments(work: Work, backend: str) -> list[str]:
    """The command line of a work."""
    sets = {
        "data.eval_fraction": 0,
        "model.dtype": work.dtype,
        "train.schedule": "constant",
        "train.warmup_steps": 0,
        "train.weight_decay": 0.0,
        "train.max_grad_norm": work.max_grad_norm,
        "train.gradient_checkpointing": "false",
        "train.early_stopping": "null",
        "train.seed": work.seed,
        "data.max_length": work.max_length,
        "data.overlong": "error",
        "lora.alpha": work.alpha,
        "lora.rank": work.rank,
        "lora.dropout": 0,
        "train.batch_size": work.batch_size,
        "train.learning_rate": work.learning_rate,
        "train.steps": work.steps,
    }
    return [
        *("train", "--model", work.model, "--data", work.data),
        *("--backend", backend, "--device", work.device, "--output", f"{work.folder}/run"),
        *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")),
        *("--json", "--quiet"),
    ]


def arrays_of_mlx() -> int:
    """MLX counts them wherever they are."""
    import mlx.core as mx

    return int(mx.get_peak_memory())


def peak_on_gpu(backend: str) -> int:
    """As the framework counts it; the peers are asked the same."""
    if backend == "mlx":
        return arrays_of_mlx()
    import torch

    return torch.cuda.max_memory_reserved()


if __name__ == "__main__":
    main()
