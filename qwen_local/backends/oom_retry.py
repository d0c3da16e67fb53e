"""Work over micro-batches that begins again with smaller ones where memory runs out.

Free of any framework: an engine says which of its errors mean that memory ran out, and how it lets
go of what the failed work left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from qwen_local.backends.base import RowTooLargeError
from qwen_local.errors import OutOfMemoryError
from qwen_local.rows.micro_batch import MicroBatch, cut
from qwen_local.rows.planner import MOST, PADDED, Layout, micro_batches
from qwen_local.rows.rows import Rows

T = TypeVar("T")


class Budget:
    """How much an engine computes at once; halved for good whenever memory runs out."""

    def __init__(
        self, tokens: int, *, ran_out: Callable[[Exception], bool], layout: Layout = PADDED
    ) -> None:
        """Start with this many tokens.

        Args:
            tokens: positions of a micro-batch, at most, padding among them.
            ran_out: whether an error of the engine means that memory ran out.
            layout: of a micro-batch.
        """
        self.tokens = tokens
        self.positions = 0
        """Of all micro-batches of the last work that came to its end, padding among them."""
        self._ran_out = ran_out
        self.layout = layout

    def run(
        self,
        rows: Rows,
        work: Callable[[Iterator[MicroBatch]], T],
        *,
        let_go: Callable[[], None],
        most: int = MOST,
    ) -> T:
        """What `work` makes of the micro-batches of these rows.

        Args:
            rows: at least one.
            work: called with the micro-batches, the longest rows first. It may be called again,
                and must then begin from nothing. What it returns must be computed by then: an
                error that comes later is nobody's.
            let_go: frees what the engine itself still holds of work that failed.
            most: micro-batches, where memory would hold the rows in fewer.

        Raises:
            RowTooLargeError: memory ran out over a row that is alone already.
        """
        while True:
            batches = _Counted(cut(rows, budget=self.tokens, layout=self.layout, most=most))
            try:
                done = work(batches)
                self.positions = batches.positions
                return done
            except Exception as error:
                if not self._ran_out(error):
                    raise
            # Only here is the error gone, and with its traceback the frames that hold the
            # activations of the failed work: begun again inside `except`, it would find no room.
            let_go()
            self._halve(rows, begun=max(1, batches.count), most=most)

    @contextmanager
    def once(self) -> Iterator[None]:
        """Work that cannot begin again, as an update in place.

        Raises:
            OutOfMemoryError: memory ran out.
        """
        try:
            yield
        except Exception as error:
            if not self._ran_out(error):
                raise
            raise OutOfMemoryError(
                "out of memory in the update itself, after its gradient was computed\n\n"
                "hint: free memory of the device and go on with --resume; or begin another run "
                "with a lower lora.rank"
            ) from error

    def _halve(self, rows: Rows, *, begun: int, most: int) -> None:
        """Halve the budget until the largest of the micro-batches begun becomes smaller.

        The largest decides, not the last, over which memory ran out: what the largest left behind
        may be why a smaller one found no room.
        """
        lengths_R = rows.lengths_R
        groups = micro_batches(
            lengths_R.tolist(), budget=self.tokens, layout=self.layout, most=most
        )[:begun]
        sizes = [self.layout.positions(lengths_R[group]) for group in groups]
        largest = max((n for n, g in zip(sizes, groups, strict=True) if len(g) > 1), default=0)
        last = groups[-1]
        if len(last) == 1 and sizes[-1] >= largest:
            raise RowTooLargeError(last[0], int(lengths_R[last[0]]))
        while self.tokens >= largest:
            self.tokens //= 2


class _Counted(Iterator[MicroBatch]):
    """Micro-batches, and how many of them were taken."""

    def __init__(self, batches: Iterator[MicroBatch]) -> None:
        self._batches = batches
        self.count = self.positions = 0

    def __next__(self) -> MicroBatch:
        batch = next(self._batches)
        self.count += 1
        self.positions += batch.ids_BW.size
        return batch
