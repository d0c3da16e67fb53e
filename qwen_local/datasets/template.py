"""Chat templates: programs in Jinja that come with a model, and are therefore run in a sandbox.

Jinja's sandbox keeps a template from everything outside of it, but not from running forever or
filling the memory: here it may take `MOST_STEPS` turns of loops and macros, and no value that it
computes by `+`, `*` or `~`, and no text that it writes, may grow beyond `LONGEST` characters. That
stops accidents and the common bombs, not every one that an enemy could think of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]
"""`role`, `content` (text) and, on assistant messages, perhaps `reasoning_content` (text) and
`tool_calls`: `[{"type": "function", "function": {"name": "...", "arguments": {...}}}]`."""

Tool = Mapping[str, Any]
"""A function that may be called: `{"type": "function", "function": {"name": "...", ...}}`."""


MOST_STEPS = 1_000_000
"""A conversation of a thousand messages takes a few thousand."""
LONGEST = 64 * 2**20
"""Characters of one value: four times the longest line of a data file."""
STEP, JOINED = "_step", "_joined"
"""Names that the environment gives to functions of its own."""
TEXT_METHODS = {"endswith", "lower", "lstrip", "rsplit", "rstrip", "split", "startswith", "strip"}
FILLERS = ("batch", "center", "format", "indent", "pprint", "slice", "wordwrap")
"""Filters that fill up to a width as large as they are told, or write what is nested for ever."""
MOST_INDENT = 16


class _GenerationMarks(Extension):
    """Accepts `{% generation %} ... {% endgeneration %}` and writes what stands between.

    Templates made for training carry these marks; masks are found without them (tokenizer.py).
    """

    tags = {"generation"}  # noqa: RUF012 (Jinja declares the attribute so)

    def parse(self, parser: Parser) -> nodes.Node:
        """The body in a scope of its own, as transformers renders it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    if isinstance(indent, int) and indent > MOST_INDENT:
        raise TemplateError(f"an indent of more than {MOST_INDENT} is not allowed")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Steps:
    """Counts what a rendering has done so far."""

    def __init__(self) -> None:
        self.left = MOST_STEPS

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TemplateError(f"it takes more than {MOST_STEPS:,} steps")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with an end to how long and how large."""

    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for repeated in tree.find_all((nodes.For, nodes.Macro)):
            assert isinstance(repeated, nodes.For | nodes.Macro)
            step = nodes.Call(nodes.Name(STEP, "load"), [], [], None, None)
            repeated.body.insert(0, nodes.ExprStmt(step))
        for joined in list(tree.find_all(nodes.Concat)):  # `~` is no operator to the sandbox
            parts = nodes.Call(nodes.Name(JOINED, "load"), joined.nodes, [], None, None)
            joined.nodes = [parts]
        tree.set_environment(self)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox has it, and quicker for what chat templates ask all the time."""
        if not attribute.startswith("_"):
            kind = type(obj)
            if kind is dict and not hasattr(dict, attribute):
                return (
                    obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
                )
            if kind is LoopContext or (kind is str and attribute in TEXT_METHODS):
                return getattr(obj, attribute)
            if kind is str and attribute.startswith("format"):
                raise TemplateError("format is not allowed in a chat template")
        return super().getattr(obj, attribute)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """As the sandbox has it; our own functions and the methods of text need no check."""
        if any(type(arg) is int and arg > LONGEST for arg in args):
            raise TemplateError(f"it asks for a value of more than {LONGEST:,} characters")
        if type(obj) is _Steps:
            return obj()
        if type(getattr(obj, "__self__", None)) is str:
            kwargs.pop("_loop_vars", None)  # which Jinja passes to what takes a context
            kwargs.pop("_block_vars", None)
            return obj(*args, **kwargs)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, unless it would grow too long."""
        match operator:
            case "+" if isinstance(left, str) and isinstance(right, str):
                _check_length(len(left) + len(right))
                return left + right
            case "+" if isinstance(left, list) and isinstance(right, list):
                _check_length(len(left) + len(right))
            case "*" if isinstance(left, int) and isinstance(right, int):
                _check_length(max(abs(left), abs(right)))
            case "*":
                text, times = (right, left) if isinstance(left, int) else (left, right)
                if isinstance(text, str | list | tuple) and isinstance(times, int):
                    _check_length(len(text) * max(0, times))
            case "%" if isinstance(left, str):
                raise TemplateError("formatting with % is not allowed in a chat template")
            case "**":
                raise TemplateError("** is not allowed in a chat template")
        return super().call_binop(context, operator, left, right)


def _joined(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    _check_length(sum(map(len, texts)))
    return "".join(texts)


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise TemplateError(f"it computes a value of more than {LONGEST:,} characters")


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, template: Template) -> None:
        self._template = template

    def render(self, **variables: Any) -> str:
        """What the template writes.

        Raises:
            jinja2.TemplateError: it takes too long, or computes something too large; or whatever
                else a program may raise.
        """
        pieces: list[str] = []
        length = 0
        for piece in self._template.generate(variables, **{STEP: _Steps(), JOINED: _joined}):
            pieces.append(piece)
            length += len(piece)
            _check_length(length)
        return "".join(pieces)


def compile_template(source: str) -> ChatTemplate:
    """The template, in the environment that transformers gives to chat templates.

    Raises:
        jinja2.TemplateSyntaxError: the source is not a Jinja template.

    >>> marked = "{% generation %}{{ messages[0].content }}{% endgeneration %}"
    >>> compile_template(marked).render(messages=[{"content": "Hi"}])
    'Hi'
    """
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMarks, loopcontrols]
    )
    for name in FILLERS:
        del environment.filters[name]
    del environment.globals["lipsum"]
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return ChatTemplate(environment.from_string(source))
    except RecursionError:
        raise TemplateSyntaxError("nested too deeply", 1) from None
