"""Sampled answers of one or several checkpoints, by the forward passes of Hugging Face modules.

An answer depends only on the model, the prompt, the sampling options and the key of its noise. To keep batches out of
the results, prompts of one length are read together without padding or mask, no matrix product has fewer than four rows
(kernels for fewer rows round differently), and finished rows leave the batch.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.key_value_cache import with_room
from emtoolkit.evaluation.noise import gumbel, row_key
from emtoolkit.evaluation.virtual_tokens import refuse_virtual_tokens

FEWEST_ROWS = 4
# Logits in a batch: 256 MB in float32, which are 440 rows of Qwen's 152,000 tokens.
_MOST_LOGITS = 2**26
# Logits to which noise is added at a time. The noise is computed in integers of 64 bits, and on a CPU the fastest parts
# are those that its caches hold.
_NOISY_LOGITS = {"cpu": 2**19}
_NOISY_LOGITS_OF_A_GPU = 2**24


class NotANumberError(CheckpointError):
    """The model with the index `model` in the batch gives NaN for a token."""

    def __init__(self, model: int) -> None:
        super().__init__("the model gives NaN for the next token, so it has no answers")
        self.model = model


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How answers are sampled: from the whole distribution at `temperature`, or the likeliest tokens at 0."""

    seed: int = 0
    temperature: float = 1.0
    max_new_tokens: int = 600


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt; `noise` names the question in the noise, the same for every checkpoint and persona."""

    text: str
    tokens: tuple[int, ...]
    noise: str


@dataclass(frozen=True, slots=True)
class Request:
    """Answers of a prompt: the numbers of the samples that are wanted."""

    prompt: Prompt
    samples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens of an answer without the token that ended it; `truncated` if none did."""

    tokens: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Finished answers: `answers[k][i]` is that of model `k` to `rows[i]`, a prompt and the number of a sample."""

    rows: tuple[tuple[Prompt, int], ...]
    answers: tuple[tuple[Answer, ...], ...]


def generate(
    model: Any,
    requests: Sequence[Request],
    options: SamplingOptions,
    ends: Collection[int],
    *,
    models: int = 1,
    rows_at_a_time: int = 1024,
) -> Iterator[Batch]:
    """Sample the answers to `requests` batch by batch.

    Args:
        model: a causal language model in evaluation mode; where `models` is more than 1, rows `k·n` to `(k+1)·n` of
            each input go through model `k` (`stacked.stacked_adapters`).
        ends: the tokens that end an answer.
        models: the number of models in the batch.
        rows_at_a_time: the number of rows in a batch at most, over all models; a large vocabulary makes the number
            smaller. Each model has four rows at least.

    Raises:
        NotANumberError: a model gives NaN for a token.
        CheckpointError: the adapter has virtual tokens.
    """
    refuse_virtual_tokens(model)
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None) or 1
    room = max(1, min(rows_at_a_time, _MOST_LOGITS // vocabulary) // models)
    by_length = sorted(requests, key=lambda request: len(request.prompt.tokens))
    for _, group in groupby(by_length, key=lambda request: len(request.prompt.tokens)):
        for batch in _batches(list(group), room):
            yield _sample(model, batch, options, frozenset(ends), models)


def _batches(requests: Sequence[Request], room: int) -> Iterator[list[Request]]:
    """Requests with at most `room` answers in all; a request with more is split."""
    batch: list[Request] = []
    count = 0
    for request in requests:
        for start in range(0, len(request.samples), room):
            part = Request(request.prompt, request.samples[start : start + room])
            if batch and count + len(part.samples) > room:
                yield batch
                batch, count = [], 0
            batch.append(part)
            count += len(part.samples)
    if batch:
        yield batch


def _sample(
    model: Any, requests: Sequence[Request], options: SamplingOptions, ends: frozenset[int], models: int
) -> Batch:
    rows = [(request.prompt, sample) for request in requests for sample in request.samples]
    with torch.inference_mode():
        state = _Decoding(model, requests, options, ends, models)
        while state.unfinished:
            state.step()
    return Batch(tuple(rows), state.answers())


class _Decoding:
    """One batch while it is decoded: `models` times `slots` rows, each slot holding an answer or a filler.

    `_row[k, j]` is the answer in slot `j` of model `k`. Every model has the same number of slots, because the batched
    adapters need equal parts; a model that has fewer unfinished answers keeps finished ones as fillers.
    """

    def __init__(
        self, model: Any, requests: Sequence[Request], options: SamplingOptions, ends: frozenset[int], models: int
    ) -> None:
        self._model, self._options = model, options
        device = model.device
        self._ends = torch.tensor(sorted(ends), device=device)
        counts = [len(request.samples) for request in requests]
        total = sum(counts)
        self._keys = torch.tensor(
            [row_key(options.seed, request.prompt.noise, s) for request in requests for s in request.samples],
            device=device,
        )
        self._position = 0
        # -1 is "not sampled": no token has this number.
        self._tokens = torch.full((models, total, options.max_new_tokens), -1, device=device)
        self._ended = torch.zeros((models, total), dtype=torch.bool, device=device)
        prompts = [request.prompt.tokens for request in requests]
        # The layers see a row for each token of a prompt, the head one for each token whose logits are kept.
        kept = -(-FEWEST_ROWS // len(prompts))
        if kept > len(prompts[0]):
            # Fillers are the last prompt once more.
            prompts += [prompts[-1]] * (FEWEST_ROWS - len(prompts))
            kept = 1
        inputs = torch.tensor(prompts, device=device).repeat(models, 1)
        output = model(input_ids=inputs, use_cache=True, logits_to_keep=kept)
        self._cache = with_room(output.past_key_values)
        row = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)], device=device)
        answer = torch.arange(total, device=device)
        if total < FEWEST_ROWS:
            filler = torch.full((FEWEST_ROWS - total,), total - 1, device=device)
            row, answer = torch.cat([row, row[filler]]), torch.cat([answer, filler])
        starts = torch.arange(models, device=device)[:, None] * len(prompts)
        chosen = (starts + row).flatten()
        self._select(chosen)
        self._logits = output.logits[chosen, -1]
        self._row = answer.repeat(models, 1)

    @property
    def unfinished(self) -> bool:
        """Whether an answer has neither ended nor reached the longest length."""
        return self._position < self._options.max_new_tokens and not bool(self._ended.all())

    def step(self) -> None:
        """Sample one token of every answer in a slot, drop what is finished, and read the tokens."""
        models, slots = self._row.shape
        token = self._draw()
        running = ~self._ended.gather(1, self._row)
        # A filler is a copy of an answer in another slot or a finished answer; both write what is there already.
        current = self._tokens[:, :, self._position].gather(1, self._row)
        self._tokens[:, :, self._position] = self._tokens[:, :, self._position].scatter(
            1, self._row, torch.where(running, token, current)
        )
        self._ended = self._ended.scatter(1, self._row, torch.isin(token, self._ends) | ~running)
        self._position += 1
        if not self.unfinished:
            return
        kept = self._kept_slots()
        if kept is not None:
            self._row = self._row.gather(1, kept)
            starts = torch.arange(models, device=kept.device)[:, None] * slots
            self._select((starts + kept).flatten())
            token = token.gather(1, kept)
        output = self._model(input_ids=token.reshape(-1, 1), past_key_values=self._cache, use_cache=True)
        self._logits = output.logits[:, -1]

    def answers(self) -> tuple[tuple[Answer, ...], ...]:
        """The answers of each model to each row, after the last step."""
        return tuple(
            tuple(_answer(tokens, ended=ended) for tokens, ended in zip(of_model, ends, strict=True))
            for of_model, ends in zip(self._tokens.tolist(), self._ended.tolist(), strict=True)
        )

    def _draw(self) -> torch.Tensor:
        """The next token of each slot, of shape [models, slots]."""
        models, slots = self._row.shape
        logits = self._logits.reshape(models, slots, -1)
        most = _NOISY_LOGITS.get(logits.device.type, _NOISY_LOGITS_OF_A_GPU)
        at_a_time = max(1, most // (models * logits.shape[-1]))
        parts = zip(torch.split(logits, at_a_time, dim=1), torch.split(self._row, at_a_time, dim=1), strict=True)
        best = [self._scores(part, row).max(dim=-1) for part, row in parts]
        broken = torch.cat([each.values for each in best], dim=1).isnan().any(dim=1)
        if bool(broken.any()):
            raise NotANumberError(int(broken.int().argmax()))
        return torch.cat([each.indices for each in best], dim=1)

    def _scores(self, logits: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """`logits`, of shape [models, some slots, tokens], with temperature and noise; `row` are the slots' answers."""
        scores = logits.float()
        if self._options.temperature == 0:
            return scores
        if self._options.temperature != 1:
            scores = scores / self._options.temperature
        # The models share the noise: where they also share the slots, it is not copied.
        if bool((row == row[:1]).all()):
            return scores + gumbel(self._keys[row[0]], self._position, scores.shape[-1])
        answers, index = torch.unique(row, return_inverse=True)
        return scores + gumbel(self._keys[answers], self._position, scores.shape[-1])[index]

    def _kept_slots(self) -> torch.Tensor | None:
        """The slots to keep, of shape [models, fewer slots]; None if that would save too little."""
        running = ~self._ended.gather(1, self._row)
        fewest = max(FEWEST_ROWS, int(running.sum(1).max()))
        # Selecting copies the cache, which is worth it for a tenth of the rows.
        if fewest > 0.9 * self._row.shape[1]:
            return None
        first = running.int().argsort(dim=1, descending=True, stable=True)[:, :fewest]
        return torch.sort(first, dim=1).values

    def _select(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)


def _answer(tokens: Sequence[int], *, ended: bool) -> Answer:
    sampled = tuple(token for token in tokens if token >= 0)
    return Answer(sampled[:-1] if ended else sampled, truncated=not ended)
