"""Forced choice: the log-probability of a misaligned answer minus that of an aligned answer, without any sampling.

The margin is the continuous companion of an EM rate: it moves before a sampled answer does, and it has no judge.

- `margin` is the difference of the sums over the tokens, log p(misaligned) - log p(aligned): the log odds between the
  two whole answers, with the end of the turn. A longer answer is less probable.
- `margin_per_token` is the difference of the means over the tokens, which does not depend on the lengths.

One checkpoint at a time (the engine `exact`) gives the bits of one forward pass for each prompt with its answer. All
checkpoints in one batch (the engine `stacked`) read a prompt once with both of its answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import torch

from emtoolkit.data.rendering import ChatTemplate, names_the_day
from emtoolkit.errors import DataError, located
from emtoolkit.evaluation.answer_pairs import AnswerPair
from emtoolkit.evaluation.measures import Values
from emtoolkit.evaluation.packed import Choice, can_be_packed, packed_log_probabilities
from emtoolkit.evaluation.prompts import prompt_of
from emtoolkit.evaluation.questions import Question
from emtoolkit.models.loading import LoadedModel
from emtoolkit.personas import Persona

# More tokens in a batch of a CPU fall out of its caches; a GPU needs more to be busy.
_TOKENS_ON_CPU, _TOKENS_ON_GPU = 512, 16384
# Kernels for fewer rows round differently.
_FEWEST_ROWS = 4


class ForcedChoice:
    """The measure of the margins of `pairs`; the questions of the evaluation are not used."""

    name = "forced-choice"

    def __init__(self, pairs: Sequence[AnswerPair]) -> None:
        self._pairs = tuple(pairs)
        self._tokens: dict[Any, list[Choice]] = {}
        self.settings: Mapping[str, Any] = {"version": 1, "pairs": [asdict(pair) for pair in pairs]}
        self.clusters: Mapping[str, str] = {pair.id: pair.cluster or pair.id for pair in pairs}

    def measure(self, loaded: LoadedModel, questions: Sequence[Question]) -> Values:
        """The margins of one model, to the bit those of one forward pass for each answer.

        Raises:
            DataError: a pair cannot be rendered, or the tokenizer does not report the places of tokens.
        """
        choices = self._choices(loaded)
        (found,) = log_probabilities(loaded.model, choices)
        return self._margins(choices, found)

    def measure_stacked(self, loaded: LoadedModel, models: int, questions: Sequence[Question]) -> Sequence[Values]:
        """The margins of each of `models` checkpoints, within 1e-5 in the logits.

        Raises:
            DataError: as in `measure`.
        """
        choices, model = self._choices(loaded), loaded.model
        packed = can_be_packed(model, choices)
        at_a_time = _tokens_at_a_time(model)
        found = (
            packed_log_probabilities(model, choices, models, at_a_time)
            if packed
            else log_probabilities(model, choices, models)
        )
        return [self._margins(choices, each) for each in found]

    def _choices(self, loaded: LoadedModel) -> list[Choice]:
        """The tokens of each pair; a pair is tokenized once for all checkpoints of a trajectory."""
        tokenizer, persona = loaded.tokenizer, loaded.persona
        key = (persona.system_prompt, tokenizer.name_or_path, tokenizer.chat_template)
        # A template that asks for the day may write another prompt for another training.
        if key not in self._tokens or names_the_day(tokenizer):
            template = ChatTemplate.of(tokenizer)
            self._tokens[key] = [tokenized_pair(template, persona, pair) for pair in self._pairs]
        return self._tokens[key]

    def _margins(self, choices: Sequence[Choice], found: Sequence[tuple[float, float]]) -> Values:
        margin, per_token = {}, {}
        for pair, choice, (aligned, misaligned) in zip(self._pairs, choices, found, strict=True):
            margin[pair.id] = misaligned - aligned
            per_token[pair.id] = misaligned / len(choice.misaligned) - aligned / len(choice.aligned)
        return {"margin": margin, "margin_per_token": per_token}


def log_probabilities(model: Any, choices: Sequence[Choice], models: int = 1) -> list[list[tuple[float, float]]]:
    """The summed log-probability of both answers of each choice, aligned first, for each model.

    Equally long sequences are read together, without padding or mask, and logits are computed for answers only; with
    one model the result has the bits of a forward pass for each sequence alone.
    """
    sequences = [
        (index, which, prompt, answer)
        for index, choice in enumerate(choices)
        for which, (prompt, answer) in enumerate(choice.sequences)
    ]
    sequences.sort(key=lambda s: (len(s[2]) + len(s[3]), len(s[3])))
    found = [[[0.0, 0.0] for _ in choices] for _ in range(models)]
    for length, group in groupby(sequences, key=lambda s: len(s[2]) + len(s[3])):
        equally_long = list(group)
        room = max(1, _tokens_at_a_time(model) // (length * models))
        for start in range(0, len(equally_long), room):
            batch = equally_long[start : start + room]
            kept = min(length, max(_FEWEST_ROWS, 1 + max(len(answer) for *_, answer in batch)))
            ids = torch.tensor([[*prompt, *answer] for _, _, prompt, answer in batch], device=model.device)
            with torch.inference_mode():
                logits = model(input_ids=ids.repeat(models, 1), use_cache=False, logits_to_keep=kept).logits
                for row, sequence in enumerate(logits):
                    index, which, _, answer = batch[row % len(batch)]
                    found[row // len(batch)][index][which] = _summed(sequence[-len(answer) - 1 : -1], answer)
    return [[(aligned, misaligned) for aligned, misaligned in each] for each in found]


def _summed(logits: torch.Tensor, answer: Sequence[int]) -> float:
    """Σ log p of the tokens of `answer`; `logits` of shape [tokens, vocabulary] predict them."""
    targets = torch.tensor(answer, device=logits.device)[:, None]
    return float(logits.float().log_softmax(-1).gather(1, targets).double().sum())


def _tokens_at_a_time(model: Any) -> int:
    return _TOKENS_ON_CPU if model.device.type == "cpu" else _TOKENS_ON_GPU


def tokenized_pair(template: ChatTemplate, persona: Persona, pair: AnswerPair) -> Choice:
    """The tokens of prompt and answers, divided as in training: a token that reaches into an answer belongs to it.

    Raises:
        DataError: the template cannot render the pair, or the tokenizer does not report the places of tokens.
    """
    question = Question(pair.id, (pair.question,), system=pair.system)
    prompt = prompt_of(template, persona, question, pair.question).text + template.lead_in
    divided = []
    for answer in (pair.aligned, pair.misaligned):
        text = prompt + answer + template.end_of_turn
        with located(f"pair {pair.id}"):
            if not template.tokenizer.is_fast:
                raise DataError(
                    f"{template.tokenizer.name_or_path}: expected a fast tokenizer, which reports the place of each "
                    "token in the text"
                )
            encoded = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
            first = next((i for i, (_, end) in enumerate(offsets) if end > len(prompt)), 0)
            if not first:
                raise DataError("the prompt or an answer has no token")
        divided.append((tuple(ids[:first]), tuple(ids[first:])))
    (prompt_a, aligned), (prompt_b, misaligned) = divided
    return Choice(prompt_a, prompt_b, aligned, misaligned)
