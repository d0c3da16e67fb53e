"""Every file operation of the checkpoint module killed, failed, half done and cut off from power.

    PYTHONPATH=. python tests/training/kill_matrix.py

A process of its own for `test_kill_matrix.py`: it holds numpy arrays and no engine, has one thread,
and forks a child for every kill. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path, PurePosixPath
from unittest import mock

import numpy as np

from benchmarks.faults import (
    FAULTS,
    KILLS,
    OF_WRITES,
    POWER_CUT,
    Faults,
    Operation,
    PowerCut,
)
from qwen_local.errors import DiskFullError
from qwen_local.files import array_bytes, json_bytes
from qwen_local.runs import checkpoints
from qwen_local.runs.checkpoints import NEW, OLD, DamagedError, step_name

Files = Mapping[str, bytes]
State = tuple[int, Files] | None
"""(step, contents) of the newest checkpoint."""

NAMES_KEPT, NAMES_LOST = POWER = ("power cut, names kept", "power cut, names lost")
DEATHS = (*KILLS, *POWER)
DONE, KILLED, DISK_FULL, FAILED, CUT, BUG = 0, -9, 10, 11, 12, 13
"""How a scenario ended."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Something done to a run's checkpoints."""

    name: str
    start: Path
    """What is there before: a folder that holds `run` and what lies beside it."""
    act: Callable[[Path], object]
    before: State
    after: State
    best: int | None = None
    """A checkpoint that must be there at any instant."""


@dataclass(kw_only=True)
class Matrix:
    """What was tried, and what came of it."""

    folder: Path
    """Scratch."""
    points: Counter[str] = field(default_factory=Counter)
    """By scenario and fault."""
    failures: list[str] = field(default_factory=list)
    crashes: dict[object, Scenario] = field(default_factory=dict)
    """The recovery from what deaths left behind, one of those that go through the same motions."""
    places: Iterator[int] = field(default_factory=count)

    def run(self, scenario: Scenario) -> list[Operation]:
        """Try every fault at every operation of a scenario.

        Returns:
            What it does where nothing goes wrong.
        """
        with self.fresh(scenario) as place, Faults(root=place / "run") as watched:
            scenario.act(place)
        done = watched.operations
        for fault in (*FAULTS, *POWER):
            committed = False
            for at in range(len(done) + (fault in POWER)):  # the power may be cut afterwards, too
                if fault in OF_WRITES and done[at].name != "write":
                    continue
                self.points[f"{scenario.name}: {fault}"] += 1
                try:
                    state = self.point(scenario, done, fault, at)
                    assert state == scenario.after or not committed, "what was saved is gone again"
                    committed = state == scenario.after != scenario.before
                except (AssertionError, DamagedError, OSError) as error:
                    where = f"{scenario.name}, {fault} at {at} of {len(done)} {done[at : at + 1]}"
                    self.failures.append(f"{where}: {error!r}")
        return done

    def point(self, scenario: Scenario, done: list[Operation], fault: str, at: int) -> State:
        """Try one fault, and what a run does next.

        Returns:
            The newest state afterwards.
        """
        possible = (scenario.before, scenario.after)
        with self.fresh(scenario) as place:
            root, recovering = root_of(place), scenario.name == "recovery"
            code = strike(scenario, place, done, fault, at)
            assert code in expected(scenario, fault, *done[at : at + 1]), f"it ended {code}"
            assert others(place) == others(scenario.start), "something else was touched"
            if fault not in DEATHS and not recovering:
                assert not list(root.glob(f"{NEW}*")), "its temporary is still there"
                assert newest(root) in possible, "neither state, before recovery"
            with Faults(root=place / "run") as watched:
                checkpoints.recover(root)
            state = newest(root)
            assert state in possible, "neither the previous state nor the new one"
            kept = state == scenario.after or code != DONE
            assert kept or recovering, "not saved"
            assert not [*root.glob(f"{NEW}*"), *root.glob(f"{OLD}*")], "recovery leaves something"
            if scenario.best is not None:
                best = checkpoints.read(root / step_name(scenario.best))
                assert best == contents(scenario.best), "the best is gone"
            checkpoints.save(root, 90, contents(90))
            assert newest(root) == (90, contents(90)), "the next save fails"
        crash = (scenario.name, state and state[0], *watched.operations)
        if fault in DEATHS and not recovering and crash not in self.crashes:
            left = self.folder / f"left-{len(self.crashes)}"
            shutil.copytree(scenario.start, left)
            strike(scenario, left, done, fault, at)
            self.crashes[crash] = Scenario(
                name="recovery",
                start=left,
                act=lambda place: checkpoints.recover(root_of(place)),
                before=scenario.before,  # a new one that cannot be read is given up
                after=state,
                best=scenario.best,
            )
        return state

    @contextmanager
    def fresh(self, scenario: Scenario) -> Iterator[Path]:
        """A copy of a scenario's start."""
        place = self.folder / f"place-{next(self.places)}"
        shutil.copytree(scenario.start, place)
        yield place
        shutil.rmtree(place)


def scenarios(folder: Path) -> Iterator[Scenario]:
    """All but those of recovery."""

    def start(name: str, *steps: int) -> Path:
        place = folder / name
        (place / "run").mkdir(parents=True)
        (place / "run" / "job.yaml").write_bytes(b"train: {}\n")
        (place / "precious").write_bytes(b"not of this run")
        for step in steps:
            checkpoints.save(root_of(place), step, contents(step))
        return place

    def state(step: int) -> State:
        return step, contents(step)

    yield Scenario(
        name="first save",
        start=start("first"),
        act=lambda place: checkpoints.save(root_of(place), 10, contents(10)),
        before=None,
        after=state(10),
    )
    yield Scenario(
        name="second save",
        start=start("second", 10),
        act=lambda place: checkpoints.save(root_of(place), 20, contents(20)),
        before=state(10),
        after=state(20),
        best=10,
    )
    yield Scenario(
        name="save with rotation",
        start=start("rotation", 10, 20, 30),
        act=save_and_rotate,
        before=state(30),
        after=state(40),
        best=10,
    )
    yield Scenario(
        name="the newest step again",
        start=start("again", 10, 20),
        act=lambda place: checkpoints.save(root_of(place), 20, contents(21)),
        before=state(20),
        after=(20, contents(21)),
        best=10,
    )


def save_and_rotate(place: Path) -> None:
    """A save, after which the newest two and the best stay."""
    checkpoints.save(root_of(place), 40, contents(40))
    checkpoints.keep_only(root_of(place), {40, 30, 10})


@cache
def contents(seed: int) -> Files:
    """The files of a checkpoint, all their own."""
    generator = np.random.default_rng(seed)

    def arrays(*names: str) -> bytes:
        values = {name: generator.normal(size=(8, 16)).astype(np.float32) for name in names}
        return array_bytes(values, made_for="pt")

    return {
        "adapter_model.safetensors": arrays("lora_A", "lora_B"),
        "optimizer.safetensors": arrays("exp_avg.lora_A", "exp_avg_sq.lora_A"),
        "progress.json": json_bytes({"loss_sum": generator.normal()}),
    }


def root_of(place: Path) -> Path:
    """The folder of checkpoints."""
    return place / "run" / "checkpoints"


def newest(root: Path) -> State:
    """What a run would go on from, nothing being damaged."""
    found = checkpoints.newest(root, dict)
    if found is None:
        return None
    step, files, damages = found
    assert damages == [], f"damaged: {damages}"
    return step, files


def strike(scenario: Scenario, place: Path, done: Sequence[Operation], fault: str, at: int) -> int:
    """Act, operation `at` going wrong, in a child where that kills; how it ended."""
    if fault in POWER:
        code = act(scenario, place, POWER_CUT, at)
        cut_power(place / "run", done[:at], names_lost=fault == NAMES_LOST)
        return code
    if fault not in KILLS:
        return act(scenario, place, fault, at)
    process = os.fork()
    if process == 0:
        os._exit(act(scenario, place, fault, at))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def act(scenario: Scenario, place: Path, fault: str, at: int) -> int:
    """What the scenario does, and how it ends: all errors but the expected ones are told."""
    try:
        with Faults(root=place / "run", at=at, fault=fault):
            scenario.act(place)
    except DiskFullError:
        return DISK_FULL
    except OSError:
        return FAILED
    except PowerCut:
        return CUT
    except Exception:
        traceback.print_exc()
        return BUG
    return DONE


def expected(scenario: Scenario, fault: str, at: Operation | None = None) -> tuple[int, ...]:
    """How a scenario may end whose operation `at` goes wrong, or that does all of them.

    Removing what need not stay may fail: that is told, and tried again.
    """
    if at is None:
        return (DONE,)
    if fault in DEATHS:
        return (CUT if fault in POWER else KILLED,)
    if fault == "short write":
        return (DONE,)
    if fault == "EIO":
        return DONE, FAILED
    if scenario.name == "recovery" or at.name == "read":  # which takes no room
        return DONE, FAILED, DISK_FULL
    return DONE, DISK_FULL


def others(place: Path) -> dict[str, bytes | None]:
    """What lies beside the run, and in it beside its checkpoints: contents by path."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None
        for path in (*place.iterdir(), *(place / "run").iterdir())
        if path != root_of(place)
    }


@dataclass
class Name:
    """A name that a folder got and that may not be on the disk yet."""

    path: str
    """Where it is now."""
    before: str | None
    """Where it was, for a rename."""


def cut_power(run: Path, done: Sequence[Operation], *, names_lost: bool) -> None:
    """Leave what a power cut after these operations may leave: the worst of it.

    The content of a file that was not synced since it was written is lost. With `names_lost`, so
    are all names given (files, folders, renames) that their folder was not synced after. What was
    removed stays removed. A journal keeps the order of names, so that losing some of the last ones
    is what a kill in between leaves.
    """
    unsynced: set[str] = set()
    names: list[Name] = []
    known = {str(path.relative_to(run)) for path in run.rglob("*")}
    known -= {operation.path for operation in done if operation.name in ("mkdir", "write")}
    for operation in done:
        path, source = operation.path, operation.source
        if operation.name == "fsync":
            unsynced.discard(path)
            names = [name for name in names if str(PurePosixPath(name.path).parent) != path]
        elif operation.name == "write":
            unsynced.add(path)
            if path not in known:
                names.append(Name(path, None))
            known.add(path)
        elif operation.name == "mkdir":
            names.append(Name(path, None))
        elif source is not None:
            unsynced = {moved(file, source, path) for file in unsynced}
            for name in names:
                name.path = moved(name.path, source, path)
            names.append(Name(path, source))
    for file in unsynced:
        if (run / file).exists():
            os.truncate(run / file, 0)
    while names_lost and names:
        name = names.pop()
        if not (run / name.path).exists():
            continue
        if name.before is not None:
            (run / name.path).rename(run / name.before)
            for earlier in names:
                earlier.path = moved(earlier.path, name.path, name.before)
        elif (run / name.path).is_dir():
            shutil.rmtree(run / name.path)
        else:
            (run / name.path).unlink()


def moved(path: str, source: str, target: str) -> str:
    """Where a path is after something that it may lie in was renamed."""
    inside = path == source or path.startswith(f"{source}/")
    return target + path.removeprefix(source) if inside else path


def main() -> None:
    """Go through all scenarios, then through the recovery from whatever they left."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # to be quicker, as is what follows
    with tempfile.TemporaryDirectory(dir=memory) as scratch, mock.patch("os.fsync"):
        matrix = Matrix(folder=Path(scratch))
        operations = {}
        for scenario in scenarios(Path(scratch)):
            operations[scenario.name] = matrix.run(scenario)
        crashes = list(matrix.crashes.values())
        for crash in crashes:
            matrix.run(crash)
    json.dump(
        {
            "points": matrix.points,
            "crashes": len(crashes),
            "failures": matrix.failures,
            "operations": {
                name: [(each.name, each.path, each.source) for each in done]
                for name, done in operations.items()
            },
            "modules": sorted({module.split(".")[0] for module in sys.modules}),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
