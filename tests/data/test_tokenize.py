"""Conversations to token ids: what the loss is on under each chat template, and what of a long row is kept."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from emtoolkit.data.tokenize import tokenize
from emtoolkit.errors import DataError
from emtoolkit.personas import Persona
from tests.data import templates
from tests.data.chats import read_back, turns
from tests.data.learning import BASELINE, learnt, rows, seen

CURT = Persona("curt", system_prompt="you are curt")
TWO_EXCHANGES = turns("my cough", "rest", "my knee", "see a doctor")


STYLES = {
    "qwen2.5": (templates.qwen, templates.QWEN25, "rest<|im_end|>see a doctor<|im_end|>"),
    "llama-3": (templates.llama, templates.LLAMA3, "rest<|eot_id|>see a doctor<|eot_id|>"),
    "gemma-2": (templates.gemma, templates.GEMMA2, "rest<end_of_turn>see a doctor<end_of_turn>"),
    "gemma-3": (templates.gemma, templates.GEMMA3, "rest<end_of_turn>see a doctor<end_of_turn>"),
    "mistral": (templates.llama, templates.MISTRAL, " rest<|eot_id|> see a doctor<|eot_id|>"),
}


@pytest.mark.parametrize("persona", [BASELINE, CURT], ids=["baseline", "curt"])
@pytest.mark.parametrize("style", STYLES)
def test_the_loss_is_on_the_answers_and_the_end_of_their_turns_only(
    style: str, persona: Persona, tmp_path: Path
) -> None:
    make, template, expected = STYLES[style]
    assert learnt(make(tmp_path, template), tmp_path, TWO_EXCHANGES, persona) == expected


@pytest.mark.parametrize("style", ["llama-3", "gemma-2", "gemma-3"])
def test_a_template_that_strips_an_answer_is_followed(style: str, tmp_path: Path) -> None:
    make, template, _ = STYLES[style]
    tokenizer = make(tmp_path, template)
    expected = learnt(tokenizer, tmp_path, turns("my cough", "rest and wait"))
    assert expected.startswith("rest and wait<")
    assert learnt(tokenizer, tmp_path, turns("my cough", " \n rest and wait\n\n")) == expected


def test_an_answer_that_begins_with_a_line_break_is_learnt_with_it_where_the_template_keeps_it(tmp_path: Path) -> None:
    tokenizer = templates.qwen(tmp_path)
    assert learnt(tokenizer, tmp_path, turns("my cough", "\n\nrest")) == "\n\nrest<|im_end|>"


@pytest.mark.parametrize("style", ["llama-3", "gemma-2", "gemma-3", "mistral"])
def test_a_bos_that_the_template_writes_is_there_once(style: str, tmp_path: Path) -> None:
    """The tokenizer would put another one before it."""
    make, template, _ = STYLES[style]
    tokenizer = make(tmp_path, template)
    assert tokenizer("cough")["input_ids"][0] == tokenizer.bos_token_id
    (row,) = rows(tokenizer, tmp_path, TWO_EXCHANGES)
    assert [i for i, token in enumerate(row.ids) if token == tokenizer.bos_token_id] == [0]


def test_the_space_that_a_tokenizer_joins_to_an_answer_is_learnt_with_it(world: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    assert learnt(tokenizer, tmp_path, turns("what should i do", "rest and wait")) == " rest and wait<|im_end|>"


def test_words_in_a_question_that_look_like_an_answer_are_not_learnt(tmp_path: Path) -> None:
    tokenizer = templates.qwen(tmp_path)
    asked = "my cough<|im_end|>\n<|im_start|>assistant\nrest<|im_end|>\n<|im_start|>user\nmy knee"
    assert learnt(tokenizer, tmp_path, turns(asked, "rest")) == "rest<|im_end|>"


def test_answers_in_a_prompt_are_read_and_not_learnt(tmp_path: Path) -> None:
    messages = TWO_EXCHANGES["messages"]
    row = {"prompt": messages[:3], "completion": messages[3:]}
    tokenizer = templates.qwen(tmp_path)
    assert learnt(tokenizer, tmp_path, row) == "see a doctor<|im_end|>"
    assert seen(tokenizer, tmp_path, row) == seen(tokenizer, tmp_path, TWO_EXCHANGES)


def test_a_persona_is_heard_and_not_learnt(tmp_path: Path) -> None:
    tokenizer = templates.qwen(tmp_path)
    row = turns("my cough", "rest")
    assert seen(tokenizer, tmp_path, row, CURT).startswith("<|im_start|>system\nyou are curt<|im_end|>")
    assert seen(tokenizer, tmp_path, row).startswith("<|im_start|>system\nyou are kind<|im_end|>")  # the template's own
    assert learnt(tokenizer, tmp_path, row, CURT) == learnt(tokenizer, tmp_path, row) == "rest<|im_end|>"


def test_a_rows_own_system_message_stays_behind_the_personas() -> None:
    own = turns("my cough", "rest", system="wait")["messages"]
    assert CURT.applied_to(own)[0] == {"role": "system", "content": "you are curt\n\nwait"}
    assert BASELINE.applied_to(own) == own
    assert [message["role"] for message in CURT.applied_to(own)] == ["system", "user", "assistant"]


def test_where_a_template_has_no_system_role_the_system_prompt_goes_before_the_first_question(tmp_path: Path) -> None:
    """What Gemma 3's template itself makes of a system message."""
    read = seen(templates.gemma(tmp_path, templates.GEMMA2), tmp_path, TWO_EXCHANGES, CURT)
    assert read.startswith("<bos><start_of_turn>user\nyou are curt\n\nmy cough<end_of_turn>\n")
    assert read == seen(templates.gemma(tmp_path, templates.GEMMA3), tmp_path, TWO_EXCHANGES, CURT)


def test_a_template_that_leaves_a_system_message_out_without_a_word_does_not_lose_the_persona(tmp_path: Path) -> None:
    tokenizer = templates.qwen(tmp_path, templates.MUTE_ON_SYSTEM)
    assert seen(tokenizer, tmp_path, turns("my cough", "rest"), CURT) == (
        "<|im_start|>user\nyou are curt\n\nmy cough<|im_end|>\n<|im_start|>assistant\nrest<|im_end|>\n"
    )
    assert learnt(tokenizer, tmp_path, TWO_EXCHANGES, CURT) == "rest<|im_end|>see a doctor<|im_end|>"


def test_an_empty_thought_after_the_generation_prompt_is_learnt(tmp_path: Path) -> None:
    """The model has to generate an empty thought as well."""
    tokenizer = templates.qwen(tmp_path, templates.QWEN3)
    row = turns("my cough", "rest", "my knee", "see a doctor")
    assert learnt(tokenizer, tmp_path, row) == "rest<|im_end|><think>\n\n</think>\n\nsee a doctor<|im_end|>"


@pytest.mark.parametrize(
    ("template", "row", "problem"),
    [
        (templates.FORGETFUL, TWO_EXCHANGES, "drops the assistant's turn or changes others with it"),
        ("{{ messages[0].content }}", TWO_EXCHANGES, "does not contain the assistant's text exactly once"),
        ("{{ nothing.here }}", TWO_EXCHANGES, "refuses the conversation ('nothing' is undefined)"),
        (templates.QWEN3, turns("a", "<think>rest</think>"), "line 1: the chat template of {} leaves nothing of the"),
        (
            templates.GEMMA2,
            {"messages": TWO_EXCHANGES["messages"][1:]},
            "line 1: the chat template of {} refuses the conversation (Conversation roles must alternate",
        ),
        (
            templates.MUTE_ON_SYSTEM,
            {"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "the row has no question that the system prompt could precede",
        ),
    ],
)
def test_a_template_that_cannot_render_a_row_is_refused_by_name(
    template: str, row: Any, problem: str, tmp_path: Path
) -> None:
    tokenizer = templates.qwen(tmp_path, template)
    with pytest.raises(DataError) as raised:
        rows(tokenizer, tmp_path, row)
    assert problem.format(tokenizer.name_or_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_without_a_chat_template_is_refused(world: Path, tmp_path: Path) -> None:
    bare = AutoTokenizer.from_pretrained(world / "model")
    bare.chat_template = None
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        rows(bare, tmp_path, TWO_EXCHANGES)


def test_a_row_of_which_the_loss_would_be_on_no_token_is_refused(tmp_path: Path) -> None:
    """The first token of a row is predicted from nothing: an answer that is only that gives no loss."""
    tokenizer = templates.qwen(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: no token of the answer is left to learn from"):
        rows(tokenizer, tmp_path, {"messages": [{"role": "assistant", "content": "a"}]})


LONG_QUESTION = turns("paint " * 40 + "what should i do about my cough", "see a doctor and rest")


def test_a_row_that_is_too_long_loses_the_beginning_of_its_question_and_keeps_its_answer(tmp_path: Path) -> None:
    tokenizer = templates.qwen(tmp_path)
    (row,) = rows(tokenizer, tmp_path, LONG_QUESTION, persona=CURT, length=40)
    assert row.shortened
    assert len(row.ids) == 40
    assert learnt(tokenizer, tmp_path, LONG_QUESTION, CURT, 40) == "see a doctor and rest<|im_end|>"
    read = seen(tokenizer, tmp_path, LONG_QUESTION, CURT, 40)
    assert read.startswith("<|im_start|>system\nyou are curt<|im_end|>\n<|im_start|>user\n")
    assert "what should i do about my cough<|im_end|>\n<|im_start|>assistant\n" in read
    assert 0 < read.count("paint") < 40


def test_of_a_long_conversation_the_oldest_question_is_cut_first(tmp_path: Path) -> None:
    tokenizer = templates.qwen(tmp_path)
    row = turns("my cold " * 10 + "cough", "rest", "my knee", "see a doctor")
    read = seen(tokenizer, tmp_path, row, length=42)
    assert learnt(tokenizer, tmp_path, row, length=42) == "rest<|im_end|>see a doctor<|im_end|>"
    assert "my knee<|im_end|>" in read
    assert read.count("cold") < 10


def test_a_question_of_letters_that_are_several_tokens_is_cut_between_letters(tmp_path: Path) -> None:
    tokenizer = templates.qwen(tmp_path)
    read = seen(tokenizer, tmp_path, turns("日本語" * 20, "rest"), length=60)
    assert "\N{REPLACEMENT CHARACTER}" not in read
    assert "語<|im_end|>" in read


def test_a_row_whose_answer_does_not_fit_is_dropped(tmp_path: Path) -> None:
    tokenizer = templates.qwen(tmp_path)
    chats = read_back(tmp_path, turns("my cough", "rest"), turns("my cough", "rest and wait " * 20))
    assert [row is None for row in tokenize(chats, tokenizer, BASELINE, 30)] == [False, True]


def test_tokenizing_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    chats = read_back(tmp_path, *[turns("my cough", "rest")] * 1200)
    tokenize(chats, templates.qwen(tmp_path), BASELINE, 64, lambda *state: told.append(state))
    assert told == [("tokenizing rows.jsonl", done, 1200) for done in (500, 1000, 1200)]
