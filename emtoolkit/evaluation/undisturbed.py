"""Forward passes in the middle of a training that leave no trace in the training."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch

from emtoolkit.saving.random_states import random_state_kept


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Put `model` into evaluation mode inside, and restore afterwards everything that a forward pass may change.

    That is: the random states, the mode and the attributes of each module (some modules stay in evaluation mode during
    a training, and the frequencies of a rotary embedding may follow the longest text), the configs, and the weights
    that autocast has cast. A compiled model runs without its compiler, which would compile for the other mode and may
    then give up on the training's.
    """
    modules = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    configs = [(config, deepcopy(vars(config))) for config in _configs(model)]
    casts = torch.is_autocast_cache_enabled()
    with random_state_kept(), _without_compiler():
        # A cast that is made here has no gradient, and an autocast around the whole training would keep it.
        torch.set_autocast_cache_enabled(False)
        try:
            model.eval()
            yield
        finally:
            torch.set_autocast_cache_enabled(casts)
            for module, attributes, buffers in modules:
                _restore(vars(module), attributes)
                _restore(module._buffers, buffers)
            for config, values in configs:
                if vars(config) != values:
                    _restore(vars(config), values)


def _configs(model: Any) -> list[Any]:
    found = [getattr(m, name, None) for m in model.modules() for name in ("config", "generation_config")]
    return list({id(config): config for config in found if hasattr(config, "__dict__")}.values())


def _restore(present: dict[str, Any], before: dict[str, Any]) -> None:
    present.update(before)
    for name in present.keys() - before.keys():
        del present[name]


def _without_compiler() -> AbstractContextManager[Any]:
    # Where nothing has imported the compiler, nothing is compiled.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
