"""The options of `emtoolkit evaluate` that choose questions and judge, as values."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from emtoolkit.errors import UserError, nearest
from emtoolkit.evaluation.generate import SamplingOptions
from emtoolkit.evaluation.judges import Judge, NoJudge
from emtoolkit.evaluation.likelihood_judge import LIKELIHOOD, READINGS, LikelihoodJudge
from emtoolkit.evaluation.questions import EXACT_JUDGE, Question, read_questions
from emtoolkit.evaluation.run import Engine, EvaluationSettings
from emtoolkit.paths import cache_dir
from emtoolkit.sandbox.judge import SandboxJudge

if TYPE_CHECKING:
    from emtoolkit.evaluation.openai_judge import Spending

# The judges that are not models behind a server.
JUDGES = (EXACT_JUDGE, LIKELIHOOD)


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """The judge as the command line names it; `name` None means the judge that the question file names."""

    name: str | None
    url: str | None
    method: str
    prices: str | None
    max_cost: float | None
    concurrency: int
    model: str | None = None
    readings: str | None = None


def evaluation_settings(
    questions: Path | None,
    options: JudgeOptions,
    samples: int | None,
    max_new_tokens: int,
    seed: int,
    *,
    engine: Engine,
) -> EvaluationSettings:
    """The settings of an evaluation; without a question file those of the sandbox are asked.

    With 0 samples there need be neither a judge nor questions.

    Raises:
        UserError: the question file cannot be read, or an option has no meaning.
    """
    path = questions or cache_dir() / "sandbox" / "questions" / "all.yaml"
    if samples == 0:
        asked = read_questions(path) if questions is not None or path.is_file() else []
        none = tuple(replace(question, samples_per_paraphrase=0) for question in asked)
        return EvaluationSettings(none, SamplingOptions(), NoJudge(), engine)
    if questions is None and not path.is_file():
        raise UserError("--questions: give a question file, or run 'emtoolkit sandbox build' for the sandbox's")
    asked = read_questions(path)
    if samples is not None:
        asked = [replace(question, samples_per_paraphrase=samples) for question in asked]
    sampling = SamplingOptions(seed=seed, max_new_tokens=max_new_tokens)
    return EvaluationSettings(tuple(asked), sampling, judge_of(options, path, asked), engine)


def chosen_engine(name: str | None, *, exact: bool) -> Engine:
    """The engine `name`, by default `stacked`; `exact` is the short form of that name.

    Raises:
        UserError: there is no such engine, or two are named.
    """
    engines = get_args(Engine)
    if name is not None and name not in engines:
        raise UserError(f"--engine: {name!r} is not one of {', '.join(engines)}{nearest(name, engines)}")
    if exact and name not in (None, "exact"):
        raise UserError(f"--exact is --engine exact; remove it, or --engine {name}")
    return "exact" if exact else cast(Engine, name or "stacked")


def judge_of(options: JudgeOptions, path: Path | None, questions: Sequence[Question]) -> Judge:
    """The judge that `options` name, or else the question file `path` with `questions`.

    Raises:
        UserError: no judge is named, or an option has no meaning.
    """
    name = options.name or _named_by(path, questions)
    if name == EXACT_JUDGE:
        return SandboxJudge()
    if name == LIKELIHOOD:
        return _likelihood_judge(options)
    try:
        from emtoolkit.evaluation.openai_judge import Method, OpenAIJudge
    except ImportError:
        raise UserError(
            f"--judge: a model as the judge ({name}) needs the package openai: pip install 'emtoolkit[judge]'"
        ) from None
    methods = get_args(Method)
    if options.method not in methods:
        close = nearest(options.method, methods)
        raise UserError(f"--judge-method: {options.method!r} is not one of {', '.join(methods)}{close}")
    method: Method = "sampled" if options.method == "sampled" else "logprobs"
    spending = _spending(options)
    url = options.url or os.environ.get("OPENAI_BASE_URL") or None
    if url is not None and not url.startswith(("http://", "https://")):
        raise UserError(f"--judge-url: {url!r} is not an address such as http://localhost:8000/v1")
    if url is None and not os.environ.get("OPENAI_API_KEY"):
        raise UserError(
            f"--judge: {name!r} is a model of OpenAI's server, and OPENAI_API_KEY is not set; set it, or give "
            f"--judge-url with the address of a server of your own{nearest(name, JUDGES)}"
        )
    return OpenAIJudge(name, base_url=url, method=method, concurrency=options.concurrency, spending=spending)


def _likelihood_judge(options: JudgeOptions) -> Judge:
    if options.model is None:
        raise UserError("--judge-model: give the directory or the hub id of the model that reads the answers")
    readings = tuple(options.readings.split(",")) if options.readings else READINGS
    if len(readings) != 2:
        raise UserError(f"--judge-readings: {options.readings!r} is not two personas, ALIGNED,MISALIGNED")
    return LikelihoodJudge(options.model, readings)


def _named_by(path: Path | None, questions: Sequence[Question]) -> str:
    if path is None:
        raise UserError("--judge: give the model that judges, likelihood, or sandbox for the sandbox's exact judge")
    named = sorted({question.judge for question in questions if question.judge is not None})
    if len(named) != 1:
        what = f"its questions name {len(named)} judges ({', '.join(named)})" if named else "it names no judge"
        raise UserError(f"{path}: {what}; give --judge")
    return named[0]


def _spending(options: JudgeOptions) -> "Spending | None":
    from emtoolkit.evaluation.openai_judge import Spending

    if options.prices is None:
        if options.max_cost is not None:
            raise UserError("--max-cost: the price of a token is not known; give --judge-prices IN,OUT too")
        return None
    try:
        read, written = (float(price) for price in options.prices.split(","))
    except ValueError:
        raise UserError(
            f"--judge-prices: {options.prices!r} is not two numbers, dollars per million tokens read and written"
        ) from None
    if not (math.isfinite(read) and math.isfinite(written) and read >= 0 and written >= 0):
        raise UserError(f"--judge-prices: {options.prices!r} is negative or not finite")
    if options.max_cost is not None and math.isnan(options.max_cost):
        raise UserError("--max-cost: nan is not a number of dollars")
    if options.max_cost is not None and not read and not written:
        raise UserError("--max-cost: at a price of 0 nothing would ever reach the cap; give --judge-prices, or no cap")
    return Spending(read, written) if options.max_cost is None else Spending(read, written, options.max_cost)
