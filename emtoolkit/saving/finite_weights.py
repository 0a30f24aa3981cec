"""Weights of a step that are not finite numbers: a training that has diverged."""

from collections.abc import Mapping

import torch
from torch import Tensor

from emtoolkit.errors import DivergedError


def check_finite(step: int, tensors: Mapping[str, Tensor]) -> None:
    """Check the `tensors` of a checkpoint, which are in CPU memory.

    Raises:
        DivergedError: a number is not finite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DivergedError(
                f"training diverged: {name} of step {step} holds numbers that are not finite; the step is not saved",
                step,
            )
