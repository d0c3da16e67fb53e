"""Parts in processes of their own: what one finds is kept, whatever becomes of it or of others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.environment import environment
from benchmarks.parts import Device, Part, check, described, holds, impossible, limit, run_all
from qwen_local.backends import probe
from qwen_local.backends.machine import Engine

ROOT = Path(__file__).parents[2]

PARTS = """
import os, sys, time
from benchmarks.parts import Device, Part, check, main, skipped

def environment(device, folder):
    yield {"card": "Some Card 9000", "folder": str(folder)}

def crashes(device, folder):
    (folder / "half.begun").mkdir()
    (folder / "whole").mkdir()
    yield check("before the crash", 1, at_most=2)
    os.abort()

def hangs(device, folder):
    yield {"figure": "left there", "value": os.listdir(folder)}
    time.sleep(60)

def raises(device, folder):
    yield from ()
    raise ValueError("no such thing")

def fails(device, folder):
    yield check("too much", 3, at_most=2)

def has_not(device, folder):
    yield skipped("there is no net")

main(
    [
        Part(name="environment", work=environment, seconds=20),
        *(Part(name=f.__name__, work=f, seconds=SECONDS) for f in (CHOSEN)),
        Part(name="needs it", work=fails, seconds=9, needs=("no_such_module",)),
        Part(name="card", work=fails, seconds=9, card=True),
    ],
    module="parts_of_a_test", name="test", about=None, budget=30,
)
"""


def unused(device: Any, folder: Any) -> Any:
    raise AssertionError


def run_two(script: str, device: Device, folder: Path) -> dict[str, Any]:
    """The result of two parts, whose processes are this script."""
    return run_all(
        [Part(name=name, work=unused, seconds=20) for name in ("first", "second")],
        command=[sys.executable, "-c", script],
        device=device,
        budget=60,
        folder=folder,
        name="test",
    )


def run(folder: Path, chosen: str, *, seconds: float = 9, budget: float = 30) -> tuple[int, Any]:
    """(exit code, the result) of a benchmark of these parts."""
    script = PARTS.replace("CHOSEN", chosen).replace("SECONDS", str(seconds))
    (folder / "parts_of_a_test.py").write_text(script, "utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "parts_of_a_test", "--device", "cpu"),
            *("--output", str(folder), "--seconds", str(budget)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        capture_output=True,
        text=True,
        check=False,
    )
    (file,) = folder.glob("test-*.json")
    assert done.stdout == f"{file}\n"
    assert file.name == "test-some-card-9000.json"
    return done.returncode, json.loads(file.read_text("utf-8"))


def outcomes(result: Any) -> dict[str, Any]:
    return {part["name"]: (part["outcome"], part.get("why")) for part in result["parts"]}


@pytest.mark.slow
def test_a_part_that_crashes_costs_only_what_it_had_not_found(tmp_path: Path) -> None:
    code, result = run(tmp_path, "crashes, raises, fails, has_not,")
    assert code == 1
    found = outcomes(result)
    assert found.pop("crashes")[0] == "failed"
    assert found == {
        "environment": ("done", None),
        "raises": ("failed", "exit code 1: ValueError: no such thing"),
        "fails": ("done", None),
        "has_not": ("skipped", "there is no net"),
        "needs it": ("skipped", "no_such_module not installed"),
        "card": ("skipped", "it needs a card"),
    }
    (kept,) = (part["figures"] for part in result["parts"] if part["name"] == "crashes")
    assert kept == [check("before the crash", 1, at_most=2)]
    assert result["parts"][0]["figures"][0]["folder"] == "<scratch>"
    assert result["holds"] is False
    assert result["still_to_come"] == []


@pytest.mark.slow
def test_a_part_that_hangs_is_ended_and_what_the_time_does_not_suffice_for_is_said(
    tmp_path: Path,
) -> None:
    code, result = run(tmp_path, "hangs, fails,", seconds=5, budget=14)
    assert code == 0
    assert outcomes(result)["hangs"] == ("out of time", "stopped after 10 s")  # twice 5
    assert outcomes(result)["fails"] == ("not run", "no time was left for it")
    (kept,) = (part["figures"] for part in result["parts"] if part["name"] == "hangs")
    assert kept == [{"figure": "left there", "value": []}]


def test_on_a_machine_without_the_device_nothing_is_run_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = impossible("no card")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        f"Path(given['--into']).write_text({json.dumps(figure)!r} + '\\n')\n"
    )
    with pytest.raises(SystemExit) as ended:
        run_two(script, "gpu", tmp_path)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "no card\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "gpu"), [("cuda", "NVIDIA card that PyTorch"), ("mlx", "Apple GPU that MLX")]
)
def test_the_first_part_looks_for_the_device(
    engine: Engine, gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(probe.probe(), cuda=engine != "cuda", metal=engine != "mlx")  # the other's alone
    monkeypatch.setattr(probe, "probe", lambda **_: bare)
    assert list(environment((), engine, "gpu", tmp_path)) == [
        impossible(f"no {gpu} can use: qwen-local doctor says why; --device cpu rehearses")
    ]
    (found,) = environment((), engine, "cpu", tmp_path)
    assert found["card"] == "cpu"


@pytest.mark.slow
def test_after_a_failure_only_models_that_are_not_whole_are_deleted(tmp_path: Path) -> None:
    _, result = run(tmp_path, "crashes, hangs,", seconds=3)
    (kept,) = (part["figures"] for part in result["parts"] if part["name"] == "hangs")
    assert kept == [{"figure": "left there", "value": ["whole"]}]


def test_a_part_has_its_time_and_at_most_as_much_of_what_others_left() -> None:
    assert limit(60, saved=0, left=500) == 60
    assert limit(60, saved=-5, left=500) == 60
    assert limit(60, saved=20, left=500) == 80
    assert limit(60, saved=200, left=500) == 120
    assert limit(60, saved=200, left=50) == 50


@pytest.mark.parametrize(("value", "kept"), [(0.5, True), (0.51, False), (float("nan"), False)])
def test_a_check_keeps_its_bound_or_does_not(value: float, kept: bool) -> None:
    assert check("it", value, at_most=0.5)["holds"] is kept


def test_the_whole_holds_where_no_check_fails_and_no_part_does() -> None:
    good = {"outcome": "done", "figures": [check("it", 1, at_most=1), {"figure": "x", "value": 2}]}
    bad = {"outcome": "done", "figures": [check("it", 2, at_most=1)]}
    late = {"outcome": "out of time", "figures": []}
    assert holds([good, late])
    assert not holds([good, bad])
    assert not holds([good, {"outcome": "failed", "figures": []}])


def test_a_part_is_described_with_its_checks() -> None:
    part = {
        "name": "curves",
        "outcome": "out of time",
        "why": "stopped after 9 s",
        "seconds": 9.0,
        "figures": [check("a", 0.25, at_most=0.5), check("b", 2, at_most=1), {"share": 0.5}],
    }
    assert described(part) == (
        "curves: out of time after 9 s (stopped after 9 s)\n"
        "  ok   a: 0.25 (at most 0.5)\n"
        "  FAIL b: 2 (at most 1)"
    )


def test_the_result_is_there_after_every_part(tmp_path: Path) -> None:
    """The second part looks at the file that the first left."""
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        f"found = [p.name for p in Path({str(tmp_path)!r}).glob('*.json')]\n"
        "Path(given['--into']).write_text(json.dumps({'card': 'c', 'found': found}) + '\\n')\n"
    )

    result = run_two(script, "cpu", tmp_path)
    assert [part["figures"][0]["found"] for part in result["parts"]] == [[], ["test-c.json"]]
