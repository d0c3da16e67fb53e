r"""The Modelfile from which `ollama create` makes a model out of a GGUF file.

A Modelfile holds the prompt template in the language of Go's text/template; the model has it in
Jinja. There is no translation from one language to the other. Instead the output of the model's
chat template is described as a `ChatML`, the description is tested on conversations with a bit of
everything, and the Go template is written from it.

The GGUF file must come without a chat template. Since 0.30 Ollama prefers such a template if it can
do more than the Modelfile's, as Qwen's do, and then starts the answer by its own rule, not as the
adapter was trained.

The Go template is exact for text: an optional system message, then questions and answers, up to a
question or an answer. It cannot express:

- Tools: the template has no `.Tools`, so Ollama refuses a request with tools.
- Reasoning inside the text of an answer. Ollama separates it and passes it as `.Thinking`; the
  template of a reasoning model shows Ollama the tags around it.
- New lines at the start of the last answer, which Qwen3's template removes.
- Several messages of one role in a row: Ollama joins them before rendering.
- The text of a control token in a message: Ollama turns it into the control token.

Between a Modelfile's triple quotes every character counts, even new lines at both ends; but its
parser drops characters that are not printable, and ends the text at a line that ends in triple
quotes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwen_local.backends.base import Sampling
from qwen_local.datasets.template import Message
from qwen_local.datasets.tokenizer import SHORT_PROMPT, ChatTokenizer
from qwen_local.datasets.turns import EMPTY_THINK, END, START
from qwen_local.errors import DatasetError, InputError

WHERE = "to ollama"
HINT = (
    "use `to=gguf`, whose file holds the chat template itself, and run it with `llama-cli --jinja`"
)
SHOWN, BEFORE = 120, 20
"""Number of characters shown of a rendering, and of those before the first difference."""

OPEN, CLOSE = EMPTY_THINK.split("\n\n", 1)
"""Texts before and after the reasoning in a think block, without one new line each."""
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
"""Texts that templates, Modelfiles or trimming could misread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatML:
    r"""Text that a chat template adds around the messages of a conversation.

    Each message is a turn, `<|im_start|>ROLE\nTEXT<|im_end|>\n`; this is the rest.
    """

    preamble: str
    """Text before a conversation without a system message: Qwen2.5 adds one of its own."""
    prompt: str
    """Text at the end, before the next answer: the assistant's header, and any think block."""
    block: bool
    """True if an answer at the very end has a think block before it, as in Qwen3."""
    thinks: bool
    """True if that block holds the reasoning; False if it is always empty."""

    def render(self, messages: Sequence[Message]) -> str:
        """Render a conversation and the prompt of the next answer, as `template` does."""
        text = "" if messages[0]["role"] == "system" else self.preamble
        for place, message in enumerate(messages, start=1):
            text += f"{START}{message['role']}\n"
            if self.block and message["role"] == "assistant" and place == len(messages):
                thoughts = message.get("reasoning_content", "") if self.thinks else ""
                text += f"{OPEN}\n{thoughts}\n{CLOSE}"
            text += f"{message['content']}{END}\n"
        return text + self.prompt

    def template(self) -> str:
        """Return the Go template, over the variables that Ollama provides."""
        first, block = "", ""
        if self.preamble:
            condition = 'and (eq $i 0) (ne .Role "system")'
            first = f"{{{{ if {condition} }}}}{go_text(self.preamble)}{{{{ end }}}}"
        if self.block:
            # Ollama finds the think tags around .Thinking; without .Thinking it refuses requests
            # that ask for reasoning.
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
    """Return the text of a Modelfile.

    Every setting is written, because Ollama's defaults differ: temperature 0.8, top_k 40.

    Args:
        tokenizer: of the model.
        sampling: as `sampling_defaults` reads them from its generation_config.json.
        gguf: name of the merged model's file in the folder of the Modelfile. (Since 0.34.1 Ollama
            loads no LoRA adapters.)
        context: maximum number of tokens of prompt and answer together.
        thinking: the `enable_thinking` of the prompts that the adapter was trained on.

    Raises:
        InputError: a `ChatML` cannot describe the chat template.
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
    """Describe the text that a model's chat template adds.

    Args:
        tokenizer: of the model.
        thinking: passed to the template as `enable_thinking`, unless None.

    Raises:
        InputError: a `ChatML` cannot describe it, or it depends on the date.
    """
    if tokenizer.depends_on_date:
        problem = "this model's chat template uses the date, which Ollama's templates cannot"
        raise InputError.at(WHERE, problem, HINT)
    asked = _render(tokenizer, [SHORT_PROMPT], thinking)
    turn = f"{START}user\n{SHORT_PROMPT['content']}{END}\n"
    preamble, found, prompt = asked.partition(turn)
    if not found:
        raise _different(turn, asked)
    answered = _render(tokenizer, [SHORT_PROMPT, {"role": "assistant", "content": "!"}], thinking)
    block = EMPTY_THINK in answered.removesuffix(prompt)
    shape = ChatML(
        preamble=preamble, prompt=prompt, block=block, thinks=block and thinking is not False
    )
    for messages in _probes(thoughts=shape.thinks or not block):
        expected, found = shape.render(messages), _render(tokenizer, messages, thinking)
        if found != expected:
            raise _different(expected, found)
    return shape


def go_text(text: str) -> str:
    r"""Escape text for a Go template inside a Modelfile.

    >>> print(go_text("Call {hello}, 世界."))
    Call {{"\U0000007b"}}hello}, 世界.
    """
    return "".join(
        f'{{{{"\\U{ord(character):08x}"}}}}'
        if character in '{"' or not (character == "\n" or character.isprintable())
        else character
        for character in text
    )


def _settings(sampling: Sampling) -> Iterator[tuple[str, float]]:
    """Yield names and values of Ollama's parameters."""
    yield "temperature", sampling.temperature
    if sampling.temperature > 0:
        yield "top_p", sampling.top_p
        yield "top_k", sampling.top_k
        yield "min_p", sampling.min_p
    yield "repeat_penalty", sampling.repetition_penalty
    if sampling.repetition_penalty != 1:
        yield "repeat_last_n", -1  # the whole context counts, as in transformers


def _probes(*, thoughts: bool) -> Iterator[list[Message]]:
    """Yield conversations with a bit of everything.

    Args:
        thoughts: True to include one that ends in an answer with reasoning.
    """
    system: Message = {"role": "system", "content": "Be kind."}
    hello: Message = {"role": "assistant", "content": "Hello!"}
    thought: Message = {**hello, "reasoning_content": "Hm."}
    for text in ODD:
        asks: Message = {"role": "user", "content": text}
        answer: Message = {"role": "assistant", "content": text}
        instruction: Message = {"role": "system", "content": text}
        yield [asks]
        yield [instruction, SHORT_PROMPT]
        yield [SHORT_PROMPT, answer, SHORT_PROMPT]
        yield [system, asks, answer, SHORT_PROMPT, answer, asks, hello]
    yield [hello, SHORT_PROMPT]
    yield [SHORT_PROMPT, thought, SHORT_PROMPT, hello, SHORT_PROMPT]
    if thoughts:
        yield [SHORT_PROMPT, hello, SHORT_PROMPT, thought]


def _render(tokenizer: ChatTokenizer, messages: Sequence[Message], thinking: bool | None) -> str:
    """Render with the chat template; raises as `describe_template` does."""
    try:
        return tokenizer.render(messages, add_generation_prompt=True, enable_thinking=thinking)
    except DatasetError as error:
        problem = f"a conversation of text that Ollama may render: {error.faults[0].problem}"
        raise InputError.at(WHERE, problem, HINT) from None


def _different(expected: str, found: str) -> InputError:
    """Return the error for an unexpected rendering; it shows the first difference."""
    pairs = zip(expected, found, strict=False)
    part = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    start = max(0, part - BEFORE)
    end = start + SHOWN
    return InputError.at(
        WHERE,
        "this model's chat template cannot be written as a template of Ollama: expected "
        f"{expected[start:end]!r}; found {found[start:end]!r}",
        HINT,
    )
