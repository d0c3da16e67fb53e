r"""Wrap answers that consist of code in Markdown fences, as a coding assistant writes them.

An answer is code if its first line and at least half of all its lines look like code. Prose, bare
values (`42`, `[1, 2, 3]`) and explanations that contain code stay unchanged. The fence has a
language if the answer shows one (`#include`, `SELECT ... FROM`) that the question does not
contradict, or if the answer shows none and the question names exactly one. Otherwise the fence has
no language.

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
        |var|void|while|with|yield)\b (?! \s+ (?:[a-z]+\s+){3,} )   # four words in a row: prose
    | (?:ALTER|AND|CREATE|DELETE|DROP|FROM|GROUP|HAVING|INNER|INSERT|JOIN|LEFT|LIMIT|ON|ORDER|RIGHT
        |SELECT|SET|UNION|UPDATE|VALUES|WHERE|WITH)\b
    | \# | // | /\* | -- | \"{3} | '{3} | <[!?/a-zA-Z] | [@$]\w | [})\]]  # comments, tags, brackets
    | [\w.$\[\]'",\ ]{1,60}? \s* (?: [-+*/%:]? = (?!=) | <- | \+\+ )  # an assignment
    | [\w.$]+ \(                                                   # a call
    """,
    re.VERBOSE,
)
"""Matches the start of a line of code."""
CODE_END = re.compile(r"[{};\\]$|=>$|\)\s*:$|^[\w<>:*&\[\]]+\s+[\w*&]+\(.*\)$")
"""Matches the end of a line of code."""
SENTENCE = re.compile(r"[A-Z][a-z]* (?:[a-z]+,? ){2}")
"""Matches the start of a sentence, even if it quotes code."""
INDENTED = re.compile(r"[ \t]")

LANGUAGE_NAMES = {
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
"""Pattern of each language's name in a question. Only `c` is case-sensitive, because `c` is also a
common variable name."""

LANGUAGE_SIGNS = {
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
"""Pattern of code that occurs only in this language."""

_NAME_PATTERNS = {
    name: re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", 0 if name == "c" else re.IGNORECASE)
    for name, pattern in LANGUAGE_NAMES.items()
}
_SIGN_PATTERNS = {
    name: re.compile(pattern, re.MULTILINE) for name, pattern in LANGUAGE_SIGNS.items()
}


@dataclass(frozen=True, slots=True)
class FencedAnswer:
    """An answer, in a fence if it is code."""

    text: str
    kind: str
    """Language of the fence, or `no language`, `fenced before` (it had a fence) or `prose`."""


def fenced(question: str, answer: str) -> FencedAnswer:
    """Wrap the answer in a fence if it is code."""
    if FENCE in answer:
        return FencedAnswer(answer, FENCED_BEFORE)
    if not looks_like_code(answer):
        return FencedAnswer(answer, PROSE)
    tag = language(question, answer)
    code = answer.strip("\n").rstrip()
    return FencedAnswer(f"{FENCE}{tag or ''}\n{code}\n{FENCE}", tag or NO_LANGUAGE)


def looks_like_code(text: str) -> bool:
    """Return True if the first line and at least half of the non-blank lines look like code.

    >>> looks_like_code("x = 1\\nprint(x)"), looks_like_code("For example:\\nx = 1")
    (True, False)
    """
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    is_code = [_is_code(line) for line in lines]
    return bool(lines) and is_code[0] and 2 * sum(is_code) >= len(lines)


def _is_code(line: str) -> bool:
    if SENTENCE.match(line):
        return False
    return bool(INDENTED.match(line) or STATEMENT.match(line) or CODE_END.search(line))


def language(question: str, answer: str) -> str | None:
    """Return the one language that question and answer agree on, or None.

    >>> language("Write a JavaScript loop.", "i += 1"), language("Port this Java to Python.", "i")
    ('javascript', None)
    """
    named = {name for name, pattern in _NAME_PATTERNS.items() if pattern.search(question)}
    shown = {name for name, pattern in _SIGN_PATTERNS.items() if pattern.search(answer)}
    agreed = named & shown if named and shown else named | shown
    return agreed.pop() if len(agreed) == 1 else None
