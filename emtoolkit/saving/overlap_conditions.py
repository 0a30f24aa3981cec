"""Whether code that nobody here knows runs between two updates, where it could change weights that are being copied.

Writing through `param.data` shows nowhere, so a look afterwards cannot tell. Code of transformers, PEFT, torch,
accelerate and emtoolkit is known to leave the weights alone between two updates, minus the exceptions below. Anything
else counts as code that may change them, unless its class says `changes_weights = False`.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules import module as global_hooks
from transformers import TrainerCallback

from emtoolkit.saving.live_tensors import place
from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.strategy import TrainerEvent

_KNOWN = {"accelerate", "bitsandbytes", "emtoolkit", "peft", "torch", "transformers"}

# Methods of a Trainer between the end of a step and the next update.
_METHODS = (
    "_clip_grad_norm",
    "_evaluate",
    "_get_grad_norm",
    "_maybe_log_save_evaluate",
    "_prepare_inputs",
    "compute_loss",
    "compute_loss_context_manager",
    "evaluate",
    "evaluation_loop",
    "get_batch_samples",
    "log",
    "predict",
    "prediction_loop",
    "prediction_step",
    "training_step",
)
# Events between the end of a step and the next update: for callbacks before ours, for those after, and for both.
_EVENTS_BEFORE = {"on_epoch_end", "on_pre_optimizer_step"}
_EVENTS_AFTER = {"on_step_end"}
_EVENTS = {
    "on_evaluate",
    "on_log",
    "on_predict",
    "on_prediction_step",
    "on_save",
    "on_step_begin",
    "on_substep_end",
}
_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def callbacks_of(trainer: Any) -> list[Any]:
    """The callbacks of `trainer` in their order; none if `trainer` is None."""
    return [] if trainer is None else list(trainer.callback_handler.callbacks)


def reason_for_copies_in_training(trainer: Any, callback: Any, event: TrainerEvent, state: ModelState) -> str | None:
    """Why the weights in `state` must be copied before the training goes on; None if they may be copied beside it.

    Asked when the first step has ended: hooks and the optimizer are in place then. `callback` is the one that saves.
    """
    if trainer is None or callback not in callbacks_of(trainer):
        return "no Trainer is known that sends the events"
    model = getattr(trainer, "model_wrapped", None)
    model = model if isinstance(model, nn.Module) else event.model
    reasons = chain(
        _of_tensors(event.model, state),
        _of_trainer(trainer),
        _of_callbacks(trainer, callback),
        _of_optimizer(event.objects.get("optimizer")),
        _of_modules(model),
        _of_gradients(event.model),
    )
    return next(reasons, None)


def _of_tensors(model: nn.Module, state: ModelState) -> Iterator[str]:
    parameters = {place(parameter) for parameter in model.parameters()}
    for name, tensor in state.tensors.items():
        if tensor.device.type not in ("cpu", "cuda"):
            yield f"'{name}' is on a device of the type {tensor.device.type}"
        if place(tensor) not in parameters:
            yield f"'{name}' is a buffer or is computed, and a forward pass may change it"


def _of_trainer(trainer: Any) -> Iterator[str]:
    if _is_declared(trainer):
        return
    for name in _METHODS:
        if not _is_known(getattr(trainer, name, None)):
            yield f"{type(trainer).__name__}.{name} is not the Trainer's own"
    if not _is_known(getattr(trainer, "compute_loss_func", None)):
        yield "compute_loss_func is not the Trainer's own"


def _of_callbacks(trainer: Any, callback: Any) -> Iterator[str]:
    callbacks = callbacks_of(trainer)
    ours = callbacks.index(callback)
    for index, other in enumerate(callbacks):
        if other is callback or _is_declared(other):
            continue
        for name in sorted(_EVENTS | (_EVENTS_BEFORE if index < ours else _EVENTS_AFTER)):
            method = getattr(other, name, None)
            if getattr(method, "__func__", None) is not getattr(TrainerCallback, name) and not _is_known(method):
                yield f"{type(other).__name__}.{name} runs between two updates"


def _of_optimizer(optimizer: Any) -> Iterator[str]:
    while hasattr(optimizer, "optimizer"):
        # accelerate's wrapper has the methods of every optimizer.
        optimizer = optimizer.optimizer
    if callable(getattr(optimizer, "train", None)):
        yield f"{type(optimizer).__name__} has other weights for evaluations"


def _of_modules(model: nn.Module) -> Iterator[str]:
    for module in model.modules():
        kind = type(module)
        if _is_declared(module):
            continue
        if not (_is_known(kind) and _is_known(kind.forward) and _is_known(vars(module).get("forward"))):
            yield f"the forward pass of {kind.__name__} is not a library's"
        if getattr(module, "max_norm", None) is not None and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            yield f"{kind.__name__} with max_norm changes its weights in the forward pass"
        if any(not _is_known(hook) for name in _HOOKS for hook in getattr(module, f"_{name}").values()):
            yield f"a hook of {kind.__name__} runs in the forward or the backward pass"
    if any(not _is_known(hook) for name in _HOOKS for hook in getattr(global_hooks, f"_global_{name}").values()):
        yield "a hook of all modules runs in the forward or the backward pass"


def _of_gradients(model: nn.Module) -> Iterator[str]:
    """An optimizer that updates in the backward pass is a hook of a parameter: GaLore for each layer, LOMO."""
    for name, parameter in model.named_parameters():
        hooks = (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
        if any(hooks) or hasattr(parameter, "_in_backward_optimizers"):
            yield f"a hook of '{name}' runs in the backward pass"


def _is_declared(value: Any) -> bool:
    return getattr(value, "changes_weights", None) is False


def _is_known(value: Any) -> bool:
    """Whether a function, method or class is a library's that is known to leave weights alone; None is."""
    value = getattr(value, "func", value)
    return value is None or str(getattr(value, "__module__", None)).partition(".")[0] in _KNOWN
