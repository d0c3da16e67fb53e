"""Read the job file, `key=value` texts and flags into settings, each with its place in messages.

This module knows the syntax and which keys exist; `job/schema.py` checks the values. YAML 1.2 is
only composed into nodes, never constructed, so a tag cannot create an object: a value is text, a
number, true, false, null, or a list or mapping of these.
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
"""Keys of every section, in order; a top-level key has none: `{"output": ()}`."""


class Order(NamedTuple):
    """Sort key of a fault: the file first, then `set`, then flags, each in input order."""

    source: int
    position: int


FILE, SETS, FLAGS = range(3)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value, as the user wrote it."""

    value: object
    where: str
    """`job.yaml:3: train.learning_rate`, `set train.learning_rate=fast`, `learning_rate`."""
    order: Order


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings of one source by dotted key, and its syntax faults."""

    settings: dict[str, Setting] = field(default_factory=dict)
    faults: list[tuple[Order, Fault]] = field(default_factory=list)

    def fault(self, order: Order, where: str, problem: str, hint: str | None) -> None:
        """Add a fault."""
        self.faults.append((order, Fault(where, problem, hint)))


@dataclass(frozen=True, slots=True)
class Nested:
    """Placeholder for a value that no key accepts; error messages show its kind."""

    kind: str


A_MAPPING, LISTS = Nested("a mapping"), Nested("a list of lists")
CORE = "tag:yaml.org,2002:"
"""Expansion of YAML's `!!`."""


def show(value: object) -> str:
    """Format a value for an error message.

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
    """Read the settings of a job file; an empty file or section sets nothing."""
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
    """Read the settings of `key=value` texts; if a key is set twice, the last one wins."""
    layer = Layer()
    for position, text in enumerate(sets):
        order, where = Order(SETS, position), f"set {text}"
        key, equals, value = text.partition("=")
        section, _, name = key.rpartition(".")
        if not equals:
            layer.fault(order, where, "expected KEY=VALUE", "for example `set=train.epochs=3`")
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
    """Convert values by flag (`epochs`) to settings; None means not given."""
    given = [(flag, value) for flag, value in flags.items() if value is not None]
    return Layer(
        {
            keys[flag]: Setting(value, flag, Order(FLAGS, position))
            for position, (flag, value) in enumerate(given)
        }
    )


# ------------------------------------------------------------------------------ keys


def _dotted(schema: Schema) -> list[str]:
    """Return every dotted key: `train.epochs`, ..., `output`."""
    return [f"{top}.{key}" if key else top for top, keys in schema.items() for key in keys or ("",)]


def _nearest(section: str, key: str, schema: Schema) -> str | None:
    """Return the most likely dotted key: the same name in another section, or a similar name."""
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
    return f"{name} belongs under {home}" if home else f"{name} is a top-level key"


def _takes(section: str, schema: Schema) -> str:
    """List the valid keys, for an unknown key that resembles none of them."""
    keys = schema.get(section)
    return f"keys of {section}: {_join(keys)}" if keys else f"top-level keys: {_join(schema)}"


def _join(words: Iterable[str]) -> str:
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last


# ------------------------------------------------------------------------------ YAML


class _NotYaml(Exception):
    """Raised if the text is not valid YAML. Line and column count from 1."""

    def __init__(self, problem: str, line: int, column: int, hint: str) -> None:
        super().__init__(problem, line, column, hint)
        self.problem, self.line, self.column, self.hint = problem, line, column, hint


def _yaml() -> YAML:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True)  # the C parser implements YAML 1.1, where 1e-4 is text


def _compose(text: str) -> Node | None:
    """Parse a single YAML document into nodes; None if it is empty."""
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        node: Node | None = _yaml().compose(text)
    except MarkedYAMLError as error:
        mark, context = error.problem_mark, error.context or "while"
        assert mark is not None  # scanner, parser and composer always set the position
        problem = error.problem if context.startswith("while") else f"{context}, {error.problem}"
        tab = "'\\t'" in str(problem)
        hint = (
            "indent with spaces, not tabs" if tab else "quote text with special characters: '...'"
        )
        raise _NotYaml(str(problem), mark.line + 1, mark.column + 1, hint) from None
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        problem = f"the character U+{ord(text[error.position]):04X} is not allowed"
        raise _NotYaml(problem, line, column, "remove it") from None
    except (OverflowError, ValueError):  # an escape such as "\\UFFFFFFFF"
        raise _NotYaml("invalid escape sequence", 1, 1, "write the character itself") from None
    except RecursionError:
        raise _NotYaml("nested too deeply", 1, 1, "a job has two levels: section, key") from None
    return node


def _leaves(
    root: Node, path: Path, schema: Schema, layer: Layer
) -> Iterator[tuple[str, str, int, Node]]:
    """Yield (section or "", key, line, value) for every key; anything else becomes a fault."""
    for top, line, node in _entries(root, "", path, schema, layer):
        if schema.get(top):
            for key, at, value in _entries(node, top, path, schema, layer):
                yield top, key, at, value
        else:
            yield "", top, line, node


def _entries(
    node: Node, section: str, path: Path, schema: Schema, layer: Layer
) -> Iterator[tuple[str, int, Node]]:
    """Yield (key, line, value) for each entry of a mapping; null counts as an empty mapping."""
    value = _value(node)
    if value is None:
        return
    if value != A_MAPPING:
        line = node.start_mark.line + 1
        where = f"{path}:{line}: {section}" if section else f"{path}:{line}"
        keys = schema[section] if section else list(schema)
        problem = f"expected a mapping; found {show(value)}"
        hint = f"write `key: value` lines with {_join(keys)}"
        if section and isinstance(value, str):
            hint = f"for example `{section}: {{{keys[0]}: {value}}}`; {section} takes {_join(keys)}"
        layer.fault(Order(FILE, line), where, problem, hint)
        return
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        line, name = key_node.start_mark.line + 1, _value(key_node)
        key = name if isinstance(name, str) else show(name)
        if key in first:
            where = f"{path}:{line}: {section}.{key}" if section else f"{path}:{line}: {key}"
            problem = f"duplicate key; first on line {first[key]}"
            layer.fault(Order(FILE, line), where, problem, "remove one of them")
        else:
            first[key] = line
            yield key, line, value_node


MAX_DEPTH = 4
"""Maximum nesting of a value. A list of mappings that contain mappings needs three levels."""


def _value_or_mapping(node: Node, depth: int = MAX_DEPTH) -> object:
    """Convert a node to a value, including mappings and lists of mappings.

    The depth is limited because aliases can form a cycle.
    """
    from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

    value = _value(node)
    if depth == 0:
        return value
    if isinstance(value, Nested) and isinstance(node, SequenceNode):
        if any(isinstance(item, SequenceNode) for item in node.value) or value != LISTS:
            return value
        return [_value_or_mapping(item, depth - 1) for item in node.value]
    if value != A_MAPPING:
        return value
    assert isinstance(node, MappingNode)
    if not all(isinstance(key, ScalarNode) for key, _ in node.value):
        return Nested("a mapping with a key that is not text")
    entries = {str(key.value): _value_or_mapping(item, depth - 1) for key, item in node.value}
    if len(entries) < len(node.value):
        return Nested("a mapping with a duplicate key")
    return entries


def _value(node: Node) -> object:
    """Convert a scalar or a flat list; aliases can form a cycle, so nested lists stay closed."""
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
        pass  # `_`, or more digits than Python's limit: treat it as text
    return str(node.value)  # dates are text: YAML 1.2 has no date type
