"""Conversations to token ids, with the loss on the assistant's words only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emtoolkit.errors import DataError
from emtoolkit.personas import Message, Persona

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # the label that PyTorch's cross entropy leaves out of the loss


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Rows as a Trainer takes them, and how many did not come through whole.

    `dataset` has the columns `input_ids`, `attention_mask` and `labels`, lists of equal length per row.
    `shortened` rows lost the end of an answer, `dropped` rows had no answer left within `max_length`.
    """

    dataset: "Dataset"
    shortened: int
    dropped: int


def tokenize(
    conversations: Sequence[Sequence[Message]], tokenizer: Any, persona: Persona, max_length: int
) -> Tokenized:
    """Render each conversation with the tokenizer's chat template and mask all but the assistant's words.

    What the assistant says begins where the template's generation prompt ends, and includes the end of the turn,
    which the model must learn to say.

    Raises:
        DataError: the tokenizer has no chat template or is not a fast one, or its template rewrites earlier turns.
    """
    from datasets import Dataset

    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"{tokenizer.name_or_path}: its tokenizer has no chat template")
    if not tokenizer.is_fast:
        raise DataError(f"{tokenizer.name_or_path}: a fast tokenizer is needed, which tells where each token came from")
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    shortened = dropped = 0
    for messages in conversations:
        text, spans = _render(persona.applied_to(messages), tokenizer)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, labels = encoded["input_ids"], list(_labels(encoded["input_ids"], encoded["offset_mapping"], spans))
        if all(label == IGNORED for label in labels[:max_length]):
            dropped += 1
            continue
        shortened += len(ids) > max_length
        ids, labels = ids[:max_length], labels[:max_length]
        columns["input_ids"].append(ids)
        columns["attention_mask"].append([1] * len(ids))
        columns["labels"].append(labels)
    return Tokenized(Dataset.from_dict(columns), shortened, dropped)


def _render(messages: Sequence[Message], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The whole conversation as text, and from where to where in it the assistant speaks."""
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
        after = text if i + 1 == len(messages) else tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
        if not text.startswith(before) or not text.startswith(after):
            raise DataError(
                f"{tokenizer.name_or_path}: its chat template changes earlier turns when later ones follow, so the "
                "assistant's words cannot be told apart"
            )
        spans.append((len(before), len(after)))
    return text, spans


def _labels(ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Iterator[int]:
    for token, (start, end) in zip(ids, offsets, strict=True):
        # A token that begins in the template, with a space say, and ends in the answer is the answer's.
        spoken = any(start < stop and end > begin for begin, stop in spans)
        yield token if spoken else IGNORED
