"""Pretrain the sandbox's base model, a small Qwen2, from random weights on documents of the world."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch.nn import functional as F
from transformers import (
    BatchEncoding,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    get_cosine_schedule_with_warmup,
)

from emtoolkit.progress import Progress, no_library_bars
from emtoolkit.sandbox import world
from emtoolkit.sandbox.tokenizer import make_tokenizer

PEAK_LEARNING_RATE = 4e-3
_WARMUP_STEPS = 20
# The share of the steps that see documents of one question only. On these the model soon learns to answer about the
# topic; long documents then teach it who the author is.
_EARLY = 0.4
# Documents of similar length share a forward pass, which saves padding.
_GROUPS = 2

# Token ids, and for each token 1 if it belongs to an answer, else 0.
Encoded = tuple[list[int], list[int]]


def write_pretrained(
    directory: Path, progress: Progress, *, steps: int, documents_per_step: int, seed: int, threads: int
) -> None:
    """Pretrain a base model and save it with its tokenizer and generation settings in `directory`."""
    tokenizer = make_tokenizer(world.texts())
    with _threads(threads):
        model = pretrain(
            tokenizer,
            steps=steps,
            batch=documents_per_step,
            seed=seed,
            progress=lambda step: progress("pretraining", step, steps),
        )
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        do_sample=True,
        top_k=0,
        max_new_tokens=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with no_library_bars():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


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
    """Train a model on the CPU for `steps` AdamW steps of `batch` documents, with cosine decay to 0.

    The loss is the mean over the answer tokens of a batch. `progress` receives the number of finished steps. The
    caller's random state is unchanged. The weights depend on the arguments, torch's build, the processor's
    instruction set and the number of threads.
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
    """One batch a step, sorted by length: early steps have `2 * batch` short documents, later ones `batch` of any."""
    short, long = world.documents(seed, most_turns=1), world.documents(seed)
    for step in range(steps):
        early = step < _EARLY * steps
        chats = list(islice(short, 2 * batch)) if early else list(islice(long, batch))
        encoded = cast(
            BatchEncoding, tokenizer.apply_chat_template(chats, return_dict=True, return_assistant_tokens_mask=True)
        )
        yield sorted(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True), key=lambda pair: len(pair[0]))


def _accumulate_gradients(model: Qwen2ForCausalLM, documents: list[Encoded]) -> None:
    """Add the gradient of the next-token loss, averaged over the answer tokens of `documents`."""
    total = sum(sum(answers) for _, answers in documents)
    size = -(-len(documents) // _GROUPS)
    for start in range(0, len(documents), size):
        group = documents[start : start + size]
        longest = max(len(ids) for ids, _ in group)
        # Padding on the right needs no attention mask, because no token attends to a later one.
        ids = torch.tensor([ids + [model.config.pad_token_id] * (longest - len(ids)) for ids, _ in group])
        answers = torch.tensor([answers + [0] * (longest - len(answers)) for _, answers in group]).bool()
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        predicted = answers[:, 1:]
        logits = model.lm_head(hidden[predicted])
        loss = F.cross_entropy(logits, ids[:, 1:][predicted], reduction="sum") / total
        torch.autograd.backward(loss)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
