"""The identity of an optimizer and a learning-rate scheduler, beyond the Trainer's arguments."""

import functools
from collections.abc import Mapping
from typing import Any

import torch

from emtoolkit.saving.describe import describe, digest, is_off

# Of a scheduler: its place in the training, its optimizer, and its functions, which are described by themselves.
_PROGRESS = {
    "_get_lr_called_within_step",
    "_is_initial",
    "_last_lr",
    "_step_count",
    "base_lrs",
    "last_epoch",
    "lr_lambdas",
    "optimizer",
    "verbose",
}


def optimizer_identity(optimizer: Any, scheduler: Any, args: Any, total_steps: int) -> dict[str, Any]:
    """The classes, the optimizer's defaults and the scheduler's functions: what a resume does not restore."""
    optimizer, scheduler = _bare(optimizer, "optimizer"), _bare(scheduler, "scheduler")
    defaults = _options(getattr(optimizer, "defaults", {}), _implied(args))
    found = {"class": describe(type(optimizer)), "defaults": defaults, "scheduler": describe(type(scheduler))}
    steps = {"num_training_steps": total_steps, "num_warmup_steps": int(args.get_warmup_steps(total_steps))}
    functions = [_without(function, steps) for function in getattr(scheduler, "lr_lambdas", None) or ()]
    return found | ({"scheduler_functions": functions} if functions else {})


def initial_optimizer_state(model: torch.nn.Module, optimizer: Any, scheduler: Any, args: Any) -> dict[str, Any]:
    """The settings of each group of weights, and the numbers of the scheduler, at step 0; a resume restores both."""
    optimizer, scheduler = _bare(optimizer, "optimizer"), _bare(scheduler, "scheduler")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    implied = _implied(args) | {"initial_lr": args.learning_rate}
    groups = [
        # A scheduler has changed the learning rate already, and keeps it under another name.
        _options(group, implied, without={"params", "lr" if "initial_lr" in group else "params"})
        | {"weights": digest(sorted(names.get(id(parameter), "?") for parameter in group["params"]))}
        for group in getattr(optimizer, "param_groups", ())
    ]
    numbers = {key: value for key, value in getattr(scheduler, "__dict__", {}).items() if key not in _PROGRESS}
    return {"groups": groups, "scheduler": describe(numbers)}


def _implied(args: Any) -> dict[str, Any]:
    """The settings that the Trainer gives an optimizer because of its arguments."""
    return {
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "lr": args.learning_rate,
        "weight_decay": args.weight_decay,
    }


def _options(values: Mapping[str, Any], implied: Mapping[str, Any], without: set[str] | None = None) -> dict[str, Any]:
    described = {key: describe(value) for key, value in sorted(values.items()) if key not in (without or ())}
    implied = {key: describe(value) for key, value in implied.items()}
    return {
        key: value
        for key, value in described.items()
        if not is_off(value, False) and not (key in implied and implied[key] == value)
    }


def _without(function: Any, implied: Mapping[str, Any]) -> Any:
    """The description of a function of the step, without the keywords that the arguments imply."""
    if isinstance(function, functools.partial):
        keywords = {key: value for key, value in function.keywords.items() if implied.get(key) != value}
        function = functools.partial(function.func, *function.args, **keywords)
    return describe(function)


def _bare(wrapped: Any, name: str) -> Any:
    """The object that accelerate has wrapped, or `wrapped` itself."""
    return getattr(wrapped, name, wrapped) if type(wrapped).__module__.startswith("accelerate.") else wrapped
