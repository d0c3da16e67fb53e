"""The file that answers are appended to, row by row, and taken up again after whatever happened."""

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
from qwen_local.inference.prompt_file import Question

ANOTHER = "repeat the command as it was, or name another --output"
ANSWERED = ("answer", "finish_reason", "prompt_tokens", "completion_tokens")
"""What a row has beside its question."""
DIGESTS = ("weights", "tokenizer", "adapter")
"""Settings whose values mean nothing to a reader."""


class Answers:
    """Rows of answers that match the questions of a file one for one, from the first on.

    What they were answered with lies beside the file, in `settings_file`.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            InputError: it is no plain file.
            RunBusyError: another process writes to it.
        """
        if not path.name or (path.exists() and not path.is_file()):
            raise InputError.at("--output", f"expected a file's name; found {str(path)!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.settings_file = path.with_name(f"{path.name}.settings.json")
        self._made = not path.exists()
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            said = f"{path}: another process writes answers to it"
            raise RunBusyError(f"{said}\n\nhint: wait for it, or stop it first") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._made and os.fstat(self._file.fileno()).st_size == 0:  # nothing came of it
            self.path.unlink(missing_ok=True)
        self._file.close()

    def take_up(self, questions: Sequence[Question]) -> int:
        """Cut off what is left of a row that was not finished, and count the others.

        Returns:
            How many questions are answered.

        Raises:
            InputError: the file is not of this command, or its rows are not answers to these.
        """
        self._file.seek(0)
        content = self._file.read()
        if content and not self.settings_file.exists():
            problem = "it is there already, and not from this command"
            raise InputError.at(str(self.path), problem, "name another --output")
        lines = content.split(b"\n")
        torn = lines.pop()
        for number, line in enumerate(lines, 1):
            if wrong := _mismatch(line, questions[number - 1 : number]):
                raise InputError.at(f"{self.path}:{number}", wrong, ANOTHER)
        if torn:
            self._file.truncate(len(content) - len(torn))
        self._file.seek(0, os.SEEK_END)
        return len(lines)

    def settle(self, settings: Mapping[str, Any], *, begun: bool) -> None:
        """Write down what questions are answered with.

        Args:
            settings: by name; plain values.
            begun: whether answers are there, which must have been given with the same.

        Raises:
            InputError: they were not.
        """
        if not begun and not self.settings_file.exists():
            replace_file(self.settings_file, json_bytes(settings))
            return
        try:
            before = json.loads(self.settings_file.read_bytes())
        except (ValueError, RecursionError):
            before = None
        if not isinstance(before, dict) or not before.keys() & settings.keys():
            raise InputError.at(str(self.settings_file), "not the settings of answers", ANOTHER)
        if not begun:
            replace_file(self.settings_file, json_bytes(settings))
            return
        faults = [
            Fault(f"{self.settings_file}: {key}", _another(key, before.get(key), value), ANOTHER)
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


def _mismatch(line: bytes, question: Sequence[Question]) -> str | None:
    """Why a line is not the answer to its question, of which there may be none."""
    if not question:
        return "there are more answers than questions"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not row.keys() >= {*ANSWERED}:
        return "not a row of answers"
    (asked,) = question
    expected = {"id": asked.id, **asked.asked}
    if _line({key: row[key] for key in row if key not in ANSWERED}) == _line(expected):
        return None
    return f"expected the answer to {asked.example.where}; found that to another question"


def _another(key: str, before: Any, now: Any) -> str:
    """How the value of a setting differs from that of the answers that are there."""
    if key in DIGESTS:
        return f"the answers there were given with {'another' if before else 'no'} {key}"
    said = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
    return f"the answers there were given with {said[0]}; this is {said[1]}"
