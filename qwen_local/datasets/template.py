"""Chat templates: programs in Jinja that come with a model, and are therefore run in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, str]
"""`role`, `content` and, on assistant messages, perhaps `reasoning_content`."""


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


def compile_template(source: str) -> Template:
    """The template, in the environment that transformers gives to chat templates.

    Raises:
        jinja2.TemplateSyntaxError: the source is not a Jinja template.

    >>> marked = "{% generation %}{{ messages[0].content }}{% endgeneration %}"
    >>> compile_template(marked).render(messages=[{"content": "Hi"}])
    'Hi'
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMarks, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except RecursionError:
        raise TemplateSyntaxError("nested too deeply", 1) from None
