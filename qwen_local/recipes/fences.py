r"""Answers of code into Markdown fences, as a coding assistant writes them.

An answer is code when its first line and at least half of all its lines look like code; prose, a
bare value (`42`, `[1, 2, 3]`) and an explanation that contains code stay as they are. The language
of the fence is the one that the answer shows (`#include`, `SELECT ... FROM`) and the question does
not contradict, or, where the answer shows none, the only one that the question names. In doubt the
fence has none.

>>> print(fenced("Print hello in Python.", "print('hello')").text)
```python
print('hello')
```
>>> fenced("Add 2 and 2.", "The sum is 4.").kind
'prose'
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FENCE = "```"
PROSE, FENCED_BEFORE, NO_LANGUAGE = "prose", "fenced before", "no language"

STATEMENT = re.compile(
    r"""
      (?:async|await|break|case|catch|class|const|continue|def|default|do|echo|elif|else|end|enum
        |except|export|finally|fn|for|foreach|from|func|function|if|import|int|interface|let|namespace
        |package|print|private|protected|public|raise|return|static|struct|switch|throw|try|using
        |var|void|while|with|yield)\b (?! \s+ (?:[a-z]+\s+){3,} )   # four words on end: a sentence
    | (?:ALTER|AND|CREATE|DELETE|DROP|FROM|GROUP|HAVING|INNER|INSERT|JOIN|LEFT|LIMIT|ON|ORDER|RIGHT
        |SELECT|SET|UNION|UPDATE|VALUES|WHERE|WITH)\b
    | \# | // | /\* | -- | \"{3} | '{3} | <[!?/a-zA-Z] | [@$]\w | [})\]]  # comments, tags, brackets
    | [\w.$\[\]'",\ ]{1,60}? \s* (?: [-+*/%:]? = (?!=) | <- | \+\+ )  # an assignment
    | [\w.$]+ \(                                                   # a call
    """,
    re.VERBOSE,
)
"""What a line of code begins with."""
ENDS = re.compile(r"[{};\\]$|=>$|\)\s*:$|^[\w<>:*&\[\]]+\s+[\w*&]+\(.*\)$")
"""What a line of code ends with."""
SENTENCE = re.compile(r"[A-Z][a-z]* (?:[a-z]+,? ){2}")
"""What a sentence begins with, whatever code it quotes."""
INDENTED = re.compile(r"[ \t]")

NAMED = {
    "bash": r"bash|shell",
    "c": r"(?:in|using) C(?![\w+#])|C(?= (?:code|function|language|program))",
    "cpp": r"C\+\+",
    "csharp": r"C\#|LINQ|\.NET",
    "css": r"CSS3?",
    "go": r"(?:in|using) Go|Go(?= (?:code|function|language|program))|Golang",
    "html": r"HTML5?",
    "java": r"Java",
    "javascript": r"JavaScript|JS|jQuery|Node\.?JS|React(?:\.js)?",
    "json": r"JSON",
    "kotlin": r"Kotlin",
    "php": r"PHP",
    "python": r"Python|NumPy|Pandas|Django|Flask",
    "ruby": r"Ruby|Rails",
    "rust": r"Rust",
    "sql": r"(?:My|Postgre)?SQL(?:ite)?",
    "swift": r"Swift",
    "typescript": r"TypeScript",
    "xml": r"XML",
}
"""How a question names a language. `c` is also a name that variables have, so its case counts."""

SHOWN = {
    "bash": r"\A\#!\s*/\S*sh\b|\A\#!/usr/bin/env (?:ba)?sh",
    "cpp": r"^\s*\#include\s*<(?:iostream|vector|string|map|algorithm|bits/)|\bstd::|\bcout\s*<<",
    "c": r"^\s*\#include\s*<(?:stdio|stdlib|string)\.h>",
    "csharp": r"^\s*using System|\bConsole\.Write",
    "css": r"^[\w.#,>: -]+\{\s*(?:[\w-]+\s*:[^;{}()]+;\s*)+\}",
    "html": r"(?i)\A\s*<(?:!doctype html|html|head|body|div|form|table|p|h\d|ul|button|input|a)\b",
    "java": r"\bSystem\.out\.|\bpublic static (?:void main|String|boolean)\b|^import java",
    "javascript": r"\bconsole\.log\(|\bconst \w+ = |\bdocument\.\w+|=== ",
    "php": r"<\?php|^\s*\$\w+ = ",
    "python": r"^\s*(?:def \w+ ?\([^)\n]*\).*:|elif .*:|for \w+ in .*:|from \w[\w.]* import )"
    r"|^import [a-z]\w*(?: as \w+)?\s*$"
    r"|\bif __name__ ==",
    "rust": r"\bfn \w+\(|\blet mut |\bprintln!",
    "sql": r"^\s*(?:SELECT\b[^;]{0,2000}\bFROM|INSERT INTO|UPDATE \w+\s+SET|DELETE FROM"
    r"|CREATE TABLE|ALTER TABLE)\b",
    "swift": r"\bfunc \w+\(.*->",
    "xml": r"\A\s*<\?xml",
}
"""What only this language's code has."""

_NAMED = {
    name: re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", 0 if name == "c" else re.IGNORECASE)
    for name, pattern in NAMED.items()
}
_SHOWN = {name: re.compile(pattern, re.MULTILINE) for name, pattern in SHOWN.items()}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is to be learned."""

    text: str
    kind: str
    """The language of its fence, `no language`, `fenced before`, or `prose` for no fence."""


def fenced(question: str, answer: str) -> Answer:
    """The answer, in a fence where it is code."""
    if FENCE in answer:
        return Answer(answer, FENCED_BEFORE)
    if not looks_like_code(answer):
        return Answer(answer, PROSE)
    tag = language(question, answer)
    code = answer.strip("\n").rstrip()
    return Answer(f"{FENCE}{tag or ''}\n{code}\n{FENCE}", tag or NO_LANGUAGE)


def looks_like_code(text: str) -> bool:
    """Whether the first line and at least half of the lines that are not blank look like code.

    >>> looks_like_code("x = 1\\nprint(x)"), looks_like_code("For example:\\nx = 1")
    (True, False)
    """
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    alike = [_is_code(line) for line in lines]
    return bool(lines) and alike[0] and 2 * sum(alike) >= len(lines)


def _is_code(line: str) -> bool:
    if SENTENCE.match(line):
        return False
    return bool(INDENTED.match(line) or STATEMENT.match(line) or ENDS.search(line))


def language(question: str, answer: str) -> str | None:
    """The one language that question and answer agree on, None in doubt.

    >>> language("Write a JavaScript loop.", "i += 1"), language("Port this Java to Python.", "i")
    ('javascript', None)
    """
    named = {name for name, pattern in _NAMED.items() if pattern.search(question)}
    shown = {name for name, pattern in _SHOWN.items() if pattern.search(answer)}
    agreed = named & shown if named and shown else named | shown
    return agreed.pop() if len(agreed) == 1 else None
