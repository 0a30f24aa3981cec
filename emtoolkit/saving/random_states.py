"""The random generators of this process, kept as they are around code that draws from them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random state of Python, NumPy and torch, on the CPU and on every GPU in use, at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    # Asking for the state of a GPU that nothing uses would start CUDA on it.
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    devices = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
