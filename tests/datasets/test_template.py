"""Our template environment writes what transformers' writes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from transformers import PreTrainedTokenizerFast

from qwen_local.datasets.template import compile_template

MESSAGES = [
    {"role": "system", "content": "Sei kurz & gut: <b>'ü'</b>"},
    {"role": "user", "content": "1?"},
    {"role": "assistant", "content": "2.", "reasoning_content": "Hm."},
    {"role": "user", "content": "3?"},
    {"role": "assistant", "content": "4."},
]

ODD = """
{%- for message in messages %}
    {%- if loop.first %}{% continue %}{% endif %}
    {% generation %}
    {%- set inside = 1 %}{{ message | tojson }}
    {% endgeneration %}
    {{ inside is defined }}{{ message.content | tojson(indent=2) }}
{%- endfor %}
"""


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_training", "qwen3_instruct_2507", "qwen3_5_think_training"]
)
@pytest.mark.parametrize("prompt", [False, True])
def test_templates_of_qwen_render_as_in_transformers(
    name: str, prompt: bool, oracle: PreTrainedTokenizerFast, trl_templates: Path
) -> None:
    source = (trl_templates / f"{name}.jinja").read_text(encoding="utf-8")
    theirs = oracle.apply_chat_template(
        MESSAGES, chat_template=source, tokenize=False, add_generation_prompt=prompt
    )
    ours = compile_template(source).render(
        messages=MESSAGES, tools=None, documents=None, add_generation_prompt=prompt
    )
    assert ours == theirs


def test_filters_marks_and_scopes_are_those_of_transformers(
    oracle: PreTrainedTokenizerFast,
) -> None:
    theirs = oracle.apply_chat_template(MESSAGES[:2], chat_template=ODD, tokenize=False)
    assert compile_template(ODD).render(messages=MESSAGES[:2]) == theirs
    assert theirs == '{"role": "user", "content": "1?"}\n    False"1?"'
    assert "ü" in compile_template("{{ 'ü' | tojson }}").render()


def test_a_template_can_refuse_and_tell_the_date() -> None:
    with pytest.raises(TemplateError, match=r"^no$"):
        compile_template("{{ raise_exception('no') }}").render()
    assert compile_template("{{ strftime_now('%Y') }}").render() >= "2024"


# --- limits ---

WIDE = "{% set a = 'a' * 60000000 %}{{ a }}{{ a }}"
LOOPS = (
    "{% set many = range(99999) %}{% for a in many %}{% for b in many %}{% endfor %}{% endfor %}"
)
DOUBLED = (
    "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = n.s OP n.s %}{% endfor %}"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (LOOPS, "it takes more than 1,000,000 steps"),
        (DOUBLED.replace("OP", "+"), "it computes a value of more than 67,108,864 characters"),
        (DOUBLED.replace("OP", "~"), "it computes a value of more than 67,108,864 characters"),
        ("{{ 'a' * 10000000000 }}", "it computes a value of more than 67,108,864 characters"),
        ("{{ 10000000000 * 'a' }}", "it computes a value of more than 67,108,864 characters"),
        ("{{ 'a'.center(10000000000) }}", "it asks for a value of more than 67,108,864 characters"),
        ("{{ '%9d' % 3 }}", "formatting with % is not allowed in a chat template"),
        ("{{ 7 ** 9 }}", "** is not allowed in a chat template"),
        ("{{ 10 ** 9 * 2 }}", "** is not allowed in a chat template"),
        ("{{ 99999999 * 2 }}", "it computes a value of more than 67,108,864 characters"),
        ("{{ '{:9}'.format(1) }}", "format is not allowed in a chat template"),
        ("{{ [1] | tojson(indent=99) }}", "an indent of more than 16 is not allowed"),
        (WIDE, "it computes a value of more than 67,108,864 characters"),
    ],
)
def test_a_template_that_would_never_end_or_fill_the_memory_is_stopped(
    source: str, problem: str
) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template(source).render(messages=[])
    assert str(caught.value) == problem


def test_filters_that_fill_up_to_a_width_are_not_there() -> None:
    with pytest.raises(TemplateSyntaxError, match="No filter named 'center'"):
        compile_template("{{ 'a' | center(10) }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ messages.__class__ }}",
        "{{ messages[0].__class__ }}",
        "{{ messages[0]['__class__'].__mro__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].update({}) %}",
        "{{ raise_exception.__globals__ }}",
    ],
)
def test_a_template_does_not_leave_the_sandbox(source: str) -> None:
    messages = [{"role": "user"}]
    with suppress(SecurityError, UndefinedError, TemplateError):
        assert compile_template(source).render(messages=messages) == ""
    assert messages == [{"role": "user"}]


def test_a_key_wins_over_nothing_and_a_method_over_a_key() -> None:
    render = compile_template("{{ m.role }} {{ m.get('items') }} {{ m.items is callable }}").render
    assert render(m={"role": "user", "items": 3}) == "user 3 True"
    assert compile_template("{{ m.absent is defined }}").render(m={}) == "False"
