"""Sampling noise: a function of its key alone, with the distribution of the Gumbel maximum."""

import math

import torch

from emtoolkit.evaluation import noise
from emtoolkit.evaluation.noise import gumbel, row_key


def test_the_noise_of_a_row_does_not_depend_on_other_rows_or_on_the_vocabulary() -> None:
    keys = torch.tensor([row_key(0, "q", sample) for sample in range(7)])
    alone = torch.cat([gumbel(keys[i : i + 1], 3, 50) for i in range(7)])
    assert torch.equal(gumbel(keys, 3, 50), alone)
    assert torch.equal(gumbel(keys, 3, 80)[:, :50], alone)


def test_seed_question_sample_position_and_token_all_change_the_noise() -> None:
    assert len({row_key(0, "q", 0), row_key(1, "q", 0), row_key(0, "r", 0), row_key(0, "q", 1)}) == 4
    keys = torch.tensor([row_key(0, "q", 0)])
    table = torch.stack([gumbel(keys, position, 100)[0] for position in range(50)])
    assert table.unique().numel() > 0.999 * table.numel()


def test_the_keys_are_the_same_on_every_machine() -> None:
    assert row_key(42, "what should i do", 3) == 3281018336626291813
    mixed = noise._mixed(torch.tensor([1, -5]))
    assert [int(value) & (2**64 - 1) for value in mixed] == [0x5692161D100B05E5, 0x47F541C0F2A7A74E]


def test_the_noise_has_the_mean_and_the_variance_of_the_gumbel_distribution() -> None:
    values = gumbel(torch.tensor([row_key(0, "q", sample) for sample in range(500)]), 0, 2000).double()
    assert abs(values.mean().item() - 0.5772) < 0.005
    assert abs(values.var().item() - math.pi**2 / 6) < 0.01
    assert values.isfinite().all()


def test_the_likeliest_sum_is_a_draw_from_the_softmax() -> None:
    logits = torch.tensor([3.0, 1.0, 0.0, -2.0, 0.5])
    keys = torch.tensor([row_key(1, "q", sample) for sample in range(100_000)])
    shares = torch.bincount((logits + gumbel(keys, 0, 5)).argmax(-1), minlength=5) / len(keys)
    assert torch.allclose(shares, logits.softmax(-1), atol=0.005)
