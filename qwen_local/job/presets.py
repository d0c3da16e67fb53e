"""Presets: values for the keys that a job leaves out, chosen by the size of the model.

The table follows reference run R5, which gives ranges. If R1 (a 1.5 B model: rank 16, batch 8) or
R4 (a 0.6 B model: rank 16) used a value inside the range, the preset has that value. Otherwise it
has the low end: the smaller adapter, the lighter dropout and fewer epochs. `batch_size: 8` is
inside every range. R5 sets alpha to 2 x rank, which is also the default of `lora.alpha`, so alpha
follows a rank that the user chose.

| preset | parameters      | R5 row    | rank  | dropout  | learning rate | batch | epochs |
|--------|-----------------|-----------|-------|----------|---------------|-------|--------|
| small  | 0.1 B to 1 B    | 0.6B      | 8-16  | 0.05     | 3e-4          | 4-8   | 5-8    |
| medium | 1 B to 3.5 B    | 1.7B      | 16-32 | 0.1      | 2e-4          | 8-16  | 3-5    |
| large  | 3.5 B and above | 7B and up | 32-64 | 0.1-0.15 | 1e-4          | 4-8   | 3-5    |

The boundaries are the geometric means of the neighboring rows, rounded: sqrt(0.6 x 1.7) = 1.0 and
sqrt(1.7 x 7) = 3.4. So Qwen2.5-3B (3.1 B) is medium and Qwen3-4B (4.0 B) is large. `tiny` is for
the embedded model: R5 has no row for 2 M parameters, which need a higher learning rate and a longer
warm-up, and where dropout only costs accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

PresetName: TypeAlias = Literal["auto", "tiny", "small", "medium", "large", "none"]
PRESET_NAMES: tuple[PresetName, ...] = get_args(PresetName)
"""Names of presets: chosen by model size, a preset by name, or only the defaults of the job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Values for the job keys that the user left out."""

    name: PresetName
    below: float
    """`auto` chooses the first preset whose bound is above the model's number of parameters."""
    values: Mapping[str, int | float]
    """Value by dotted key."""


def _preset(
    name: PresetName,
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
"""All presets, smallest models first."""


def preset_for(name: PresetName, parameters: int) -> Preset | None:
    """Return the preset for a model with this many parameters; None for `none`.

    >>> preset_for("auto", 596_049_920).name, preset_for("large", 596_049_920).name
    ('small', 'large')
    """
    if name == "auto":
        return next(preset for preset in PRESETS if parameters < preset.below)
    return next((preset for preset in PRESETS if preset.name == name), None)
