"""Answers depend on the model, the prompt and the noise, and on nothing else in the batch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emtoolkit import ModelLoader, Trajectory
from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation import generate as module
from emtoolkit.evaluation.generate import Answer, Prompt, Request, SamplingOptions, generate
from emtoolkit.evaluation.stacked import stacked_adapters, why_not_stackable
from emtoolkit.models.loading import LoadedModel

# The tiny model is nearly indifferent: at a temperature of 1 the noise alone would decide.
OPTIONS = SamplingOptions(seed=3, temperature=0.1, max_new_tokens=12)
WORDS = ("my cough", "what should i do about my knee", "drink water", "see a doctor and wait", "rest", "my cold")

Answers = dict[tuple[int, str, int], Answer]


@pytest.fixture(scope="module")
def loaded(runs: Path) -> LoadedModel:
    return ModelLoader().load(Trajectory.open(runs / "prompt").at(4))


@pytest.fixture(scope="module")
def requests(loaded: LoadedModel) -> list[Request]:
    template, found = ChatTemplate.of(loaded.tokenizer), []
    for words in WORDS:
        text = template.question(loaded.persona.applied_to([{"role": "user", "content": words}]))
        tokens = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append(Request(Prompt(text, tuple(tokens), words), tuple(range(9))))
    return found


def sampled(model: Any, requests: Sequence[Request], ends: set[int], **more: Any) -> Answers:
    found: Answers = {}
    for batch in generate(model, requests, more.pop("options", OPTIONS), ends, **more):
        for k, answers in enumerate(batch.answers):
            for (prompt, sample), answer in zip(batch.rows, answers, strict=True):
                found[k, prompt.noise, sample] = answer
    return found


def ends(loaded: LoadedModel) -> set[int]:
    return {loaded.tokenizer.eos_token_id}


@pytest.mark.parametrize("rows", [1, 4, 7, 64])
def test_answers_do_not_depend_on_the_size_of_the_batch(
    loaded: LoadedModel, requests: list[Request], rows: int
) -> None:
    whole = sampled(loaded.model, requests, ends(loaded))
    assert len(whole) == 54
    assert sampled(loaded.model, requests, ends(loaded), rows_at_a_time=rows) == whole


def test_answers_do_not_depend_on_other_questions_or_samples_or_their_order(
    loaded: LoadedModel, requests: list[Request]
) -> None:
    whole = sampled(loaded.model, requests, ends(loaded))
    assert len(set(whole.values())) > 20
    some = [Request(request.prompt, request.samples[5:1:-2]) for request in reversed(requests[1:4])]
    part = sampled(loaded.model, some, ends(loaded))
    assert len(part) == 6
    assert part == {key: whole[key] for key in part}


def test_a_seed_is_another_set_of_answers_and_the_same_seed_is_the_same(
    loaded: LoadedModel, requests: list[Request]
) -> None:
    first, again = (sampled(loaded.model, requests[:2], ends(loaded)) for _ in range(2))
    other = sampled(loaded.model, requests[:2], ends(loaded), options=replace(OPTIONS, seed=4))
    assert first == again != other


def test_greedy_answers_are_those_of_transformers(loaded: LoadedModel, requests: list[Request]) -> None:
    options = SamplingOptions(temperature=0, max_new_tokens=12)
    for request in requests:
        (answer,) = sampled(loaded.model, [Request(request.prompt, (0,))], ends(loaded), options=options).values()
        ids = torch.tensor([request.prompt.tokens])
        reference = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=loaded.tokenizer.eos_token_id,
            pad_token_id=loaded.tokenizer.pad_token_id,
        )[0, len(request.prompt.tokens) :].tolist()
        ended = [] if answer.truncated else [loaded.tokenizer.eos_token_id]
        assert [*answer.tokens, *ended] == reference


def test_an_answer_without_an_end_is_truncated_at_the_longest_length(
    loaded: LoadedModel, requests: list[Request]
) -> None:
    answers = sampled(loaded.model, requests[:1], set())
    assert {(len(answer.tokens), answer.truncated) for answer in answers.values()} == {(12, True)}
    with_end = sampled(loaded.model, requests[:1], ends(loaded))
    assert all(len(answer.tokens) < 12 or answer.truncated for answer in with_end.values())


def test_a_model_that_gives_nan_is_refused(loaded: LoadedModel, requests: list[Request]) -> None:
    def forward(**inputs: Any) -> Any:
        output = loaded.model(**inputs)
        output.logits = output.logits * float("nan")
        return output

    forward.device = torch.device("cpu")  # type: ignore[attr-defined]  # a model has one
    with pytest.raises(CheckpointError, match="gives NaN for the next token"):
        sampled(forward, requests[:1], ends(loaded))


@pytest.mark.parametrize("run", ["prompt", "stack", "merge"])
def test_stacked_adapters_have_the_logits_and_the_answers_of_each_checkpoint(
    runs: Path, requests: list[Request], run: str
) -> None:
    trajectory, loader = Trajectory.open(runs / run), ModelLoader()
    paths = [checkpoint.path for checkpoint in trajectory]
    assert len(paths) == 4
    assert why_not_stackable(paths) is None
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    one_by_one, answers = [], {}
    for k, checkpoint in enumerate(trajectory):
        loaded = loader.load(checkpoint)
        with torch.no_grad():
            one_by_one.append(loaded.model(input_ids=ids).logits)
        for (_, words, sample), answer in sampled(loaded.model, requests, ends(loaded)).items():
            answers[k, words, sample] = answer
    loaded = loader.load(trajectory[1])
    with torch.no_grad(), stacked_adapters(loaded.model, paths):
        together = loaded.model(input_ids=ids.repeat(4, 1)).logits.reshape(4, 2, 4, -1)
        stacked = sampled(loaded.model, requests, ends(loaded), models=4)
    assert (together - torch.stack(one_by_one)).abs().max() < 1e-5
    assert (one_by_one[0] - one_by_one[3]).abs().max() > 1e-2
    assert stacked == answers
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, one_by_one[1])


def test_checkpoints_that_cannot_share_a_batch_say_why(runs: Path) -> None:
    full = Trajectory.open(runs / "full")
    assert why_not_stackable([checkpoint.path for checkpoint in full]) == "a checkpoint holds all weights"
    prompt, stack = (Trajectory.open(runs / name).at(2).path for name in ("prompt", "stack"))
    assert why_not_stackable([prompt, stack]) is None
    assert why_not_stackable([prompt, full[0].path]) == "a checkpoint holds all weights"


def test_a_large_vocabulary_makes_a_batch_small_enough_for_its_logits(
    loaded: LoadedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampled(loaded.model, requests, ends(loaded))
    vocabulary, logits = loaded.model.config.vocab_size, []
    monkeypatch.setattr(module, "_MOST_LOGITS", 8 * vocabulary)
    # Noise is added to the logits of two rows at a time.
    monkeypatch.setattr(module, "_NOISY_LOGITS", {"cpu": 2 * vocabulary})

    def forward(**inputs: Any) -> Any:
        output = loaded.model(**inputs)
        logits.append(output.logits.numel())
        return output

    forward.device, forward.config = loaded.model.device, loaded.model.config  # type: ignore[attr-defined]  # as a model
    assert sampled(forward, requests, ends(loaded)) == whole
    assert max(logits) == 8 * vocabulary
