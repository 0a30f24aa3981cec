"""Evaluate the checkpoints of a trajectory: sample the answers that are missing, judge them, and give all as rows."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

from emtoolkit.data.rendering import ChatTemplate, rendered_on
from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.downloads import downloading_ahead
from emtoolkit.evaluation.generate import NotANumberError, Prompt, Request, SamplingOptions, generate
from emtoolkit.evaluation.identity import checkpoint_digest, digest_of, training_day
from emtoolkit.evaluation.judges import Judge, JudgedAnswer
from emtoolkit.evaluation.judging import judge_id, verdicts_on
from emtoolkit.evaluation.prompts import end_tokens, prompt_of
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.evaluation.stacked import most_adapters, stacked_adapters, why_not_stackable
from emtoolkit.evaluation.store import Store
from emtoolkit.evaluation.vllm_engine import VllmEngine, configured_ends
from emtoolkit.models.loading import LoadedModel, ModelLoader
from emtoolkit.progress import Progress, counting, no_library_bars, silent
from emtoolkit.trajectory import Checkpoint

Engine = Literal["stacked", "exact", "vllm"]


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """The settings that, with the checkpoints, decide the rows of an evaluation; a change is another evaluation.

    `engine` is `exact`, one checkpoint at a time with the results of a freshly loaded model, `stacked`, all at once, or
    `vllm`.
    """

    questions: tuple[Question, ...]
    sampling: SamplingOptions
    judge: Judge
    engine: Engine = "stacked"

    @property
    def judge_id(self) -> str:
        """The judge in the rows: its name and the digest of its settings."""
        return judge_id(self.judge)

    def digest(self) -> str:
        """SHA-256 in hex over everything."""
        questions = [asdict(question) for question in self.questions]
        return digest_of([questions, asdict(self.sampling), self.judge_id, self.engine])


@dataclass(frozen=True, slots=True)
class _Asked:
    """One wording of one question, rendered under the persona."""

    question: Question
    paraphrase: int
    prompt: Prompt

    @property
    def text(self) -> str:
        return self.question.paraphrases[self.paraphrase]

    def entry(self, sample: int) -> str:
        """The name of an answer in the store."""
        return f"{hashlib.sha256(self.prompt.text.encode()).hexdigest()}/{sample}"


def engine_for(checkpoints: Sequence[Checkpoint], wanted: Engine) -> tuple[Engine, str | None]:
    """`wanted`, or `exact` in place of `stacked`, with the reason, where the checkpoints cannot share a batch."""
    if wanted != "stacked":
        return wanted, None
    manifests = [checkpoint.manifest for checkpoint in checkpoints]
    origins = {None if m is None else digest_of([m.base_model.to_json(), m.persona.to_json()]) for m in manifests}
    reason = "they have different base models or personas" if len(origins) > 1 else None
    reason = reason or why_not_stackable([checkpoint.path for checkpoint in checkpoints])
    return ("exact", reason) if reason else ("stacked", None)


def evaluate(
    trajectory: str,
    checkpoints: Sequence[Checkpoint],
    settings: EvaluationSettings,
    store: Store,
    verdicts: Store,
    *,
    loader: ModelLoader | None = None,
    rows_at_a_time: int = 1024,
    progress: Progress = silent,
) -> list[AnswerRow]:
    """The rows of `checkpoints`; what the stores hold is not made again. No rows where no question has a sample.

    Answers are stored batch by batch. `progress` counts answers, then verdicts.

    Raises:
        CheckpointError: a file does not match its manifest, the base model or persona is missing, the model gives NaN,
            or the store cannot be written.
        DataError: a question cannot be rendered, or the judge cannot judge it.
    """
    if not any(question.samples for question in settings.questions):
        return []
    evaluation = _Evaluation(settings, store, verdicts, loader or ModelLoader(), rows_at_a_time)
    with no_library_bars():
        evaluation.generate(checkpoints, progress)
    return evaluation.rows(trajectory, checkpoints, progress)


class _Evaluation:
    def __init__(
        self, settings: EvaluationSettings, store: Store, verdicts: Store, loader: ModelLoader, rows_at_a_time: int
    ) -> None:
        self._settings, self._store, self._verdicts = settings, store, verdicts
        self._loader, self._rows_at_a_time = loader, rows_at_a_time
        # By step: the key of the answers, the questions under the persona, the names of persona and engine.
        self._keys: dict[int, str] = {}
        self._asked: dict[int, Sequence[_Asked]] = {}
        self._personas: dict[int, str] = {}
        self._engines: dict[int, str] = {}
        self._rendered: dict[str, list[_Asked]] = {}
        self._vllm: VllmEngine | None = None

    def generate(self, checkpoints: Sequence[Checkpoint], progress: Progress) -> None:
        """Sample the missing answers, of all checkpoints together or of one after the other."""
        answers = sum(question.samples for question in self._settings.questions) * len(checkpoints)
        count = counting(progress, "sampling answers", answers)
        if self._settings.engine == "stacked":
            self._generate_group(checkpoints, count)
            return
        if self._settings.engine == "vllm":
            self._vllm = VllmEngine(checkpoints, self._loader.describe(checkpoints[0]))
            try:
                for checkpoint in checkpoints:
                    self._generate_group([checkpoint], count)
            finally:
                self._vllm.close()
            return
        with downloading_ahead(checkpoints) as in_order:
            for checkpoint in in_order:
                self._generate_group([checkpoint], count)

    def _generate_group(self, group: Sequence[Checkpoint], count: Any) -> None:
        loaded = self._loader.load(group[0]) if self._vllm is None else self._loader.describe(group[0])
        missing = self._missing(group, loaded)
        count(sum(question.samples for question in self._settings.questions) * len(group) - len(missing))
        if missing:
            self._sample(group, loaded, missing, count)

    def _missing(self, group: Sequence[Checkpoint], loaded: LoadedModel) -> set[tuple[int, str]]:
        """The step and the name of each answer that the store lacks."""
        missing = set()
        for checkpoint in group:
            asked = self._render(loaded, checkpoint)
            model = checkpoint_digest(checkpoint, loaded)
            sampling = asdict(self._settings.sampling)
            engine = self._engine_on(loaded)
            key = digest_of([model, engine, sampling, sorted(self._ends(loaded))])
            self._keys[checkpoint.step], self._asked[checkpoint.step] = key, asked
            self._engines[checkpoint.step] = engine
            self._personas[checkpoint.step] = loaded.persona_override or loaded.persona.name
            known = self._store.read(key)
            for each in asked:
                names = (each.entry(sample) for sample in range(each.question.samples_per_paraphrase))
                missing |= {(checkpoint.step, name) for name in names if name not in known}
        return missing

    def _engine_on(self, loaded: LoadedModel) -> str:
        """The engine in the rows. A GPU rounds differently, so its answers are not mixed with those of a CPU."""
        engine = self._settings.engine
        if self._vllm is not None or (device := _device(loaded)) == "cpu":
            return engine
        return f"{engine}-{device}"

    def _ends(self, loaded: LoadedModel) -> set[int]:
        if self._vllm is not None:
            return configured_ends(loaded.config, loaded.tokenizer)
        return end_tokens(loaded.model, loaded.tokenizer)

    def _render(self, loaded: LoadedModel, checkpoint: Checkpoint) -> list[_Asked]:
        persona, day = loaded.persona, training_day(checkpoint)
        key = f"{persona.name}\0{persona.system_prompt}\0{day}"
        if key not in self._rendered:
            template = ChatTemplate.of(loaded.tokenizer)
            with rendered_on(day):
                self._rendered[key] = [
                    _Asked(question, index, prompt_of(template, persona, question, text))
                    for question in self._settings.questions
                    for index, text in enumerate(question.paraphrases)
                ]
        return self._rendered[key]

    def _sample(
        self, group: Sequence[Checkpoint], loaded: LoadedModel, missing: set[tuple[int, str]], count: Any
    ) -> None:
        # Questions may share a prompt: the one with the most samples stands for all.
        by_samples = sorted(self._asked[group[0].step], key=lambda each: each.question.samples_per_paraphrase)
        asked = {each.prompt.text: each for each in by_samples}
        # With equal missing answers, as after a kill, only those are sampled; otherwise each that any model lacks.
        names = {name for _, name in missing}
        steps = {step for step, _ in missing}
        group = [checkpoint for checkpoint in group if checkpoint.step in steps]
        requests = [
            Request(each.prompt, samples)
            for each in asked.values()
            if (samples := tuple(s for s in range(each.question.samples_per_paraphrase) if each.entry(s) in names))
        ]
        at_once = most_adapters([each.path for each in group], self._rows_at_a_time)
        for start in range(0, len(group), at_once):
            part = group[start : start + at_once]
            try:
                for checkpoint, entries in self._sampled(part, loaded, requests):
                    self._store.add(self._keys[checkpoint.step], entries)
                    count(sum((checkpoint.step, name) in missing for name in entries))
            except NotANumberError as error:
                raise CheckpointError(
                    f"{part[error.model].path}: {error}; --steps leaves it out, and the answers so far are kept"
                ) from None

    def _sampled(
        self, group: Sequence[Checkpoint], loaded: LoadedModel, requests: Sequence[Request]
    ) -> Iterator[tuple[Checkpoint, dict[str, Any]]]:
        """The answers of each checkpoint of `group` batch by batch, as the store keeps them."""
        asked = {each.prompt.text: each for each in self._asked[group[0].step]}
        if self._vllm is not None:
            (checkpoint,) = group
            sampling, ends = self._settings.sampling, self._ends(loaded)
            for found in self._vllm.sample(checkpoint, requests, sampling, ends, self._rows_at_a_time):
                yield checkpoint, {asked[prompt.text].entry(sample): each for (prompt, sample), each in found.items()}
            return
        stacked = self._settings.engine == "stacked"
        paths = [checkpoint.path for checkpoint in group]
        with stacked_adapters(loaded.model, paths) if stacked else nullcontext():
            batches = generate(
                loaded.model,
                requests,
                self._settings.sampling,
                end_tokens(loaded.model, loaded.tokenizer),
                models=len(group),
                rows_at_a_time=self._rows_at_a_time,
            )
            for batch in batches:
                for checkpoint, answers in zip(group, batch.answers, strict=True):
                    entries: dict[str, Any] = {}
                    for (prompt, sample), answer in zip(batch.rows, answers, strict=True):
                        text = loaded.tokenizer.decode(answer.tokens, skip_special_tokens=True)
                        entries[asked[prompt.text].entry(sample)] = {
                            "text": text,
                            "tokens": len(answer.tokens),
                            "truncated": answer.truncated,
                        }
                    yield checkpoint, entries

    def rows(self, trajectory: str, checkpoints: Sequence[Checkpoint], progress: Progress) -> list[AnswerRow]:
        """Judge the answers that have no verdict, and give the rows of all."""
        answers = list(self._answers(checkpoints))
        texts = [judged for _, _, _, judged, _ in answers]
        verdicts = verdicts_on(texts, self._settings.judge, self._verdicts, progress)
        rows = []
        for (checkpoint, asked, sample, judged, truncated), verdict in zip(answers, verdicts, strict=True):
            status = "truncated" if truncated and verdict.status == "ok" else verdict.status
            rows.append(
                AnswerRow(
                    trajectory=trajectory,
                    fingerprint="" if checkpoint.manifest is None else checkpoint.manifest.fingerprint,
                    step=checkpoint.step,
                    persona=self._personas[checkpoint.step],
                    question=asked.question.id,
                    cluster=asked.question.id,
                    paraphrase=asked.paraphrase,
                    sample=sample,
                    seed=self._settings.sampling.seed,
                    engine=self._engines[checkpoint.step],
                    judge=self._settings.judge_id,
                    status=status,
                    aligned=verdict.aligned,
                    coherent=verdict.coherent,
                    mass=verdict.mass,
                    below_30=verdict.below_30,
                    prompt=asked.prompt.text,
                    answer=judged.text,
                    truncated=truncated,
                )
            )
        return rows

    def _answers(
        self, checkpoints: Sequence[Checkpoint]
    ) -> Iterator[tuple[Checkpoint, _Asked, int, JudgedAnswer, bool]]:
        for checkpoint in checkpoints:
            known = self._store.read(self._keys[checkpoint.step])
            for asked in self._asked[checkpoint.step]:
                for sample in range(asked.question.samples_per_paraphrase):
                    entry = known[asked.entry(sample)]
                    judged = JudgedAnswer(asked.text, str(entry["text"]), asked.question.judge_prompts or {})
                    yield checkpoint, asked, sample, judged, bool(entry["truncated"])


def _device(loaded: LoadedModel) -> str:
    return str(loaded.model.device.type)
