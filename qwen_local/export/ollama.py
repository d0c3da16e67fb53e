r"""The Modelfile from which `ollama create` makes a model out of a GGUF file.

A Modelfile brings the prompt's template in the language of Go's text/template, and the model brings
it in Jinja. Programs of the one are not translated into the other. What a model's chat template
writes is described as a `ChatML`; that it writes nothing else is tried on conversations with a bit
of everything, and the Go template is written from the description.

The GGUF file must come without a chat template. Since 0.30 Ollama takes that one where it can do
more than the Modelfile's, as Qwen's do, and begins the answer by its own rule then, not as the
adapter was trained.

Exact for text: a system message or none, then questions and answers, up to a question or an answer.
What no such template can do:

- Functions: the template has no `.Tools`, so Ollama refuses a request that brings some.
- Thoughts inside the text of an answer. Ollama keeps them apart and hands them over as `.Thinking`;
  where the model thinks, the template shows it between which tags.
- New lines before the text of an answer at the very end, which Qwen3 takes away.
- Several messages of one role in a row: Ollama joins them before it renders anything.
- The text of a control token in a message: Ollama makes the control token of it.

Between a Modelfile's triple quotes everything counts, new lines at both ends included; but its
reader drops what is not printable, and ends the text at a line that ends in triple quotes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwen_local.backends.base import Sampling
from qwen_local.datasets.template import Message
from qwen_local.datasets.tokenizer import SHORT_PROMPT, ChatTokenizer
from qwen_local.datasets.turns import EMPTY_THINK, END, START
from qwen_local.errors import DatasetError, InputError

WHERE = "--to ollama"
HINT = "use --to gguf: the file holds the chat template itself, which llama.cpp runs with --jinja"
SHOWN, BEFORE = 120, 20
"""Characters shown of a rendering, and how many of them stand before what differs."""

OPEN, CLOSE = EMPTY_THINK.split("\n\n", 1)
"""What stands before and after the thoughts of a block, but for one new line each."""
ODD = (
    "plain",
    "",
    " \t spaces around \t ",
    "\nnew lines around\n\n",
    '{{ .System }} {{"}}" {% if x %}{{- x -}}{# y #}',
    '"""\nFROM "elsewhere"\n"""',
    "naïve 日本語 🙂 e\u0301 a\u00a0b\u200bc\u2028d <b>&amp;</b>",
    "a\r\nb\\n %s $1 `x`",
    "user\nassistant\nsystem",
)
"""Texts in which templates, Modelfiles and trimming could see more than text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatML:
    r"""What a chat template writes around the messages of a conversation.

    Each message is a turn, `<|im_start|>ROLE\nTEXT<|im_end|>\n`; this is the rest.
    """

    preamble: str
    """Before a conversation that has no system message: Qwen2.5 writes one of its own."""
    prompt: str
    """At the end, where the assistant goes on: its header, and what it is to begin with."""
    block: bool
    """Whether an answer at the very end stands behind a think block, as in Qwen3."""
    thinks: bool
    """Whether that block holds the thoughts, or is empty because none are asked for."""

    def render(self, messages: Sequence[Message]) -> str:
        """What `template` means: the conversation, and the prompt of the next answer."""
        said = "" if messages[0]["role"] == "system" else self.preamble
        for place, message in enumerate(messages, start=1):
            said += f"{START}{message['role']}\n"
            if self.block and message["role"] == "assistant" and place == len(messages):
                thoughts = message.get("reasoning_content", "") if self.thinks else ""
                said += f"{OPEN}\n{thoughts}\n{CLOSE}"
            said += f"{message['content']}{END}\n"
        return said + self.prompt

    def template(self) -> str:
        """The same as a template of Go, over the variables that Ollama has."""
        first, block = "", ""
        if self.preamble:
            condition = 'and (eq $i 0) (ne .Role "system")'
            first = f"{{{{ if {condition} }}}}{go_text(self.preamble)}{{{{ end }}}}"
        if self.block:
            # Ollama takes what stands around .Thinking for the tags of the thoughts; without it,
            # it refuses to be asked for some.
            condition = 'and (eq .Role "assistant") (eq (len (slice $.Messages $i)) 1)'
            thoughts = "{{ .Thinking }}" if self.thinks else ""
            block = f"{{{{ if {condition} }}}}{OPEN}\n{thoughts}\n{CLOSE}{{{{ end }}}}"
        return (
            "{{ range $i, $_ := .Messages }}"
            f"{first}{START}{{{{ .Role }}}}\n{block}{{{{ .Content }}}}{END}\n"
            f"{{{{ end }}}}{go_text(self.prompt)}"
        )


def modelfile(
    tokenizer: ChatTokenizer,
    sampling: Sampling,
    *,
    gguf: str,
    context: int,
    thinking: bool | None,
) -> str:
    """The text of a Modelfile.

    Every setting is written, for Ollama's own defaults are others: temperature 0.8, top_k 40.

    Args:
        tokenizer: of the model.
        sampling: as `sampling_defaults` reads them from its generation_config.json.
        gguf: name of the merged model's file in the folder of the Modelfile. (Since 0.34.1 Ollama
            takes no LoRA beside a model.)
        context: tokens that prompt and answer may have.
        thinking: the `enable_thinking` of the prompts that the adapter was trained on.

    Raises:
        InputError: the chat template writes something that `ChatML` does not describe.
    """
    template = describe_template(tokenizer, thinking=thinking).template()
    stops = (tokenizer.decode([id], skip_special_tokens=False) for id in tokenizer.stop_ids)
    lines = [
        f"FROM ./{gguf}",
        f'TEMPLATE """{template}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        f"PARAMETER num_ctx {context}",
        *(f"PARAMETER {name} {value}" for name, value in _settings(sampling)),
    ]
    return "\n".join(lines) + "\n"


def describe_template(tokenizer: ChatTokenizer, *, thinking: bool | None) -> ChatML:
    """What the chat template of a model writes.

    Args:
        tokenizer: of the model.
        thinking: handed to the template as `enable_thinking`, unless None.

    Raises:
        InputError: not what a `ChatML` can say, or not the same every day.
    """
    if tokenizer.depends_on_date:
        problem = "this model's chat template asks for the date, which no template of Ollama knows"
        raise InputError.at(WHERE, problem, HINT)
    asked = _render(tokenizer, [SHORT_PROMPT], thinking)
    turn = f"{START}user\n{SHORT_PROMPT['content']}{END}\n"
    preamble, found, prompt = asked.partition(turn)
    if not found:
        raise _unlike(turn, asked)
    answered = _render(tokenizer, [SHORT_PROMPT, {"role": "assistant", "content": "!"}], thinking)
    block = EMPTY_THINK in answered.removesuffix(prompt)
    shape = ChatML(
        preamble=preamble, prompt=prompt, block=block, thinks=block and thinking is not False
    )
    for messages in _probes(thoughts=shape.thinks or not block):
        expected, found = shape.render(messages), _render(tokenizer, messages, thinking)
        if found != expected:
            raise _unlike(expected, found)
    return shape


def go_text(text: str) -> str:
    r"""Text as it must stand in a template of Go inside a Modelfile.

    >>> print(go_text("Say {hello}, 世界."))
    Say {{"\U0000007b"}}hello}, 世界.
    """
    return "".join(
        f'{{{{"\\U{ord(character):08x}"}}}}'
        if character in '{"' or not (character == "\n" or character.isprintable())
        else character
        for character in text
    )


def _settings(sampling: Sampling) -> Iterator[tuple[str, float]]:
    """Names and values of Ollama's parameters."""
    yield "temperature", sampling.temperature
    if sampling.temperature > 0:
        yield "top_p", sampling.top_p
        yield "top_k", sampling.top_k
        yield "min_p", sampling.min_p
    yield "repeat_penalty", sampling.repetition_penalty
    if sampling.repetition_penalty != 1:
        yield "repeat_last_n", -1  # the whole context counts, as in transformers


def _probes(*, thoughts: bool) -> Iterator[list[Message]]:
    """Conversations with a bit of everything.

    Args:
        thoughts: whether one ends in an answer with thoughts.
    """
    system: Message = {"role": "system", "content": "Be kind."}
    hello: Message = {"role": "assistant", "content": "Hello!"}
    thought: Message = {**hello, "reasoning_content": "Hm."}
    for text in ODD:
        asks: Message = {"role": "user", "content": text}
        said: Message = {"role": "assistant", "content": text}
        told: Message = {"role": "system", "content": text}
        yield [asks]
        yield [told, SHORT_PROMPT]
        yield [SHORT_PROMPT, said, SHORT_PROMPT]
        yield [system, asks, said, SHORT_PROMPT, said, asks, hello]
    yield [hello, SHORT_PROMPT]
    yield [SHORT_PROMPT, thought, SHORT_PROMPT, hello, SHORT_PROMPT]
    if thoughts:
        yield [SHORT_PROMPT, hello, SHORT_PROMPT, thought]


def _render(tokenizer: ChatTokenizer, messages: Sequence[Message], thinking: bool | None) -> str:
    """What the chat template writes, refused as `describe_template` does."""
    try:
        return tokenizer.render(messages, add_generation_prompt=True, enable_thinking=thinking)
    except DatasetError as error:
        problem = f"a conversation of text that Ollama may render: {error.faults[0].problem}"
        raise InputError.at(WHERE, problem, HINT) from None


def _unlike(expected: str, found: str) -> InputError:
    """The error of a template that writes something else, both shown where they part."""
    pairs = zip(expected, found, strict=False)
    part = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    start = max(0, part - BEFORE)
    end = start + SHOWN
    return InputError.at(
        WHERE,
        "this model's chat template cannot be written as one of Ollama: expected "
        f"{expected[start:end]!r}; found {found[start:end]!r}",
        HINT,
    )
