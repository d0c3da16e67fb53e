"""Writes checkpoints of a run, keeps the newest and the best, and writes the best adapter."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen_local.adapters.lora import Adapter
from qwen_local.adapters.store import save_adapter
from qwen_local.backends.base import Arrays, Backend
from qwen_local.files import room_for
from qwen_local.runs import checkpoints
from qwen_local.runs.checkpoints import DamagedError, step_name
from qwen_local.runs.events import AdapterEvent, CheckpointEvent, EventWriter
from qwen_local.runs.names import RunFiles
from qwen_local.runs.state import (
    Checkpoint,
    Execution,
    Identity,
    TrainState,
    from_files,
    to_files,
)
from qwen_local.training.diverged import DivergedError

log = logging.getLogger("qwen_local")


class CheckpointWriter:
    """Writes checkpoints and the best adapter into a run directory.

    Args:
        output: the run directory.
        backend: the engine that trains.
        adapter: adds settings to the adapter's arrays.
        identity: of the run.
        execution: of this process; its budget is read from the engine at each checkpoint.
        events: where events are written.
        keep: number of newest checkpoints to keep, in addition to the best one of each.
    """

    def __init__(
        self,
        output: Path,
        backend: Backend,
        adapter: Callable[[Arrays], Adapter],
        identity: Identity,
        execution: Execution,
        events: EventWriter,
        *,
        keep: int,
    ) -> None:
        files = RunFiles(output)
        self._root, self._exported = files.checkpoints, files.adapter
        self._backend, self._adapter = backend, adapter
        self._identity, self._execution = identity, execution
        self._events, self._keep = events, keep
        self._best_of: dict[int, int] = {}

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, and the adapter if it is the best; remove old checkpoints.

        Raises:
            DivergedError: the adapter or a moment is not finite; nothing was written.
            DiskFullError: the disk is full; earlier checkpoints are unchanged.
            OSError: another failure to write.
        """
        # Without this, a power cut could leave a checkpoint whose steps metrics.jsonl lacks.
        self._events.sync()
        arrays = self._backend.state()
        if not all(
            np.isfinite(array).all()
            for values in (arrays.adapter, arrays.exp_avg, arrays.exp_avg_sq)
            for array in values.values()
        ):
            raise DivergedError(
                f"step {state.step}: the adapter or AdamW's moments are not finite; they were not "
                "saved"
            )
        execution = replace(self._execution, micro_batch_tokens=self._backend.micro_batch_tokens)
        checkpoint = Checkpoint(
            adapter_state=arrays, state=state, identity=self._identity, execution=execution
        )
        adapter = self._adapter(arrays.adapter)
        checkpoints.save(self._root, state.step, to_files(checkpoint, adapter))
        self._events.write(CheckpointEvent(step=state.step))
        if state.best_step == state.step:
            self._export(adapter, state.step)
        self._best_of[state.step] = state.best_step
        self._rotate()

    def restore_adapter(self, state: TrainState) -> None:
        """Before the first step: write `adapter/` as the checkpoint knows it, if there is one.

        The run may have died between the checkpoint and the adapter, or before older checkpoints
        were removed; or it resumes from before its best step.
        """
        if not state.best_step and self._exported.exists():
            log.info("removing %s: it belongs to a later step", self._exported)
            shutil.rmtree(self._exported)
        if state.best_step:
            folder = self._root / step_name(state.best_step)
            try:
                best = from_files(checkpoints.read(folder)).adapter_state.adapter
            except DamagedError as error:
                log.info(
                    "warning: the checkpoint of the best step, %d, is damaged (%s); %s",
                    state.best_step,
                    error,
                    f"{self._exported} stays as it is"
                    if self._exported.exists()
                    else "its adapter is lost",
                )
            else:
                self._export(self._adapter(best), state.best_step)
        self._rotate()

    def _export(self, adapter: Adapter, step: int) -> None:
        """Write `adapter/` in both layouts.

        Raises:
            DiskFullError: the disk is full; the earlier adapter stays.
        """
        needed = 2 * sum(array.nbytes for array in adapter.arrays.values())
        with room_for(self._exported, needed):
            save_adapter(adapter, self._exported)
        self._events.write(AdapterEvent(step=step))

    def _rotate(self) -> None:
        """Keep the newest `keep`, and the best one of each, so that each can be resumed from."""
        newest = checkpoints.steps_in(self._root)[: self._keep]
        best = {self._best(step) for step in newest}
        checkpoints.keep_only(self._root, {*newest, *best})

    def _best(self, step: int) -> int:
        """The best step that a checkpoint knows; its own step if it is damaged."""
        if step not in self._best_of:
            try:
                files = checkpoints.read(self._root / step_name(step))
                self._best_of[step] = from_files(files).state.best_step
            except DamagedError:
                self._best_of[step] = step
        return self._best_of[step]
