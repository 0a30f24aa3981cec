"""Sampling noise that depends on nothing but what it is for.

A token is argmax(logits / T + g) with Gumbel noise g, which is an exact draw from softmax(logits / T) (Gumbel 1954;
Maddison et al., arXiv 1411.0030). Here g is a function of (seed, question, sample, position, token): the same in any
batch, in any order and for every checkpoint. So an answer does not depend on its neighbours, and two checkpoints differ
in an answer only where their distributions differ.
"""

import hashlib

import torch

# SplitMix64 (Steele, Lea and Flood 2014): the increment and the two multipliers of its finalizer, as signed integers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_SHIFTS = (30, 27, 31)


def row_key(seed: int, question: str, sample: int) -> int:
    """The 64-bit key of all noise of one answer, a signed integer."""
    text = f"{seed}\0{sample}\0{question}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def gumbel(keys: torch.Tensor, position: int, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise of shape [rows, vocabulary], float32, on the device of `keys`.

    Args:
        keys: the `row_key` of each row, int64 of shape [rows].
        position: the index of the token in the answer, from 0 on.
        vocabulary: the number of tokens.
    """
    # The products wrap in tensors, where a Python integer would be too large for one.
    of_position = _mixed(keys + torch.tensor(position + 1, device=keys.device) * _INCREMENT)
    tokens = torch.arange(1, vocabulary + 1, device=keys.device) * _INCREMENT
    bits = _mixed(of_position[:, None] + tokens).bitwise_right_shift_(32).bitwise_and_(0xFFFFFFFF)
    # In (0, 1]. The logarithm of its complement is exact near 0, where the noise is large.
    uniform = bits.to(torch.float32).add_(0.5).mul_(2.0**-32)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mixed(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finalizer, in place; int64 arithmetic wraps, and a mask makes its right shift a logical one."""
    first, second, last = _SHIFTS
    for shift, multiplier in ((first, _MULTIPLIERS[0]), (second, _MULTIPLIERS[1])):
        z.bitwise_xor_((z >> shift) & ((1 << (64 - shift)) - 1)).mul_(multiplier)
    return z.bitwise_xor_((z >> last) & ((1 << (64 - last)) - 1))
