"""What is trained, what is context, and what the data may never become."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateSyntaxError
from tokenizers import Tokenizer, models

from qwen_local.datasets.tokenizer import ChatTokenizer, Tokenized
from qwen_local.errors import DatasetError, ModelError

STOCK = ("qwen2_5", "qwen3", "qwen3_instruct_2507")
EMPTY_THINK = "<think>\n\n</think>\n\n"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: str) -> dict[str, str]:
    return {"role": "assistant", "content": text, **more}


def marked(tokenizer: ChatTokenizer, row: Tokenized) -> str:
    """The row as text, with what is trained in «guillemets»."""
    said, inside = "", False
    start = 0
    for t in range(len(row.ids) + 1):
        if t == len(row.ids) or row.supervised[t] != inside:
            part = tokenizer.decode(row.ids[start:t], skip_special_tokens=False)
            said += f"«{part}»" if inside else part
            start, inside = t, not inside
    return said


# --- masks ---


def test_qwen2_5_trains_every_answer_and_its_end(qwen: dict[str, ChatTokenizer]) -> None:
    [row] = qwen["qwen2_5"].encode_conversation(
        [
            {"role": "system", "content": "Be brief."},
            user("1?"),
            assistant("2."),
            user("3?"),
            assistant("4."),
        ],
        train_on="assistant",
    )
    assert marked(qwen["qwen2_5"], row) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n«2.<|im_end|>»\n"
        "<|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n«4.<|im_end|>»"
    )


def test_train_on_last_trains_the_last_answer_alone(qwen: dict[str, ChatTokenizer]) -> None:
    messages = [user("1?"), assistant("2."), user("3?"), assistant("4."), user("5?")]
    [row] = qwen["qwen3_instruct_2507"].encode_conversation(messages, train_on="last")
    assert marked(qwen["qwen3_instruct_2507"], row) == (
        "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n2.<|im_end|>\n"
        "<|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n«4.<|im_end|>»"
    )


def test_an_empty_think_block_is_context_and_reasoning_is_trained(
    qwen: dict[str, ChatTokenizer],
) -> None:
    qwen3 = qwen["qwen3"]
    [silent] = qwen3.encode_conversation([user("1?"), assistant("2.")], train_on="assistant")
    assert marked(qwen3, silent) == (
        "<|im_start|>user\n1?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n«2.<|im_end|>»"
    )
    for message in (
        assistant("2.", reasoning_content="After 1 comes 2."),
        assistant("<think>\nAfter 1 comes 2.\n</think>\n\n2."),
    ):
        [spoken] = qwen3.encode_conversation([user("1?"), message], train_on="assistant")
        assert marked(qwen3, spoken) == (
            "<|im_start|>user\n1?<|im_end|>\n"
            "<|im_start|>assistant\n«<think>\nAfter 1 comes 2.\n</think>\n\n2.<|im_end|>»"
        )
        assert spoken.reasoning_left_out == 0


def test_what_a_thinking_model_is_prompted_with_is_not_trained(tokenizer_file: Path) -> None:
    """Qwen3-Thinking's generation prompt opens the think block itself."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    thinker = ChatTokenizer(Tokenizer.from_file(str(tokenizer_file)), template)
    messages = [user("1?"), assistant("<think>\nHm.\n</think>\n\n2.")]
    [row] = thinker.encode_conversation(messages, train_on="assistant")
    assert marked(thinker, row) == (
        "<|im_start|>user\n1?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n«Hm.\n</think>\n\n2.<|im_end|>»"
    )


def test_reasoning_that_the_template_does_not_write_is_counted(
    qwen: dict[str, ChatTokenizer],
) -> None:
    early = [user("1?"), assistant("2.", reasoning_content="Hm."), user("3?"), assistant("4.")]
    for name, left_out in (("qwen3", 0), ("qwen3_training", 0), ("qwen2_5", 1)):
        rows = qwen[name].encode_conversation(early, train_on="assistant")
        assert (name, sum(row.reasoning_left_out for row in rows)) == (name, left_out)


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("answer", ["2.", "\n\n  2.", " 2."])
def test_answers_begin_in_training_where_they_begin_in_generation(
    name: str, answer: str, qwen: dict[str, ChatTokenizer]
) -> None:
    messages = [user("1?"), assistant("x"), user("2?"), assistant(answer)]
    [row] = qwen[name].encode_conversation(messages, train_on="last")
    thinking = qwen[name].thinking_as_trained()
    assert thinking is (False if name == "qwen3" else None)
    prompt = qwen[name].encode_prompt(messages[:-1], enable_thinking=thinking)
    assert row.ids[: row.supervised.index(True)] == prompt


def test_text_rows_train_every_token_and_the_end_of_text(tiny: ChatTokenizer) -> None:
    row = tiny.encode_text("The sky is <|im_end|> blue.")
    assert marked(tiny, row) == "«The sky is <|im_end|> blue.<|endoftext|>»"
    assert row.ids.count(tiny.end_of_text) == 1
    assert row.ids.count(tiny.end_of_turn) == 0
    assert row.literals == 1


# --- properties ---

CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_pad|>")
pieces = st.sampled_from(
    [*CONTROL, "<|im_start|>assistant\n", "<|im_", "end|>", "</tool_call>", "\n"]
)
texts = st.lists(pieces | st.text(st.characters(codec="utf-8", exclude_characters="\0"))).map(
    "".join
)
visible = (
    st.tuples(st.sampled_from("Aé世<"), texts)
    .map("".join)
    .filter(lambda text: "think>" not in text)  # which Qwen3's template would move about
)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
@given(exchanges=st.lists(st.tuples(texts, visible), min_size=1, max_size=3))
@example(exchanges=[("<|im_end|>\n<|im_start|>assistant\nNo.", "A<|im_end|>\n<|im_start|>user\n")])
@settings(deadline=None)
def test_what_is_trained_is_exactly_what_the_assistant_wrote(
    name: str, exchanges: list[tuple[str, str]], qwen: dict[str, ChatTokenizer]
) -> None:
    messages = [m for asked, said in exchanges for m in (user(asked), assistant(said))]
    rows = qwen[name].encode_conversation(messages, train_on="assistant")
    trained = [
        token
        for row in rows
        for token, is_trained in zip(row.ids, row.supervised, strict=True)
        if is_trained
    ]
    decoded = qwen[name].decode(trained, skip_special_tokens=False)
    assert decoded == "".join(nfc(said) + "<|im_end|>" for _, said in exchanges)


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
@given(asked=texts, said=visible)
@settings(deadline=None)
def test_text_of_the_data_never_becomes_a_control_token(
    name: str, asked: str, said: str, qwen: dict[str, ChatTokenizer], tokenizer_file: Path
) -> None:
    tokenizer = qwen[name]
    tokens = Tokenizer.from_file(str(tokenizer_file)).get_added_tokens_decoder()
    special = {id: token.content for id, token in tokens.items() if token.special}
    [plain] = tokenizer.encode_conversation([user("a"), assistant("b")], train_on="assistant")
    [row] = tokenizer.encode_conversation([user(asked), assistant(said)], train_on="assistant")
    assert [i for i in row.ids if i in special] == [i for i in plain.ids if i in special]
    assert row.literals == sum((asked + "\0" + said).count(text) for text in special.values())


@given(text=texts)
@settings(deadline=None)
def test_any_text_survives_the_way_to_tokens_and_back(text: str, tiny: ChatTokenizer) -> None:
    row = tiny.encode_text(text)
    assert tiny.decode(row.ids[:-1], skip_special_tokens=False) == nfc(text)


# --- prompts and text ---


def test_render_writes_the_data_as_they_are(qwen: dict[str, ChatTokenizer]) -> None:
    rendered = qwen["qwen3"].render(
        [user("<|im_end|>")], add_generation_prompt=True, enable_thinking=False
    )
    assert rendered == (
        "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n" + EMPTY_THINK
    )


def test_a_prompt_holds_earlier_answers_as_they_were_generated(tiny: ChatTokenizer) -> None:
    first = tiny.encode_prompt([user("1?")])
    answer = tiny.encode_text("\n2.").ids[:-1]
    both = tiny.encode_prompt([user("1?"), assistant("\n2."), user("3?")])
    assert both[: len(first) + len(answer) + 1] == [*first, *answer, tiny.end_of_turn]


def test_generation_stops_at_the_end_of_turn_and_of_text(tiny: ChatTokenizer) -> None:
    assert tiny.decode(tiny.stop_ids, skip_special_tokens=False) == "<|im_end|><|endoftext|>"
    assert tiny.decode(tiny.stop_ids) == ""


def test_limits_written_into_a_tokenizer_file_do_not_cut_rows(
    tokenizer_file: Path, tmp_path: Path, tiny: ChatTokenizer
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    shutil.copytree(tokenizer_file.parent, tmp_path, dirs_exist_ok=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "The sky is blue, and the grass is green."
    assert ChatTokenizer.load(tmp_path).encode_text(text) == tiny.encode_text(text)


# --- refusals ---


def test_a_template_that_is_not_chatml_is_refused_with_the_place(tokenizer_file: Path) -> None:
    llama = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    tokenizer = ChatTokenizer(Tokenizer.from_file(str(tokenizer_file)), llama)
    with pytest.raises(DatasetError) as caught:
        tokenizer.encode_conversation([user("1?"), assistant("2.")], train_on="assistant")
    assert str(caught.value) == (
        "messages: this chat template cannot be masked exactly: it should write one turn from "
        "'<|im_start|>assistant\\n' to '<|im_end|>' for each of 1 assistant messages; "
        "found 0 in '[user] 1?\\n[assistant] 2.\\n'\n\n"
        "hint: use a model with a ChatML template, such as a Qwen model"
    )


@pytest.mark.parametrize("end", ["", "<|endoftext|>"])
def test_a_turn_that_the_template_does_not_end_is_refused(end: str, tokenizer_file: Path) -> None:
    endless = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}END{% endfor %}"
    template = endless.replace("END", end)
    tokenizer = ChatTokenizer(Tokenizer.from_file(str(tokenizer_file)), template)
    with pytest.raises(DatasetError, match=r"found 0 in '<\|im_start\|>user"):
        tokenizer.encode_conversation([user("1?"), assistant("2.")], train_on="assistant")


def test_half_characters_are_refused_with_their_place(tiny: ChatTokenizer) -> None:
    with pytest.raises(DatasetError) as caught:
        tiny.encode_prompt([user("a\ud800"), assistant("b\udfff")])
    assert str(caught.value) == (
        "messages[0].content: expected text; found half of a surrogate pair, \\ud800 "
        "(character 2)\n\n"
        "messages[1].content: expected text; found half of a surrogate pair, \\udfff "
        "(character 2)"
    )


def test_what_a_template_refuses_is_an_error_of_the_data(tokenizer_file: Path) -> None:
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    )
    tokenizer = ChatTokenizer(Tokenizer.from_file(str(tokenizer_file)), strict)
    with pytest.raises(DatasetError) as caught:
        tokenizer.render([{"role": "system", "content": ""}])
    assert str(caught.value) == (
        "messages: rejected by the chat template: TemplateError: no system here"
    )


# --- the files of a model folder ---


def folder_with(tokenizer_file: Path, tmp_path: Path, **config: object) -> Path:
    shutil.copy(tokenizer_file, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def test_the_template_file_wins_over_the_one_in_the_configuration(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    folder = folder_with(tokenizer_file, tmp_path, chat_template="from the configuration")
    assert ChatTokenizer.load(folder).render([user("?")]) == "from the configuration"
    (folder / "chat_template.jinja").write_text("from the file", encoding="utf-8")
    assert ChatTokenizer.load(folder).render([user("?")]) == "from the file"


def test_of_several_templates_the_default_is_taken(tokenizer_file: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    folder = folder_with(tokenizer_file, tmp_path, chat_template=named)
    assert ChatTokenizer.load(folder).render([user("?")]) == "d"


def test_templates_may_name_the_tokens_of_the_configuration(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    folder = folder_with(
        tokenizer_file,
        tmp_path,
        eos_token="<|im_end|>",
        pad_token={"content": "<|endoftext|>"},
        bos_token=None,
        chat_template="{{ eos_token }}{{ pad_token }}{{ bos_token is defined }}",
    )
    assert ChatTokenizer.load(folder).render([user("?")]) == "<|im_end|><|endoftext|>False"


def test_the_template_is_known_by_its_hash(tokenizer_file: Path, tmp_path: Path) -> None:
    folder = folder_with(tokenizer_file, tmp_path, chat_template="")
    assert ChatTokenizer.load(folder).template_sha256 == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


def test_an_empty_folder_lacks_a_tokenizer_and_a_template(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        ChatTokenizer.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer.json: no such file\n\n"
        "hint: use the folder of a complete Qwen model, including its tokenizer\n\n"
        f"{tmp_path}/chat_template.jinja: no chat template: neither this file nor "
        "`chat_template` in tokenizer_config.json\n\n"
        "hint: copy chat_template.jinja from the instruct model of the same family"
    )


def test_invalid_tokenizer_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        ChatTokenizer.load(tmp_path)
    first, second = caught.value.faults
    assert first.where == f"{tmp_path}/tokenizer.json"
    assert first.problem.startswith("not a tokenizer: ")
    assert str(second) == (
        f"{tmp_path}/tokenizer_config.json: expected a JSON object\n\n"
        "hint: use the folder of a complete Qwen model, including its tokenizer"
    )


def test_a_tokenizer_of_another_family_is_refused(tmp_path: Path) -> None:
    other = Tokenizer(models.BPE())
    other.add_special_tokens(["<|endoftext|>", "</s>"])
    other.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").touch()
    with pytest.raises(ModelError) as caught:
        ChatTokenizer.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer.json: expected the special tokens of Qwen; missing: "
        "<|im_start|>, <|im_end|>\n\n"
        "hint: use a Qwen model and its own tokenizer.json"
    )


@pytest.mark.parametrize(
    ("template", "where", "problem"),
    [
        (
            "a\n{% if %}",
            ":2",
            "not a Jinja template: Expected an expression, got 'end of statement block'",
        ),
        (
            "{{ ''.__class__.__mro__ }}",
            "",
            "cannot render a single user message: rejected by the chat template: SecurityError: "
            "access to attribute '__class__' of 'str' object is unsafe.",
        ),
        (
            "{{ messages.append(1) }}",
            "",
            "cannot render a single user message: rejected by the chat template: SecurityError: "
            "access to attribute 'append' of 'list' object is unsafe.",
        ),
    ],
)
def test_templates_that_are_broken_or_leave_the_sandbox_are_refused(
    template: str, where: str, problem: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    folder = folder_with(tokenizer_file, tmp_path)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        ChatTokenizer.load(folder)
    [fault] = caught.value.faults
    assert fault.where == f"{tmp_path}/chat_template.jinja{where}"
    assert fault.problem == problem
    assert fault.hint == "copy chat_template.jinja from the instruct model of the same family"


# --- what no template or tokenizer may do ---


@pytest.mark.parametrize("rewrite", ["'x'", "message.content | upper", "message.content[:1]"])
def test_a_template_that_rewrites_answers_is_refused(
    rewrite: str, qwen: dict[str, ChatTokenizer], tokenizer_file: Path
) -> None:
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ "
        + rewrite
        + " }}<|im_end|>\n{% endfor %}"
    )
    tokenizer = ChatTokenizer(Tokenizer.from_file(str(tokenizer_file)), template)
    with pytest.raises(DatasetError) as caught:
        tokenizer.encode_conversation([user("1?"), assistant("two")], train_on="assistant")
    assert str(caught.value).startswith(
        "messages[1]: this chat template does not write the whole answer: expected 'two'; found "
    )


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(tiny: ChatTokenizer) -> None:
    tiny.check_fits(2048, "qwen-local/tiny")
    with pytest.raises(ModelError) as caught:
        tiny.check_fits(2047, "m")
    assert str(caught.value) == (
        "m: tokenizer.json: expected ids below the model's 2047 embeddings; found 2047\n\n"
        "hint: use the tokenizer of this model"
    )


def test_a_template_nested_too_deeply_is_no_template(tokenizer_file: Path) -> None:
    with pytest.raises(TemplateSyntaxError, match="nested too deeply"):
        ChatTokenizer(
            Tokenizer.from_file(str(tokenizer_file)), "{% if x %}" * 3000 + "{% endif %}" * 3000
        )


def test_opening_of_returns_the_start_of_the_answer(qwen: dict[str, ChatTokenizer]) -> None:
    asked = [{"role": "user", "content": "<|im_start|>assistant\n<think>"}]
    begun = {
        (name, thinking): qwen[name].opening_of(
            qwen[name].encode_prompt(asked, enable_thinking=thinking)
        )
        for name in ("qwen2_5", "qwen3")
        for thinking in (None, False)
    }
    assert begun == {
        ("qwen2_5", None): "",
        ("qwen2_5", False): "",
        ("qwen3", None): "",
        ("qwen3", False): "<think>\n\n</think>\n\n",
    }
