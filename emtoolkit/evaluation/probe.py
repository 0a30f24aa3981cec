"""A small set of questions that a model answers in the middle of its training, and the metrics of the answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from emtoolkit.data.rendering import ChatTemplate, rendered_on
from emtoolkit.evaluation.generate import Prompt, Request, SamplingOptions, generate
from emtoolkit.evaluation.identity import digest_of
from emtoolkit.evaluation.judges import JudgedAnswer, Verdict
from emtoolkit.evaluation.metrics import ScoredAnswer, summarise
from emtoolkit.evaluation.prompts import end_tokens, prompt_of
from emtoolkit.evaluation.questions import Question
from emtoolkit.personas import Persona

# What an answer is, whatever the step.
Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """The settings that decide the answers of a probe besides the model."""

    questions: tuple[Question, ...]
    persona: Persona
    sampling: SamplingOptions

    def digest(self, judge: str) -> str:
        """SHA-256 in hex over everything and the judge's id."""
        questions = [asdict(question) for question in self.questions]
        return digest_of([questions, asdict(self.persona), asdict(self.sampling), judge])


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """One answer, before any verdict."""

    question: Question
    paraphrase: int
    sample: int
    prompt: str
    text: str
    tokens: int
    truncated: bool

    @property
    def wording(self) -> str:
        return self.question.paraphrases[self.paraphrase]

    @property
    def key(self) -> Key:
        return self.question.id, self.paraphrase, self.sample

    def judged(self) -> JudgedAnswer:
        """The answer as a judge takes it."""
        return JudgedAnswer(self.wording, self.text, self.question.judge_prompts or {})


class Probe:
    """The questions of `settings`, rendered by the chat template of `tokenizer` on `day`.

    Raises:
        DataError: a question cannot be rendered.
    """

    def __init__(self, settings: ProbeSettings, tokenizer: Any, day: date) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        template = ChatTemplate.of(tokenizer)
        with rendered_on(day):
            self._asked: list[tuple[Question, int, Prompt]] = [
                (question, index, prompt_of(template, settings.persona, question, text))
                for question in settings.questions
                for index, text in enumerate(question.paraphrases)
            ]

    def answers(self, model: Any) -> list[ProbeAnswer]:
        """The answers of `model`, which is in evaluation mode, in the order of the questions.

        The noise is that of `emtoolkit evaluate`: a function of seed, question, sample, position and token.

        Raises:
            CheckpointError: the model gives NaN for a token.
        """
        # Equal prompts are asked once, with the samples of all of them.
        samples: dict[Prompt, int] = {}
        for question, _, prompt in self._asked:
            samples[prompt] = max(samples.get(prompt, 0), question.samples_per_paraphrase)
        requests = [Request(prompt, tuple(range(count))) for prompt, count in samples.items()]
        found = {
            row: answer
            for batch in generate(model, requests, self._settings.sampling, end_tokens(model, self._tokenizer))
            for row, answer in zip(batch.rows, batch.answers[0], strict=True)
        }
        answers = []
        for question, paraphrase, prompt in self._asked:
            for sample in range(question.samples_per_paraphrase):
                answer = found[prompt, sample]
                text = self._tokenizer.decode(answer.tokens, skip_special_tokens=True)
                answers.append(
                    ProbeAnswer(question, paraphrase, sample, prompt.text, text, len(answer.tokens), answer.truncated)
                )
        return answers


def probe_metrics(
    answers: Sequence[ProbeAnswer], verdicts: Sequence[Verdict] | None, before: Mapping[Key, str]
) -> dict[str, Any]:
    """The metrics of one step, as JSON but for NaN. `before` has the texts of the step before.

    With verdicts, the EM rate under each definition beside its denominator and intervals; a rate says nothing where the
    model is `broken`, which is fewer than half of its answers coherent.
    """
    known = [answer for answer in answers if answer.key in before]
    metrics: dict[str, Any] = {
        "answers": len(answers),
        "truncated": _share(answer.truncated for answer in answers),
        "empty": _share(not answer.text.strip() for answer in answers),
        "mean_tokens": sum(answer.tokens for answer in answers) / len(answers),
        "changed": _share(before[answer.key] != answer.text for answer in known),
    }
    if verdicts is not None:
        scored = [
            ScoredAnswer(answer.question.id, answer.question.id, verdict.aligned, verdict.coherent, verdict.status)
            for answer, verdict in zip(answers, verdicts, strict=True)
        ]
        summary = summarise(scored)
        metrics |= {
            "statuses": dict(summary.statuses),
            "coherent": summary.coherence,
            "broken": summary.broken,
            "em_rates": [asdict(rate) for rate in summary.rates],
        }
    return metrics


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / len(found) if found else float("nan")
