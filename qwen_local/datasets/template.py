"""Chat templates, rendered in a sandbox because they are programs that come with a model.

Jinja's sandbox blocks access to everything outside the template, but it does not limit time or
memory. Here a template may execute at most `MAX_STEPS` loop iterations and macro calls. Results of
`+`, `*` and `~`, and the rendered text, may have at most `MAX_LENGTH` characters. These limits stop
accidents and common attacks, but not every conceivable attack.
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
"""`role`, `content` (text) and, for assistant messages, optional `reasoning_content` (text) and
`tool_calls`: `[{"type": "function", "function": {"name": "...", "arguments": {...}}}]`."""

Tool = Mapping[str, Any]
"""A function that may be called: `{"type": "function", "function": {"name": "...", ...}}`."""


MAX_STEPS = 1_000_000
"""Maximum number of steps; a conversation of a thousand messages needs a few thousand."""
MAX_LENGTH = 64 * 2**20
"""Maximum number of characters of a value: four times the longest line of a data file."""
STEP_NAME, JOIN_NAME = "_step", "_joined"
"""Names of the functions that the environment inserts into templates."""
TEXT_METHODS = {"endswith", "lower", "lstrip", "rsplit", "rstrip", "split", "startswith", "strip"}
REMOVED_FILTERS = ("batch", "center", "format", "indent", "pprint", "slice", "wordwrap")
"""Filters that could create arbitrarily long text from small arguments."""
MAX_INDENT = 16


class _GenerationMarks(Extension):
    """Accepts `{% generation %} ... {% endgeneration %}` and renders the content.

    Templates for training have these tags; tokenizer.py does not need them to find the masks.
    """

    tags = {"generation"}  # noqa: RUF012 (Jinja declares the attribute so)

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the body into a new scope, as transformers does."""
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
    # Jinja's own filter escapes HTML, which would not match the text that models were trained on.
    if isinstance(indent, int) and indent > MAX_INDENT:
        raise TemplateError(f"an indent of more than {MAX_INDENT} is not allowed")
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
    """Counts the steps of a rendering and stops it at the limit."""

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TemplateError(f"it takes more than {MAX_STEPS:,} steps")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits on steps and sizes."""

    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for repeated in tree.find_all((nodes.For, nodes.Macro)):
            assert isinstance(repeated, nodes.For | nodes.Macro)
            step = nodes.Call(nodes.Name(STEP_NAME, "load"), [], [], None, None)
            repeated.body.insert(0, nodes.ExprStmt(step))
        for joined in list(tree.find_all(nodes.Concat)):  # the sandbox does not intercept `~`
            parts = nodes.Call(nodes.Name(JOIN_NAME, "load"), joined.nodes, [], None, None)
            joined.nodes = [parts]
        tree.set_environment(self)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Look up an attribute as the sandbox does, with fast paths for common cases."""
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
        """Call as the sandbox does; our own functions and string methods need no check."""
        if any(type(arg) is int and arg > MAX_LENGTH for arg in args):
            raise TemplateError(f"it asks for a value of more than {MAX_LENGTH:,} characters")
        if type(obj) is _Steps:
            return obj()
        if type(getattr(obj, "__self__", None)) is str:
            kwargs.pop("_loop_vars", None)  # Jinja adds these for functions that take a context
            kwargs.pop("_block_vars", None)
            return obj(*args, **kwargs)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` unless the result would be too long."""
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
    if length > MAX_LENGTH:
        raise TemplateError(f"it computes a value of more than {MAX_LENGTH:,} characters")


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, template: Template) -> None:
        self._template = template

    def render(self, **variables: Any) -> str:
        """Render the template.

        Raises:
            jinja2.TemplateError: the template exceeds a limit.
            Exception: any other error of the template.
        """
        pieces: list[str] = []
        length = 0
        for piece in self._template.generate(
            variables, **{STEP_NAME: _Steps(), JOIN_NAME: _joined}
        ):
            pieces.append(piece)
            length += len(piece)
            _check_length(length)
        return "".join(pieces)


def compile_template(source: str) -> ChatTemplate:
    """Compile a template in the environment that transformers provides for chat templates.

    Raises:
        jinja2.TemplateSyntaxError: the source is not a Jinja template.

    >>> marked = "{% generation %}{{ messages[0].content }}{% endgeneration %}"
    >>> compile_template(marked).render(messages=[{"content": "Hi"}])
    'Hi'
    """
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMarks, loopcontrols]
    )
    for name in REMOVED_FILTERS:
        del environment.filters[name]
    del environment.globals["lipsum"]
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return ChatTemplate(environment.from_string(source))
    except RecursionError:
        raise TemplateSyntaxError("nested too deeply", 1) from None
