"""Progress of a run on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Self

from tqdm import tqdm

LINES = 10
"""Lines per run if stderr is not a terminal."""


class Progress:
    """tqdm on a terminal; plain lines to a file or a pipe; nothing with `quiet`."""

    def __init__(self, steps: int, *, quiet: bool, done: int = 0) -> None:
        """Show the progress so far.

        Args:
            steps: of the whole run.
            quiet: show nothing.
            done: steps of earlier processes; their time is not counted.
        """
        terminal = sys.stderr.isatty()
        self._lines = not quiet and not terminal
        self._every = max(1, steps // LINES)
        self._steps, self._done = steps, done
        self._started = time.monotonic()
        self._bar = tqdm(
            total=steps,
            initial=done,
            disable=quiet or not terminal,
            dynamic_ncols=True,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n}/{total} {elapsed}<{remaining}{postfix}",
        )
        self._eval = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def start(self) -> None:
        """Start the clock: the first step of this process follows."""
        self._started = time.monotonic()
        self._bar.unpause()

    def stepped(self, step: int, loss: float, rate: float, tokens_per_second: float) -> None:
        """Show an optimizer step."""
        shown = f"loss {loss:.4f}{self._eval}, lr {rate:.1e}, {tokens_per_second:,.0f} tok/s"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()
        if self._lines and (step % self._every == 0 or step == self._steps):
            took = time.monotonic() - self._started
            left = took * (self._steps - step) / (step - self._done)
            with suppress(OSError):  # a closed terminal is no reason to stop
                print(f"step {step}/{self._steps}: {shown}, {left:.0f} s left", file=sys.stderr)

    def evaluating(self) -> None:
        """Show that an evaluation, which may take a while, has started."""
        self._bar.set_description("evaluating")

    def evaluated(self, step: int, loss: float) -> None:
        """Show the result of an evaluation until the next one."""
        self._bar.set_description("")
        self._eval = f", eval {loss:.4f} at step {step}"
