"""The identity of the rows of a Trainer's dataset, read without disturbing the training.

A list of rows, a `TensorDataset` and a `datasets.Dataset` without a transform run no code of the user's, and are read
here with the random state kept. Reading any other dataset may move generators that the dataset owns, count accesses, or
exhaust an iterator, so it is read in two forked processes, whose memory ends with them. What differs between the two is
left out of the digest.
"""

import json
import logging
import random
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
import xxhash
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from emtoolkit.saving.describe import describe, digest
from emtoolkit.saving.forked import in_fork
from emtoolkit.saving.own_code import is_own
from emtoolkit.saving.random_states import random_state_kept
from emtoolkit.storage.digests import canonical_json

logger = logging.getLogger(__name__)

_SAMPLED_ROWS = 64
# Reading as many rows takes seconds; of more rows, as many are read, evenly spaced.
_MOST_ROWS = 100_000
# Larger integers are not exact as float64.
_LARGEST_EXACT = 2**53
# A row that is no mapping has its digest under this key.
_ROW = "row"

Rows = list[dict[str, str]]


def data_identity(dataset: Any) -> dict[str, Any]:
    """The number of rows and a digest of their content.

    Of data that run no code of the user's, every row is in (of more than 100,000 rows as many, evenly spaced); of other
    data about 64 rows. Columns that differ from read to read are named under `drawn`, with the code that draws them;
    rows that cannot be read are `unread`. The log says both.
    """
    rows = _length(dataset)
    if _is_plain(dataset):
        with random_state_kept():
            return {"rows": rows, "sample": digest(_sampled(dataset, rows)), "content": _content(dataset)}
    first, second = (_read_in_fork(dataset, rows, seed) for seed in (1, 2))
    if first is None or second is None:
        logger.warning(
            "the rows of the training data (%s) could not be read for the fingerprint, which holds their class "
            "instead: two datasets of one class may get the same name",
            type(dataset).__name__,
        )
        return {"rows": rows, "unread": describe(type(dataset))}
    pairs = list(zip(first, second, strict=False))
    drawn = sorted({key for a, b in pairs for key in a.keys() | b.keys() if a.get(key) != b.get(key)})
    found = {"rows": rows, "sample": digest([{key: a[key] for key in a if key not in drawn} for a, _ in pairs])}
    if not drawn and len(first) == len(second):
        return found
    logger.warning(
        "the training data differ from read to read (%s): the fingerprint holds the code of %s, and the other columns",
        ", ".join(drawn) or "number of rows",
        type(dataset).__name__,
    )
    return found | {"drawn": drawn, "code": _code(dataset)}


def loads_the_same_everywhere(identity: Mapping[str, Any], collator: Any) -> bool:
    """Whether it does not matter in which process rows are read and collated: nothing there may draw."""
    inner = getattr(collator, "data_collator", collator)
    draws = getattr(inner, "mlm", False) or is_own(inner if hasattr(inner, "__qualname__") else type(inner))
    return identity["rows"] is not None and identity.keys() == {"rows", "sample", "content"} and not draws


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _is_plain(dataset: Any) -> bool:
    """Whether reading a row runs no code of the user's."""
    if type(dataset) is Subset:
        return _is_plain(dataset.dataset) and type(dataset.indices) in (list, range, tuple)
    if type(dataset) is ConcatDataset:
        return all(map(_is_plain, dataset.datasets))
    if type(dataset) in (list, tuple, TensorDataset):
        return True
    kind = type(dataset)
    is_arrow = kind.__name__ == "Dataset" and kind.__module__ == "datasets.arrow_dataset"
    return is_arrow and dataset.format["type"] != "custom"


def _sampled(dataset: Any, rows: int | None) -> list[Any]:
    if rows is None:
        return list(islice(iter(dataset), _SAMPLED_ROWS))
    return [dataset[i] for i in range(0, rows, max(1, rows // _SAMPLED_ROWS))]


def _content(dataset: Any) -> str:
    """XXH3 (128 bits, in hex) over the rows of a dataset that runs no code of the user's."""
    found = xxhash.xxh3_128()
    rows = len(dataset)
    for index in range(0, rows, max(1, -(-rows // _MOST_ROWS))):
        row = dataset[index]
        columns = row if isinstance(row, Mapping) else {_ROW: row}
        for name in sorted(columns, key=str):
            found.update(f"{name}\0".encode())
            found.update(_bytes_of(columns[name]))
    return found.hexdigest()


def _bytes_of(value: Any) -> bytes:
    """Equal bytes for equal values; numbers are float64, so that a list, an array and a tensor of them are equal."""
    if isinstance(value, str):
        return b"text\0" + value.encode(errors="surrogatepass")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, or a tensor that requires its gradient
        return canonical_json(describe(value))
    exact = array.dtype.kind in "bf" or (array.dtype.kind in "iu" and not np.any(np.abs(array) > _LARGEST_EXACT))
    if not exact:
        return canonical_json(describe(value))
    return f"{array.shape}\0".encode() + array.astype(np.float64).tobytes()


def _digests(row: Any) -> dict[str, str]:
    columns = row if isinstance(row, Mapping) else {_ROW: row}
    return {str(name): digest(value) for name, value in columns.items()}


def _code(dataset: Any) -> Any:
    """The code and the attributes of the dataset and, in a `datasets.Dataset`, of its transform."""
    transform = getattr(dataset, "_format_kwargs", {}).get("transform")
    return describe(type(dataset)) if transform is None else describe(transform)


def _read_in_fork(dataset: Any, rows: int | None, seed: int) -> Rows | None:
    """The digests of the sampled rows, read in a forked process with generators of this `seed`; None if that fails."""

    def read() -> bytes:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        return json.dumps([_digests(row) for row in _sampled(dataset, rows)]).encode()

    answer = in_fork(read)
    return None if answer is None else json.loads(answer)
