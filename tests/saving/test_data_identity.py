"""What identifies the rows of a training: every one of them, in whatever container."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import Subset, TensorDataset

from emtoolkit.saving import data_identity as module
from emtoolkit.saving.data_identity import data_identity

ROWS: list[dict[str, Any]] = [{"input_ids": [i, i + 1, 3], "text": f"row {i}"} for i in range(300)]


@pytest.mark.parametrize("index", [0, 1, 151, 299])
@pytest.mark.parametrize("container", [list, Dataset.from_list], ids=["list", "datasets"])
def test_a_change_of_any_row_is_another_dataset(container: Any, index: int) -> None:
    changed = [dict(row) for row in ROWS]
    changed[index]["input_ids"] = [index, index + 1, 4]
    assert data_identity(container(changed)) != data_identity(container(ROWS))


def test_the_order_of_two_rows_is_in() -> None:
    assert data_identity([*ROWS[:7], ROWS[8], ROWS[7], *ROWS[9:]]) != data_identity(ROWS)


def test_lists_arrays_tensors_and_datasets_of_the_same_rows_are_the_same() -> None:
    numbers = [{"a": [i, 2], "b": 1.5} for i in range(5)]
    same = [
        numbers,
        tuple(numbers),
        [{"b": np.float32(1.5), "a": np.array([i, 2])} for i in range(5)],
        [{"a": torch.tensor([i, 2]), "b": torch.tensor(1.5)} for i in range(5)],
        Dataset.from_list(numbers),
        Subset(numbers, range(5)),  # type: ignore[arg-type]  # a list has what a dataset needs
    ]
    assert len({str(data_identity(rows)) for rows in same}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2], [[1, 2]]),
        ("1", 1),
        (2**60, 2**60 + 1),
        ([1, 2], [1, 2, 0]),
        ([[1], [2, 3]], [[1, 2], [3]]),
        ({"role": "user", "content": "a"}, {"role": "user", "content": "b"}),
        (None, ""),
    ],
)
def test_values_that_differ_are_two_datasets(one: Any, other: Any) -> None:
    assert data_identity([{"a": one}]) != data_identity([{"a": other}])


def test_rows_of_tensors_are_all_read() -> None:
    first = TensorDataset(torch.arange(200), torch.arange(200))
    second = TensorDataset(torch.arange(200), torch.arange(200).index_fill(0, torch.tensor([77]), 0))
    assert data_identity(first) != data_identity(second)


def test_of_very_many_rows_as_many_as_allowed_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ROWS", 100)
    changed = [dict(row) for row in ROWS]
    changed[3]["text"] = "another"  # of 300 rows every third is read
    assert data_identity(changed) != data_identity(ROWS)
    assert data_identity([*changed, ROWS[0]]) != data_identity(changed)
