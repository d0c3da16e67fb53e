"""Micro-batches under a token budget, computed again with half the budget if memory runs out.

No framework is imported: an engine passes in which of its errors mean out of memory, and how to
free what failed work left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from qwen_local.backends.base import RowTooLargeError
from qwen_local.backends.group import ALONE, Group
from qwen_local.errors import OutOfMemoryError
from qwen_local.rows.micro_batch import MicroBatch, cut
from qwen_local.rows.planner import MOST, PADDED, Layout, micro_batches
from qwen_local.rows.rows import Rows

T = TypeVar("T")


class MicroBatches(Iterator[MicroBatch]):
    """Micro-batches of one attempt, counted as they are taken."""

    def __init__(self, batches: Iterator[MicroBatch], group: Group) -> None:
        self._batches = batches
        self._group = group
        self.count = 0
        """Micro-batches taken so far."""
        self.positions = 0
        """Positions of these, padding included."""
        self.joined = False
        """True once the ranks have exchanged whether memory ran out."""

    def __next__(self) -> MicroBatch:
        batch = next(self._batches)
        self.count += 1
        self.positions += batch.ids_BW.size
        return batch

    def join(self, *, ran_out: bool = False) -> None:
        """Exchange with all ranks whether memory ran out, once in every attempt.

        Work that sums over ranks calls this after its last micro-batch and before its first sum: a
        rank without memory never reaches the sum, where the others would wait for it forever.

        Raises:
            OtherRankRanOutError: memory ran out on another rank, and this attempt is void.
        """
        self.joined = True
        if self._group.any_rank(ran_out) and not ran_out:
            raise OtherRankRanOutError


class OtherRankRanOutError(Exception):
    """Memory ran out on another rank; this one starts again with it."""


class TokenBudget:
    """Positions that an engine computes at once; halved for good whenever memory runs out."""

    def __init__(
        self,
        tokens: int,
        *,
        ran_out: Callable[[Exception], bool],
        layout: Layout = PADDED,
        group: Group = ALONE,
    ) -> None:
        """Start with this many tokens.

        Args:
            tokens: positions of a micro-batch, at most, padding included.
            ran_out: returns True for an error of the engine that means out of memory.
            layout: of a micro-batch.
            group: ranks that start again together.
        """
        self.tokens = tokens
        self.positions = 0
        """Positions of the last work that finished, padding included."""
        self._ran_out = ran_out
        self.layout = layout
        self._group = group

    def run(
        self,
        rows: Rows,
        work: Callable[[MicroBatches], T],
        *,
        free: Callable[[], None],
        most: int = MOST,
    ) -> T:
        """Return the result of `work` on the micro-batches of these rows.

        Args:
            rows: at least one.
            work: called with the micro-batches, the longest rows first. It may be called again and
                must then start from nothing. Its result must be computed when it returns: errors
                that come later are not caught.
            free: frees what the engine itself still holds of work that failed.
            most: micro-batches, where the rows would fit in fewer.

        Raises:
            RowTooLargeError: memory ran out over a row that is alone already.
        """
        while True:
            batches = MicroBatches(
                cut(rows, budget=self.tokens, layout=self.layout, most=most), self._group
            )
            here = False
            try:
                result = work(batches)
                if not batches.joined:
                    batches.join()
                self.positions = batches.positions
                return result
            except OtherRankRanOutError:
                pass
            except Exception as error:
                # After the exchange the other ranks continue: none of them would retry with us.
                if not self._ran_out(error) or (batches.joined and self._group.size > 1):
                    raise
                here = True
            # Only here is the error gone, and with its traceback the frames that hold the
            # activations of the failed work: restarted inside `except`, it would find no room.
            if here and not batches.joined:
                batches.join(ran_out=True)
            free()
            if here:
                self._halve(rows, started=max(1, batches.count), most=most)
            else:
                self.tokens = max(1, self.tokens // 2)

    @contextmanager
    def no_retry(self) -> Iterator[None]:
        """Run work that cannot start again, such as an update in place.

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
                "hint: free memory of the device and continue with `resume`; or start another run "
                "with a lower lora.rank"
            ) from error

    def _halve(self, rows: Rows, *, started: int, most: int) -> None:
        """Halve the budget until the largest of the started micro-batches becomes smaller.

        The largest decides, not the last, over which memory ran out: memory that the largest still
        holds may be the reason why a smaller one did not fit.
        """
        lengths_R = rows.lengths_R
        groups = micro_batches(
            lengths_R.tolist(), budget=self.tokens, layout=self.layout, most=most
        )[:started]
        sizes = [self.layout.positions(lengths_R[group]) for group in groups]
        largest = max((n for n, g in zip(sizes, groups, strict=True) if len(g) > 1), default=0)
        last = groups[-1]
        if len(last) == 1 and sizes[-1] >= largest:
            raise RowTooLargeError(last[0], int(lengths_R[last[0]]))
        while self.tokens >= largest:
            self.tokens //= 2
