"""From what the user wrote (a YAML file, `--set`, flags) to settings that know where they stand.

Only the syntax is known here, and which keys exist; what a value may be is said in `job/schema.py`.
YAML 1.2 is composed into nodes and no further, so no tag can construct anything: a value is text, a
number, true, false, null, or a list or a mapping of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from qwen_local.errors import Fault

if TYPE_CHECKING:
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import Node

Schema: TypeAlias = Mapping[str, tuple[str, ...]]
"""The keys of every section, in order; a key in no section has none: `{"output": ()}`."""


class Order(NamedTuple):
    """Where a fault is listed: the file first, then `--set`, then the flags, each in its order."""

    source: int
    position: int


FILE, SETS, FLAGS = range(3)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value as the user wrote it."""

    value: object
    where: str
    """`job.yaml:3: train.learning_rate`, `--set train.learning_rate=fast`, `--learning-rate`."""
    order: Order


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source sets, by dotted key, and what is wrong with how it says so."""

    settings: dict[str, Setting] = field(default_factory=dict)
    faults: list[tuple[Order, Fault]] = field(default_factory=list)

    def fault(self, order: Order, where: str, problem: str, hint: str | None) -> None:
        """Note one more thing to mend."""
        self.faults.append((order, Fault(where, problem, hint)))


@dataclass(frozen=True, slots=True)
class Nested:
    """A value that no key takes, kept only to be named in a message."""

    kind: str


A_MAPPING, LISTS = Nested("a mapping"), Nested("a list of lists")
CORE = "tag:yaml.org,2002:"
"""How YAML spells `!!` in full."""


def show(value: object) -> str:
    """A value as a message shows it.

    >>> show(True), show(None), show("fast"), show(8.0), show([1, 2])
    ('true', 'null', "'fast'", '8.0', 'a list')
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
        case Nested(kind):
            return kind
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def file_layer(path: Path, schema: Schema) -> Layer:
    """The settings of a job file. An empty file, or an empty section, sets nothing."""
    layer, top = Layer(), Order(FILE, 0)
    try:
        root = _compose(path.read_bytes().decode())
    except OSError as error:
        problem = f"cannot be read: {(error.strerror or str(error)).lower()}"
        layer.fault(top, str(path), problem, "give the path of a job file")
    except UnicodeDecodeError as error:
        problem = f"expected UTF-8; found byte 0x{error.object[error.start]:02x} at {error.start}"
        layer.fault(top, str(path), problem, "save the file as UTF-8")
    except _NotYaml as error:
        where = f"{path}:{error.line}:{error.column}"
        layer.fault(top, where, f"not valid YAML: {error.problem}", error.hint)
    else:
        for section, key, line, node in _leaves(root, path, schema, layer) if root else ():
            dotted = f"{section}.{key}" if section else key
            order, where = Order(FILE, line), f"{path}:{line}: {dotted}"
            if key in (schema[section] if section else schema):
                layer.settings[dotted] = Setting(_value_or_mapping(node), where, order)
            else:
                layer.fault(order, where, "unknown key", _hint_in_file(section, key, schema))
    return layer


def set_layer(sets: Sequence[str], schema: Schema) -> Layer:
    """The settings of `--set key=value`; the last one wins where a key is set twice."""
    layer = Layer()
    for position, text in enumerate(sets):
        order, where = Order(SETS, position), f"--set {text}"
        key, equals, value = text.partition("=")
        section, _, name = key.rpartition(".")
        if not equals:
            layer.fault(order, where, "expected KEY=VALUE", "for example --set train.epochs=3")
        elif schema.get(key):
            hint = f"set one of its keys: {_join(schema[key])}"
            layer.fault(order, where, f"{key} is a section", hint)
        elif key not in _dotted(schema):
            near = _nearest(section, name, schema)
            hint = f"did you mean {near}?" if near else _takes(section, schema)
            layer.fault(order, where, "unknown key", hint)
        else:
            try:
                node = _compose(value)
            except _NotYaml as error:
                layer.fault(order, where, f"not valid YAML: {error.problem}", error.hint)
            else:
                found = None if node is None else _value_or_mapping(node)
                layer.settings[key] = Setting(found, where, order)
    return layer


def flag_layer(flags: Mapping[str, object], keys: Mapping[str, str]) -> Layer:
    """The settings of flags, by flag (`--epochs`); None is a flag that was not given."""
    given = [(flag, value) for flag, value in flags.items() if value is not None]
    return Layer(
        {
            keys[flag]: Setting(value, flag, Order(FLAGS, position))
            for position, (flag, value) in enumerate(given)
        }
    )


# ------------------------------------------------------------------------------ keys


def _dotted(schema: Schema) -> list[str]:
    """Every key in full: `train.epochs`, ..., `output`."""
    return [f"{top}.{key}" if key else top for top, keys in schema.items() for key in keys or ("",)]


def _nearest(section: str, key: str, schema: Schema) -> str | None:
    """The key that was probably meant, in full: the same name elsewhere, else a similar one."""
    key = key.rpartition(".")[2].replace("-", "_").lower()
    homes = {full.rpartition(".")[2]: full for full in reversed(_dotted(schema))}
    if key in homes:
        return homes[key]
    siblings = {name: f"{section}.{name}" for name in schema.get(section, ())}
    for names in (siblings or {top: top for top in schema}, homes):
        if near := difflib.get_close_matches(key, names, n=1):
            return names[near[0]]
    return None


def _hint_in_file(section: str, key: str, schema: Schema) -> str:
    near = _nearest(section, key, schema)
    if near is None:
        return _takes(section, schema)
    home, _, name = near.rpartition(".")
    if home == section:
        return f"did you mean {name}?"
    return f"{name} belongs under {home}" if home else f"{name} belongs at the top, in no section"


def _takes(section: str, schema: Schema) -> str:
    """What could stand in the place of a key that is like none."""
    inside = schema.get(section)
    return f"{section} takes {_join(inside)}" if inside else f"a job takes {_join(schema)}"


def _join(words: Iterable[str]) -> str:
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last


# ------------------------------------------------------------------------------ YAML


class _NotYaml(Exception):
    """The text is no YAML document. Line and column count from 1."""

    def __init__(self, problem: str, line: int, column: int, hint: str) -> None:
        super().__init__(problem, line, column, hint)
        self.problem, self.line, self.column, self.hint = problem, line, column, hint


def _yaml() -> YAML:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True)  # the C parser knows YAML 1.1 only, where 1e-4 is text


def _compose(text: str) -> Node | None:
    """The one document of a text as nodes, or None where there is nothing in it."""
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        node: Node | None = _yaml().compose(text)
    except MarkedYAMLError as error:
        mark, context = error.problem_mark, error.context or "while"
        assert mark is not None  # the scanner, the parser and the composer always say where
        problem = error.problem if context.startswith("while") else f"{context}, {error.problem}"
        tab = "'\\t'" in str(problem)
        hint = "indent with spaces, not with tabs" if tab else "put text with special signs in ''"
        raise _NotYaml(str(problem), mark.line + 1, mark.column + 1, hint) from None
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        problem = f"the character U+{ord(text[error.position]):04X} is not allowed"
        raise _NotYaml(problem, line, column, "remove it") from None
    except (OverflowError, ValueError):  # an escape such as "\\UFFFFFFFF"
        raise _NotYaml("an escape names no character", 1, 1, "write the character itself") from None
    except RecursionError:
        raise _NotYaml("nested too deeply", 1, 1, "a job has two levels: section, key") from None
    return node


def _leaves(
    root: Node, path: Path, schema: Schema, layer: Layer
) -> Iterator[tuple[str, str, int, Node]]:
    """(section or "", key, line, value) of all in a job; what cannot be one becomes a fault."""
    for top, line, node in _entries(root, "", path, schema, layer):
        if schema.get(top):
            for key, at, value in _entries(node, top, path, schema, layer):
                yield top, key, at, value
        else:
            yield "", top, line, node


def _entries(
    node: Node, section: str, path: Path, schema: Schema, layer: Layer
) -> Iterator[tuple[str, int, Node]]:
    """(key, line, value) of a mapping. Nothing at all is a mapping too: an empty one."""
    value = _value(node)
    if value is None:
        return
    if value != A_MAPPING:
        line = node.start_mark.line + 1
        where = f"{path}:{line}: {section}" if section else f"{path}:{line}"
        keys = _join(schema[section] if section else schema)
        problem = f"expected a mapping; found {show(value)}"
        layer.fault(Order(FILE, line), where, problem, f"write `key: value` lines with {keys}")
        return
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        line, name = key_node.start_mark.line + 1, _value(key_node)
        key = name if isinstance(name, str) else show(name)
        if key in first:
            where = f"{path}:{line}: {section}.{key}" if section else f"{path}:{line}: {key}"
            problem = f"given twice; first on line {first[key]}"
            layer.fault(Order(FILE, line), where, problem, "keep one of the two")
        else:
            first[key] = line
            yield key, line, value_node


DEEPEST = 4
"""Levels of a value: a list of mappings, one of which holds a mapping."""


def _value_or_mapping(node: Node, deepest: int = DEEPEST) -> object:
    """The value of a key, lists of mappings and mappings included, in which each key stands once.

    Aliases can make a cycle, so there is an end to how deep it goes.
    """
    from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

    value = _value(node)
    if deepest == 0:
        return value
    if isinstance(value, Nested) and isinstance(node, SequenceNode):
        if any(isinstance(item, SequenceNode) for item in node.value) or value != LISTS:
            return value
        return [_value_or_mapping(item, deepest - 1) for item in node.value]
    if value != A_MAPPING:
        return value
    assert isinstance(node, MappingNode)
    if not all(isinstance(key, ScalarNode) for key, _ in node.value):
        return Nested("a mapping with a key that is no text")
    entries = {str(key.value): _value_or_mapping(item, deepest - 1) for key, item in node.value}
    if len(entries) < len(node.value):
        return Nested("a mapping with a key given twice")
    return entries


def _value(node: Node) -> object:
    """The value of a node. Aliases can make a cycle of lists, so only flat ones are entered."""
    from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

    yaml = _yaml()
    plain = isinstance(node, ScalarNode) and node.style is None
    if node.tag != yaml.resolver.resolve(type(node), node.value, (plain, not plain)):
        return Nested(f"a value with the tag {str(node.tag).replace(CORE, '!!')}")
    if isinstance(node, MappingNode):
        return A_MAPPING
    if isinstance(node, SequenceNode):
        flat = all(isinstance(item, ScalarNode) for item in node.value)
        return [_value(item) for item in node.value] if flat else LISTS
    try:
        match str(node.tag).removeprefix(CORE):
            case "null":
                return None
            case "bool":
                return bool(yaml.constructor.construct_yaml_bool(node))
            case "int":
                return int(yaml.constructor.construct_yaml_int(node))
            case "float":
                return float(yaml.constructor.construct_yaml_float(node))
    except ValueError:
        pass  # `_`, or more digits than Python converts: no number after all
    return str(node.value)  # dates too are text, as YAML 1.2 has none
