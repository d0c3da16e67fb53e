"""Everything that a run records, behind one object that the loop reports to.

The loop writes the event of a step or an evaluation first. If its numbers are finite, it reports
the step: health rules (whose warnings are events and log lines), progress bar, evaluation rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from qwen_local.files import room_for
from qwen_local.rows.scores import Scores
from qwen_local.runs.eval_rows import EvalRowsWriter
from qwen_local.runs.events import (
    EvalEvent,
    Event,
    EventWriter,
    MemoryEvent,
    TrainEvent,
    WarningEvent,
)
from qwen_local.runs.state import TrainState
from qwen_local.training.checkpoint_writer import CheckpointWriter
from qwen_local.training.health import Health
from qwen_local.training.progress import Progress

if TYPE_CHECKING:
    from qwen_local.training.tensorboard import TensorBoard

log = logging.getLogger("qwen_local")

AUTO_SAVE_SECONDS = 600.0
"""`train.save_every: auto`: longest work that a power cut may lose."""
TENSORBOARD_BYTES = 1024
"""Rough size of a point, for the message about a full disk."""


class Recorder:
    """Records a run; closes its files at the end of a `with`.

    Args:
        events: metrics.jsonl.
        checkpoints: writes checkpoints and the best adapter.
        eval_rows: eval_rows.safetensors.
        progress: shown to the user.
        health: rules that look at losses and norms, in their state at the start of this process.
        save_every: `train.save_every`, in steps.
        board: TensorBoard, if the job asks for it.
    """

    def __init__(
        self,
        events: EventWriter,
        checkpoints: CheckpointWriter,
        eval_rows: EvalRowsWriter,
        *,
        progress: Progress,
        health: Health,
        save_every: Literal["auto"] | int,
        board: TensorBoard | None = None,
    ) -> None:
        self.checkpoints = checkpoints
        self._events, self._eval_rows = events, eval_rows
        self._progress, self._health, self._board = progress, health, board
        self._save_every = save_every
        self._saved: TrainState | None = None
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # a file that fails to close must not keep the others open
            stack.callback(self._events.close)
            if self._board is not None:
                stack.callback(self._board.close)
            stack.callback(self._progress.close)

    def write(self, event: Event) -> None:
        """Write an event to metrics.jsonl and TensorBoard.

        Raises:
            DiskFullError: the disk is full.
            OSError: another failure to write.
        """
        self._events.write(event)
        if self._board is not None:
            with room_for(self._board.folder, TENSORBOARD_BYTES):
                self._board.write(event)

    def start(self, state: TrainState) -> None:
        """Note the state of a loop that starts: there is nothing to save yet."""
        self._saved, self._saved_at = state, time.monotonic()

    def first_step(self) -> None:
        """Start the clock of the progress bar."""
        self._progress.start()

    def stepped(
        self, event: TrainEvent, *, scored_loss: float | None, tokens_per_second: float
    ) -> None:
        """Check a step that is finite and whose event is written, and show it.

        Args:
            event: of the step.
            scored_loss: evaluation loss of the same rows at the same weights, if it was computed.
            tokens_per_second: speed of this process.
        """
        self._warn(self._health.stepped(event.step, event.loss, event.grad_norm))
        if scored_loss is not None:
            self._warn(self._health.compared(event.step, event.loss, scored_loss))
        self._progress.stepped(event.step, event.loss, event.learning_rate, tokens_per_second)

    def evaluating(self) -> None:
        """Show that an evaluation has started."""
        self._progress.evaluating()

    def evaluated(self, event: EvalEvent, scores: Scores) -> None:
        """Record an evaluation whose loss is finite and whose event is written."""
        self._progress.evaluated(event.step, event.loss)
        self._warn(self._health.evaluated(event.step, event.loss))
        problem = self._eval_rows.add(event.step, scores.nll_R, scores.tokens_R)
        if problem is not None:
            message = f"step {event.step}: {problem}"
            numbers = {"rows": float(len(scores.nll_R))}
            kind = "eval_rows_full"
            self._warn([WarningEvent(step=event.step, kind=kind, message=message, numbers=numbers)])

    def budget_halved(self, step: int, micro_batch_tokens: int) -> None:
        """Record that memory ran out, and that the engine repeated the step with a smaller budget.

        Args:
            step: in which it happened.
            micro_batch_tokens: new budget in positions.
        """
        self.write(MemoryEvent(step=step, micro_batch_tokens=micro_batch_tokens))
        log.info(
            "out of memory at step %d: the step was repeated with micro-batches of at most %s "
            "tokens, which also holds for the following steps; its update is the same",
            step,
            f"{micro_batch_tokens:,}",
        )

    def save_if_due(self, state: TrainState) -> TrainState:
        """Save a checkpoint if the adapter is the best so far, or if `save_every` asks for one.

        Returns:
            The state as it was saved, or as it was given.
        """
        return self.save(state) if state != self._saved and self._is_due(state) else state

    def save(self, state: TrainState) -> TrainState:
        """Save a checkpoint, unless the last one is of this state.

        Returns:
            The state with the memory of the health rules, as it was saved.

        Raises:
            DiskFullError: the disk is full; earlier checkpoints are unchanged.
        """
        if state == self._saved:
            return state
        state = replace(state, health=self._health.state())
        self.checkpoints.save(state)
        self._saved, self._saved_at = state, time.monotonic()
        return state

    def _is_due(self, state: TrainState) -> bool:
        if state.best_step == state.step:
            return state.step > 0
        if self._save_every == "auto":
            return time.monotonic() - self._saved_at >= AUTO_SAVE_SECONDS
        return state.step % self._save_every == 0

    def _warn(self, warnings: Sequence[WarningEvent]) -> None:
        for warning in warnings:
            self.write(warning)
            log.info("warning: %s", warning.message)
