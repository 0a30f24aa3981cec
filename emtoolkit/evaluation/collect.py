"""Merges what several machines wrote of one evaluation, from directories and from results on W&B.

The files are those that one machine would have written: the same rows in the same order, and the same settings.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation.collect_activations import merge_activations
from emtoolkit.evaluation.decided import keep_records, merged_records, read_records
from emtoolkit.evaluation.judging import warnings_on
from emtoolkit.evaluation.measure_rows import MeasureRow, summarise_measures
from emtoolkit.evaluation.result_files import (
    ACTIVATIONS,
    SETTINGS,
    StoredEvaluation,
    add_to_evaluation,
    check_one_training,
    different_settings,
    home_of,
    read_evaluation,
)
from emtoolkit.evaluation.results import EvaluationResult, by_step
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.evaluation.wandb_results import download_results
from emtoolkit.hub.names import is_hub
from emtoolkit.progress import Progress, silent
from emtoolkit.schedules.steps import elided
from emtoolkit.storage.digests import canonical_json
from emtoolkit.trajectory import Trajectory

_Row = TypeVar("_Row", AnswerRow, MeasureRow)


@dataclass(frozen=True, slots=True)
class Collected:
    """The merged evaluation, and the steps of the trajectory that no place holds with all measures."""

    result: EvaluationResult
    reference: str
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """The evaluation in one place."""

    place: str
    stored: StoredEvaluation

    @property
    def activations(self) -> Path:
        """The directory of the activations, if there are any."""
        return self.stored.directory / ACTIVATIONS


def collect_evaluations(
    places: Sequence[str],
    reference: str | None = None,
    steps: str | None = None,
    *,
    directory: Path | None = None,
    progress: Progress = silent,
) -> Collected:
    """Merge the evaluations in `places` into `directory`, by default where `emtoolkit evaluate` puts its results.

    A place is a directory with evaluations in it or below it, or results on W&B: `entity/project/collection` for all
    versions, or one version of it. `reference` is the evaluated trajectory, by default the one that the rows name.
    `steps` selects the steps that are expected, by default all.

    Raises:
        UserError: a place holds no evaluation, or two places differ in their settings, their training, or an answer.
    """
    with tempfile.TemporaryDirectory(prefix="emtoolkit-collect-") as scratch:
        parts = [part for place in places for part in _parts(place, Path(scratch), progress)]
        return _merge(parts, reference, steps, directory)


def _merge(parts: list[_Part], reference: str | None, steps: str | None, directory: Path | None) -> Collected:
    _check_alike(parts)
    reference = reference or _trajectory(parts)
    name, expected, notes = _expected(reference, steps)
    settings = max((part.stored.settings for part in parts), key=len)
    home = directory or home_of(reference) / str(settings.get("settings", parts[0].stored.directory.name))
    sessions: Sequence[Mapping[str, Any]] = ()
    if (home / SETTINGS).is_file():
        here = read_evaluation(home)
        parts.append(_Part(str(home), here))
        _check_alike(parts)
        sessions = here.sessions
    records = merged_records([(read_records(each.stored.directory), each.stored.steps) for each in parts])
    answers = [replace(row, trajectory=name) for row in _merged(parts, lambda each: each.rows, _answer_key)]
    measured = [replace(row, trajectory=name) for row in _merged(parts, lambda each: each.measured, _value_key)]
    new = {canonical_json(each): each for part in parts for each in part.stored.sessions if each not in sessions}
    found = sorted({row.step for row in answers} | {row.step for row in measured})
    activations = merge_activations([(each.place, each.activations) for each in parts], found)
    keep_records(home, records)
    add_to_evaluation(home, settings, answers, measured, list(new.values()))
    activations.write(home / ACTIVATIONS)
    notes += [*warnings_on(answers), *_calibration_notes([*sessions, *new.values()]), *activations.notes]
    complete = _complete(settings, answers, measured)
    if missing := tuple(step for step in expected if step not in complete):
        notes.append(f"{name}: no place holds step{'s' * (len(missing) > 1)} {elided(missing)}")
    result = EvaluationResult(
        name,
        home,
        str(settings["engine"]),
        str(settings["judge"]),
        by_step(answers),
        tuple(notes),
        summarise_measures(measured),
    )
    return Collected(result, reference, missing)


def _complete(
    settings: Mapping[str, Any], answers: Sequence[AnswerRow], measured: Sequence[MeasureRow]
) -> frozenset[int]:
    """The steps with answers, if any step has some, and with values of every measure of the evaluation."""
    steps = [{row.step for row in answers}] if answers else []
    steps += [{row.step for row in measured if row.measure == measure} for measure in settings.get("measures", ())]
    return frozenset(set.intersection(*steps) if steps else {row.step for row in measured})


def _parts(place: str, scratch: Path, progress: Progress) -> Iterator[_Part]:
    directory = Path(place)
    if directory.is_dir():
        found = [directory] if (directory / SETTINGS).is_file() else sorted(p.parent for p in directory.rglob(SETTINGS))
        if not found:
            raise CheckpointError(f"{place}: there is no evaluation in this directory (no {SETTINGS})")
        for each in found:
            yield _Part(str(each), read_evaluation(each))
        return
    if is_hub(place):
        raise CheckpointError(f"{place}: the hub holds checkpoints and no evaluations; name a directory")
    for name, downloaded in download_results(place, scratch, progress):
        yield _Part(name, read_evaluation(downloaded))


def _calibration_notes(sessions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The notes of the calibration sessions, each sentence once."""
    return list(dict.fromkeys(str(note) for session in sessions for note in session.get("notes", ())))


def _check_alike(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if different := different_settings(first.stored.settings, part.stored.settings):
            raise DataError(
                f"{first.place} and {part.place}: evaluations with different settings ({', '.join(different)}); "
                "evaluate all steps with the same options, or collect them apart"
            )
        check_one_training(
            f"{first.place} and {part.place}",
            [*first.stored.all_rows, *part.stored.all_rows],
        )


def _trajectory(parts: Sequence[_Part]) -> str:
    names = sorted({row.trajectory for part in parts for row in part.stored.all_rows})
    if len(names) > 1:
        raise DataError(f"{', '.join(names)}: the places name one training by several paths; name it by --model-dir")
    return names[0]


def _merged(
    parts: Sequence[_Part], rows_of: Callable[[StoredEvaluation], Sequence[_Row]], key: Callable[[_Row], Any]
) -> list[_Row]:
    """The rows of all parts in the order of the steps; a row that several have is there once."""
    merged: dict[Any, tuple[_Row, str]] = {}
    for part in parts:
        for row in rows_of(part.stored):
            known = merged.get(key(row))
            merged[key(row)] = (row, part.place) if known is None else _one_of(*known, row, part.place)
    return sorted((row for row, _ in merged.values()), key=lambda row: row.step)


def _one_of(known: _Row, known_place: str, row: _Row, place: str) -> tuple[_Row, str]:
    """The row of two places, which must be equal; a verdict comes before an error of the judge."""
    known_failed, row_failed = _failed(known), _failed(row)
    same = replace(row, trajectory=known.trajectory) == known
    if isinstance(known, AnswerRow) and isinstance(row, AnswerRow) and known_failed != row_failed:
        same = known.answer == row.answer
    if not same:
        raise DataError(
            f"{known_place} and {place}: step {known.step}, question {known.question}: different results of one "
            "checkpoint and the same settings; leave one of the places out, or evaluate the step again with --exact"
        )
    return (row, place) if known_failed else (known, known_place)


def _failed(row: AnswerRow | MeasureRow) -> bool:
    return isinstance(row, AnswerRow) and row.status == "judge_error"


def _answer_key(row: AnswerRow) -> Any:
    return row.step, row.question, row.paraphrase, row.sample


def _value_key(row: MeasureRow) -> Any:
    return row.step, row.measure, row.metric, row.question


def _expected(reference: str, steps: str | None) -> tuple[str, tuple[int, ...], list[str]]:
    """The name of the trajectory in the rows, its steps that `steps` selects, and a sentence if they are unknown."""
    try:
        trajectory = Trajectory.open(reference)
    except CheckpointError as error:
        return reference, (), [f"{error}; so it is not known whether steps are missing"]
    selected = tuple(trajectory) if steps is None else trajectory.select(steps)
    return trajectory.name, tuple(checkpoint.step for checkpoint in selected), []
