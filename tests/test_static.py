"""What no file of this project may do: run what a file holds, hand words to a shell, guess a text's
encoding. Checked on the syntax of every file, so comments and strings are free to speak of it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("qwen_local", "tests", "benchmarks", "scripts")
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BANNED = {
    "builtins.eval",
    "builtins.exec",
    "os.popen",
    "os.system",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.load",
    "torch.serialization.load",
    "yaml.full_load",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
}
"""By their full names, whatever they are imported as."""
UNPACKERS = {"extractall", "unpack_archive"}
"""Of whatever object: an archive's names can lead out of the folder that it is unpacked to."""
FALSE_ONLY = {"allow_pickle", "shell", "trust_remote_code"}
"""Arguments and keys that may be False and nothing else."""


def findings(source: str) -> list[str]:
    """`line: what` for everything in a file's source that may not be there, in order."""
    return [f"{line}: {what}" for line, what in sorted(_Search(ast.parse(source)).found)]


class _Search:
    """Walks a syntax tree, knowing which names are imported and which are a function's own."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: set[tuple[int, str]] = set()
        self._imported: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._note_import(node)
        self._visit(tree, _defined(tree))

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            name = module + alias.name
            first = name.split(".")[0]
            if first in PICKLERS:
                self.found.add((node.lineno, first))
            if name in BANNED or alias.name in UNPACKERS:
                self.found.add((node.lineno, name))
            plain = first if not module and alias.asname is None else name
            self._imported[alias.asname or plain.split(".")[-1]] = plain

    def _visit(self, node: ast.AST, own: frozenset[str]) -> None:
        """Look at a node and all below it, where `own` names hide the builtins."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            own |= _bound(node)
        for what in self._wrong(node, own):
            self.found.add((getattr(node, "lineno", 0), what))
        for child in ast.iter_child_nodes(node):
            self._visit(child, own)

    def _wrong(self, node: ast.AST, own: frozenset[str]) -> Iterator[str]:
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = self._full_name(node, own)
            if name in BANNED:
                yield name
            if isinstance(node, ast.Attribute) and node.attr in UNPACKERS:
                yield node.attr
        elif isinstance(node, ast.keyword) and node.arg in FALSE_ONLY:
            if not _is_false(node.value):
                yield node.arg
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                said = key.value if isinstance(key, ast.Constant) else None
                if said in FALSE_ONLY and not _is_false(value):
                    yield str(said)
        elif isinstance(node, ast.Call):
            yield from self._wrong_call(node, own)

    def _wrong_call(self, node: ast.Call, own: frozenset[str]) -> Iterator[str]:
        name = self._full_name(node.func, own)
        first = node.args[0] if node.args else None
        if name in ("builtins.__import__", "importlib.import_module"):
            if isinstance(first, ast.Constant) and str(first.value).split(".")[0] in PICKLERS:
                yield str(first.value)
        elif name in ("builtins.open", "io.open", "os.fdopen"):
            if _guesses_encoding(node, mode_at=1):
                yield "open without encoding"
        elif self._is_path_open(node.func) and _guesses_encoding(node, mode_at=0):
            yield "open without encoding"

    def _is_path_open(self, function: ast.expr) -> bool:
        """`path.open`, unlike the `open` of a module or a class: `os.open`, `Screen.open`."""
        if not isinstance(function, ast.Attribute) or function.attr != "open":
            return False
        of = function.value
        return not isinstance(of, ast.Name) or not (of.id in self._imported or of.id[0].isupper())

    def _full_name(self, node: ast.AST, own: frozenset[str]) -> str | None:
        """`torch.load` of `t.load` after `import torch as t`; None of what is nobody's name."""
        if isinstance(node, ast.Attribute):
            before = self._full_name(node.value, own)
            return before and f"{before}.{node.attr}"
        if not isinstance(node, ast.Name):
            return None
        if node.id in self._imported:
            return self._imported[node.id]
        return None if node.id in own else f"builtins.{node.id}"


def _bound(scope: ast.AST) -> frozenset[str]:
    """Names that a function gives a meaning of its own, those of functions within it included."""
    nodes = list(ast.walk(scope))
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    stored = {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return frozenset(arguments | stored)


def _defined(module: ast.Module) -> frozenset[str]:
    """Functions and classes of a module's top level."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return frozenset(node.name for node in module.body if isinstance(node, kinds))


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _guesses_encoding(node: ast.Call, *, mode_at: int) -> bool:
    """Whether a call of `open` is of text in whatever encoding the machine has."""
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    mode = given.get("mode", node.args[mode_at] if len(node.args) > mode_at else None)
    binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
    return not (binary or "encoding" in given or len(node.args) > mode_at + 2)


FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.slow
def test_no_file_does_what_none_may() -> None:
    assert len(FILES) > 100
    found = [
        f"{path.relative_to(ROOT)}:{finding}"
        for path in FILES
        for finding in findings(path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("snippet", "found"),
    [
        ("import pickle", "pickle"),
        ("import pickle as p", "pickle"),
        ("import json, cPickle", "cPickle"),
        ("from pickle import loads", "pickle"),
        ("def f():\n    import dill", "dill"),
        ("import joblib.numpy_pickle", "joblib"),
        ("from joblib.externals import cloudpickle", "joblib"),
        ("import cloudpickle", "cloudpickle"),
        ("import shelve", "shelve"),
        ("from marshal import dumps", "marshal"),
        ("__import__('pickle')", "pickle"),
        ("import importlib\nimportlib.import_module('dill.source')", "dill.source"),
        ("from importlib import import_module as im\nim('marshal')", "marshal"),
        ("import torch\ntorch.load(p)", "torch.load"),
        ("import torch\ntorch.load(p, weights_only=True)", "torch.load"),
        ("import torch as t\nread = t.load", "torch.load"),
        ("from torch import load as read", "torch.load"),
        ("import torch.nn\ntorch.load(p)", "torch.load"),
        ("import torch.serialization\ntorch.serialization.load(p)", "torch.serialization.load"),
        ("eval('1')", "builtins.eval"),
        ("values = map(eval, lines)", "builtins.eval"),
        ("import builtins\nbuiltins.exec(code)", "builtins.exec"),
        ("def f(x):\n    exec(x)", "builtins.exec"),
        ("class A:\n    def eval(self):\n        return eval('1')", "builtins.eval"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell"),
        ("run('ls', shell=wanted)", "shell"),
        ("options = {'shell': True}", "shell"),
        ("import os\nos.system('ls')", "os.system"),
        ("from os import popen", "os.popen"),
        ("import subprocess\nsubprocess.getoutput('ls')", "subprocess.getoutput"),
        ("import yaml\nyaml.load(text)", "yaml.load"),
        ("import yaml\nyaml.load(text, Loader=yaml.SafeLoader)", "yaml.load"),
        ("from yaml import unsafe_load", "yaml.unsafe_load"),
        ("load(name, trust_remote_code=True)", "trust_remote_code"),
        ("load(name, trust_remote_code=args.trust)", "trust_remote_code"),
        ("options = {'trust_remote_code': True}", "trust_remote_code"),
        ("archive.extractall(folder)", "extractall"),
        ("import shutil\nshutil.unpack_archive(p)", "unpack_archive"),
        ("from shutil import unpack_archive", "shutil.unpack_archive"),
        ("import numpy as np\nnp.load(p, allow_pickle=True)", "allow_pickle"),
        ("open(p)", "open without encoding"),
        ("open(p, 'w')", "open without encoding"),
        ("open(p, mode='a', newline='')", "open without encoding"),
        ("import io\nio.open(p)", "open without encoding"),
        ("import os\nos.fdopen(fd, 'w')", "open without encoding"),
        ("path.open()", "open without encoding"),
        ("(folder / 'a').open('w')", "open without encoding"),
        ("from pathlib import Path\nPath('a').open('x')", "open without encoding"),
    ],
)
def test_it_is_found_whatever_it_looks_like(snippet: str, found: str) -> None:
    assert [finding.split(": ")[1] for finding in findings(snippet)] == [found]


@pytest.mark.parametrize(
    "snippet",
    [
        "'import pickle; eval(1)  # shell=True'",
        "import mlx.core as mx\nmx.eval(loss)",
        "from mlx.core import eval\neval(loss)",
        "model.eval()",
        "def prepare(eval):\n    return eval(1)",
        "def f(rows):\n    eval = rows.score\n    return eval()",
        "def eval(rows):\n    pass\n\n\neval(rows)",
        "prepare(eval=None)",
        "class Prepared:\n    eval: int | None = None",
        "prepared.eval = None",
        "import re\nre.compile('x')",
        "from safetensors.torch import load\nload(content)",
        "import mlx.core as mx\nmx.load(path)",
        "from ruamel.yaml import YAML\nyaml = YAML(typ='safe', pure=True)\nyaml.load(text)",
        "import json\njson.load(file)",
        "import numpy as np\nnp.load(p, allow_pickle=False)",
        "load(name, trust_remote_code=False)",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "system('ls')",
        "open(p, 'rb')",
        "open(p, encoding='utf-8')",
        "open(p, 'w', -1, 'utf-8')",
        "path.open('wb')",
        "path.open('x', encoding='utf-8')",
        "path.open('r', -1, 'utf-8')",
        "import os\nos.open(p, os.O_RDONLY)",
        "screen = Screen.open()",
    ],
)
def test_what_only_looks_like_it_is_not(snippet: str) -> None:
    assert findings(snippet) == []


def test_each_finding_has_its_line() -> None:
    assert findings("import os\n\nos.system('ls')\neval('1')") == [
        "3: os.system",
        "4: builtins.eval",
    ]


FAMILY_CHECK = re.compile(r"""model_type\W*(==|!=|\bin\b|\bnot in\b)\s*[("']""")
"""A comparison of a model's family with a name: such facts belong into `models/families/`."""


def test_only_families_and_engines_know_a_family_by_name() -> None:
    own = (ROOT / "qwen_local/models/families", ROOT / "qwen_local/backends")
    files = [p for p in (ROOT / "qwen_local").rglob("*.py") if not p.is_relative_to(own[0])]
    found = [
        str(path.relative_to(ROOT))
        for path in files
        if not path.is_relative_to(own[1]) and FAMILY_CHECK.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        'if shape.model_type == "qwen3":',
        'if config["model_type"] != "qwen2"',
        "model_type in ('a',)",
    ],
)
def test_a_check_of_a_family_by_name_is_found(line: str) -> None:
    assert FAMILY_CHECK.search(line)
