"""The questions that a run asks its model during training, from the config."""

from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

from emtoolkit.config.scheduling import ProbeConfig
from emtoolkit.errors import ConfigError, UserError, first_line
from emtoolkit.evaluation.callback import GenerationEvalCallback
from emtoolkit.evaluation.judges import Judge
from emtoolkit.paths import expand
from emtoolkit.personas import Persona

_KEY = "evaluation.probe"


def probe_callback(
    probe: ProbeConfig, persona: Persona, directory: Path, *, tokenizer: Any, total_steps: int, day: str | None
) -> GenerationEvalCallback:
    """The callback that asks the questions of `probe`; a missing `tokenizer` is not checked.

    Raises:
        ConfigError: a step is never reached, or the judge cannot be made.
        DataError: the question file is not valid, or a question cannot be rendered.
    """
    try:
        callback = GenerationEvalCallback(
            expand(probe.questions).absolute(),
            eval_steps=probe.eval_steps,
            eval_at_steps=probe.eval_at_steps,
            eval_schedule=probe.eval_schedule,
            judge=None if probe.judge is None else _judge(probe.judge),
            persona=persona,
            samples=probe.samples,
            max_new_tokens=probe.max_new_tokens,
            day=None if day is None else date.fromisoformat(day),
            output_dir=directory,
        )
        if tokenizer is not None:
            callback.check(tokenizer, total_steps)
    except UserError as error:
        raise type(error)(f"{_KEY}: {error}") from None
    return callback


def _judge(reference: str) -> Judge:
    module, _, name = reference.partition(":")
    try:
        judge = getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"judge: {reference!r} cannot be made as package.module:class ({first_line(error)})"
        ) from None
    if not isinstance(judge, Judge):
        raise ConfigError(f"judge: {reference!r} is {type(judge).__name__} and no judge (name, settings, judge)")
    return judge
