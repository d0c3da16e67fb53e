"""Our template environment writes what transformers' writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import TemplateError
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
