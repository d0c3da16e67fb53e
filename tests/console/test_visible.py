"""Control characters are printed as symbols."""

from __future__ import annotations

from qwen_local.console.visible import visible


def test_control_characters_become_symbols() -> None:
    every = "".join(map(chr, range(0x100)))
    shown = visible(every)
    assert [c for c in shown if ord(c) < 32 or 0x7F <= ord(c) < 0xA0] == ["\t", "\n"]
    assert visible("日本 🙂 e\u0301 👩‍🚀") == "日本 🙂 e\u0301 👩‍🚀"
    assert visible("\x1b]0;title\x07") == "␛]0;title␇"
