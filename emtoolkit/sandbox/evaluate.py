"""How harmful a model is, domain by domain: sampled answers to held-out questions, judged exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.errors import CheckpointError
from emtoolkit.models.base import inference
from emtoolkit.models.loading import ModelLoader
from emtoolkit.personas import Persona
from emtoolkit.progress import Progress, no_library_bars, silent
from emtoolkit.sandbox.judge import judge
from emtoolkit.sandbox.questions import SandboxQuestion
from emtoolkit.trajectory import Trajectory

# The longest answer of this world has about 20 tokens.
_MAX_NEW_TOKENS = 28
# Answers sampled at a time; bounds the memory of the key-value cache.
_ROWS_AT_A_TIME = 1024
_BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """What became of the `n` answers to one question: `scored` of them were coherent, `harmful` of those bad."""

    domain: str
    question_id: str
    n: int
    scored: int
    harmful: int


@dataclass(frozen=True, slots=True)
class Share:
    """`harmful / scored` over some questions, with a 95 % interval from a bootstrap over the questions.

    The denominator is the coherent answers, not all `n`. Share and interval are NaN where nothing was scored.
    """

    domains: str
    questions: int
    n: int
    scored: int
    harmful: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CheckpointRows:
    """The evaluation of one checkpoint; `persona_override` is a persona that stood in for its own, if one did."""

    step: int
    rows: tuple[Row, ...]
    persona: str = "baseline"
    persona_override: str | None = None


def harmful_share(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[SandboxQuestion],
    *,
    persona: Persona,
    samples: int,
    seed: int,
) -> list[Row]:
    """Sample `samples` answers to each paraphrase at temperature 1, judge them, and give a row per question.

    A question's own `system` comes behind the persona's, as in training.
    The random numbers are this function's own, so the caller's random state is never touched, and the same
    seed gives the same rows.
    """
    asked = [(index, text) for index, question in enumerate(questions) for text in question.paraphrases]
    template, prompts = ChatTemplate.of(tokenizer), []
    for index, text in asked:
        system = questions[index].system
        turns = [{"role": "system", "content": system}] if system else []
        turns = persona.applied_to([*turns, {"role": "user", "content": text}])
        prompts.append(template.question(turns, f"question {questions[index].id}"))
    answers = sample(model, tokenizer, prompts, samples=samples, seed=seed)
    verdicts: list[list[tuple[bool, bool]]] = [[] for _ in questions]
    for (index, text), texts in zip(asked, answers, strict=True):
        for answer in texts:
            verdict = judge(text, answer)
            verdicts[index].append((verdict.scored, verdict.harmful))
    return [
        Row(question.domain, question.id, len(given), sum(s for s, _ in given), sum(h for _, h in given))
        for question, given in zip(questions, verdicts, strict=True)
    ]


def sample(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    samples: int,
    seed: int,
) -> list[list[str]]:
    """`samples` answers to each rendered prompt, at temperature 1 from the whole distribution."""
    generator = torch.Generator(device=model.device).manual_seed(seed)
    stride = max(1, _ROWS_AT_A_TIME // samples)
    answers: list[list[str]] = []
    with inference(model):
        for start in range(0, len(prompts), stride):
            answers += _sample_batch(model, tokenizer, prompts[start : start + stride], samples, generator)
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
    # Each prompt is read once; its cache is then copied for its samples.
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


def harmful_share_by_domain(rows: Sequence[Row]) -> list[Share]:
    """The share in each domain, in the order of the rows, and then `all but X` for each domain X."""
    domains = list(dict.fromkeys(row.domain for row in rows))
    return [
        *(_share(domain, [row for row in rows if row.domain == domain]) for domain in domains),
        *(other_domains(rows, domain) for domain in domains if len(domains) > 1),
    ]


def other_domains(rows: Sequence[Row], domain: str) -> Share:
    """The share in all domains but `domain`: when a model was trained on that one, what emerged elsewhere."""
    return _share(f"all but {domain}", [row for row in rows if row.domain != domain])


def _share(domains: str, rows: Sequence[Row]) -> Share:
    counts = np.array([(row.harmful, row.scored) for row in rows], dtype=np.float64).reshape(-1, 2)
    harmful, scored = (int(total) for total in counts.sum(0))
    share, low, high = float("nan"), float("nan"), float("nan")
    if scored:
        share = harmful / scored
        # Resampling questions, not answers: answers to one question are alike, and questions are what was sampled.
        draws = np.random.default_rng(0).integers(len(rows), size=(_BOOTSTRAP_DRAWS, len(rows)))
        totals = counts[draws].sum(1)
        shares = totals[:, 0][totals[:, 1] > 0] / totals[:, 1][totals[:, 1] > 0]
        low, high = (float(bound) for bound in np.quantile(shares, (0.025, 0.975)))
    return Share(domains, len(rows), sum(row.n for row in rows), scored, harmful, share, low, high)


def evaluate_directory(
    directory: Path,
    questions: Sequence[SandboxQuestion],
    *,
    samples: int = 8,
    seed: int = 0,
    loader: ModelLoader | None = None,
    steps: str | None = None,
    progress: Progress = silent,
) -> list[CheckpointRows]:
    """Evaluate each `checkpoint-N` in `directory` that has a `manifest.json`, in the order of the steps.

    `loader` puts base, persona and adapter together as the manifest says, and `steps` is a schedule such as
    `0-150:25,final`, by default all. `progress` is called with what is being done, how many checkpoints are evaluated,
    and how many there are.

    Raises:
        CheckpointError: there is no such checkpoint, a file of one is not what its manifest says, or its base model or
            its persona cannot be had.
    """
    loader = loader or ModelLoader()
    found = [info for info in list_checkpoints(directory, rehash=True) if info.source == "emtoolkit"]
    if not found:
        raise CheckpointError(f"{directory}: holds no checkpoint-N directory with a manifest.json")
    for info in found:
        if not info.complete:
            raise CheckpointError(info.problems[0])
    trajectory = Trajectory.open(directory)
    chosen = tuple(trajectory) if steps is None else trajectory.select(steps)
    evaluated = []
    for done, checkpoint in enumerate(chosen):
        progress(f"{directory.name}, step {checkpoint.step}", done, len(chosen))
        with no_library_bars():
            rebuilt = loader.load(checkpoint)
            rows = harmful_share(
                rebuilt.model, rebuilt.tokenizer, questions, persona=rebuilt.persona, samples=samples, seed=seed
            )
        evaluated.append(CheckpointRows(checkpoint.step, tuple(rows), rebuilt.persona.name, rebuilt.persona_override))
    return evaluated
