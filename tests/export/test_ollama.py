"""The Modelfile against the chat template that it stands for."""

from __future__ import annotations

import re
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from qwen_local.backends.base import Sampling
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import tiny_model_path
from qwen_local.errors import InputError
from qwen_local.export.ollama import modelfile

Messages = list[dict[str, Any]]

PLAIN = """{{ range $i, $_ := .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
QWEN2_5 = """{{ range $i, $_ := .Messages }}{{ if and (eq $i 0) (ne .Role "system") }}<|im_start|>system
You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
{{ end }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""  # noqa: E501 (a template breaks where the text does)
THINKS = """{{ range $i, $_ := .Messages }}<|im_start|>{{ .Role }}
{{ if and (eq .Role "assistant") (eq (len (slice $.Messages $i)) 1) }}<think>
{{ .Thinking }}
</think>

{{ end }}{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
THINKS_NOT = """{{ range $i, $_ := .Messages }}<|im_start|>{{ .Role }}
{{ if and (eq .Role "assistant") (eq (len (slice $.Messages $i)) 1) }}<think>

</think>

{{ end }}{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
<think>

</think>

"""

EVERY_TEMPLATE = pytest.mark.parametrize(
    ("name", "thinking", "template"),
    [
        ("tiny", None, PLAIN),
        ("tiny", False, PLAIN + "<think>\n\n</think>\n\n"),
        ("qwen2_5", None, QWEN2_5),
        ("qwen3_instruct_2507", None, PLAIN),
        ("qwen3", None, THINKS),
        ("qwen3", True, THINKS),
        ("qwen3", False, THINKS_NOT),
    ],
)


HINT = (
    "\n\nhint: use `to=gguf`, whose file holds the chat template itself, and run it with "
    "`llama-cli --jinja`"
)
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
"""A template that writes CONTENT of every message."""


def load(name: str) -> ChatTokenizer:
    """The embedded tokenizer, under its own template or a stock one of Qwen that TRL ships."""
    if name == "tiny":
        return ChatTokenizer.load(tiny_model_path())
    trl = find_spec("trl")
    assert trl is not None and trl.origin is not None
    template = Path(trl.origin).parent / "chat_templates" / f"{name}.jinja"
    return under(template.read_text(encoding="utf-8"))


def under(template: str) -> ChatTokenizer:
    """The embedded tokenizer under another template."""
    return ChatTokenizer(Tokenizer.from_file(str(tiny_model_path() / "tokenizer.json")), template)


def written(tokenizer: ChatTokenizer, thinking: bool | None = None, **more: Any) -> str:
    given: dict[str, Any] = {"gguf": "m.gguf", "context": 4096, "thinking": thinking, **more}
    return modelfile(tokenizer, given.pop("sampling", Sampling()), **given)


# --- the template ---

TEXTS = [
    "Who wrote Faust?",
    "",
    "  two spaces, \t a tab  ",
    "\n\nnew lines at both ends\n",
    "{{ .System }}{{- end -}} {% raw %} {# no #}",
    'He said "no", and """that\n""" was it.',
    "Grüße, 世界 🙂 e\u0301\u00a0\u200b",
    "def f():\n    return {'a': [1, 2]}\n",
    "a\r\nb \\n %d $1 `x` <b>&amp;</b>",
    "system\nuser\nassistant",
]


def conversations() -> list[Messages]:
    """Fifty: each text in each place of five kinds of conversation."""
    kinds = ["u", "su", "uau", "suauau", "sua"]
    roles = {"s": "system", "u": "user", "a": "assistant"}
    made = []
    for kind, start in product(kinds, range(len(TEXTS))):
        said = [TEXTS[(start + 3 * place) % len(TEXTS)] for place in range(len(kind))]
        if kind[-1] == "a":
            said[-1] = said[-1].lstrip("\n")  # Qwen3 writes an answer at the end without them
        made.append([{"role": roles[k], "content": t} for k, t in zip(kind, said, strict=True)])
    return made


CONDITIONS = {
    'and (eq $i 0) (ne .Role "system")': (
        lambda messages, i: i == 0 and messages[i]["role"] != "system"
    ),
    'and (eq .Role "assistant") (eq (len (slice $.Messages $i)) 1)': (
        lambda messages, i: messages[i]["role"] == "assistant" and i == len(messages) - 1
    ),
}
"""What the conditions mean that a template may have."""


def as_ollama_renders(written: str, messages: Messages) -> str:
    """The meaning of the one TEMPLATE of a Modelfile: a text for each message, then the prompt."""
    [template] = re.findall(r'^TEMPLATE """(.*?)"""$', written, re.DOTALL | re.MULTILINE)
    loop = re.fullmatch(
        r"{{ range \$i, \$_ := \.Messages }}(.*){{ end }}(.*?)", template, re.DOTALL
    )
    assert loop is not None
    turn, prompt = loop.groups()
    said = ""
    for i, message in enumerate(messages):
        chosen = re.sub(
            r"{{ if (.*?) }}(.*?){{ end }}",
            lambda found: found[2] if CONDITIONS[found[1]](messages, i) else "",  # noqa: B023
            turn,
            flags=re.DOTALL,
        )
        fields = {
            "Role": message["role"],
            "Content": message["content"],
            "Thinking": message.get("reasoning_content", ""),
        }
        said += re.sub(r"{{ \.(\w+) }}", lambda found: fields[found[1]], chosen)  # noqa: B023
    return said + prompt


@EVERY_TEMPLATE
def test_each_template_is_written_in_this_way(
    name: str, thinking: bool | None, template: str
) -> None:
    assert written(load(name), thinking) == (
        f'FROM ./m.gguf\nTEMPLATE """{template}"""\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n'
        "PARAMETER num_ctx 4096\nPARAMETER temperature 0.0\nPARAMETER repeat_penalty 1.0\n"
    )


@EVERY_TEMPLATE
def test_fifty_conversations_read_as_under_the_chat_template(
    name: str, thinking: bool | None, template: str
) -> None:
    tokenizer = load(name)
    text = written(tokenizer, thinking)
    assert len(conversations()) == 50
    for messages in conversations():
        assert as_ollama_renders(text, messages) == tokenizer.render(
            messages, add_generation_prompt=True, enable_thinking=thinking
        )


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "qwen3"])
def test_thoughts_of_earlier_answers_are_left_out_as_the_chat_template_does(name: str) -> None:
    tokenizer = load(name)
    thought = {"role": "assistant", "content": "4.", "reasoning_content": "2 + 2."}
    asks = {"role": "user", "content": "2 + 2?"}
    for messages in ([asks, thought, asks], [asks, thought, asks, thought]):
        assert as_ollama_renders(written(tokenizer), messages) == tokenizer.render(
            messages, add_generation_prompt=True
        )


def test_a_default_system_message_is_written_so_that_neither_go_nor_the_modelfile_reads_it() -> (
    None
):
    odd = 'Say "hi" {{ .Content }} {\n"""\u00a0世界\t'
    tokenizer = under(
        "{% if messages[0].role != 'system' %}<|im_start|>system\n"
        + odd.replace("{", "{{ '{' }}")
        + "<|im_end|>\n{% endif %}"
        + TURNS.replace("CONTENT", "m.content")
    )
    quote, brace, space, tab = (
        f'{{{{"\\U{ord(character):08x}"}}}}' for character in ('"', "{", "\u00a0", "\t")
    )
    assert (
        f"<|im_start|>system\nSay {quote}hi{quote} {brace}{brace} .Content }}}} {brace}\n"
        f"{quote}{quote}{quote}{space}世界{tab}<|im_end|>\n"
    ) in written(tokenizer)


# --- refusals ---


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_5_nothink", "qwen3_6"])
def test_a_template_that_trims_is_refused_where_it_does(name: str) -> None:
    with pytest.raises(InputError) as caught:
        written(load(name), False)
    assert str(caught.value) == (
        "to ollama: this model's chat template cannot be written as a template of Ollama: expected "
        r"'<|im_start|>user\n \t spaces around \t <|im_end|>\n<|im_start|>assistant\n<think>\n\n"
        r"</think>\n\n'; found '<|im_start|>user\nspaces around<|im_end|>\n<|im_start|>assistant\n"
        r"<think>\n\n</think>\n\n'" + HINT
    )


@pytest.mark.parametrize(
    ("template", "expected", "found"),
    [
        (
            "{% for m in messages %}[{{ m.content }}]{% endfor %}",
            r"<|im_start|>user\n?<|im_end|>\n",
            "[?]",
        ),
        (
            TURNS.replace("CONTENT", "m.content | replace('\\r', '')"),
            r"<|im_start|>user\na\r\nb\\n %s $1 `x`<|im_end|>\n<|im_start|>assistant\n",
            r"<|im_start|>user\na\nb\\n %s $1 `x`<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            TURNS.replace("in messages", "in messages if m.role != 'system'").replace(
                "CONTENT", "m.content"
            ),
            r"<|im_start|>system\nplain<|im_end|>\n<|im_start|>user\n?<|im_end|>\n"
            r"<|im_start|>assistant\n",
            r"<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            TURNS.replace("CONTENT", "(m.reasoning_content or '') + m.content"),
            r"m_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n?<|im_end|>\n"
            r"<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user",
            r"m_start|>assistant\nHm.Hello!<|im_end|>\n<|im_start|>user\n?<|im_end|>\n"
            r"<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>u",
        ),
        (
            TURNS.replace(
                "CONTENT", "(m.reasoning_content or '' if loop.last else '') + m.content"
            ),
            r"m_start|>assistant\nHello!<|im_end|>\n<|im_start|>assistant\n",
            r"m_start|>assistant\nHm.Hello!<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_what_the_description_does_not_explain_is_refused(
    template: str, expected: str, found: str
) -> None:
    with pytest.raises(InputError) as caught:
        written(under(template))
    assert str(caught.value) == (
        "to ollama: this model's chat template cannot be written as a template of Ollama: "
        f"expected '{expected}'; found '{found}'{HINT}"
    )


def test_a_template_that_tells_the_date_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        written(under("{{ strftime_now('%Y') }}" + TURNS.replace("CONTENT", "m.content")))
    assert str(caught.value) == (
        "to ollama: this model's chat template uses the date, which Ollama's templates cannot"
        + HINT
    )


def test_a_template_that_refuses_to_be_greeted_is_refused() -> None:
    template = (
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('Ask first.') }}{% endif %}"
    )
    with pytest.raises(InputError) as caught:
        written(under(template + TURNS.replace("CONTENT", "m.content")))
    assert str(caught.value) == (
        "to ollama: a conversation of text that Ollama may render: rejected by the chat template"
        ": TemplateError: Ask first." + HINT
    )


# --- the rest of the file ---


@pytest.mark.parametrize(
    ("sampling", "lines"),
    [
        (Sampling(), ["temperature 0.0", "repeat_penalty 1.0"]),
        (
            Sampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05),
            [
                "temperature 0.7",
                "top_p 0.8",
                "top_k 20",
                "min_p 0.0",
                "repeat_penalty 1.05",
                "repeat_last_n -1",
            ],
        ),
        (
            Sampling(temperature=1.0),
            ["temperature 1.0", "top_p 1.0", "top_k 0", "min_p 0.0", "repeat_penalty 1.0"],
        ),
    ],
)
def test_every_setting_is_written_lest_ollamas_own_default_stand(
    sampling: Sampling, lines: list[str]
) -> None:
    text = written(load("tiny"), sampling=sampling, context=512)
    parameters = [line.removeprefix("PARAMETER ") for line in text.splitlines() if "PARAM" in line]
    stops = ['stop "<|im_end|>"', 'stop "<|endoftext|>"']
    assert parameters == [*stops, "num_ctx 512", *lines]
