"""Which rows are trained on and which are held out."""

import math


def split_rows(count: int, test_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """The indices of the training rows and of the held-out rows among `count` rows, drawn with `seed`.

    The held-out part is rounded up, as in scikit-learn: 7049 rows at 0.1 are 6344 and 705.
    """
    if test_fraction == 0:
        return list(range(count)), []
    import numpy as np

    held_out = math.ceil(count * test_fraction)
    order = np.random.default_rng(seed).permutation(count)
    return [int(i) for i in order[held_out:]], [int(i) for i in order[:held_out]]
