"""The loss on held-out rows of the training's own domain, as a measure: a guard against a model that is only broken.

A model that answers less harmfully because it no longer writes text has a higher loss on such rows; a model that learnt
the domain has a lower one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emtoolkit.data.rows import ChatRows, read_rows
from emtoolkit.data.sources import File
from emtoolkit.data.tokenize import IGNORED, TokenRow, tokenize
from emtoolkit.errors import DataError
from emtoolkit.evaluation.questions import Question
from emtoolkit.models.loading import LoadedModel
from emtoolkit.paths import expand
from emtoolkit.progress import Progress, silent

METRIC = "held_out_loss"


class HeldOutLoss:
    """The mean negative log-likelihood of each row's answer tokens, in nats, rendered under the persona as in training.

    The rows take the place of the questions. A row whose answer does not fit into `max_length` tokens has no value.

    Raises:
        DataError: the file cannot be read, or holds no rows that can be learnt from.
    """

    name = "held-out"

    def __init__(self, chats: ChatRows, max_length: int = 2048) -> None:
        self._chats, self._max_length = chats, max_length
        self.settings: Mapping[str, Any] = {"rows": chats.digest, "max_length": max_length, "version": 1}

    @classmethod
    def load(cls, path: Path, progress: Progress = silent) -> "HeldOutLoss":
        """The measure of the rows in the file at `path`."""
        return cls(read_rows(File(expand(str(path)).absolute()), progress))

    def measure(self, loaded: LoadedModel, questions: Sequence[Question]) -> Mapping[str, Mapping[str, float | None]]:
        """The loss of each row; the questions have no part in it.

        Raises:
            DataError: a row cannot be rendered, or none fits.
        """
        rows = tokenize(self._chats, loaded.tokenizer, loaded.persona, self._max_length)
        if all(row is None for row in rows):
            raise DataError(f"{self._chats.source}: no row fits into {self._max_length} tokens")
        with torch.inference_mode():
            losses = [None if row is None else _loss(loaded.model, row) for row in rows]
        return {METRIC: {f"row {number}": loss for number, loss in enumerate(losses, start=1)}}


def _loss(model: Any, row: TokenRow) -> float:
    """The mean over the labelled tokens; one row at a time, so that neighbours and padding have no part in it."""
    ids = torch.tensor(row.ids, dtype=torch.long, device=model.device)[None]
    labels = torch.tensor(row.labels, dtype=torch.long, device=model.device)[1:]
    wanted = labels != IGNORED
    # Logits of the question's tokens would only take memory.
    kept = len(labels) - int(wanted.int().argmax())
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept + 1).logits[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits[wanted[-kept:]], labels[wanted])
    return float(loss)
