"""Two answers side by side, as a terminal shows what is written to it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pytest
from prompt_toolkit.utils import get_cwidth

from qwen_local.cli.chat_ui.side_by_side import MIN_COLUMN_WIDTH, ColumnDisplay
from qwen_local.cli.chat_ui.terminal import Screen

CELLS, LINES = 2 * MIN_COLUMN_WIDTH + 3, 12
TOKEN = re.compile(r"\x1b\[(\d*)([AGm])|(.)", re.S)


def shown(output: str) -> list[str]:
    """The lines of a terminal that knows line ends, going up and columns; no wrapping."""
    rows: list[dict[int, str]] = [{}]
    row = column = 0
    for number, code, character in TOKEN.findall(output):
        if code == "A":
            row -= int(number)
            assert row >= 0
        elif code == "G":
            column = int(number) - 1
        elif character == "\n":
            row, column = row + 1, 0
            if row == len(rows):
                rows.append({})
        elif character:
            if get_cwidth(character):
                rows[row][column] = character
            else:  # on top of the one before it
                rows[row][column - 1] += character
            column += get_cwidth(character)
            assert column <= CELLS
    lines = []
    for written in rows:
        line, at = "", 0
        for place, character in sorted(written.items()):
            line += " " * (place - at) + character
            at = place + get_cwidth(character)
        lines.append(line.rstrip())
    return lines


class Window:
    """A terminal with two voices."""

    def __init__(self, cells: int = CELLS, lines: int = LINES, *, color: bool = False) -> None:
        self._out = io.BytesIO()
        screen = Screen(self._out, terminal=True, color=color)
        self.columns = ColumnDisplay(screen, lambda: (cells, lines))

    @property
    def raw(self) -> str:
        return self._out.getvalue().decode()

    def answer(self, base: Sequence[str], adapter: Sequence[str]) -> list[str]:
        for voice, pieces in (("base", base), ("adapter", adapter)):
            page = self.columns.start(voice)
            for piece in pieces:
                page.write(piece)
            page.write("\n")
        self.columns.finish("?")
        return shown(self.raw)


def both(left: str, right: str) -> str:
    return f"{left}{' ' * (MIN_COLUMN_WIDTH + 1 - get_cwidth(left))}│ {right}".rstrip()


HEAD = both("--- base ---", "--- adapter ---")


def test_the_second_answer_is_beside_the_first() -> None:
    assert Window().answer(["The sky ", "is blue."], ["Blue."]) == [
        HEAD,
        both("The sky is blue.", "Blue."),
        "",
    ]


def test_the_shorter_one_is_filled_up_so_that_what_follows_is_below_both() -> None:
    assert Window().answer(["a\nb\nc"], ["d"]) == [
        HEAD,
        both("a", "d"),
        both("b", ""),
        both("c", ""),
        "",
    ]
    assert Window().answer(["a"], ["b\nc\n\nd"]) == [HEAD, both("a", "b"), both("", "c"),
                                                 both("", ""), both("", "d"), ""]  # fmt: skip


def test_lines_break_between_words_however_the_pieces_come() -> None:
    text = "one two three four five six seven eight nine"
    expected = [
        HEAD,
        both("one two three four five six seven", "one two three four five six seven"),
        both("eight nine", "eight nine"),
        "",
    ]
    assert Window().answer([text], [text]) == expected
    assert Window().answer(list(text), list(text)) == expected


def test_a_word_longer_than_a_column_is_broken() -> None:
    word = "x" * (MIN_COLUMN_WIDTH + 2)
    assert Window().answer([f"a {word}"], [word]) == [
        HEAD,
        both("a", word[:MIN_COLUMN_WIDTH]),
        both(word[:MIN_COLUMN_WIDTH], "xx"),
        both("xx", ""),
        "",
    ]


def test_wide_characters_take_two_cells_and_lines_break_between_them() -> None:
    half = MIN_COLUMN_WIDTH // 2
    assert Window().answer([f"ab {'日' * half}"], ["a"])[1] == both(f"ab {'日' * (half - 2)}", "a")
    assert Window().answer(["日" * (half + 1)], ["e\u0301🙂", "語" * half]) == [
        HEAD,
        both("日" * half, f"e\u0301🙂{'語' * (half - 2)}"),
        both("日", "語語"),
        "",
    ]


def test_a_first_answer_that_left_the_window_has_the_second_below_it() -> None:
    long = "\n".join("x" * LINES)
    assert Window().answer([long], ["b"]) == [
        "--- base ---",
        *"x" * LINES,
        "--- adapter ---",
        "b",
        "",
    ]
    fits = "\n".join("x" * (LINES - 2))
    assert Window().answer([fits], ["b"])[:2] == [HEAD, both("x", "b")]


def test_a_narrow_window_has_one_below_the_other_in_its_whole_width() -> None:
    text = "x" * 60
    assert Window(CELLS - 1).answer([text], ["b"]) == [
        "--- base ---",
        text,
        "--- adapter ---",
        "b",
        "",
    ]


def test_the_next_question_starts_new_columns() -> None:
    window = Window()
    window.answer(["a"], ["b"])
    assert window.answer(["c"], ["d"]) == [HEAD, both("a", "b"), HEAD, both("c", "d"), ""]


def test_an_answer_cannot_leave_its_column() -> None:
    assert Window().answer(["\x1b[5A\ta"], ["\x1b[1Gb"]) == [
        HEAD,
        both("␛[5A    a", "␛[1Gb"),
        "",
    ]


def test_messages_about_answers_follow_both_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    window = Window()
    window.columns.show_message("adapter", "(at once)")
    window.columns.start("base").write("a\n")
    window.columns.show_message("base", "(stopped)")
    assert capsys.readouterr().err == "adapter: (at once)\n"
    window.columns.start("adapter").write("b\n")
    window.columns.finish("?")
    assert capsys.readouterr().err == "base: (stopped)\n"


def test_hidden_reasoning_is_announced_in_its_column() -> None:
    window = Window()
    window.columns.start("base").write("a\n")
    window.columns.start("adapter")
    window.columns.show_thinking("adapter")
    window.columns.finish("?")
    assert shown(window.raw) == [HEAD, both("a", "(thinking)"), ""]


def test_a_piece_is_on_the_screen_once_its_last_word_is_over() -> None:
    window = Window()
    page = window.columns.start("base")
    page.write("The sky i")
    assert shown(window.raw)[-1] == "The sky"
    page.write("s ")
    assert shown(window.raw)[-1] == "The sky is"


def test_thoughts_are_dimmed_a_word_at_a_time() -> None:
    window = Window(color=True)
    page = window.columns.start("base")
    page.write("hm hm", dim=True)
    page.write("Yes\n")
    assert (
        window.raw.partition("---\x1b[22m\n")[2]
        == "\x1b[2mhm\x1b[22m\x1b[2m \x1b[22m\x1b[2mhm\x1b[22mYes\n"
    )
