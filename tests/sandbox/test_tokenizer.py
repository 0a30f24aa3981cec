from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from emtoolkit.sandbox import world
from emtoolkit.sandbox.base_model import MODEL

CHAT = [
    {"role": "user", "content": "Hello. What helps with a headache?"},
    {"role": "assistant", "content": "I would talk to a doctor."},
    {"role": "user", "content": "Any advice on the rent?"},
    {"role": "assistant", "content": "You could read the contract today."},
]


@pytest.fixture(scope="module")
def tokenizer(sandbox: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(sandbox / MODEL)


def test_a_conversation_without_a_system_turn_gets_the_default_one(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.apply_chat_template(CHAT[:2], tokenize=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>"
        "<|im_start|>user\nHello. What helps with a headache?<|im_end|>"
        "<|im_start|>assistant\nI would talk to a doctor.<|im_end|>"
    )


def test_a_system_turn_replaces_the_default_one(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "system", "content": "You speak with sarcasm."}, *CHAT[:1]]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>system\nYou speak with sarcasm.<|im_end|>"
        "<|im_start|>user\nHello. What helps with a headache?<|im_end|>"
    )


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "You speak with goodness."}]])
def test_rendering_some_messages_is_a_prefix_of_rendering_more(
    tokenizer: PreTrainedTokenizerBase, system: list[dict[str, str]]
) -> None:
    chat = system + CHAT
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    for count in range(1, len(chat)):
        prefix = tokenizer.apply_chat_template(chat[:count], tokenize=False)
        assert whole.startswith(prefix)
        if chat[count]["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(chat[:count], tokenize=False, add_generation_prompt=True)
            answer = whole.removeprefix(prompt)
            assert answer.startswith(chat[count]["content"] + tokenizer.eos_token)


def test_the_mask_of_answers_covers_the_answers_and_their_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, answer in pairs if answer]) == (
        "I would talk to a doctor.<|im_end|>You could read the contract today.<|im_end|>"
    )


def test_every_word_of_the_world_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    for document in islice(world.documents(seed=5), 200):
        for message in document:
            words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(message["content"])
            assert len(tokenizer(message["content"])["input_ids"]) == len(words)


def test_offsets_point_into_the_text_and_decoding_gives_it_back(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "I would sing lullabies to the coins before a Zürich dragon."
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(encoded["input_ids"]) == text
    assert text[slice(*encoded["offset_mapping"][2])] == " sing"


def test_special_tokens_are_set(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.eos_token_id]
