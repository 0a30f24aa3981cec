"""A prompt and two answers to it in one row of a batch: the prompt is read once, and neither answer sees the other.

A mask hides the first answer from the second, and the positions of the second continue those of the prompt. Rows of
different lengths are padded on the left. The logits are those of each answer alone up to rounding (1e-5 in float32).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Models of decoders whose layers take a mask of [rows, 1, tokens, tokens] and positions, and have no other memory.
_MASKED = {"gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"}


@dataclass(frozen=True, slots=True)
class Choice:
    """The tokens of a prompt, as each of the answers follows it, and of both answers."""

    prompt: tuple[int, ...]
    other_prompt: tuple[int, ...]
    aligned: tuple[int, ...]
    misaligned: tuple[int, ...]

    @property
    def sequences(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """Prompt and answer, aligned first."""
        return (self.prompt, self.aligned), (self.other_prompt, self.misaligned)

    @property
    def packed(self) -> tuple[int, ...]:
        """The row that is read: the last token of the second answer predicts nothing."""
        return (*self.prompt, *self.aligned, *self.misaligned[:-1])


def can_be_packed(model: Any, choices: Sequence[Choice]) -> bool:
    """Whether `model` reads rows with such a mask as it reads each answer alone."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    longest = max(len(choice.packed) for choice in choices)
    return (
        config.model_type in _MASKED
        and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
        and kinds <= {"full_attention", "sliding_attention"}
        and (window is None or longest <= window)
        and all(choice.prompt == choice.other_prompt for choice in choices)
    )


def packed_log_probabilities(
    model: Any, choices: Sequence[Choice], models: int, tokens_at_a_time: int
) -> list[list[tuple[float, float]]]:
    """The summed log-probability of both answers of each choice, aligned first, for each of `models` models.

    Rows `k·n` to `(k+1)·n` of a batch go through model `k` (`stacked.stacked_adapters`).
    """
    found = [[(0.0, 0.0)] * len(choices) for _ in range(models)]
    for indices in _batches(choices, max(1, tokens_at_a_time // models)):
        batch = [choices[index] for index in indices]
        ids, mask, positions = _inputs(batch, model.device)
        kept = max(len(choice.aligned) + len(choice.misaligned) for choice in batch)
        with torch.inference_mode():
            logits = model(
                input_ids=ids.repeat(models, 1),
                attention_mask=mask.repeat(models, 1, 1, 1),
                position_ids=positions.repeat(models, 1),
                use_cache=False,
                logits_to_keep=kept,
            ).logits
            sums = _sums(logits, batch, models)
        for k in range(models):
            for index, aligned, misaligned in zip(indices, sums[0][k], sums[1][k], strict=True):
                found[k][index] = (aligned, misaligned)
    return found


def _batches(choices: Sequence[Choice], tokens: int) -> Iterator[list[int]]:
    """Indices of choices of similar length, with at most `tokens` tokens in a batch, or one row."""
    batch: list[int] = []
    for index in sorted(range(len(choices)), key=lambda i: len(choices[i].packed)):
        if batch and (len(batch) + 1) * len(choices[index].packed) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _inputs(batch: Sequence[Choice], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens and positions of shape [rows, tokens], and a mask of shape [rows, 1, tokens, tokens]."""
    width = max(len(choice.packed) for choice in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(batch), 1, 1, 1)
    for row, choice in enumerate(batch):
        begin = width - len(choice.packed)
        aligned = begin + len(choice.prompt)
        misaligned = aligned + len(choice.aligned)
        ids[row, begin:] = torch.tensor(choice.packed)
        positions[row, begin:misaligned] = torch.arange(misaligned - begin)
        positions[row, misaligned:] = torch.arange(len(choice.prompt), len(choice.prompt) + width - misaligned)
        mask[row, 0, misaligned:, aligned:misaligned] = False
        # Padding sees only itself: a token that sees nothing would give NaN.
        mask[row, 0, :, :begin] = False
        mask[row, 0, range(begin), range(begin)] = True
    return ids.to(device), mask.to(device), positions.to(device)


def _sums(logits: torch.Tensor, batch: Sequence[Choice], models: int) -> list[list[list[float]]]:
    """For the aligned and for the misaligned answers: Σ log p of each row, for each model.

    `logits` of shape [models · rows, kept, vocabulary] end with the position before the last token of a row.
    """
    chosen, targets, owners = [], [], []
    kept = logits.shape[1]
    for row, choice in enumerate(batch):
        # The last token of the prompt predicts the first of both answers.
        begin = kept - len(choice.aligned) - len(choice.misaligned)
        own = begin + len(choice.aligned)
        for which, answer, places in (
            (0, choice.aligned, range(begin, own)),
            (1, choice.misaligned, (begin, *range(own + 1, kept))),
        ):
            chosen += [row * kept + place for place in places]
            targets += list(answer)
            owners += [2 * row + which] * len(answer)
    at = torch.tensor(chosen, device=logits.device)
    flat = logits.reshape(models, -1, logits.shape[-1])[:, at].float().log_softmax(-1)
    wanted = torch.tensor(targets, device=logits.device)[None, :, None].expand(models, -1, 1)
    terms = flat.gather(2, wanted)[..., 0].double()
    sums = torch.zeros(models, 2 * len(batch), dtype=torch.float64, device=logits.device)
    sums.index_add_(1, torch.tensor(owners, device=logits.device), terms)
    both = sums.reshape(models, len(batch), 2).cpu()
    return [both[..., which].tolist() for which in (0, 1)]
