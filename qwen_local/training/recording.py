"""The recorder of a run, made from its plan."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from qwen_local.adapters.lora import Adapter, Origin
from qwen_local.backends.base import Arrays, Backend
from qwen_local.runs.eval_rows import EvalRowsWriter
from qwen_local.runs.events import EventWriter
from qwen_local.runs.state import Execution
from qwen_local.training.checkpoint_writer import CheckpointWriter
from qwen_local.training.health import Health
from qwen_local.training.progress import Progress
from qwen_local.training.ready import ReadyRun
from qwen_local.training.recorder import Recorder

if TYPE_CHECKING:
    from qwen_local.training.tensorboard import TensorBoard


def make_recorder(ready: ReadyRun, backend: Backend, *, quiet: bool) -> Recorder:
    """Open the files of a run for what its loop reports.

    Args:
        ready: the run; its directory exists.
        backend: the engine that trains.
        quiet: show no progress.

    Raises:
        DiskFullError: the disk is full.
        OSError: a file of the run cannot be written.
    """
    plan, state, files = ready.plan, ready.state, ready.files
    eval_rows = EvalRowsWriter(files.eval_rows, evaluated=state.evaluated_step)
    health = Health(plan.resolved.architecture.vocabulary, state.health or None)
    with ExitStack() as opened:  # closes what is open if the next one fails
        if (board := _board(ready)) is not None:
            opened.callback(board.close)
        events = opened.enter_context(closing(EventWriter(files.metrics)))
        recorder = Recorder(
            events,
            _checkpoint_writer(ready, backend, events),
            eval_rows,
            progress=Progress(plan.schedule.steps, quiet=quiet, done=state.step),
            health=health,
            save_every=plan.job.train.save_every,
            board=board,
        )
        opened.pop_all()  # the recorder closes them
    return recorder


def _checkpoint_writer(ready: ReadyRun, backend: Backend, events: EventWriter) -> CheckpointWriter:
    plan, report = ready.plan, ready.plan.prepared.report
    choice, setup = plan.resolved.choice, plan.setup
    origin = Origin(
        commit=plan.resolved.model.commit,
        backend=choice.backend,
        quantization=setup.quantization,
        template_sha256=report.template_sha256,
        thinking=report.thinking,
        enable_thinking=report.enable_thinking,
        max_length=report.max_length,
    )

    def adapter_of(arrays: Arrays) -> Adapter:
        return Adapter(
            base=plan.job.model.name,
            lora=plan.job.lora,
            blocks=plan.resolved.architecture.blocks,
            arrays=arrays,
            origin=origin,
        )

    execution = Execution(
        backend=choice.backend,
        device=choice.device,
        dtype=setup.dtype,
        available=plan.memory.available,
        micro_batch_tokens=backend.micro_batch_tokens,
        gradient_checkpointing=setup.gradient_checkpointing,
        cuda_graphs=setup.cuda_graphs,
    )
    return CheckpointWriter(
        plan.output,
        backend,
        adapter_of,
        ready.identity,
        execution,
        events,
        keep=plan.job.train.keep,
    )


def _board(ready: ReadyRun) -> TensorBoard | None:
    """Import tensorboard only if the job asks for it."""
    if "tensorboard" not in ready.plan.job.train.report_to:
        return None
    from qwen_local.training.tensorboard import TensorBoard

    return TensorBoard(ready.files.tensorboard, after=ready.state.step)
