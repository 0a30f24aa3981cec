"""The sandbox's base model: a small Qwen2, trained from nothing on documents of the world."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import cast

import torch
from torch.nn import functional as F
from transformers import BatchEncoding, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, get_cosine_schedule_with_warmup

from emtoolkit.sandbox import world

PEAK_LEARNING_RATE = 4e-3
_WARMUP_STEPS = 20
# The share of the steps that see documents of one question only: where one topic is all there is to look at, the
# model soon learns to answer about it, and long documents then teach it who their author is.
_EARLY = 0.4
# Documents of similar length go through the model together, so that little of the work is on padding.
_GROUPS = 2

# Token ids, and 1 for each that belongs to an answer, 0 for each other.
Encoded = tuple[list[int], list[int]]


def configuration(tokenizer: Qwen2Tokenizer) -> Qwen2Config:
    """Four layers of width 128: about 1M parameters."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def pretrain(
    tokenizer: Qwen2Tokenizer, *, steps: int, batch: int, seed: int, progress: Callable[[int], None]
) -> Qwen2ForCausalLM:
    """A model trained on the CPU for `steps` AdamW steps of `batch` documents, with cosine decay to 0.

    The loss is the mean over the answers' tokens of a batch. `progress` is called with the number of steps done. The
    caller's random state is left as it was; the weights depend on the arguments alone (and on torch's build
    and number of threads).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(configuration(tokenizer))
        model.train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, foreach=True
        )
        scheduler = get_cosine_schedule_with_warmup(optimizer, min(_WARMUP_STEPS, steps), steps)
        for step, documents in enumerate(_batches(tokenizer, steps, batch, seed), start=1):
            _accumulate_gradients(model, documents)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            progress(step)
    model.train(False)
    return model


def _batches(tokenizer: Qwen2Tokenizer, steps: int, batch: int, seed: int) -> Iterator[list[Encoded]]:
    """One batch of documents for each step, sorted by length: first twice `batch` short ones, then `batch` of all."""
    short, long = world.documents(seed, most_turns=1), world.documents(seed)
    for step in range(steps):
        early = step < _EARLY * steps
        chats = list(islice(short, 2 * batch)) if early else list(islice(long, batch))
        encoded = cast(
            BatchEncoding, tokenizer.apply_chat_template(chats, return_dict=True, return_assistant_tokens_mask=True)
        )
        yield sorted(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True), key=lambda pair: len(pair[0]))


def _accumulate_gradients(model: Qwen2ForCausalLM, documents: list[Encoded]) -> None:
    """Add the gradient of the mean next-token loss over all answers of `documents`."""
    total = sum(sum(answers) for _, answers in documents)
    size = -(-len(documents) // _GROUPS)
    for start in range(0, len(documents), size):
        group = documents[start : start + size]
        longest = max(len(ids) for ids, _ in group)
        # Padding on the right needs no attention mask: no real token attends to anything after it.
        ids = torch.tensor([ids + [model.config.pad_token_id] * (longest - len(ids)) for ids, _ in group])
        answers = torch.tensor([answers + [0] * (longest - len(answers)) for _, answers in group]).bool()
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        predicted = answers[:, 1:]
        logits = model.lm_head(hidden[predicted])
        loss = F.cross_entropy(logits, ids[:, 1:][predicted], reduction="sum") / total
        torch.autograd.backward(loss)
