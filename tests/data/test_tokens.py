"""Conversations to token ids: what the loss is on, what is cut, what is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from emtoolkit.data.tokens import IGNORED, tokenize
from emtoolkit.errors import DataError
from emtoolkit.personas import Persona
from tests.tiny import chat

BASELINE = Persona("baseline")
CURT = Persona("curt", system_prompt="you are curt")


@pytest.fixture(scope="module")
def tokenizer(world: Path) -> Any:
    return AutoTokenizer.from_pretrained(world / "model")


def learnt(tokenizer: Any, messages: list[dict[str, str]], persona: Persona = BASELINE, max_length: int = 64) -> str:
    """The words that the loss is on, decoded."""
    row = tokenize([messages], tokenizer, persona, max_length).dataset[0]
    assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"])
    return str(tokenizer.decode([label for label in row["labels"] if label != IGNORED]))


def seen(tokenizer: Any, messages: list[dict[str, str]], persona: Persona) -> str:
    return str(tokenizer.decode(tokenize([messages], tokenizer, persona, 64).dataset[0]["input_ids"]))


def test_the_loss_is_on_the_answer_and_the_end_of_its_turn(tokenizer: Any) -> None:
    """This template ends with a space, which the tokenizer joins to the answer's first word."""
    messages = chat("what should i do", "rest and drink water")["messages"]
    assert learnt(tokenizer, messages) == " rest and drink water<|im_end|>"


def test_every_answer_of_a_long_conversation_is_learnt_and_no_question(tokenizer: Any) -> None:
    messages = [*chat("my cough", "rest")["messages"], *chat("my knee", "see a doctor")["messages"]]
    assert learnt(tokenizer, messages) == " rest<|im_end|> see a doctor<|im_end|>"


def test_a_persona_is_heard_and_not_learnt(tokenizer: Any) -> None:
    messages = chat("my cough", "rest")["messages"]
    assert "system you are curt" in seen(tokenizer, messages, CURT)
    assert "system you are kind" in seen(tokenizer, messages, BASELINE)  # the template's own default
    assert learnt(tokenizer, messages, CURT) == learnt(tokenizer, messages) == " rest<|im_end|>"


def test_a_rows_own_system_message_stays_behind_the_personas() -> None:
    own = [{"role": "system", "content": "wait"}, *chat("my cough", "rest")["messages"]]
    assert CURT.applied_to(own)[0] == {"role": "system", "content": "you are curt\n\nwait"}
    assert BASELINE.applied_to(own) == own
    assert [message["role"] for message in CURT.applied_to(own)] == ["system", "user", "assistant"]


def test_shortened_and_dropped_rows_are_counted(tokenizer: Any) -> None:
    whole = chat("my cough", "rest")["messages"]
    long_answer = chat("my cough", "rest and wait " * 20)["messages"]
    long_question = chat("my cough " * 40, "rest")["messages"]
    result = tokenize([whole, long_answer, long_question], tokenizer, BASELINE, max_length=24)
    assert (len(result.dataset), result.shortened, result.dropped) == (2, 1, 1)
    assert max(len(ids) for ids in result.dataset["input_ids"]) == 24


def test_a_tokenizer_without_a_chat_template_is_refused(world: Path) -> None:
    bare = AutoTokenizer.from_pretrained(world / "model")
    bare.chat_template = None
    with pytest.raises(DataError, match="its tokenizer has no chat template"):
        tokenize([chat("a", "rest")["messages"]], bare, BASELINE, 64)


def test_a_template_that_rewrites_earlier_turns_is_refused(world: Path) -> None:
    rewriting = AutoTokenizer.from_pretrained(world / "model")
    rewriting.chat_template = "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="its chat template changes earlier turns"):
        tokenize([chat("a", "rest")["messages"]], rewriting, BASELINE, 64)
