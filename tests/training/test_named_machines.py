"""Machines that are planned for from afar."""

from __future__ import annotations

import pytest

from qwen_local.backends.select import choose, resolve_dtype
from qwen_local.cli.plan import MACHINES
from qwen_local.errors import BackendError
from qwen_local.training.named_machines import NAMED, named_machine


def test_the_command_line_knows_them_all() -> None:
    assert list(NAMED) == MACHINES


@pytest.mark.parametrize(
    ("name", "engine", "gigabytes"),
    [
        ("m4-pro-24", "mlx", 17.18),
        ("m4-pro-48", "mlx", 38.65),
        ("rtx-3090", "cuda", 25.34),
        ("a800", "cuda", 85.04),
    ],
)
def test_the_engine_is_chosen_as_anywhere(name: str, engine: str, gigabytes: float) -> None:
    """17.18 and 38.65 GB are what Metal calls the recommended working set of these Macs."""
    machine = named_machine(name, backend="auto", device="auto")
    choice = choose(machine)
    assert (choice.backend, choice.device) == (engine, "gpu")
    assert resolve_dtype(machine, choice, "auto")[0] == "bfloat16"
    assert round(machine.bytes_on("gpu") / 1e9, 2) == gigabytes


def test_a_flag_that_agrees_is_taken() -> None:
    assert named_machine("a800", backend="cuda", device="gpu") is NAMED["a800"]


def test_flags_that_contradict_are_refused_together() -> None:
    with pytest.raises(BackendError) as refused:
        named_machine("m4-pro-24", backend="cuda", device="cpu")
    assert str(refused.value) == (
        "backend cuda: m4-pro-24 is planned for `backend=mlx`\n\n"
        "hint: leave `backend` out\n\n"
        "device cpu: m4-pro-24 is planned for `device=gpu`\n\n"
        "hint: leave `device` out"
    )
