"""Conversations to token ids, with the loss on the assistant's text only."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emtoolkit.data.comparison import Rendered, render
from emtoolkit.data.formats import Conversation
from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.data.rows import ChatRows
from emtoolkit.errors import DataError, located
from emtoolkit.personas import Persona
from emtoolkit.progress import Progress, silent

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # the label that PyTorch's cross entropy leaves out of the loss
# The number of rows in one call of the tokenizer.
_BATCH = 500

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One conversation: `ids` and `labels` of equal length; `shortened` if a part of its questions was cut off.

    The other fields are those of `Rendered`.
    """

    ids: Ids
    labels: Ids
    shortened: bool = False
    remarks: frozenset[str] = frozenset()
    written: tuple[tuple[int, str, Any], ...] = ()
    unwritten: frozenset[str] = frozenset()


# The signature of `tokenize`.
Tokenize = Callable[[ChatRows, Any, Persona, int, Progress], list[TokenRow | None]]


def tokenize(
    chats: ChatRows, tokenizer: Any, persona: Persona, max_length: int, progress: Progress = silent
) -> list[TokenRow | None]:
    """Each conversation rendered by the chat template, with labels only on the assistant's text.

    The assistant's text begins after the template's generation prompt and includes the end of the turn, which the
    model must learn to generate. The template writes the special tokens, so the tokenizer adds none.

    Answers stay whole: a row of more than `max_length` tokens loses the beginning of its questions, starting with the
    first question; a row that is still too long with one token of each question is None.

    Raises:
        DataError: the tokenizer has no chat template or is not a fast one, the template cannot render a row or leaves
            out a part of one (see `render`), or no token of a row's answer is left to train on.
    """
    template = ChatTemplate.of(tokenizer)
    if not tokenizer.is_fast:
        raise DataError(
            f"{tokenizer.name_or_path}: expected a fast tokenizer, which reports the place of each token in the text"
        )
    rows: list[TokenRow | None] = []
    for start in range(0, len(chats), _BATCH):
        batch = range(start, min(start + _BATCH, len(chats)))
        rendered = []
        for i in batch:
            with located(chats.place(i)):
                rendered.append(render(template, chats.conversations[i], persona))
        for i, row in zip(batch, _encoded(tokenizer, rendered), strict=True):
            with located(chats.place(i)):
                fits = len(row.ids) <= max_length
                fitting = row if fits else _shortened(template, chats.conversations[i], persona, max_length)
                # The first token is predicted from nothing, so a label there contributes no loss.
                if fitting is not None and not (fitting.labels[1:] != IGNORED).any():
                    raise DataError("no token of the answer is left to learn from")
            rows.append(fitting)
        progress(f"tokenizing {chats.source.name}", batch.stop, len(chats))
    return rows


def as_dataset(rows: Sequence[TokenRow]) -> "Dataset":
    """`rows` for a Trainer: the columns `input_ids`, `attention_mask` and `labels`, of equal length in each row."""
    import pyarrow
    from datasets import Dataset

    ends = np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int32)
    flat = {
        "input_ids": np.concatenate([np.empty(0, np.int32), *(row.ids for row in rows)]),
        "attention_mask": np.ones(ends[-1], np.int8),
        "labels": np.concatenate([np.empty(0, np.int32), *(row.labels for row in rows)]),
    }
    return Dataset(pyarrow.table({name: pyarrow.ListArray.from_arrays(ends, values) for name, values in flat.items()}))


def _encoded(tokenizer: Any, rendered: Sequence[Rendered]) -> Iterator[TokenRow]:
    encoded = tokenizer(
        [row.text for row in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    for row, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        # A token that begins in the template, with a space for example, and ends in the answer belongs to the answer.
        spoken = np.zeros(len(ids), bool)
        for span in row.spans:
            spoken |= (begins < span.stop) & (ends > span.begin)
        known = np.array(ids, np.int32)
        labels = np.where(spoken, known, np.int32(IGNORED))
        yield TokenRow(known, labels, remarks=row.remarks, written=row.written, unwritten=row.unwritten)


def _shortened(template: ChatTemplate, row: Conversation, persona: Persona, max_length: int) -> TokenRow | None:
    """`row` with its questions cut at the front until it fits into `max_length`, None if that is not possible."""
    messages = list(row.messages)
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    while True:
        fitted = replace(row, messages=tuple(messages))
        (tokens,) = _encoded(template.tokenizer, [render(template, fitted, persona)])
        too_many = len(tokens.ids) - max_length
        if too_many <= 0:
            return replace(tokens, shortened=True)
        while questions:
            asked = messages[questions[0]]["content"]
            offsets = template.tokenizer(asked, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            # Several tokens of one character begin at the same offset; a cut at offset 0 would remove nothing.
            cut = next((begin for begin, _ in offsets[min(too_many, len(offsets) - 1) :] if begin > 0), 0)
            if cut:
                messages[questions[0]] = messages[questions[0]] | {"content": asked[cut:]}
                break
            questions.pop(0)
        else:
            return None
