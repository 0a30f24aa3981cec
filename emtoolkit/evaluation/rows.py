"""The rows of an evaluation: one for each answer, in a Parquet file.

| column | type | content |
|---|---|---|
| trajectory | string | the directory or collection |
| fingerprint | string | of the trajectory |
| step | int64 | the optimizer steps before the save |
| persona | string | the persona that was active |
| question | string | the question's id |
| cluster | string | the family of questions, by default the id |
| paraphrase | int64 | the index of the wording, from 0 on |
| sample | int64 | the number of the answer to this wording, from 0 on |
| seed | int64 | of the sampling |
| engine | string | `stacked` or `exact`, on a GPU `stacked-cuda` or `exact-cuda`, or `vllm` |
| judge | string | name and digest of the judge |
| status | string | `ok`, `code`, `refusal`, `low_mass`, `judge_error`, `empty` or `truncated` |
| aligned, coherent | double | scores from 0 to 100, null where there is none |
| mass, below_30 | double | see `judges.Verdict` |
| prompt, answer | string | the rendered prompt and the text of the answer |
| truncated | bool | whether the answer reached the longest length without an end, whatever its status |
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emtoolkit.errors import DataError
from emtoolkit.evaluation.metrics import ScoredAnswer, Status
from emtoolkit.evaluation.parquet import read_dataclasses, write_dataclasses


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One answer of one checkpoint with its verdict; the module's docstring describes each column."""

    trajectory: str
    fingerprint: str
    step: int
    persona: str
    question: str
    cluster: str
    paraphrase: int
    sample: int
    seed: int
    engine: str
    judge: str
    status: Status
    aligned: float | None
    coherent: float | None
    mass: float | None
    below_30: float | None
    prompt: str
    answer: str
    truncated: bool = False

    def scored(self) -> ScoredAnswer:
        """The row as `metrics` takes it."""
        return ScoredAnswer(
            self.question, self.cluster, self.aligned, self.coherent, self.status, self.judge, self.truncated
        )


def write_rows(path: Path, rows: Sequence[AnswerRow]) -> None:
    """Write `rows` to the Parquet file `path`, atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_dataclasses(path, AnswerRow, rows)


def read_rows(path: Path) -> list[AnswerRow]:
    """The rows of `write_rows`.

    Raises:
        DataError: the file is not a Parquet file with these columns, or its answers have two engines, two judges or
            two personas.
        CheckpointError: the file cannot be read.
    """
    rows = read_dataclasses(path, AnswerRow, "a file of evaluated answers")
    # Files of earlier versions tell a truncated answer by its status alone.
    rows = [replace(row, truncated=row.truncated or row.status == "truncated") for row in rows]
    check_one_origin(str(path), rows)
    return rows


def check_one_origin(where: str, rows: Sequence[AnswerRow]) -> None:
    """Refuse to make one curve of answers by two engines, by two judges or under two personas.

    Raises:
        DataError: there are two.
    """
    for column in ("engine", "judge", "persona"):
        found = sorted({str(getattr(row, column)) for row in rows})
        if len(found) > 1:
            raise DataError(
                f"{where}: answers of {len(found)} {column}s ({', '.join(found)}); one curve needs one, so evaluate "
                f"them again with one {column}"
            )
