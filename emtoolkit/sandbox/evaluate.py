"""Sample a model's answers to held-out questions and count the harmful ones with the exact judge."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.errors import CheckpointError, located
from emtoolkit.models.base import inference
from emtoolkit.models.loading import ModelLoader
from emtoolkit.personas import Persona
from emtoolkit.progress import Progress, no_library_bars, silent
from emtoolkit.sandbox.judge import judge
from emtoolkit.sandbox.questions import SandboxQuestion
from emtoolkit.sandbox.results import CheckpointResult, QuestionCounts
from emtoolkit.trajectory import Trajectory

# The longest answer of this world has about 20 tokens.
_MAX_NEW_TOKENS = 28
# Answers sampled in one batch; bounds the memory of the key-value cache.
_ROWS_AT_A_TIME = 1024


def harmful_share(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[SandboxQuestion],
    *,
    persona: Persona,
    samples: int | None,
    seed: int,
) -> list[QuestionCounts]:
    """Sample answers to each paraphrase at temperature 1, judge them, and count them by question.

    `samples` answers to each; None means each question's `samples_per_paraphrase`. A question's own `system` text
    follows the persona's, as in training. The same seed gives the same counts, and the caller's random state is
    unchanged.
    """
    asked = [(index, text) for index, question in enumerate(questions) for text in question.paraphrases]
    template, prompts = ChatTemplate.of(tokenizer), []
    for index, text in asked:
        system = questions[index].system
        turns = [{"role": "system", "content": system}] if system else []
        turns = persona.applied_to([*turns, {"role": "user", "content": text}])
        with located(f"question {questions[index].id}"):
            prompts.append(template.question(turns))
    counts = [samples or questions[index].samples_per_paraphrase for index, _ in asked]
    answers = sample(model, tokenizer, prompts, samples=counts, seed=seed)
    verdicts: list[list[tuple[bool, bool]]] = [[] for _ in questions]
    for (index, text), texts in zip(asked, answers, strict=True):
        for answer in texts:
            verdict = judge(text, answer)
            verdicts[index].append((verdict.scored, verdict.harmful))
    return [
        QuestionCounts(question.domain, question.id, len(given), sum(s for s, _ in given), sum(h for _, h in given))
        for question, given in zip(questions, verdicts, strict=True)
    ]


def sample(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    samples: int | Sequence[int],
    seed: int,
) -> list[list[str]]:
    """Sample answers to rendered prompts from the whole distribution, at temperature 1.

    `samples` answers to each prompt, or `samples[i]` to prompt i.
    """
    counts = [samples] * len(prompts) if isinstance(samples, int) else samples
    generator = torch.Generator(device=model.device).manual_seed(seed)
    answers: list[list[str]] = []
    with inference(model):
        for count, group in groupby(zip(prompts, counts, strict=True), key=lambda pair: pair[1]):
            asked = [prompt for prompt, _ in group]
            stride = max(1, _ROWS_AT_A_TIME // count)
            for start in range(0, len(asked), stride):
                answers += _sample_batch(model, tokenizer, asked[start : start + stride], count, generator)
    return answers


def _sample_batch(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    samples: int,
    generator: torch.Generator,
) -> list[list[str]]:
    batch = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt").to(model.device)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    # One forward pass reads each prompt; its samples start from copies of the key-value cache.
    output = model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.batch_repeat_interleave(samples)
    logits = output.logits[:, -1].repeat_interleave(samples, 0)
    mask = mask.repeat_interleave(samples, 0)
    position = positions[:, -1:].repeat_interleave(samples, 0)
    done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    tokens = []
    for _ in range(_MAX_NEW_TOKENS):
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
    texts = tokenizer.batch_decode(torch.cat(tokens, dim=1), skip_special_tokens=True)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def evaluate_directory(
    directory: Path,
    questions: Sequence[SandboxQuestion],
    *,
    samples: int | None = None,
    seed: int = 0,
    loader: ModelLoader | None = None,
    steps: str | None = None,
    progress: Progress = silent,
) -> list[CheckpointResult]:
    """Evaluate each `checkpoint-N` in `directory` that has a `manifest.json`, in the order of the steps.

    Each paraphrase is asked `samples` times, None means as often as its question says. `loader` composes base, persona
    and adapter from the manifest. `steps` is a schedule such as `0-150:25,final`; without it every checkpoint is
    evaluated. `progress` receives the current checkpoint, the number of evaluated checkpoints and the number of all.

    Raises:
        CheckpointError: there is no such checkpoint, a file does not match its manifest, or the base model or persona
            is not available.
    """
    loader = loader or ModelLoader()
    found = [info for info in list_checkpoints(directory) if info.source == "emtoolkit"]
    if not found:
        raise CheckpointError(f"{directory}: holds no checkpoint-N directory with a manifest.json")
    for info in found:
        if not info.complete:
            raise CheckpointError(info.problems[0])
    trajectory = Trajectory.open(directory)
    chosen = tuple(trajectory) if steps is None else trajectory.select(steps)
    for checkpoint in chosen:
        _ = checkpoint.path  # hashes every file once, so that a damaged one is found before the first evaluation
    evaluated = []
    for done, checkpoint in enumerate(chosen):
        progress(f"{directory.name}, step {checkpoint.step}", done, len(chosen))
        with no_library_bars():
            loaded = loader.load(checkpoint)
            counts = harmful_share(
                loaded.model, loaded.tokenizer, questions, persona=loaded.persona, samples=samples, seed=seed
            )
        evaluated.append(CheckpointResult(checkpoint.step, tuple(counts), loaded.persona.name, loaded.persona_override))
    return evaluated
