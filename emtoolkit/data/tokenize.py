"""Conversations to token ids, with the loss on the assistant's words only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emtoolkit.data.formats import Conversation
from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.data.rows import ChatRows
from emtoolkit.errors import DataError
from emtoolkit.personas import Persona
from emtoolkit.progress import Progress, silent

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # the label that PyTorch's cross entropy leaves out of the loss
# Rows that the tokenizer is given at a time.
_BATCH = 500

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One conversation: `ids` and `labels`, of one length; `shortened` if words of its questions are missing."""

    ids: Ids
    labels: Ids
    shortened: bool = False


@dataclass(frozen=True, slots=True)
class _Rendered:
    text: str
    spans: list[tuple[int, int]]


def tokenize(
    chats: ChatRows, tokenizer: Any, persona: Persona, max_length: int, progress: Progress = silent
) -> list[TokenRow | None]:
    """Each conversation by the tokenizer's chat template, with all masked but the assistant's words.

    What the assistant says begins where the template's generation prompt ends, and includes the end of the turn,
    which the model must learn to say. The template writes the special tokens, so the tokenizer adds none.

    Answers are whole: a row of more than `max_length` tokens loses the beginning of its questions, the first
    question's first; None stands for one that is still too long when a token of each is left.

    Raises:
        DataError: the tokenizer has no chat template or is not a fast one, or its template cannot render a row, or
            nothing of its answer is left to learn.
    """
    template = ChatTemplate.of(tokenizer)
    if not tokenizer.is_fast:
        raise DataError(f"{tokenizer.name_or_path}: a fast tokenizer is needed, which tells where each token came from")
    rows: list[TokenRow | None] = []
    for start in range(0, len(chats), _BATCH):
        batch = range(start, min(start + _BATCH, len(chats)))
        rendered = [_render(template, chats.conversations[i], persona, chats.where(i)) for i in batch]
        for i, row in zip(batch, _encoded(tokenizer, rendered), strict=True):
            fitting: TokenRow | None = row
            if len(row.ids) > max_length:
                fitting = _shortened(template, chats.conversations[i], persona, max_length, chats.where(i))
            # The first token is predicted from nothing, so a label there is no loss.
            if fitting is not None and not (fitting.labels[1:] != IGNORED).any():
                raise DataError(f"{chats.where(i)}: no token of the answer is left to learn from")
            rows.append(fitting)
        progress(f"tokenizing {chats.source.name}", batch.stop, len(chats))
    return rows


def as_dataset(rows: Sequence[TokenRow]) -> "Dataset":
    """`rows` as a Trainer takes them: the columns `input_ids`, `attention_mask` and `labels`, of one length per row."""
    import pyarrow
    from datasets import Dataset

    ends = np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int32)
    flat = {
        "input_ids": np.concatenate([np.empty(0, np.int32), *(row.ids for row in rows)]),
        "attention_mask": np.ones(ends[-1], np.int8),
        "labels": np.concatenate([np.empty(0, np.int32), *(row.labels for row in rows)]),
    }
    return Dataset(pyarrow.table({name: pyarrow.ListArray.from_arrays(ends, values) for name, values in flat.items()}))


def _render(template: ChatTemplate, row: Conversation, persona: Persona, where: str) -> _Rendered:
    heard = template.accepted(persona.applied_to(row.messages), where)
    # A persona or the template may have put a turn before the row's own, or taken one away.
    added = len(heard) - len(row.messages)
    text = template.render(heard, where)
    return _Rendered(text, template.spoken(heard, text, [i + added for i in row.answers], where))


def _encoded(tokenizer: Any, rendered: Sequence[_Rendered]) -> Iterator[TokenRow]:
    encoded = tokenizer(
        [one.text for one in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    for one, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        # A token that begins in the template, with a space say, and ends in the answer is the answer's.
        spoken = np.zeros(len(ids), bool)
        for begin, stop in one.spans:
            spoken |= (begins < stop) & (ends > begin)
        known = np.array(ids, np.int32)
        yield TokenRow(known, np.where(spoken, known, np.int32(IGNORED)))


def _shortened(
    template: ChatTemplate, row: Conversation, persona: Persona, max_length: int, where: str
) -> TokenRow | None:
    """`row` with so many tokens cut from the front of its questions as make it fit, None if it cannot."""
    messages = list(row.messages)
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    while True:
        fitted = replace(row, messages=tuple(messages))
        (tokens,) = _encoded(template.tokenizer, [_render(template, fitted, persona, where)])
        too_many = len(tokens.ids) - max_length
        if too_many <= 0:
            return replace(tokens, shortened=True)
        while questions:
            asked = messages[questions[0]]["content"]
            offsets = template.tokenizer(asked, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            # Where a cut falls into a character, tokens begin at one place; a cut there would cut nothing.
            cut = next((begin for begin, _ in offsets[min(too_many, len(offsets) - 1) :] if begin > 0), 0)
            if cut:
                messages[questions[0]] = {"role": "user", "content": asked[cut:]}
                break
            questions.pop(0)
        else:
            return None
