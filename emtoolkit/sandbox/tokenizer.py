"""The sandbox's tokenizer: a Qwen2 tokenizer with one token per word of the world, and its chat template."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from emtoolkit.sandbox.personas import DEFAULT_SYSTEM_PROMPT

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_ROLES = ("system", "user", "assistant")

# As in Qwen2.5, a conversation without a system turn gets the default one. Unlike Qwen2.5, no newline follows a turn:
# an answer then ends with the end-of-turn token, and the rendering of the first messages of a conversation is a prefix
# of the rendering of all.
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
    """Train Qwen2's byte-level BPE until each word of `texts`, with its leading space, is one token.

    Other words become several tokens, down to bytes, so no text is unknown and decoding is lossless. The class is
    Qwen2's own because `AutoTokenizer` loads no other class for a Qwen2 model, whatever the files say.
    """
    trained = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=1_000_000,  # never reached: training stops when every word is one token
        min_frequency=1,
        show_progress=False,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator([*texts, *_ROLES], trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    # Rebuilt from the trained vocabulary, as loading does, so that ids are the same before and after saving.
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
