"""`GenerationEvalCallback`: a model answers a few questions in the middle of its training."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emtoolkit.artifacts.run_history import STEP_AXIS, RunHistory
from emtoolkit.errors import ConfigError, first_line
from emtoolkit.evaluation.generate import SamplingOptions
from emtoolkit.evaluation.judges import Judge, Verdict
from emtoolkit.evaluation.judging import judge_id, verdicts_on
from emtoolkit.evaluation.probe import Key, Probe, ProbeAnswer, ProbeSettings, probe_metrics
from emtoolkit.evaluation.probe_log import ProbeFiles, WandbLog
from emtoolkit.evaluation.questions import Question, read_questions
from emtoolkit.evaluation.store import Store
from emtoolkit.evaluation.undisturbed import undisturbed
from emtoolkit.evaluation.virtual_tokens import virtual_tokens
from emtoolkit.number_checks import is_count, is_number
from emtoolkit.paths import cache_dir
from emtoolkit.personas import Persona
from emtoolkit.saving.random_states import random_state_kept
from emtoolkit.saving.sharded import is_sharded
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import Steps
from emtoolkit.schedules.terms import Every, EveryFraction

logger = logging.getLogger(__name__)

_DIRECTORY = "probes"
# How long the end of training waits for W&B, in seconds.
_SECONDS_FOR_WANDB = 15.0


class GenerationEvalCallback(TrainerCallback):
    """Asks the model a few questions at some steps of its training, and logs the answers and their metrics.

    The weights of the training are the same to the bit as without this callback. Answers go to
    `OUTPUT_DIR/probes/SETTINGS/answers.jsonl`, metrics to `metrics.jsonl` beside it, and both to the active W&B run if
    there is one. Under several processes process 0 answers; a model that is spread over the processes answers nothing,
    and a warning says so. An error of the judge, of W&B or of the disk is one warning and never ends a training.

    Args:
        questions: a question file, or questions as texts or `Question` values.
        eval_steps: ask at every multiple of this number of steps; a value below 1 is a fraction of the run.
        eval_at_steps: ask at exactly these steps; step 0 is the model before the first update.
        eval_schedule: ask at the steps of a schedule, in its grammar or as a `Schedule`. Exactly one of the three is
            given; the last step is always asked.
        judge: scores the answers; without a judge there are no EM rates.
        persona: its system prompt precedes each question, as in training.
        samples: answers to each wording; by default as often as a question says, which is once for a text.
        seed: the seed of the sampling noise, which all steps share.
        temperature: the temperature of the sampling; 0 takes the likeliest token.
        max_new_tokens: the longest answer, in tokens.
        tokenizer: by default the `processing_class` of the Trainer.
        output_dir: by default the `output_dir` of the Trainer.
        day: the day that a chat template with a clock is told, by default the day on which training begins.

    Raises:
        ConfigError: an option has no meaning (here), or there is no tokenizer (when training begins).
        ScheduleError: the schedule cannot be read (here), or asks for a step past the end (when training begins).
        DataError: the question file is not valid (here), or a question cannot be rendered (when training begins).
    """

    def __init__(
        self,
        questions: str | Path | Sequence[str | Question],
        *,
        eval_steps: int | float | None = None,
        eval_at_steps: Sequence[int] | None = None,
        eval_schedule: str | Schedule | Iterable[int] | None = None,
        judge: Judge | None = None,
        persona: Persona | None = None,
        samples: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        max_new_tokens: int = 128,
        tokenizer: Any = None,
        output_dir: str | Path | None = None,
        day: date | None = None,
    ) -> None:
        self.schedule = _schedule(eval_steps, eval_at_steps, eval_schedule)
        _check("samples", samples, samples is None or is_count(samples), "a number of answers, 1 or more")
        _check("max_new_tokens", max_new_tokens, is_count(max_new_tokens), "a number of tokens, 1 or more")
        is_finite = is_number(temperature) and 0 <= temperature < math.inf
        _check("temperature", temperature, is_finite, "a temperature, 0 or more")
        self._judge = judge
        self._settings = ProbeSettings(
            _questions(questions, samples),
            persona or Persona("baseline"),
            SamplingOptions(seed=seed, temperature=temperature, max_new_tokens=max_new_tokens),
        )
        self._tokenizer, self._day = tokenizer, day
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._steps: Steps = Steps.union([])
        self._probe: Probe | None = None
        self._files: ProbeFiles | None = None
        self._wandb = WandbLog()
        self._answered: int | None = None
        self._before: dict[Key, str] = {}
        self._warned: set[str] = set()

    def check(self, tokenizer: Any, total_steps: int) -> Probe:
        """The rendered questions, after a check that a training of `total_steps` reaches every step.

        Raises:
            ScheduleError: the training does not.
            DataError: a question cannot be rendered by the chat template of `tokenizer`.
        """
        self.schedule.check_reachable(total_steps)
        return Probe(self._settings, tokenizer, self._day or date.today())

    def logging_to(self, history: RunHistory | None) -> "GenerationEvalCallback":
        """Leave out what the `history` of a resumed W&B run has; None for a new run. Returns this callback."""
        self._wandb.history = history or RunHistory()
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Render the questions, continue the files of an interrupted training, and ask at step 0."""
        # Every process renders, so that every process raises the same error.
        self._probe = self.check(self._found_tokenizer(kwargs), state.max_steps)
        self._steps, self._answered, self._before = self.schedule.steps(state.max_steps), None, {}
        if reason := _why_not(kwargs["model"]):
            self._steps = Steps.union([])
            self._warn("model", state, f"{reason}, so no question is asked during this training")
        if state.is_world_process_zero and self._steps:
            self._guarded("files", "its files cannot be continued", lambda: self._begin(args, state.global_step))
        if state.global_step in self._steps:
            self._ask(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask if this step is scheduled."""
        if state.global_step in self._steps:
            self._ask(state, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the last step of a training that stops early, before the Trainer loads a better one."""
        if control.should_training_stop and self._steps:
            self._ask(state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the last step if no event came before, and wait for W&B."""
        # The Trainer has loaded the weights of another step.
        replaced = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if self._steps and not replaced:
            self._ask(state, kwargs["model"])
        self._warn_of_wandb(state, self._wandb.drain(_SECONDS_FOR_WANDB))

    def _found_tokenizer(self, objects: Mapping[str, Any]) -> Any:
        found = self._tokenizer or objects.get("processing_class")
        found = getattr(found, "tokenizer", found)
        if found is None:
            raise ConfigError("tokenizer: the Trainer has no processing_class; pass tokenizer=… to the callback")
        return found

    def _begin(self, args: TrainingArguments, step: int) -> None:
        home = (self._output_dir or Path(str(args.output_dir))).absolute() / _DIRECTORY
        if self._files is None:
            self._files = ProbeFiles(home / self._settings.digest(self._judge_id)[:8])
        before = self._files.begin(step)
        self._before = {(line["question"], line["paraphrase"], line["sample"]): line["answer"] for line in before}

    @property
    def _judge_id(self) -> str:
        return "" if self._judge is None else judge_id(self._judge)

    def _ask(self, state: TrainerState, model: Any) -> None:
        """Ask once at this step, in process 0."""
        done = self._answered == state.global_step or (
            self._files is not None and state.global_step in self._files.steps
        )
        if done or not state.is_world_process_zero:
            return
        self._answered = state.global_step
        # A judge may draw random numbers too, for example to wait between two attempts.
        with random_state_kept():
            self._guarded("answers", "no answers could be sampled", lambda: self._answer(state, model))

    def _answer(self, state: TrainerState, model: Any) -> None:
        if self._probe is None:
            raise RuntimeError("the Trainer sent an event of a training before on_train_begin")
        begun = time.monotonic()
        with undisturbed(model):
            answers = self._probe.answers(model)
        verdicts = self._verdicts(answers)
        metrics = probe_metrics(answers, verdicts, self._before)
        metrics = {"step": state.global_step, "epoch": state.epoch, **metrics, "judge": self._judge_id or None}
        given: Sequence[Verdict | None] = verdicts or [None] * len(answers)
        lines = [self._line(state.global_step, *pair) for pair in zip(answers, given, strict=True)]
        self._before = {answer.key: answer.text for answer in answers}
        seconds = time.monotonic() - begun
        files = self._files
        if files is not None:
            self._guarded(
                "files",
                f"the answers cannot be written to {files.directory}",
                lambda: files.add(state.global_step, lines, metrics | {"seconds": round(seconds, 3)}),
            )
        self._warn_of_wandb(state, self._wandb.log(_for_wandb(metrics, seconds), lines))

    def _verdicts(self, answers: Sequence[ProbeAnswer]) -> list[Verdict] | None:
        """The verdict on each answer: those of the judge, or `judge_error` for all if it cannot go on."""
        judge = self._judge
        if judge is None:
            return None
        verdicts = [Verdict("judge_error")] * len(answers)

        def ask_judge() -> None:
            store = Store(cache_dir() / "evaluation", "verdicts")
            verdicts[:] = verdicts_on([answer.judged() for answer in answers], judge, store)

        self._guarded("judge", "the judge failed, so answers have no scores", ask_judge)
        return [
            replace(verdict, status="truncated") if answer.truncated and verdict.status == "ok" else verdict
            for answer, verdict in zip(answers, verdicts, strict=True)
        ]

    def _line(self, step: int, answer: ProbeAnswer, verdict: Verdict | None) -> dict[str, Any]:
        return {
            "step": step,
            "question": answer.question.id,
            "wording": answer.wording,
            "paraphrase": answer.paraphrase,
            "sample": answer.sample,
            "persona": self._settings.persona.name,
            "seed": self._settings.sampling.seed,
            "judge": self._judge_id or None,
            "status": None if verdict is None else verdict.status,
            "aligned": None if verdict is None else verdict.aligned,
            "coherent": None if verdict is None else verdict.coherent,
            "truncated": answer.truncated,
            "prompt": answer.prompt,
            "answer": answer.text,
        }

    def _guarded(self, what: str, problem: str, action: Callable[[], None]) -> None:
        """Do `action`; the first error of each kind is a warning, and none ends the training."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a probe is not worth a training, whatever is wrong with it
            if what not in self._warned:
                self._warned.add(what)
                logger.warning("evaluation during training: %s (%s); training goes on", problem, first_line(error))

    def _warn_of_wandb(self, state: TrainerState, problem: str | None) -> None:
        if problem is not None:
            self._warn("wandb", state, f"W&B does not take the answers ({problem}); training goes on")

    def _warn(self, what: str, state: TrainerState, sentence: str) -> None:
        if what not in self._warned and state.is_world_process_zero:
            self._warned.add(what)
            logger.warning("evaluation during training: %s", sentence)


def _schedule(
    interval: int | float | None, at_steps: Sequence[int] | None, schedule: str | Schedule | Iterable[int] | None
) -> Schedule:
    options = {"eval_steps": interval, "eval_at_steps": at_steps, "eval_schedule": schedule}
    given = [f"{name} ({value!r})" for name, value in options.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none of them"
        raise ConfigError(f"expected exactly one of {', '.join(options)}; found {found}")
    if schedule is not None:
        parsed = Schedule.of_argument(schedule)
        parsed.check_known()
        return parsed
    if at_steps is not None:
        return Schedule.of(at_steps)
    return Schedule((EveryFraction(interval) if isinstance(interval, float) else Every(interval or 0),))


def _questions(questions: str | Path | Sequence[str | Question], samples: int | None) -> tuple[Question, ...]:
    if isinstance(questions, str | Path):
        found = read_questions(Path(questions))
    else:
        found = [Question(each, (each,)) if isinstance(each, str) else each for each in questions]
    _check("questions", questions, bool(found), "a question file or a list of questions")
    ids = [question.id for question in found]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ConfigError(f"questions: {twice!r} is the id of two questions; give each its own id")
    if samples is None:
        return tuple(found)
    return tuple(replace(question, samples_per_paraphrase=samples) for question in found)


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigError(f"{name}: {value!r} is not {expected}")


def _why_not(model: Any) -> str | None:
    """Why process 0 cannot ask the model."""
    if is_sharded(model):
        return "the model is spread over the processes"
    kind = virtual_tokens(model)
    return None if kind is None else f"an adapter of type {kind} has virtual tokens"


def _for_wandb(metrics: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The numbers of `metrics` under W&B's names; a rate that says nothing is left out."""
    values = {
        name: metrics[name] for name in ("truncated", "empty", "mean_tokens", "changed", "coherent") if name in metrics
    }
    if not metrics.get("broken", False):
        values |= {f"em_rate_{rate['definition']}": rate["rate"] for rate in metrics.get("em_rates", ())}
    finite = {f"probe/{name}": value for name, value in values.items() if not math.isnan(value)}
    return {STEP_AXIS: metrics["step"], **finite, "probe/seconds": seconds}
