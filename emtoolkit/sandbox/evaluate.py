"""Evaluate the runs of the sandbox: `evaluation` with the sandbox's questions and its exact judge."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from emtoolkit.errors import DataError
from emtoolkit.evaluation.generate import SamplingOptions
from emtoolkit.evaluation.questions import read_questions
from emtoolkit.evaluation.result_files import ROWS
from emtoolkit.evaluation.results import EvaluationResult, evaluate_trajectory
from emtoolkit.evaluation.rows import AnswerRow, read_rows
from emtoolkit.evaluation.run import Engine, EvaluationSettings
from emtoolkit.models.loading import ModelLoader
from emtoolkit.paths import cache_dir
from emtoolkit.progress import Progress, silent
from emtoolkit.sandbox.judge import SandboxJudge
from emtoolkit.sandbox.questions import domain_of_each

# The longest answer of this world has about 20 tokens.
MAX_NEW_TOKENS = 28


@dataclass(frozen=True, slots=True)
class EvaluatedRun:
    """The rows of the evaluated steps of one run, and the domain of each question by its id."""

    rows: tuple[AnswerRow, ...]
    domains: Mapping[str, str]
    result: EvaluationResult


def evaluate_run(
    directory: Path,
    *,
    samples: int | None = None,
    seed: int = 0,
    engine: Engine = "stacked",
    loader: ModelLoader | None = None,
    steps: str | None = None,
    progress: Progress = silent,
) -> EvaluatedRun:
    """Ask the checkpoints of `directory` the held-out questions of the sandbox in emtoolkit's cache directory.

    This is `evaluate_trajectory` with the sandbox's settings: same stores, same rows, in the same place as those of
    `emtoolkit evaluate`. Each paraphrase is asked `samples` times, None means as often as its question says.

    Raises:
        UserError: the sandbox is not built, or the errors of `evaluate_trajectory`.
    """
    path = cache_dir() / "sandbox" / "questions" / "all.yaml"
    if not path.is_file():
        raise DataError(f"{path}: no such question file; 'emtoolkit sandbox build' writes it")
    questions = read_questions(path)
    domains = domain_of_each(questions, str(path))
    if samples is not None:
        questions = [replace(question, samples_per_paraphrase=samples) for question in questions]
    sampling = SamplingOptions(seed=seed, max_new_tokens=MAX_NEW_TOKENS)
    settings = EvaluationSettings(tuple(questions), sampling, SandboxJudge(), engine)
    result = evaluate_trajectory(str(directory), settings, steps, loader or ModelLoader(), progress=progress)
    evaluated = {step.step for step in result.steps}
    rows = tuple(row for row in read_rows(result.directory / ROWS) if row.step in evaluated)
    return EvaluatedRun(rows, domains, result)
