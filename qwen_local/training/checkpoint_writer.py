"""What a run keeps: checkpoints, the newest and the best, and the best adapter in both layouts."""

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
from qwen_local.runs.directory import CHECKPOINTS
from qwen_local.runs.events import Metrics
from qwen_local.runs.state import Execution, Identity, Saved, Standing, from_files, to_files
from qwen_local.training.loop import CALMER, DivergedError

log = logging.getLogger("qwen_local")


class Keeper:
    """Writes checkpoints and the best adapter into a run's folder.

    Args:
        output: the run's folder.
        backend: the engine that trains.
        adapter: from arrays to what is saved.
        identity: of the run.
        execution: how it is computed; its budget is read from the engine.
        metrics: where events go.
        keep: how many of the newest checkpoints stay, beside the best that each of them knows.
    """

    def __init__(
        self,
        output: Path,
        backend: Backend,
        adapter: Callable[[Arrays], Adapter],
        identity: Identity,
        execution: Execution,
        metrics: Metrics,
        *,
        keep: int,
    ) -> None:
        self._output, self._root = output, output / CHECKPOINTS
        self._backend, self._adapter = backend, adapter
        self._identity, self._execution = identity, execution
        self._metrics, self._keep = metrics, keep
        self._best_of: dict[int, int] = {}

    def save(self, now: Standing) -> None:
        """Write a checkpoint, the adapter if it is the best, and remove what need not stay.

        Raises:
            DiskFullError: there is no room; the earlier checkpoints are as they were.
            OSError: it cannot be written otherwise.
        """
        self._metrics.sync()  # never a checkpoint whose steps could be missing there
        state = self._backend.state()
        if not all(
            np.isfinite(array).all()
            for arrays in (state.adapter, state.exp_avg, state.exp_avg_sq)
            for array in arrays.values()
        ):
            raise DivergedError(
                f"step {now.step}: the adapter or AdamW's moments are not finite; they were not "
                f"saved\n\n{CALMER}"
            )
        execution = replace(self._execution, micro_batch_tokens=self._backend.micro_batch_tokens)
        saved = Saved(state=state, standing=now, identity=self._identity, execution=execution)
        adapter = self._adapter(state.adapter)
        checkpoints.save(self._root, now.step, to_files(saved, adapter))
        self._metrics.write("checkpoint", step=now.step)
        if now.best_step == now.step:
            self.export(adapter, now.step)
        self._best_of[now.step] = now.best_step
        self._rotate()

    def export(self, adapter: Adapter, step: int) -> None:
        """Write `adapter/` in both layouts.

        Raises:
            DiskFullError: there is no room; what was there stays.
        """
        needed = 2 * sum(array.nbytes for array in adapter.arrays.values())
        with room_for(self._output / "adapter", needed):
            save_adapter(adapter, self._output / "adapter")
        self._metrics.write("adapter", step=step)

    def take_over(self, now: Standing) -> None:
        """Before going on from a checkpoint: `adapter/` is the best that it knows, once again.

        A run may have died between the checkpoint and the adapter, or before older ones went; or
        it goes back behind its best.
        """
        adapter = self._output / "adapter"
        if not now.best_step and adapter.exists():
            log.info("%s was that of a later step, and is removed", adapter)
            shutil.rmtree(adapter)
        if now.best_step:
            folder = self._root / step_name(now.best_step)
            try:
                best = from_files(checkpoints.read(folder)).state.adapter
            except DamagedError as error:
                log.info(
                    "warning: the checkpoint of the best step, %d, is damaged (%s); %s",
                    now.best_step,
                    error,
                    f"{adapter} stays as it is" if adapter.exists() else "its adapter is lost",
                )
            else:
                self.export(self._adapter(best), now.best_step)
        self._rotate()

    def _rotate(self) -> None:
        """The newest `keep`, and the best that each of them knows: any of them can be taken up."""
        newest = checkpoints.steps_in(self._root)[: self._keep]
        best = {self._best(step) for step in newest}
        checkpoints.keep_only(self._root, {*newest, *best})

    def _best(self, step: int) -> int:
        """The best step that a checkpoint knows; its own if that cannot be read."""
        if step not in self._best_of:
            try:
                files = checkpoints.read(self._root / step_name(step))
                self._best_of[step] = from_files(files).standing.best_step
            except DamagedError:
                self._best_of[step] = step
        return self._best_of[step]
