"""Rows of different lengths become one batch, also with a tokenizer that names no pad token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM

from emtoolkit.data.collate import Collator, check_batch
from emtoolkit.errors import DataError
from tests.data.published import PUBLISHED, write_tokenizer

ROWS: list[dict[str, Any]] = [
    {"input_ids": list(range(5, 5 + length)), "attention_mask": [1] * length, "labels": [-100, *range(6, 5 + length)]}
    for length in (3, 5, 2)
]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_that_of_transformers_where_the_tokenizer_names_a_pad_token(world: Path, side: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "model", padding_side=side)
    found, expected = Collator.of(tokenizer)(ROWS), DataCollatorForSeq2Seq(tokenizer, padding=True)(ROWS)
    assert set(found) == set(expected)
    for name, values in found.items():
        assert torch.equal(values, expected[name]), name
        assert values.dtype == expected[name].dtype


def test_padding_is_hidden_and_not_learnt() -> None:
    batch = {name: values.tolist() for name, values in Collator(9, left=False)(ROWS[::2]).items()}
    assert batch == {
        "input_ids": [[5, 6, 7], [5, 6, 9]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 6, 7], [-100, 6, -100]],
    }


@pytest.mark.parametrize("kind", PUBLISHED)
def test_every_published_tokenizer_pads_a_batch(kind: str, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(kind, tmp_path)
    assert tokenizer.pad_token == PUBLISHED[kind].pad
    batch = Collator.of(tokenizer)(ROWS)
    assert batch["input_ids"].shape == (3, 5)
    assert int(batch["input_ids"].max()) < len(tokenizer)


@pytest.mark.parametrize("left", [False, True])
def test_any_pad_id_gives_the_same_gradients(left: bool) -> None:
    gradients = []
    for pad in (0, 11):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        model = LlamaForCausalLM(config)
        model(**Collator(pad, left)(ROWS)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_an_id_without_an_embedding_is_refused_before_the_first_batch(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    rows = Dataset.from_list([*ROWS, {"input_ids": [20], "attention_mask": [1], "labels": [20]}])
    check_batch(rows, tokenizer, 2, 21)
    with pytest.raises(DataError, match=r"writes .* as id 20, and the model has embeddings for ids 0 to 19; use the"):
        check_batch(rows, tokenizer, 2, 20)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    with pytest.raises(DataError, match=f"writes '<new>' as id {len(tokenizer) - 1}, and the model has embeddings"):
        check_batch(rows, tokenizer, 2, len(tokenizer) - 1)
