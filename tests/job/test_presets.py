"""Presets, against the table of reference run R5 (`reference-runs.md`)."""

from __future__ import annotations

import pytest

from qwen_local.job.presets import PRESET_NAMES, PRESETS, PresetName, preset_for
from qwen_local.job.schema import ONE_OF_TWO, read_job
from qwen_local.models.published import PUBLISHED


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-0.5B", "small"),
        ("Qwen/Qwen3-0.6B", "small"),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "medium"),
        ("Qwen/Qwen3-1.7B", "medium"),
        ("Qwen/Qwen2.5-3B", "medium"),
        ("Qwen/Qwen3-4B", "large"),
        ("Qwen/Qwen2.5-7B", "large"),
        ("Qwen/Qwen2.5-72B", "large"),
    ],
)
def test_a_model_gets_the_preset_of_the_nearest_size(model: str, name: str) -> None:
    preset = preset_for("auto", PUBLISHED[model].parameters())
    assert preset is not None
    assert preset.name == name


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        (1, "tiny"),
        (99_999_999, "tiny"),
        (100_000_000, "small"),
        (999_999_999, "small"),
        (1_000_000_000, "medium"),
        (3_499_999_999, "medium"),
        (3_500_000_000, "large"),
    ],
)
def test_a_boundary_belongs_to_the_larger_preset(parameters: int, name: str) -> None:
    preset = preset_for("auto", parameters)
    assert preset is not None
    assert preset.name == name


@pytest.mark.parametrize(
    ("name", "rank", "dropout", "learning_rate", "batch", "epochs"),
    [  # R5: the ranges, both ends included
        ("small", (8, 16), (0.05, 0.05), 3e-4, (4, 8), (5, 8)),
        ("medium", (16, 32), (0.1, 0.1), 2e-4, (8, 16), (3, 5)),
        ("large", (32, 64), (0.1, 0.15), 1e-4, (4, 8), (3, 5)),
    ],
)
def test_every_value_is_inside_the_range_of_r5(
    name: PresetName,
    rank: tuple[int, int],
    dropout: tuple[float, float],
    learning_rate: float,
    batch: tuple[int, int],
    epochs: tuple[int, int],
) -> None:
    job = read_job(None, preset=name).complete(1)
    assert rank[0] <= job.lora.rank <= rank[1]
    assert job.lora.alpha == 2 * job.lora.rank
    assert dropout[0] <= job.lora.dropout <= dropout[1]
    assert job.train.learning_rate == learning_rate
    assert batch[0] <= job.train.batch_size <= batch[1]
    assert job.train.epochs is not None
    assert epochs[0] <= job.train.epochs <= epochs[1]


def test_the_tiny_preset_fits_the_embedded_model() -> None:
    job = read_job(None).complete(2_164_928)
    assert (job.lora.rank, job.lora.alpha, job.lora.dropout) == (16, 32, 0.0)
    assert (job.train.learning_rate, job.train.warmup_ratio) == (1e-3, 0.05)
    assert (job.train.batch_size, job.train.epochs) == (8, 4)


def test_none_leaves_the_defaults_of_the_job() -> None:
    assert preset_for("none", 2_164_928) is None
    job = read_job(None, preset="none").complete(2_164_928)
    assert (job.train.learning_rate, job.train.epochs, job.lora.dropout) == (2e-4, 3, 0.05)


def test_a_preset_chosen_by_name_ignores_the_model_size() -> None:
    preset = preset_for("large", 1)
    assert preset is PRESETS[-1]


def test_every_preset_can_be_chosen_by_name() -> None:
    assert ("auto", *(preset.name for preset in PRESETS), "none") == PRESET_NAMES


def test_no_preset_sets_a_key_that_replaces_another() -> None:
    for preset in PRESETS:
        assert not {f"train.{key}" for key in ONE_OF_TWO} & preset.values.keys()
