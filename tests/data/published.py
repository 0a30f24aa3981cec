"""Tokenizers with the special tokens that each family publishes, and without those that a family lacks.

Entered from memory of the families' `tokenizer_config.json`; a vocabulary of a few hundred tokens replaces theirs.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.data import templates
from tests.tiny import TEXT


@dataclass(frozen=True)
class Published:
    """The special tokens of a family, the side of its padding, and its chat template."""

    template: str
    eos: str
    bos: str | None = None
    pad: str | None = None
    unk: str | None = None
    others: tuple[str, ...] = ()
    padding_side: str = "right"


_QWEN = ("<|im_start|>", "<|im_end|>")
_PHI3 = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_GEMMA2 = Published(
    templates.GEMMA2,
    "<eos>",
    bos="<bos>",
    pad="<pad>",
    unk="<unk>",
    others=("<start_of_turn>", "<end_of_turn>"),
    padding_side="left",
)
# By the `model_type` of the family's models.
PUBLISHED = {
    "qwen2": Published(templates.QWEN25, "<|im_end|>", pad="<|endoftext|>", others=_QWEN),  # Qwen2.5-Instruct
    "llama": Published(  # Llama-3.1-Instruct: no pad token
        templates.LLAMA3,
        "<|eot_id|>",
        bos="<|begin_of_text|>",
        others=("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
    ),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, template=templates.GEMMA3),
    "qwen3": Published(templates.QWEN3, "<|im_end|>", pad="<|endoftext|>", others=_QWEN),
    "mistral": Published(  # Mistral-7B-Instruct-v0.3: no pad token
        templates.MISTRAL, "</s>", bos="<s>", unk="<unk>", others=("[INST]", "[/INST]"), padding_side="left"
    ),
    "phi3": Published(  # Phi-3-mini-instruct: the end-of-text token is the pad token, and does not end a turn
        _PHI3,
        "<|endoftext|>",
        bos="<s>",
        pad="<|endoftext|>",
        unk="<unk>",
        others=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        padding_side="left",
    ),
    "olmo2": Published(  # OLMo-2-Instruct: one token begins and ends a text
        _OLMO2, "<|endoftext|>", bos="<|endoftext|>", pad="<|pad|>", others=("<|system|>", "<|user|>", "<|assistant|>")
    ),
}


def write_tokenizer(kind: str, directory: Path) -> Any:
    """The tokenizer of the family `kind`, saved in `directory` and read from its files."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from emtoolkit.sandbox.tokenizer import make_tokenizer

    family = PUBLISHED[kind]
    backend = make_tokenizer([TEXT]).backend_tokenizer
    named = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad, "unk_token": family.unk}
    backend.add_special_tokens([token for token in (*named.values(), *family.others) if token])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=family.padding_side,
        extra_special_tokens=list(family.others),
        **{name: token for name, token in named.items() if token},
    )
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)
