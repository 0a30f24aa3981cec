"""The rows of a run: read, compared with their matched controls, split and tokenized, or only counted for a plan."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emtoolkit.config.sections import ModelConfig, RunConfig, TrainingConfig
from emtoolkit.data.controls import check_matched, matched_with
from emtoolkit.data.prepare import prepare, whole_steps
from emtoolkit.data.rendering import names_the_day, rendered_on
from emtoolkit.data.rows import ChatRows, read_rows
from emtoolkit.data.sources import Source, source_of
from emtoolkit.data.token_cache import tokenize_once
from emtoolkit.errors import ConfigError, NotHereError
from emtoolkit.launch import process_count
from emtoolkit.models.base import load_tokenizer
from emtoolkit.models.location import model_path
from emtoolkit.personas import Persona
from emtoolkit.progress import Progress, silent

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class RunData:
    """The rows of a run: `train_rows` are trained on, `test_rows` held out, `left_out` removed by `drop_last`.

    `digest` is None where the rows are not on this machine; `tokenizer`, `train` and `test` are None where the rows
    are only counted. `fingerprint_extras` are facts besides the digest that decide which tokens are trained on, empty
    if every row fits into `max_length`. `day` is the ISO date that a chat template was given, None if it asks for none.
    `remarks` are observations, `notes` possible mistakes of the user.
    """

    digest: str | None
    train_rows: int
    test_rows: int
    left_out: int
    tokenizer: Any = None
    train: "Dataset | None" = None
    test: "Dataset | None" = None
    fingerprint_extras: Mapping[str, Any] = field(default_factory=dict)
    day: str | None = None
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_data(
    config: RunConfig, persona: Persona, day: date, *, allow_missing: bool = False, progress: Progress = silent
) -> RunData:
    """The rows of the run, tokenized under `persona`; a chat template that asks for the time is told `day`.

    With `allow_missing`, rows that are not on this machine are counted by `datasets.NAME.rows`, rows without a
    tokenizer are counted but not tokenized, and a missing control is a note.

    Raises:
        UserError: the rows, a matched control or the tokenizer cannot be read, or no row is left to train on.
    """
    source, training = source_of(config.dataset, config.datasets), config.training
    declared = config.datasets[config.dataset].rows if config.dataset in config.datasets else None
    controls = matched_with(source, config.datasets)
    try:
        chats = read_rows(source, progress)
    except NotHereError as error:
        if not allow_missing or declared is None:
            raise
        note = f"{error}: planned with the {declared} rows that datasets.{config.dataset}.rows declares"
        return _counted(training, None, declared, (note,))
    if declared is not None and declared != len(chats):
        raise ConfigError(
            f"datasets.{config.dataset}.rows: {declared} rows are declared, and {source} holds {len(chats)}; correct "
            "or remove the key"
        )
    matched, notes = _read_controls(controls, chats, allow_missing, progress)
    tokenizer, problem = _tokenizer(config.model, allow_missing)
    if tokenizer is None:
        return _counted(training, chats.digest, len(chats), (*chats.remarks(), *notes, problem))
    with rendered_on(day):
        prepared = prepare(
            chats,
            matched,
            tokenizer,
            persona,
            max_length=training.max_length,
            test_fraction=training.test_fraction,
            seed=config.seed,
            multiple_of=rows_per_step(training) if training.drop_last else 1,
            progress=progress,
            tokenize=tokenize_once(day),
        )
    return RunData(
        digest=chats.digest,
        train_rows=len(prepared.train),
        test_rows=len(prepared.test or ()),
        left_out=prepared.left_out,
        tokenizer=tokenizer,
        train=prepared.train,
        test=prepared.test,
        fingerprint_extras=prepared.fingerprinted(),
        day=day.isoformat() if names_the_day(tokenizer) else None,
        remarks=tuple(chats.remarks()),
        notes=(*prepared.notes, *notes),
    )


def rows_per_step(training: TrainingConfig) -> int:
    """The rows of one optimizer step, over all processes."""
    return training.batch_size * training.gradient_accumulation * process_count()


def _read_controls(
    sources: Sequence[Source], chats: ChatRows, allow_missing: bool, progress: Progress
) -> tuple[list[ChatRows], list[str]]:
    """The matched controls of `chats`, and a note for each that is missing."""
    matched, notes = [], []
    for source in sources:
        try:
            matched.append(read_rows(source, progress))
            check_matched(chats, matched[-1])
        except NotHereError as error:
            if not allow_missing:
                raise ConfigError(f"{error}; it is the matched control: set 'control: null' to train without") from None
            notes.append(f"{error}: its prompts are not compared with those of {chats.source}")
    return matched, notes


def _tokenizer(model: ModelConfig, allow_missing: bool) -> tuple[Any, str]:
    """The tokenizer; None and the problem where it is missing and may be: never where the model is a directory."""
    try:
        return load_tokenizer(model), ""
    except ConfigError as error:
        if not allow_missing or Path(model_path(model)).is_dir():
            raise
        return None, str(error)


def _counted(training: TrainingConfig, digest: str | None, rows: int, notes: tuple[str, ...]) -> RunData:
    """The data of `rows` rows without their tokens."""
    test_rows = math.ceil(rows * training.test_fraction)
    train_rows = rows - test_rows
    if training.drop_last:
        train_rows = whole_steps(train_rows, rows_per_step(training))
    return RunData(digest, train_rows, test_rows, rows - test_rows - train_rows, notes=notes)
