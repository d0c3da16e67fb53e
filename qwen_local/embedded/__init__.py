"""What ships with the package: a tiny Qwen3 and sample rows, so that nothing need be fetched."""

from __future__ import annotations

from pathlib import Path

TINY_MODEL = "qwen-local/tiny"
"""The name of the model that ships with the package."""
SAMPLE_DATA = "qwen-local/sample"
"""The name of the data that ships with the package."""

_HERE = Path(__file__).resolve().parent


def tiny_model_path() -> Path:
    """The folder of `qwen-local/tiny`: weights, tokenizer and card."""
    return _HERE / "tiny"


def sample_data_path() -> Path:
    """The folder of the sample rows, `train.jsonl` and `heldout.jsonl`."""
    return _HERE / "data"
