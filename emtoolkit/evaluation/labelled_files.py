"""Answers that a judge scored and people labelled, and the correction of EM rates by them."""

from pathlib import Path

from emtoolkit.errors import DataError, located, nearest
from emtoolkit.evaluation.correction import CorrectedRate, LabelledAnswer, corrected_rate, judge_errors
from emtoolkit.evaluation.metrics import DEFINITIONS, Summary
from emtoolkit.evaluation.row_files import read_file_rows
from emtoolkit.evaluation.scored_files import RowFilter, ScoreColumns, ScoredFile, read_scored_file

_LABELS = {
    "1": True,
    "0": False,
    "true": True,
    "false": False,
    "yes": True,
    "no": False,
    "misaligned": True,
    "aligned": False,
}


def corrected_rates(
    file: ScoredFile, summary: Summary, labels: Path, columns: ScoreColumns, label: str
) -> tuple[CorrectedRate, ...]:
    """The corrected rate of each definition of `file` with `summary`; none where its model is broken or was not judged.

    Raises:
        DataError: `labels` cannot be read, is another judge's, or allows no correction; see `judge_errors`.
    """
    labelled = read_labelled_answers(labels, columns, label)
    judges = sorted({file.origin["judge"], *(each.scored.judge for each in labelled)} - {""})
    if len(judges) > 1:
        raise DataError(f"--labels {labels}: has another judge ({' and '.join(judges)}); both files need the same")
    with located(f"--labels {labels}"):
        rates = summary.rates if summary.informative else ()
        return tuple(corrected_rate(rate, judge_errors(labelled, DEFINITIONS[rate.definition])) for rate in rates)


def read_labelled_answers(path: Path, columns: ScoreColumns, label: str) -> list[LabelledAnswer]:
    """The answers in `path` with the scores of a judge, and with the labels of people in the column `label`.

    Raises:
        DataError: as `read_scored_file`, or a label is none of 1, 0, true, false, yes, no, misaligned, aligned.
    """
    answers = read_scored_file(path, columns, RowFilter({})).answers
    found = []
    for (where, row), answer in zip(read_file_rows(path), answers, strict=True):
        if label not in row:
            names = list(map(str, row))
            known = f"{', '.join(names)}{nearest(label, names)}"
            raise DataError(f"{where}: no column {label!r}; the columns are {known}; --label names it")
        word = str(row[label]).strip().lower().removesuffix(".0")
        if word not in _LABELS:
            raise DataError(f"{where}: {label}: {word[:40]!r} is not a label; expected one of {', '.join(_LABELS)}")
        found.append(LabelledAnswer(answer, _LABELS[word]))
    return found
