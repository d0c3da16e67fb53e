"""The shape of the package: which way imports point, how wide functions are, which words are used.

`python -m scripts.structure` prints the figures behind these tests. Each exception has its reason;
one that is no longer needed fails its test, so the lists only get shorter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.call_graph import CallGraph
from scripts.glossary import count_words, words_of
from scripts.source_tree import PACKAGE, Module, read_package
from scripts.structure import (
    FLOOR,
    engine_comparisons,
    measure,
    module_figures,
    path_figures,
    room_of,
    table,
)

ROOT = Path(__file__).parents[1]

COMMAND = "a click command has a parameter for each option"
WIDE = {
    "train qwen_local/cli/train.py": COMMAND,
    "export qwen_local/cli/export.py": COMMAND,
    "AdaptedLinear.forward qwen_local/backends/cuda/fused.py": (
        "torch.autograd.Function takes every tensor by itself"
    ),
    "plan qwen_local/cli/plan.py": COMMAND,
    "_preset qwen_local/job/presets.py": "a row of the table of presets",
}
"""Functions with more than 7 parameters -> why."""
ABOUT_LAYOUTS = {
    "qwen_local/cards/card.py": "a card describes files: their layout, and the library for each",
    "qwen_local/cli/export.py": "--to mlx is a layout",
    "qwen_local/export/export.py": "--to mlx is a layout",
}
"""Files outside backends/ that compare with the name of a layout, and not of an engine -> why."""


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return read_package(ROOT)


@pytest.fixture(scope="module")
def found(modules: dict[str, Module]) -> dict[str, Any]:
    return module_figures(modules)


def test_no_module_imports_itself_through_others(found: dict[str, Any]) -> None:
    assert found["module_circles"] == []


def test_no_room_imports_itself_through_others(found: dict[str, Any]) -> None:
    assert found["room_circles"] == [], found["imports_in_room_circles"]


def test_no_import_points_to_a_higher_floor(found: dict[str, Any]) -> None:
    assert found["upward_imports"] == []


def test_shared_code_does_not_ask_which_engine_it_runs_on(found: dict[str, Any]) -> None:
    asking = {one.partition(":")[0] for one in found["engine_comparisons"]}
    assert asking == set(ABOUT_LAYOUTS), found["engine_comparisons"]


def test_every_room_has_a_floor() -> None:
    names = {path.relative_to(ROOT).with_suffix("") for path in ROOT.glob(f"{PACKAGE}/**/*.py")}
    rooms = {room_of(".".join(name.parts)) for name in names} - {"tools", "__init__"}
    assert rooms <= set(FLOOR)


def test_no_function_has_more_than_seven_parameters(found: dict[str, Any]) -> None:
    wide = {
        f"{one['name']} {one['where'].partition(':')[0]}"
        for one in found["functions_over_7_parameters"]
    }
    assert wide == set(WIDE)


def test_no_word_that_the_house_style_replaces_comes_back() -> None:
    assert {word: files for word, files in count_words(ROOT).items() if files} == {}


@pytest.mark.slow
def test_the_adapter_is_written_on_the_path_that_is_measured(modules: dict[str, Module]) -> None:
    path = path_figures(modules)
    assert path["shortest"][0] == f"{PACKAGE}.cli.train"
    assert path["shortest"][-1] == f"{PACKAGE}.adapters.peft_layout"
    assert set(path["shortest"]) <= set(path["spine"]) <= set(path["beside"])
    assert set(path["beside"]) <= set(path["reached"])
    assert len(path["reached"]) <= path["import_closure"]


# --- the README's tree ---


def tree_of_the_readme() -> Iterator[str]:
    """Yield the paths of the fenced block under "## The tree"."""
    page = (ROOT / "README.md").read_text("utf-8")
    [block] = re.findall(r"^## The tree\n.*?^```text\n(.*?)^```", page, re.M | re.S)
    assert len(block.splitlines()) <= 40
    folders: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip(" "))) // 2
        name = line.split()[0]
        del folders[depth:]
        yield "".join([*folders, name])
        folders.append(name)


def test_every_path_of_the_tree_exists() -> None:
    for path in tree_of_the_readme():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_every_room_and_every_folder_is_in_the_tree() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").split()}
    named = set(tree_of_the_readme())
    for parent, prefix in ((ROOT, ""), (ROOT / PACKAGE, f"{PACKAGE}/")):
        folders = {
            f"{prefix}{path.name}/"
            for path in parent.iterdir()
            if path.is_dir() and path.name[0] not in "._" and path.name not in ignored
            if not path.match("*.egg-info") and any(path.rglob("*.*"))
        }
        assert folders <= named, folders - named


# --- the program itself, on a small package ---


def package(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / PACKAGE / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in {path.parent for path in (root / PACKAGE).rglob("*.py")} | {root / PACKAGE}:
        (folder / "__init__.py").touch()
    return root


TRAIN = """
from qwen_local.training.run import run
def train(): run()
"""
RUN = """
from qwen_local.adapters.store import Writer
from qwen_local.job import read
def run() -> None:
    job = read()
    writer = Writer(job)
    writer.write()
def by_hand(a, b, c, d, e, f, g, *, h):
    return a == "mlx" or b in ("cuda", "cpu")
"""
STORE = """
from qwen_local.adapters.peft import write_peft as put
class Writer:
    def __init__(self, job): self.job = job
    def write(self):
        put(self.job)
    def never(self):
        import qwen_local.training.run
"""


def test_a_small_package_is_measured_as_it_is(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        cli__train=TRAIN,
        training__run=RUN,
        adapters__store=STORE,
        adapters__peft="def write_peft(job): pass\n",
        job="def read(): return 1  # not told\n",
        models__unused="from qwen_local import files\n",
        files="",
    )
    measured = measure(root)
    path = {key: value for key, value in measured["path"].items() if key != "entry"}
    spine = ["adapters.peft", "adapters.store", "cli.train", "training.run"]
    assert path == {
        "import_closure": 5,
        "reached": [f"{PACKAGE}.{name}" for name in sorted([*spine, "job"])],
        "spine": [f"{PACKAGE}.{name}" for name in spine],
        "beside": [f"{PACKAGE}.{name}" for name in sorted([*spine, "job"])],
        "shortest": [
            f"{PACKAGE}.{name}"
            for name in ("cli.train", "training.run", "adapters.store", "adapters.peft")
        ],
        "shortest_calls": [
            f"{PACKAGE}.cli.train.train",
            f"{PACKAGE}.training.run.run",
            f"{PACKAGE}.adapters.store.Writer.write",
            f"{PACKAGE}.adapters.peft.write_peft",
        ],
    }
    assert measured["module_circles"] == [[f"{PACKAGE}.adapters.store", f"{PACKAGE}.training.run"]]
    assert measured["room_circles"] == [["adapters", "training"]]
    assert measured["upward_imports"] == [
        f"{PACKAGE}.adapters.store -> {PACKAGE}.training.run (lazy)"
    ]
    assert measured["engine_comparisons"] == [
        "qwen_local/training/run.py:9: a == 'mlx'",
        "qwen_local/training/run.py:9: b in ('cuda', 'cpu')",
    ]
    assert [one["parameters"] for one in measured["functions_over_7_parameters"]] == [8]
    assert measured["words"] == {"tell": {"qwen_local/job.py": 1}}
    assert "modules on the spine (job file -> adapter files)   4" in list(table(measured))


def test_a_method_of_a_protocol_leads_to_the_classes_that_are_constructed(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        base="from typing import Protocol\nclass Engine(Protocol):\n    def step(self): ...\n",
        one="class One:\n    def step(self): return inner()\ndef inner(): pass\n",
        two="class Two:\n    def step(self): pass\n",
        main=(
            "from qwen_local.base import Engine\n"
            "def start():\n"
            "    from qwen_local.one import One\n"
            "    use(One())\n"
            "def use(engine: Engine) -> None: engine.step()\n"
        ),
    )
    edges = CallGraph(read_package(root)).edges_from((f"{PACKAGE}.main", "start"))
    assert {f"{module.partition('.')[2]}.{name}" for module, name in edges} == {
        *("main.start", "main.use", "base.Engine.step", "one.One", "one.One.step", "one.inner")
    }


def test_a_match_on_an_engine_is_a_comparison(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        a="def f(x):\n    match x:\n        case 'mlx' | None:\n            pass\n",
        backends__b="def f(x): return x == 'mlx'\n",
    )
    assert engine_comparisons(read_package(root)) == ["qwen_local/a.py:3: case 'mlx'"]


@pytest.mark.parametrize(
    "snippet",
    [
        'if engine == "mlx": pass',
        'x = choice.backend != "cuda" and gpu',
        'if name in ("mlx", "other"): pass',
        'match engine:\n    case "cuda" | None: pass',
    ],
)
def test_a_comparison_is_found_whatever_it_looks_like(snippet: str, tmp_path: Path) -> None:
    assert engine_comparisons(read_package(package(tmp_path, a=snippet)))


@pytest.mark.parametrize("snippet", ['x = {"mlx": 1}["mlx"]', 'open("mlx")', 'device == "gpu"'])
def test_what_only_looks_like_a_comparison_is_none(snippet: str, tmp_path: Path) -> None:
    assert engine_comparisons(read_package(package(tmp_path, a=snippet))) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("is_told, ToldOnce, retell, stole", {"tell": 2}),
        ("it goes on with it, gone on; go once", {"go on with": 2}),
        ("What colour is the sky?", {}),
        ("the colour; optimiser, optimistic", {"colour": 1, "optimis": 1}),
        ("supervised tokens, to supervise", {"supervise (a process)": 1}),
        ("Quantised, dequantisation", {"quantis": 2}),
    ],
)
def test_words_are_found_in_prose_and_in_names(text: str, words: dict[str, int]) -> None:
    assert {word: times for word, times in words_of(text).items() if times} == words
