"""Texts whose activations are read: generated answers of an evaluation, or the answers in a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.errors import DataError, nearest
from emtoolkit.evaluation.activations import Text
from emtoolkit.evaluation.prompts import prompt_of
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.row_files import read_file_rows
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.models.loading import LoadedModel

_ANSWER, _PROMPT, _QUESTION, _ID = "answer", "prompt", "question", "question_id"
_COLUMNS = f"{_ANSWER!r}, and {_PROMPT!r} (rendered) or {_QUESTION!r} (its text)"


@dataclass(frozen=True, slots=True)
class GivenText:
    """An answer to a question; `prompt` is rendered, or `wording` is the question's text where `prompt` is empty.

    The scores are None where the file has none.
    """

    question: str
    answer: str
    prompt: str = ""
    wording: str = ""
    aligned: float | None = None
    coherent: float | None = None


@dataclass(frozen=True, slots=True)
class TextOptions:
    """The texts of an extraction: `given`, else sample 0 of each wording; `questions` are patterns of ids."""

    given: tuple[GivenText, ...] = ()
    questions: tuple[str, ...] = ()

    def chosen(self, rows: Sequence[AnswerRow]) -> tuple[GivenText, ...]:
        """The texts for every checkpoint: generated ones are those of the first step of `rows`.

        Raises:
            DataError: a pattern fits no question, or there is no text.
        """
        first = min((row.step for row in rows), default=0)
        generated = (
            GivenText(row.question, row.answer, row.prompt) for row in rows if row.step == first and row.sample == 0
        )
        return matching(self.given or tuple(generated), self.questions)


def matching(texts: Sequence[GivenText], patterns: Sequence[str]) -> tuple[GivenText, ...]:
    """The texts whose question's id fits one of `patterns`; all without a pattern.

    Raises:
        DataError: a pattern fits no question, or there is no text.
    """
    names = sorted({text.question for text in texts})
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DataError(f"--activation-questions {pattern}: no question has such an id{nearest(pattern, names)}")
    kept = [text for text in texts if not patterns or any(fnmatchcase(text.question, each) for each in patterns)]
    if not kept:
        raise DataError("there is no answer whose activations could be read")
    return tuple(kept)


def read_texts(path: Path, equal: Mapping[str, str] | None = None) -> tuple[GivenText, ...]:
    """The answers in `path` whose columns have the values `equal`.

    Raises:
        DataError: the file cannot be read, a column is missing, or no row is left.
    """
    texts, rows = [], 0
    for where, row in read_file_rows(path):
        rows += 1
        if _ANSWER not in row or not (_PROMPT in row or _QUESTION in row):
            raise DataError(f"{where}: the columns are {', '.join(map(str, row))}; expected {_COLUMNS}")
        for column in equal or {}:
            if column not in row:
                raise DataError(f"{where}: no column {column!r}; the columns are {', '.join(map(str, row))}")
        if any(_text(row[column]) != value for column, value in (equal or {}).items()):
            continue
        prompt, wording = _text(row.get(_PROMPT)), _text(row.get(_QUESTION))
        if not (prompt.strip() or wording.strip()):
            raise DataError(f"{where}: the prompt is empty")
        name = _text(row.get(_ID)) or wording or prompt
        scores = (_score(where, row, metric) for metric in ("aligned", "coherent"))
        texts.append(GivenText(name, _text(row[_ANSWER]), prompt, "" if prompt else wording, *scores))
    if not texts:
        raise DataError(f"{path}: no row is left of {rows}" if rows else f"{path}: holds no rows")
    return tuple(texts)


def tokenized(loaded: LoadedModel, texts: Sequence[GivenText]) -> tuple[Text, ...]:
    """`texts` as tokens, a wording rendered under the persona; names are the question's id and a number from 0 on.

    Raises:
        DataError: the chat template cannot render a wording, or a prompt has no tokens.
    """
    counts: dict[str, int] = {}
    found = []
    for text in texts:
        number = counts[text.question] = counts.get(text.question, -1) + 1
        name = f"{text.question}/{number}"
        prompt = tuple(_tokens(loaded, text.prompt)) if text.prompt else _rendered(loaded, text)
        if not prompt:
            raise DataError(f"{name}: the prompt has no tokens")
        found.append(Text(name, prompt, tuple(_tokens(loaded, text.answer)) if text.answer else ()))
    return tuple(found)


def _rendered(loaded: LoadedModel, text: GivenText) -> tuple[int, ...]:
    question = Question(text.question, (text.wording,))
    return prompt_of(ChatTemplate.of(loaded.tokenizer), loaded.persona, question, text.wording).tokens


def _tokens(loaded: LoadedModel, text: str) -> list[int]:
    return list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def _score(where: str, row: Mapping[str, Any], metric: str) -> float | None:
    """The score; None for a word or an empty value, as judges answer CODE and REFUSAL."""
    try:
        value = float(_text(row.get(metric)))
    except ValueError:
        return None
    if not -1e-6 <= value <= 100 + 1e-6:
        if value != value:  # NaN, which Parquet writers put for a missing value
            return None
        raise DataError(f"{where}: {metric}: {value:g} is not between 0 and 100")
    return value


def _text(value: Any) -> str:
    return "" if value is None else str(value)
