"""The file of a batch's answers: rows are appended, and an interrupted batch continues in it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from qwen_local.errors import Fault, InputError, RunBusyError
from qwen_local.files import json_bytes, replace_file
from qwen_local.inference.prompt_file import PromptRow

NEW_OUTPUT = "repeat the command unchanged, or choose another `output`"
ANSWER_KEYS = ("answer", "finish_reason", "prompt_tokens", "completion_tokens")
"""Keys of a row of answers beyond those of its prompt."""
DIGESTS = ("weights", "tokenizer", "adapter")
"""Settings whose values are hashes, which messages leave out."""


class AnswerFile:
    """Rows of answers, each to the prompt row of the same number.

    `settings_file`, next to it, holds the settings that the answers were generated with.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it.

        Raises:
            InputError: it is not a plain file.
            RunBusyError: another process writes to it.
        """
        if not path.name or (path.exists() and not path.is_file()):
            raise InputError.at("output", f"expected a file name; found {str(path)!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.settings_file = path.with_name(f"{path.name}.settings.json")
        self._created = not path.exists()
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise RunBusyError(
                f"{path}: another process writes answers to it\n\n"
                "hint: wait for it, or stop it first"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._created and os.fstat(self._file.fileno()).st_size == 0:  # no answer was written
            self.path.unlink(missing_ok=True)
        self._file.close()

    def resume(self, prompts: Sequence[PromptRow]) -> int:
        """Remove an incomplete last row, and count the others.

        Returns:
            Number of prompts that are answered.

        Raises:
            InputError: another command wrote the file, or its rows do not answer these prompts.
        """
        self._file.seek(0)
        content = self._file.read()
        if content and not self.settings_file.exists():
            problem = "the file exists and was not written by this command"
            raise InputError.at(str(self.path), problem, "choose another `output`")
        lines = content.split(b"\n")
        incomplete = lines.pop()
        for number, line in enumerate(lines, 1):
            if mismatch := _mismatch(line, prompts[number - 1 : number]):
                raise InputError.at(f"{self.path}:{number}", mismatch, NEW_OUTPUT)
        if incomplete:
            self._file.truncate(len(content) - len(incomplete))
        self._file.seek(0, os.SEEK_END)
        return len(lines)

    def write_settings(self, settings: Mapping[str, Any], *, resumed: bool) -> None:
        """Write the settings of the answers, or compare them with those that are there.

        Args:
            settings: plain values by name.
            resumed: True if the file has answers, whose settings must be the same.

        Raises:
            InputError: the settings differ, or the file next to the answers holds none.
        """
        if not resumed and not self.settings_file.exists():
            replace_file(self.settings_file, json_bytes(settings))
            return
        try:
            before = json.loads(self.settings_file.read_bytes())
        except (ValueError, RecursionError):
            before = None
        # Never replace a file of the user that happens to have this name.
        if not isinstance(before, dict) or not before.keys() & settings.keys():
            raise InputError.at(str(self.settings_file), "not the settings of answers", NEW_OUTPUT)
        if not resumed:
            replace_file(self.settings_file, json_bytes(settings))
            return
        faults = [
            Fault(f"{self.settings_file}: {key}", _change(key, before.get(key), value), NEW_OUTPUT)
            for key, value in settings.items()
            if before.get(key) != value
        ]
        if faults:
            raise InputError(faults)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows."""
        rest = b"".join(_line(row) + b"\n" for row in rows)
        while rest:
            rest = rest[self._file.write(rest) :]


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()


def _mismatch(line: bytes, prompt: Sequence[PromptRow]) -> str | None:
    """Return why a line is not the answer to its prompt, if there is one; None if it is."""
    if not prompt:
        return "there are more answers than prompts"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not row.keys() >= {*ANSWER_KEYS}:
        return "not a row of answers"
    (expected,) = prompt
    copied = {"id": expected.id, **expected.copied}
    if _line({key: row[key] for key in row if key not in ANSWER_KEYS}) == _line(copied):
        return None
    return f"expected the answer to {expected.example.where}; found the answer to another prompt"


def _change(key: str, before: Any, now: Any) -> str:
    """Describe the change of a setting since the answers in the file."""
    if key in DIGESTS:
        return f"the file's answers were generated with {'another' if before else 'no'} {key}"
    old, new = (json.dumps(value, ensure_ascii=False) for value in (before, now))
    return f"the file's answers were generated with {old}; found {new}"
