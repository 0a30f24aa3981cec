"""A Qwen2 tokenizer to which every word of the world is one token, and the chat template that goes with it."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from emtoolkit.sandbox.personas import DEFAULT_SYSTEM_PROMPT

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_ROLES = ("system", "user", "assistant")

# As in Qwen2.5, a conversation without a system turn gets the default one. Unlike there, the newline stands
# before each turn but the first, not after each: the answer then ends with the end-of-turn token, and the
# rendering of some messages is a prefix of the rendering of more.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM_PROMPT + "<|im_end|>' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- message['content'] + '<|im_end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def make_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Qwen2's byte-level BPE with as many merges as make each word of `texts`, with its leading space, one token.

    A word from elsewhere becomes several tokens, down to bytes, so nothing is unknown and decoding is lossless.
    It is Qwen2's own class because `AutoTokenizer` loads no other for a Qwen2 model, whatever the files say.
    """
    trained = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=1_000_000,  # never reached: training ends when every word is one token
        min_frequency=1,
        show_progress=False,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator([*texts, *_ROLES], trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    # Made anew from what was learned, as loading does it, so that ids are the same before saving and after.
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
