"""Rows that an export is measured on: fixed conversations, and rows of the run's own data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import InputError
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import shift_labels
from qwen_local.runs.run import Run
from qwen_local.training.job_data import prepare_data

log = logging.getLogger("qwen_local")

CONVERSATIONS = (
    ("Hello! Who are you?", "I am a language model, here to help with questions and with text."),
    (
        "Write a Python function that returns the largest number of a list.",
        "def largest(numbers):\n    return max(numbers)",
    ),
    (
        "Explain in two sentences why the sky is blue.",
        "Air scatters blue light more than red light. So blue reaches the eye from everywhere.",
    ),
    (
        "Translate into French: Good morning, how did you sleep?",
        "Bonjour, avez-vous bien dormi ?",
    ),
    ("List three animals that live in the sea.", "1. Dolphin\n2. Octopus\n3. Tuna"),
    ("What is 17 times 23?", "17 times 23 is 391."),
    ("Give a one-word answer: is water wet?", "Yes."),
    ("请用一句话介绍北京。", "北京是中国的首都。"),
)
"""Questions and answers. They need not be good, only the same for every variant."""
MAX_POSITIONS, MAX_ROW_POSITIONS = 1024, 512
"""Most positions of the run's rows, in total and per row."""
RECORDS_READ = 640
"""Records of the run's data that are read for these rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Rows to measure an export on."""

    rows: Rows
    """Fixed conversations, then rows of the run."""
    fixed: int
    """Number of fixed conversations."""

    @property
    def of_run(self) -> int:
        """Number of rows of the run."""
        return len(self.rows) - self.fixed


def make_samples(tokenizer: ChatTokenizer, adapter: Path) -> Samples:
    """Return the fixed conversations as rows, then some rows of the adapter's run.

    Args:
        tokenizer: of the model.
        adapter: the folder. Outside a run, or in one whose data are gone or have changed, it adds
            no rows.
    """
    pairs = []
    for question, answer in CONVERSATIONS:
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        for row in tokenizer.encode_conversation(messages):
            pairs.append((np.array(row.ids[:-1]), shift_labels(row.ids, row.supervised)))
    fixed = len(pairs)
    if (more := _rows_of_run(adapter, tokenizer)) is not None:
        pairs += [more.row(r) for r in _few(more)]
    return Samples(Rows.from_pairs(pairs), fixed)


def _few(rows: Rows) -> Iterator[int]:
    """Yield the indices of the first rows that fit into `MAX_POSITIONS`, without long ones."""
    left = MAX_POSITIONS
    for row, length in enumerate(rows.lengths_R):
        if length <= min(MAX_ROW_POSITIONS, left):
            left -= int(length)
            yield row


def _rows_of_run(adapter: Path, tokenizer: ChatTokenizer) -> Rows | None:
    """Return the evaluation rows of an adapter's run or, without any, its training rows.

    The job's relative paths may not exist here: they count from the folder that it ran in.
    """
    run = Run.of_adapter(adapter)
    if run is None or not run.files.data.is_file():
        return None
    if run.data is None:
        log.info("proof: on fixed conversations only; data.json of the run cannot be read")
        return None
    known = run.data.sources
    if any(source.sha256 is None for source in known):
        return None  # on the hub
    try:
        job = run.read_job()
        few = job.data.model_copy(
            update={"limit": min(job.data.limit or RECORDS_READ, RECORDS_READ)}
        )
        prepared = prepare_data(job.model_copy(update={"data": few}), tokenizer)
    except InputError as error:
        log.info("proof: on fixed conversations only; the run's data: %s", error.faults[0])
        return None
    if [s.sha256 for s in prepared.report.sources] != [s.sha256 for s in known]:
        log.info("proof: on fixed conversations only; the run's data have changed")
        return None
    chosen = prepared.train if prepared.eval is None else prepared.eval
    return chosen.take(range(len(chosen)))
