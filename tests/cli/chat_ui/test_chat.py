"""The loop of a conversation, with a model that says what the test tells it to."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_local.backends.base import Sampling, Session
from qwen_local.cli.chat_ui.chat import HELP, Chat, ChatSettings
from qwen_local.cli.chat_ui.terminal import Screen
from qwen_local.datasets.formats import Example, examples
from qwen_local.datasets.record_files import read
from qwen_local.errors import DatasetError, InputError
from qwen_local.inference.generator import Answer, Messages, Prompt

Reply = str | Callable[[Callable[[str], bool]], str]
"""What is said, character by character, or a program that says it and returns why it ended."""


class Scripted:
    """A model that gives these replies, in turn."""

    positions = 100
    trained_length: int | None = None

    def __init__(self, *replies: Reply, opening: str = "") -> None:
        self.replies: Iterator[Reply] = iter(replies)
        self.opening = opening
        self.prompts: list[Messages] = []
        self.sampled: list[Sampling] = []
        self.most: list[int] = []
        self.sessions = 0

    def session(self) -> Session:
        self.sessions += 1
        return object()  # type: ignore[return-value]  # only handed back to `stream`

    def prompt(self, messages: Messages) -> Prompt:
        if any("\udc80" in message["content"] for message in messages):
            raise DatasetError.at("messages[0].content", "half a character")
        self.prompts.append(messages)
        length = sum(len(message["content"]) for message in messages)
        return Prompt(ids=[0] * length, opening=self.opening)

    def stream(
        self,
        session: Session,
        prompt: Prompt,
        *,
        max_tokens: int,
        sampling: Sampling,
        show: Callable[[str], bool],
    ) -> Answer:
        self.sampled.append(sampling)
        self.most.append(max_tokens)
        reply = next(self.replies)
        reason = "stop"
        if callable(reply):
            reason = reply(show)
        else:
            for number, character in enumerate(reply):
                if number == max_tokens:
                    reason = "length"
                    break
                show(character)
        return Answer(
            text="", prompt_tokens=0, completion_tokens=0, finish_reason=reason, ended_turn=True
        )


CTRL_C, UNREADABLE = object(), object()


def talk(
    model: Scripted, lines: Sequence[Any], *, interactive: bool = True, **settings: Any
) -> tuple[int, str]:
    """(exit code, stdout) of a conversation in which these lines are written."""
    waiting = iter(lines)

    def next_line(prompt: str) -> str:
        line = next(waiting, EOFError)
        if line is CTRL_C:
            raise KeyboardInterrupt
        if line is EOFError:
            raise EOFError
        if line is UNREADABLE:
            raise InputError.at("stdin:2", "expected UTF-8; found byte 0xe9 at 3")
        assert isinstance(line, str)
        return line

    out = io.BytesIO()
    base = settings.pop("base", None)
    screen = settings.pop("screen", None) or Screen(out, terminal=False, color=False)
    chat = Chat(
        model,
        ChatSettings(**{"sampling": Sampling(), "max_tokens": 50, **settings}),
        base=base,
        read=next_line,
        screen=screen,
        interactive=interactive,
    )
    return chat.run(), out.getvalue().decode()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_every_turn_is_asked_with_all_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    model = Scripted("Hello!", "日本 🙂")
    assert talk(model, ["Hi", "", "  ", "And?"], system="Be kind.") == (0, "Hello!\n日本 🙂\n")
    system = {"role": "system", "content": "Be kind."}
    assert model.prompts == [
        [system, user("Hi")],
        [system, user("Hi"), assistant("Hello!"), user("And?")],
    ]
    assert capsys.readouterr().err == ""


def test_a_message_between_triple_quotes_has_several_lines() -> None:
    model = Scripted("a", "b", "c", "d")
    talk(
        model,
        ['"""', "one  ", "", "two", '"""', '"""/help"""', '"""x', 'y"""  ', 'not "quoted"""'],
    )
    asked = [prompt[-1]["content"] for prompt in model.prompts]
    assert asked == ["one  \n\ntwo", "/help", "x\ny", 'not "quoted"""']


def test_a_line_that_cannot_be_read_ends_a_pipe_and_is_reported_in_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(InputError):
        talk(Scripted("a"), ["Hi", UNREADABLE, "And?"], interactive=False)
    assert talk(Scripted("a", "b"), ["Hi", UNREADABLE, "And?"]) == (0, "a\nb\n")
    assert capsys.readouterr().err == "stdin:2: expected UTF-8; found byte 0xe9 at 3\n"


def test_several_lines_that_were_pasted_are_one_message() -> None:
    model = Scripted("a", "b")
    talk(model, ["/etc/hosts\nsays what?", '"""\npasted\n"""'])
    asked = [prompt[-1]["content"] for prompt in model.prompts]
    assert asked == ["/etc/hosts\nsays what?", "pasted"]


def test_a_message_without_its_end_is_an_error_in_a_pipe_and_given_up_in_a_terminal() -> None:
    with pytest.raises(InputError) as error:
        talk(Scripted(), ['"""', "one"], interactive=False)
    assert str(error.value) == (
        'stdin: the message that starts with """ has no end\n\nhint: end it with """'
    )
    assert talk(Scripted(), ['"""', "one"]) == (0, "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "/sav x",
            "/sav: unknown command; did you mean /save? type /help for a list, or enclose a "
            'message in """',
        ),
        ("/", '/: unknown command; type /help for a list, or enclose a message in """'),
        ("/help", HELP),
        ("/retry", "(no question yet)"),
        ("/save x", "(no answer yet)"),
        ("/system", "(no system message)"),
    ],
)
def test_a_command_reports_its_effect_and_sends_nothing(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Scripted()
    assert talk(model, [line]) == (0, "")
    assert capsys.readouterr().err == f"{said}\n"
    assert model.prompts == []


@pytest.mark.parametrize("leave", ["/exit ", "/quit", "/EXIT", "/bye"])
def test_exit_leaves_and_asks_nothing_more(leave: str) -> None:
    assert talk(Scripted("a"), ["Hi", leave, "more"]) == (0, "a\n")


def test_the_system_message_is_set_shown_and_taken_away(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Scripted("a", "b")
    talk(model, ["/system Be brief.", "/system", "Hi", '/system ""', "Hi"])
    assert capsys.readouterr().err == (
        "(system message set for the whole conversation; /clear starts over)\n"
        "Be brief.\n(system message removed)\n"
    )
    assert [prompt[0]["role"] for prompt in model.prompts] == ["system", "user"]


def test_clear_forgets_all_but_the_system_message(capsys: pytest.CaptureFixture[str]) -> None:
    model = Scripted("a", "b")
    talk(model, ["Hi", "/clear", "/retry", "You"], system="S")
    assert model.prompts[1] == [{"role": "system", "content": "S"}, user("You")]
    assert model.sessions == 2
    assert capsys.readouterr().err == "(conversation cleared)\n(no question yet)\n"


def test_retry_asks_the_last_question_again_with_another_seed() -> None:
    model = Scripted("a", "b", "c", "d")
    drawn = Sampling(temperature=1.0, seed=2**31 - 2)
    assert talk(model, ["1", "2", "/retry", "3"], sampling=drawn) == (0, "a\nb\nc\nd\n")
    assert model.prompts[1] == model.prompts[2] == [user("1"), assistant("a"), user("2")]
    assert model.prompts[3][2:] == [user("2"), assistant("c"), user("3")]
    assert [s.seed for s in model.sampled] == [2**31 - 2, 2**31 - 1, 0, 1]


def test_a_greedy_retry_warns_that_the_answer_stays_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk(Scripted("a", "a"), ["1", "/retry"])
    assert capsys.readouterr().err == (
        "(greedy answers do not change; use --temperature to vary them)\n"
    )


# --- saving ---


def saved(path: Path) -> Any:
    (example,) = examples(read(path))
    assert isinstance(example, Example)
    assert example.notes == () and example.ignored == () and not example.empty
    return example.content


def test_a_saved_conversation_is_a_row_of_training_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my talk.jsonl"
    model = Scripted("<think>hm</think>日本\n🙂", "b")
    talk(model, ["Hi", "Yo", f"/save {file}"], system="S")
    system = {"role": "system", "content": "S"}
    assert saved(file) == [
        system,
        user("Hi"),
        assistant("<think>hm</think>日本\n🙂"),
        user("Yo"),
        assistant("b"),
    ]
    assert file.read_text("utf-8").count("\n") == 1
    assert capsys.readouterr().err == f"({file}: 2 questions and answers)\n"


def test_a_file_is_replaced_only_with_save_and_an_exclamation_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text("mine")
    talk(Scripted("a"), ["Hi", f"/save {file}"])
    assert file.read_text() == "mine"
    assert capsys.readouterr().err == f"{file}: file exists; /save! {file} replaces it\n"
    talk(Scripted("a"), ["Hi", f"/save! {file}"])
    assert saved(file) == [user("Hi"), assistant("a")]


def test_a_file_that_cannot_be_written_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "no/such/x"
    talk(Scripted("a"), ["Hi", f"/save {nowhere}", f"/save {tmp_path}", "/save", "/save a\0b"])
    assert capsys.readouterr().err == (
        f"{nowhere}: No such file or directory\n"
        f"{tmp_path}: file exists; /save! {tmp_path} replaces it\n"
        "/save FILE: expected a file name\n"
        "a\0b: embedded null byte\n"
    )


# --- Ctrl+C ---


def interrupted_after(text: str, *, presses: int = 1) -> Reply:
    """Says this text, then Ctrl+C is pressed, then goes on as long as it may."""

    def reply(show: Callable[[str], bool]) -> str:
        for character in text:
            show(character)
        for _ in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
        assert show(".") is False
        return "interrupted"

    return reply


def test_ctrl_c_stops_the_answer_and_what_came_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Scripted(interrupted_after("The sky"), "Yes.")
    file = tmp_path / "x.jsonl"
    code, out = talk(model, ["Hi", "Go on", f"/save {file}"])
    assert (code, out) == (0, "The sky.\nYes.\n")
    assert model.prompts[1] == [user("Hi"), assistant("The sky."), user("Go on")]
    assert capsys.readouterr().err == (
        f"(stopped)\n({file}: 2 questions and answers; incomplete answers: 1, edit them "
        "before training)\n"
    )


def test_ctrl_c_before_anything_came_leaves_the_question_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Scripted(interrupted_after(""), "Hello.")
    assert talk(model, ["Hi", "/retry"], sampling=Sampling(temperature=1)) == (0, "Hello.\n")
    assert model.prompts[1] == [user("Hi")]
    assert capsys.readouterr().err == (
        "(stopped before the first token; the question is removed, /retry asks it again)\n"
    )


def test_a_second_ctrl_c_ends_an_answer_whose_next_token_does_not_come() -> None:
    model = Scripted(interrupted_after("The", presses=2), "Yes.")
    assert talk(model, ["Hi", "Go on"]) == (0, "The\nYes.\n")
    assert model.prompts[1] == [user("Hi"), assistant("The"), user("Go on")]


def test_ctrl_c_is_the_program_s_own_again_after_an_answer() -> None:
    before = signal.getsignal(signal.SIGINT)
    talk(Scripted("a"), ["Hi"])
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_the_prompt_clears_the_line_and_then_shows_how_to_exit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk(Scripted("a"), [CTRL_C, "Hi", CTRL_C, '"""', "lost"])
    assert capsys.readouterr().err == ""
    talk(Scripted("a"), ['"""', "lost", CTRL_C, CTRL_C, CTRL_C])
    assert capsys.readouterr().err == "(press Ctrl+D to exit)\n"


def test_ctrl_c_ends_a_program_that_reads_a_pipe() -> None:
    def pressed(show: Callable[[str], bool]) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk(Scripted(pressed), ["Hi"], interactive=False)


# --- the context ---


def test_a_turn_that_does_not_fit_is_reported_and_leaves_the_conversation_unchanged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Scripted("b" * 20, "c")
    assert talk(model, ["a" * 30, "x" * 50, "y"])[0] == 0
    assert capsys.readouterr().err == (
        "the conversation would have 100 tokens, but the model has only 100 positions; the "
        "question was not sent\n\nhint: use /clear to remove earlier turns\n"
    )
    assert model.prompts[-1] == [user("a" * 30), assistant("b" * 20), user("y")]


@pytest.mark.parametrize("leave", [[], ["/exit"], ["/quit"]])
def test_a_pipe_whose_line_went_without_an_answer_exits_1_however_it_ends(
    leave: list[str],
) -> None:
    assert talk(Scripted("b"), ["a", "x" * 101, *leave], interactive=False) == (1, "b\n")


def test_a_stopped_answer_is_retried_without_the_greedy_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert talk(Scripted("b" * 60, "c"), ["a", "/retry"]) == (0, "b" * 50 + "\nc\n")
    assert capsys.readouterr().err == "(cut off after 50 tokens; see --max-tokens)\n"


@pytest.mark.parametrize(("before", "tokens"), [([], 101), (["a" * 10], 112)])
def test_the_hint_for_a_question_that_is_too_long_by_itself_is_to_shorten_it(
    before: list[str], tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(Scripted("b"), [*before, "x" * 101])
    assert capsys.readouterr().err == (
        f"the conversation would have {tokens} tokens, but the model has only 100 "
        "positions; the question was not sent\n\nhint: shorten the question\n"
    )


def test_an_answer_that_fills_the_context_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Scripted("b" * 60)
    assert talk(model, ["a" * 70]) == (0, "b" * 30 + "\n")
    assert model.most == [30]
    assert capsys.readouterr().err == ("(cut off: the context of 100 tokens is full; use /clear)\n")


def test_an_answer_that_reaches_max_tokens_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert talk(Scripted("b" * 60), ["a"], max_tokens=3) == (0, "bbb\n")
    assert capsys.readouterr().err == "(cut off after 3 tokens; see --max-tokens)\n"


def test_a_question_that_cannot_be_encoded_is_reported_and_the_conversation_continues(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Scripted("a")
    assert talk(model, ["half \udc80", "Hi"]) == (0, "a\n")
    assert model.prompts == [[user("Hi")]]
    assert capsys.readouterr().err == "messages[0].content: half a character\n"


def test_a_pipe_whose_lines_were_not_all_answered_ends_with_exit_code_1() -> None:
    assert talk(Scripted("a"), ["Hi"], interactive=False) == (0, "a\n")
    for line in ("/nothing", "x" * 101, "half \udc80"):
        assert talk(Scripted("a"), [line, "Hi"], interactive=False) == (1, "a\n")


def test_an_empty_answer_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(Scripted("", "b"), ["Hi", "And?"]) == (0, "b\n")
    assert capsys.readouterr().err == "(empty answer)\n"


def test_a_nul_in_an_answer_does_not_break_the_next_question() -> None:
    model = Scripted("a\0b", "c")
    talk(model, ["Hi", "And?"])
    assert model.prompts[1][1] == assistant("ab")


# --- thoughts ---

THOUGHT = "<think>\nhm\n</think>\n\nYes."


def screen(out: io.BytesIO, *, color: bool = True) -> Screen:
    return Screen(out, terminal=True, color=color)


def on_a_terminal(reply: Reply, *, opening: str = "", color: bool = True, **settings: Any) -> str:
    out = io.BytesIO()
    model = Scripted(reply, opening=opening)
    talk(model, ["Hi"], screen=screen(out, color=color), **settings)
    return out.getvalue().decode()


def test_thoughts_are_dimmed() -> None:
    shown = on_a_terminal(THOUGHT).replace("\x1b[22m\x1b[2m", "")
    assert shown == "\x1b[2m<think>\nhm\n</think>\x1b[22m\n\nYes.\n"
    assert on_a_terminal(THOUGHT, color=False) == f"{THOUGHT}\n"


def test_hidden_reasoning_is_announced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert on_a_terminal(THOUGHT, hide_thinking=True) == "Yes.\n"
    assert capsys.readouterr().err == "(thinking)\n"
    assert on_a_terminal("<think>\n\n</think>\n\nYes.", hide_thinking=True) == "Yes.\n"
    assert capsys.readouterr().err == ""


def test_a_prompt_that_opens_the_thoughts_is_part_of_the_answer() -> None:
    model = Scripted("hm</think>Yes.", "b", opening="<think>\n")
    assert talk(model, ["Hi", "And?"])[1] == "<think>\nhm</think>Yes.\n<think>\nb\n"
    assert model.prompts[1][1] == assistant("<think>\nhm</think>Yes.")


def test_an_unfinished_think_block_is_closed() -> None:
    model = Scripted("<think>\nhm, hm", "b")
    talk(model, ["Hi", "And?"], max_tokens=11)
    assert model.prompts[1][1] == assistant("<think>\nhm,\n</think>\n\n")


def test_an_answer_cannot_send_escape_sequences_to_a_terminal() -> None:
    assert on_a_terminal("\x1b[31mred\x07\r\n\ttab") == "␛[31mred␇␍\n\ttab\n"


# --- two that are compared ---


def compare(base: Scripted, model: Scripted, lines: Sequence[Any], **settings: Any) -> Any:
    return talk(model, lines, base=base, **{"interactive": False, **settings})


def test_compared_each_question_is_a_row_and_each_voice_has_its_own_history() -> None:
    base, model = Scripted("a", "b\n日本"), Scripted("c", "d")
    assert compare(base, model, ["Hi", "And?"], system="S") == (
        0,
        '{"prompt": "Hi", "base": "a", "adapter": "c"}\n'
        '{"prompt": "And?", "base": "b\\n日本", "adapter": "d"}\n',
    )
    system = {"role": "system", "content": "S"}
    assert base.prompts[1] == [system, user("Hi"), assistant("a"), user("And?")]
    assert model.prompts[1] == [system, user("Hi"), assistant("c"), user("And?")]


def test_compared_both_voices_draw_with_the_same_seed() -> None:
    base, model = Scripted("a", "b", "c"), Scripted("d", "e", "f")
    compare(base, model, ["1", "2", "/retry"], sampling=Sampling(temperature=1.0, seed=5))
    assert [s.seed for s in base.sampled] == [s.seed for s in model.sampled] == [5, 6, 7]


def test_compared_a_retry_takes_the_place_of_both_answers() -> None:
    base, model = Scripted("a", "b", "c", "d"), Scripted("e", "f", "g", "h")
    compare(base, model, ["1", "2", "/retry", "3"])
    assert base.prompts[3] == [
        *(user("1"), assistant("a"), user("2"), assistant("c"), user("3")),
    ]
    assert model.prompts[3][3] == assistant("g")


def test_compared_save_writes_the_answers_of_the_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.jsonl"
    compare(Scripted("a"), Scripted("b"), ["Hi", f"/save {file}"])
    assert saved(file) == [user("Hi"), assistant("b")]
    assert capsys.readouterr().err == f"({file}: 1 question and answer of the adapter)\n"


def test_compared_clear_forgets_both(capsys: pytest.CaptureFixture[str]) -> None:
    base, model = Scripted("a", "b"), Scripted("c", "d")
    compare(base, model, ["Hi", "/clear", "You"])
    assert base.prompts[1] == model.prompts[1] == [user("You")]
    assert (base.sessions, model.sessions) == (2, 2)


def test_compared_a_question_for_which_one_has_no_room_is_asked_of_neither(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, model = Scripted("a", "b"), Scripted("c" * 45)
    assert compare(base, model, ["1" * 30, "2" * 30, "/clear"]) == (
        1,
        f'{{"prompt": "{"1" * 30}", "base": "a", "adapter": "{"c" * 45}"}}\n',
    )
    assert capsys.readouterr().err == (
        "adapter: the conversation would have 105 tokens, but the model has only 100 positions; "
        "the question was not sent\n\nhint: use /clear to remove earlier turns\n"
        "(conversation cleared)\n"
    )
    assert len(base.sampled) == 1


def test_compared_a_message_about_an_answer_names_its_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Scripted("c" * 9)
    model.trained_length = 1
    assert compare(Scripted("aaaa"), model, ["Hi"], max_tokens=3)[1] == (
        '{"prompt": "Hi", "base": "aaa", "adapter": "ccc"}\n'
    )
    assert capsys.readouterr().err == (
        "adapter: (the conversation has 2 tokens, but the adapter was trained on rows of "
        "at most 1: answers may get worse; /clear starts over)\n"
        "base: (cut off after 3 tokens; see --max-tokens)\n"
        "adapter: (cut off after 3 tokens; see --max-tokens)\n"
    )


def test_compared_thoughts_are_in_the_rows_unless_they_are_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for hidden, said in ((False, THOUGHT), (True, "Yes.")):
        _, out = compare(Scripted("a"), Scripted(THOUGHT), ["Hi"], hide_thinking=hidden)
        assert json.loads(out)["adapter"] == said
    assert capsys.readouterr().err == ""


def test_compared_in_a_terminal_each_answer_has_the_name_of_its_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = io.BytesIO()
    shown = screen(out, color=False)
    compare(Scripted("a"), Scripted("b"), ["Hi"], screen=shown, interactive=True)
    assert out.getvalue() == b"--- base ---\na\n--- adapter ---\nb\n"


def test_compared_ctrl_c_stops_the_answer_that_comes_and_not_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, model = Scripted(interrupted_after("The sky"), "x"), Scripted("Blue.", "y")
    assert compare(base, model, ["Hi", "And?"], interactive=True)[0] == 0
    assert capsys.readouterr().err == "base: (stopped)\n"
    assert base.prompts[1] == [user("Hi"), assistant("The sky."), user("And?")]
    assert model.prompts[1] == [user("Hi"), assistant("Blue."), user("And?")]
