"""The questions of a plan, from the config or the command line: their cost, and what they will be able to tell."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emtoolkit.config.scheduling import EvaluationConfig
from emtoolkit.errors import UserError
from emtoolkit.evaluation.power import Design, Detection, detection
from emtoolkit.evaluation.questions import PUBLISHED_PROTOCOL, EvaluationCost, Question, read_questions
from emtoolkit.paths import expand
from emtoolkit.progress import Progress, silent
from emtoolkit.training.cost import PlannedRun

_PUBLISHED_QUESTIONS, _PUBLISHED_ANSWERS = 8, 50


def asked_questions(
    evaluations: Sequence[EvaluationConfig], questions: Path | None, samples: int | None
) -> tuple[Question, ...] | None:
    """The questions in the file `questions`, by default those of `evaluations`, with `samples` answers to each wording.

    Returns:
        None where no file is named anywhere, which means the published protocol.

    Raises:
        UserError: the file is not valid, or `evaluations` name different files.
    """
    named = {evaluation.questions for evaluation in evaluations}
    if questions is None and len(named) > 1:
        files = " and ".join(sorted(str(each) for each in named))
        raise UserError(f"--detect: the runs name different question files ({files}); give --questions FILE")
    (of_config,) = named if questions is None else {str(questions)}
    if of_config is None:
        return None
    read = read_questions(expand(of_config).absolute())
    return tuple(read if samples is None else [replace(each, samples_per_paraphrase=samples) for each in read])


def with_questions(run: PlannedRun, questions: Sequence[Question] | None, samples: int | None) -> PlannedRun:
    """The plan of the run with the cost of `questions`; None is the published protocol."""
    if questions is not None:
        cost = EvaluationCost.of(questions)
    else:
        answers = _PUBLISHED_QUESTIONS * (samples or _PUBLISHED_ANSWERS)
        each = PUBLISHED_PROTOCOL.judge_calls // PUBLISHED_PROTOCOL.samples
        cost = EvaluationCost(answers, answers * each, assumed=True)
    return replace(run, plan=replace(run.plan, evaluation=cost))


def detection_of(
    threshold: float,
    rate: float | None,
    questions: Sequence[Question] | None,
    samples: int | None,
    progress: Progress = silent,
) -> Detection:
    """The power of an evaluation with these questions to detect an EM rate above `threshold`.

    Raises:
        UserError: the threshold or the true rate is not a share, or the rate is not above the threshold.
    """
    for option, value in (("--detect", threshold), ("--rate", rate)):
        if value is not None and not 0 < value < 1:
            hint = f"; write {value / 100:g} for {value:g} %" if 1 < value < 100 else ""
            raise UserError(f"{option}: {value:g} is not a share between 0 and 1{hint}")
    if rate is not None and rate <= threshold:
        raise UserError(f"--rate: {rate:g} is not above the rate to detect, {threshold:g}; give a higher rate")
    if questions is None:
        design = Design.even(_PUBLISHED_QUESTIONS, samples or _PUBLISHED_ANSWERS)
    else:
        design = Design.of(questions)
    return detection(design, threshold, rate=rate, progress=progress)
