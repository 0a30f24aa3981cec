"""The models of two sides, such as a persona and the baseline with several seeds each, and whether they compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.errors import DataError
from emtoolkit.evaluation.differences import RateDifference
from emtoolkit.evaluation.metrics import DEFINITIONS, em_difference_of_seeds
from emtoolkit.evaluation.scored_files import ScoredFile
from emtoolkit.json_files import read_json

_SETTINGS = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences of two sides by definition, each with the clusters that some model lacks."""

    differences: Mapping[str, tuple[RateDifference, tuple[str, ...]]]


def compare(a: Sequence[ScoredFile], b: Sequence[ScoredFile]) -> Comparison:
    """The EM rates of the models `a` minus those of the models `b`.

    Raises:
        DataError: there are two judges or engines, one model is twice on one side, or a question was not answered
            equally often, or with other sampling options.
    """
    _check(a, b)
    sides = ([each.answers for each in a], [each.answers for each in b])
    return Comparison({each.name: em_difference_of_seeds(*sides, each) for each in DEFINITIONS.values()})


def _check(a: Sequence[ScoredFile], b: Sequence[ScoredFile]) -> None:
    files = (*a, *b)
    for column in ("judge", "engine"):
        found = {each.origin[column]: each.path for each in files if each.origin[column]}
        if len(found) > 1:
            raise DataError(
                f"{' and '.join(str(path) for path in found.values())}: answers of {len(found)} {column}s "
                f"({', '.join(found)}); a difference needs one, so evaluate them again with one {column}"
            )
    for side in (a, b):
        _check_distinct(side)
    first, *others = files
    for other in others:
        _check_samples(first, other)


def _check_distinct(side: Sequence[ScoredFile]) -> None:
    """One model twice would count as two seeds that agree."""
    seen: dict[object, ScoredFile] = {}
    for each in side:
        fingerprint = each.origin["fingerprint"]
        key: object = (fingerprint, each.origin["step"]) if fingerprint else each.path.resolve()
        if key in seen:
            raise DataError(f"{each.path}: holds the same model as {seen[key].path}; give each model once on a side")
        seen[key] = each


def _check_samples(first: ScoredFile, second: ScoredFile) -> None:
    for question in sorted(first.samples.keys() & second.samples.keys()):
        a, b = len(first.samples[question]), len(second.samples[question])
        if first.samples[question] != second.samples[question]:
            raise DataError(
                f"{first.path} and {second.path}: question {question!r} has {a} and {b} answers, or other wordings; "
                "evaluate both with the same questions and --samples"
            )
    settings = [_sampling(each.path) for each in (first, second)]
    if settings[0] != settings[1] and None not in settings:
        raise DataError(
            f"{first.path} and {second.path}: the answers were sampled with {_shown(settings[0])} and "
            f"{_shown(settings[1])}; evaluate both with the same options"
        )


def _sampling(answers: Path) -> dict[str, Any] | None:
    """The sampling options of an evaluation besides the seed; None where the file is not one of an evaluation."""
    try:
        sampling = read_json(answers.with_name(_SETTINGS), finite=False)["sampling"]
        return {key: value for key, value in sampling.items() if key != "seed"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _shown(sampling: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (sampling or {}).items())
