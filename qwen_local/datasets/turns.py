"""Rendered conversations split at control tokens, and the assistant's turns in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
HEADER = "assistant\n"
"""Text after START at the start of an assistant turn."""
EMPTY_THINK = "<think>\n\n</think>\n\n"


class Piece(NamedTuple):
    """Text that is encoded on its own, and the control token after it."""

    text: str
    control: str
    """Empty if none follows."""
    answer: bool
    """True if the assistant wrote it and ended it with this control token."""


Cut = Callable[[str], list[Piece]]


def make_cut(
    control: re.Pattern[str], openings: Sequence[str], restore: Callable[[str], str], *, bare: bool
) -> Cut:
    r"""Return a function that splits rendered text.

    Args:
        control: matches the control tokens, in one group.
        openings: every text with which a generation prompt starts the assistant's turn, the longest
            first; each starts with HEADER. An opening is a piece of its own, before the answer.
        restore: puts control-token text of the data back.
        bare: leave an empty think block out of the opening.

    >>> cut = make_cut(re.compile(r"(<\|\w+\|>)"), [HEADER], str, bare=False)
    >>> for piece in cut("<|im_start|>assistant\nHi<|im_end|>\n"):
    ...     print(piece)
    Piece(text='', control='<|im_start|>', answer=False)
    Piece(text='assistant\n', control='', answer=False)
    Piece(text='Hi', control='<|im_end|>', answer=True)
    Piece(text='\n', control='', answer=False)
    """

    def cut(rendered: str) -> list[Piece]:
        return list(pieces(rendered))

    def pieces(rendered: str) -> Iterator[Piece]:
        parts = control.split(rendered)  # text, control token, text, ..., text
        parts.append("")
        before = ""
        for text, after in zip(map(restore, parts[::2]), parts[1::2], strict=True):
            if before == START and text.startswith(HEADER):
                opening = next(o for o in openings if text.startswith(o))
                shown = HEADER if bare and opening == HEADER + EMPTY_THINK else opening
                yield Piece(shown, "", False)
                yield Piece(text[len(opening) :], after, after == END)
            else:
                yield Piece(text, after, False)
            before = after

    return cut


def answers(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices of the pieces that the assistant wrote."""
    return [index for index, piece in enumerate(pieces) if piece.answer]
