"""Presets: what a job leaves out, filled in from the size of the model.

The rows are those of reference run R5, which advises ranges. Where R1 (a 1.5 B model: rank 16,
batch 8) or R4 (a 0.6 B model: rank 16) ran with a value inside the range, that value is taken, else
the low end: the smaller adapter, the lighter dropout and the fewer passes. `batch_size: 8` lies in
every row. R5 sets alpha to 2 x rank, which is what the job does where alpha is left out, so that it
follows a rank that the user chose.

| preset | parameters      | row of R5 | rank  | dropout  | learning rate | batch | epochs |
|--------|-----------------|-----------|-------|----------|---------------|-------|--------|
| small  | 0.1 B to 1 B    | 0.6B      | 8-16  | 0.05     | 3e-4          | 4-8   | 5-8    |
| medium | 1 B to 3.5 B    | 1.7B      | 16-32 | 0.1      | 2e-4          | 8-16  | 3-5    |
| large  | 3.5 B and above | 7B and up | 32-64 | 0.1-0.15 | 1e-4          | 4-8   | 3-5    |

The boundaries are the geometric means of the neighboring rows, rounded: sqrt(0.6 x 1.7) = 1.0 and
sqrt(1.7 x 7) = 3.4. So Qwen2.5-3B (3.1 B) is medium and Qwen3-4B (4.0 B) is large. `tiny` is the
embedded model's own: no row of R5 reaches down to 2 M parameters, where a higher rate and more
warm-up serve, and where dropout only costs accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Choice: TypeAlias = Literal["auto", "tiny", "small", "medium", "large", "none"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
"""What `--preset` takes: by the model's size, one by name, or only the defaults of the job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Values for keys of the job that the user left out."""

    name: Choice
    below: float
    """The preset of models with fewer parameters than this, and with no smaller preset."""
    values: Mapping[str, int | float]
    """By dotted key."""


def _preset(
    name: Choice,
    below: float,
    *,
    rank: int,
    dropout: float,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    **train: float,
) -> Preset:
    values = {
        "lora.rank": rank,
        "lora.dropout": dropout,
        "train.learning_rate": learning_rate,
        "train.batch_size": batch_size,
        "train.epochs": epochs,
    }
    more = {f"train.{key}": value for key, value in train.items()}
    return Preset(name=name, below=below, values={**values, **more})


PRESETS = (
    _preset(
        "tiny",
        0.1e9,
        rank=16,
        dropout=0.0,
        learning_rate=1e-3,
        batch_size=8,
        epochs=4,
        warmup_ratio=0.05,
    ),
    _preset("small", 1e9, rank=16, dropout=0.05, learning_rate=3e-4, batch_size=8, epochs=5),
    _preset("medium", 3.5e9, rank=16, dropout=0.1, learning_rate=2e-4, batch_size=8, epochs=3),
    _preset("large", math.inf, rank=32, dropout=0.1, learning_rate=1e-4, batch_size=8, epochs=3),
)
"""Smallest models first."""


def choose(choice: Choice, parameters: int) -> Preset | None:
    """The preset of a choice, for a model with this many parameters; None for `none`.

    >>> choose("auto", 596_049_920).name, choose("large", 596_049_920).name
    ('small', 'large')
    """
    if choice == "auto":
        return next(preset for preset in PRESETS if parameters < preset.below)
    return next((preset for preset in PRESETS if preset.name == choice), None)
