"""The sampling of `emtoolkit sandbox evaluate` before `emtoolkit evaluate`: what the new one is measured against.

Prompts of all lengths in one padded batch, one checkpoint after the other, tokens drawn by `torch.multinomial`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from emtoolkit.models.base import inference

MAX_NEW_TOKENS = 28
_ROWS_AT_A_TIME = 1024


def sample(model: Any, tokenizer: Any, prompts: Sequence[str], samples: int, seed: int) -> list[str]:
    """`samples` answers to each of the rendered `prompts`, at temperature 1."""
    generator = torch.Generator(device=model.device).manual_seed(seed)
    answers: list[str] = []
    stride = max(1, _ROWS_AT_A_TIME // samples)
    with inference(model):
        for start in range(0, len(prompts), stride):
            answers += _sample_batch(model, tokenizer, prompts[start : start + stride], samples, generator)
    return answers


def _sample_batch(
    model: Any, tokenizer: Any, prompts: Sequence[str], samples: int, generator: torch.Generator
) -> list[str]:
    batch = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt").to(model.device)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.batch_repeat_interleave(samples)
    logits = output.logits[:, -1].repeat_interleave(samples, 0)
    mask = mask.repeat_interleave(samples, 0)
    position = positions[:, -1:].repeat_interleave(samples, 0)
    done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    tokens = []
    for _ in range(MAX_NEW_TOKENS):
        token = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
        token[done] = tokenizer.pad_token_id
        tokens.append(token)
        done |= token[:, 0] == tokenizer.eos_token_id
        if bool(done.all()):
            break
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        position = position + 1
        output = model(
            input_ids=token, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        )
        logits = output.logits[:, -1]
    texts: list[str] = tokenizer.batch_decode(torch.cat(tokens, dim=1), skip_special_tokens=True)
    return texts
