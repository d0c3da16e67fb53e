"""Rows to train on: made ones, of words that are a token each, or those of a real file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from benchmarks.lengths import AROUND, LONGEST, WORKLOADS
from benchmarks.peers.work import FailedError
from qwen_local.embedded import tiny_model_path

Row = dict[str, str]
SPACE = "Ġ"
"""The space at the beginning of a word, as the vocabulary writes it."""


@cache
def vocabulary() -> dict[str, int]:
    """That of the embedded tokenizer, which every model here has."""
    content = json.loads((tiny_model_path() / "tokenizer.json").read_text(encoding="utf-8"))
    entries: dict[str, int] = content["model"]["vocab"]
    return entries


@cache
def words() -> list[str]:
    """Words that are a single token, after a space as well as without."""
    spaced = [entry[1:] for entry in vocabulary() if entry.startswith(SPACE)]
    plain = [word for word in spaced if word.isascii() and word.isalpha() and len(word) > 1]
    return sorted(word for word in plain if word in vocabulary())


def said(draw: random.Random, count: int) -> str:
    """So many words."""
    return " ".join(draw.choices(words(), k=count))


def made_rows(name: str, count: int) -> list[Row]:
    """Rows of a made workload, the same ones at every time."""
    draw, rows = random.Random(0), []
    for _ in range(count):
        prompt, answer = WORKLOADS[name](draw)
        rows.append({"prompt": said(draw, prompt), "completion": said(draw, answer)})
    return rows


def real_rows(file: Path, count: int) -> list[Row]:
    """The first rows of a JSON list of instruction, input and output, or prompt and completion.

    Rows that are empty or longer than `LONGEST` tokens are passed over.

    Raises:
        FailedError: there are not so many.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model_path() / "tokenizer.json"))
    rows: list[Row] = []
    for row in pairs(file):
        length = len(tokenizer.encode(row["prompt"] + row["completion"]).ids)
        if all(text.strip() for text in row.values()) and length <= LONGEST - 2 * AROUND:
            rows.append(row)
        if len(rows) == count:
            return rows
    raise FailedError(
        f"{file}: {len(rows)} rows can be used; {count} are needed: choose fewer --steps"
    )


def pairs(file: Path) -> Iterator[Row]:
    """Prompt and completion of each record."""
    for record in json.loads(file.read_text(encoding="utf-8")):
        if "prompt" in record:
            yield {"prompt": record["prompt"], "completion": record["completion"]}
        else:
            asked = [record["instruction"], record.get("input") or ""]
            yield {"prompt": "\n".join(filter(None, asked)), "completion": record["output"]}
