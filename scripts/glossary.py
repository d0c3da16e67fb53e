"""Words that the house style replaces, counted per word and per file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

START, END = r"(?<![A-Za-z])", r"(?![a-z])"
"""Edges of a word in prose and in names: `train_told` and `ToldOnce` hold "told", `stole` not."""


def _whole(*words: str) -> str:
    """Return a pattern for words that stand alone, a capital first letter allowed."""
    return START + "(?:" + "|".join(f"[{w[0].upper()}{w[0]}]{w[1:]}" for w in words) + ")" + END


def _stem(stem: str) -> str:
    """Return a pattern for `stem` wherever it occurs: "unrecognised", "dequantise"."""
    return f"[{stem[0].upper()}{stem[0]}]{stem[1:]}"


WORDS: Mapping[str, str] = {
    "mend": _whole("mend", "mends", "mended", "mending"),
    "tell": _whole("told", "tell", "tells", "telling"),
    "say": _whole("said", "say", "says", "saying"),
    "wishes": _whole("wish", "wishes"),
    "heard": _whole("heard"),
    "likeliest": _whole("likeliest"),
    "begin": _whole("begin", "begins", "begun", "began"),
    "foretold": _whole("foretold", "foretell", "foretells"),
    "go on with": START + "(?:[Gg]o|[Gg]oes|[Gg]oing|[Gg]one|[Ww]ent) on" + END,
    "take up": START + "(?:[Tt]aken|[Tt]akes?|[Tt]aking|[Tt]ook)[ _]up" + END,
    "standing": r"(?<![a-zA-Z])(?:Standing|standing)(?![a-z])",
    "Keeper": r"(?<![a-z])(?:Keeper|keeper)(?![a-z])",
    "rehearse": _stem("rehears"),
    "let go": START + "(?:[Ll]et|[Ll]ets|[Ll]etting)[ _]go" + END,
    "that of it": r"\bthat of it\b",
    "be it": r"\b[Bb]e it\b",
    "supervise (a process)": START + r"[Ss]upervis(?:e|es|ing|or)" + END,
    **{
        stem: _stem(stem)
        for stem in (
            *("quantis", "tokenis", "normalis", "initialis", "recognis", "serialis", "summaris"),
            *("licence", "colour", "behaviour", "favour", "honour"),
        )
    },
    "optimis": r"[Oo]ptimis(?!t|m)",
}
"""Name of the count -> pattern. "supervised" (tokens) is the field's word, and not counted."""

FILES = ("qwen_local/**/*", "docs/**/*", "README.md", "CHANGELOG.md")
ENDINGS = {".py", ".md", ".yaml", ".yml", ".toml", ".txt"}

EXCEPTIONS: tuple[tuple[str, str, str], ...] = (
    ("qwen_local/embedded/make/*", "*", "text that the tiny model was trained on; its bytes"),
    ("qwen_local/embedded/data/*", "*", "sample data: records, not prose"),
    ("qwen_local/embedded/tiny/*", "*", "files of the tiny model"),
)
"""(file pattern, word or `*`, reason)."""

PHRASES: tuple[tuple[str, str], ...] = (
    (r"What colour is the sky\?", "a prompt that the tiny model was trained on"),
    (r"What colour is [a-z ]+\?", "the same family of prompts"),
    (r"\.tell\(\)", "a method of Python's files"),
    (r"\.capture_begin\(", "a method of PyTorch's CUDA graphs"),
)
"""(pattern of a text that may stand anywhere, reason)."""


def count_words(root: Path) -> dict[str, dict[str, int]]:
    """Return {word: {file: times}} for the package, the docs, the README and the changelog."""
    found: dict[str, dict[str, int]] = {word: {} for word in WORDS}
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        for word, times in words_of(path.read_text("utf-8")).items():
            if times and not _excepted(name, word):
                found[word][name] = times
    return found


def words_of(text: str) -> dict[str, int]:
    """Return how often each word is in a text.

    >>> {word: times for word, times in words_of("What is told_once, ToldTwice, stole?").items()
    ...  if times}
    {'tell': 2}
    """
    for phrase, _ in PHRASES:
        text = re.sub(phrase, "", text)
    return {word: len(re.findall(pattern, text)) for word, pattern in WORDS.items()}


def _files(root: Path) -> Iterator[Path]:
    for pattern in FILES:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and path.suffix in ENDINGS and "__pycache__" not in path.parts:
                yield path


def _excepted(name: str, word: str) -> bool:
    return any(fnmatch(name, file) and which in ("*", word) for file, which, _ in EXCEPTIONS)
