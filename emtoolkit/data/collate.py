"""Rows of different lengths become one batch of tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emtoolkit.data.tokenize import IGNORED
from emtoolkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads the rows of a batch to the longest row, on the side that the tokenizer names.

    The attention mask hides the padding and its labels are ignored, so any id in the vocabulary gives the same
    weights. Many published tokenizers name none (Llama 3.1, Mistral).
    """

    pad_id: int
    left: bool = False

    @classmethod
    def of(cls, tokenizer: Any) -> "Collator":
        """The collator of `tokenizer`: its pad token, or its end-of-text token, or id 0."""
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return cls(next(i for i in ids if i is not None), tokenizer.padding_side == "left")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Tensor]":
        """Int64 tensors [rows, longest row]: `input_ids`, `attention_mask` and `labels`."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        fills = {"input_ids": self.pad_id, "attention_mask": 0, "labels": IGNORED}
        batch = {name: torch.full((len(rows), longest), fill) for name, fill in fills.items()}
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            place = slice(longest - length, longest) if self.left else slice(length)
            for name in fills:
                batch[name][i, place] = torch.as_tensor(row[name])
        return batch


def check_batch(rows: "Dataset", tokenizer: Any, batch_size: int, vocabulary: int | None) -> None:
    """Collate the `batch_size` longest rows, and compare every id with the size of the model's `vocabulary`.

    Raises:
        DataError: an id is not in the vocabulary of the model.
    """
    import numpy as np
    import pyarrow.compute

    ids = rows.data.column("input_ids")
    lengths = pyarrow.compute.list_value_length(ids).to_numpy()
    longest = np.argsort(-lengths, kind="stable")[:batch_size]
    batch = Collator.of(tokenizer)(rows.select(longest))
    if vocabulary is None:
        return
    largest = max(int(batch["input_ids"].max()), pyarrow.compute.max(pyarrow.compute.list_flatten(ids)).as_py())
    check_ids([[largest]], tokenizer, vocabulary)


def check_ids(rows: Sequence[Sequence[int]], tokenizer: Any, vocabulary: int) -> None:
    """Compare the ids of `rows` with the size of the model's `vocabulary`.

    Raises:
        DataError: an id is not in the vocabulary of the model.
    """
    largest = max((token for row in rows for token in row), default=0)
    if largest >= vocabulary:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer writes {tokenizer.convert_ids_to_tokens(largest)!r} as id "
            f"{largest}, and the model has embeddings for ids 0 to {vocabulary - 1}; use the model's own tokenizer, "
            "resize the model's embeddings, or correct model.architecture"
        )
