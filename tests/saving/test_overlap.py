"""Copies that are made beside the next step give the bytes of copies in the training thread, or are not made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.saving.callbacks import callback
from tests.saving.overlapped import LateCopies, digests
from tests.saving.trainings import base_model, lora_model, make_trainer


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateCopies:
    return LateCopies(monkeypatch)


Train = Callable[..., None]


def both(train: Train, directory: Path) -> None:
    """Train with and without overlap; every file of every checkpoint is the same."""
    for overlap in (True, False):
        train(directory / str(overlap), overlap)
    assert digests(directory / "True") == digests(directory / "False")
    assert len(digests(directory / "True")) > 4


def plain(directory: Path, overlap: bool, **options: Any) -> None:
    model = options.pop("model", lora_model)()
    callbacks = options.pop("callbacks", lambda ours: [ours])
    ours = callback("0-8:1", publish=False, overlap=overlap)
    make_trainer(directory, callbacks(ours), model=model, max_steps=8, **options).train()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"model": base_model}, [1, 2, 3, 4, 5, 6, 7]),
        ({"gradient_accumulation_steps": 2}, [1, 2, 3, 4, 5, 6, 7]),
        ({"eval_strategy": "steps", "eval_steps": 2}, [1, 2, 3, 4, 5, 6, 7]),
        ({"eval_strategy": "epoch", "rows": 6}, [1, 2, 3, 4, 5, 6, 7]),
        ({"optim": "sgd", "max_grad_norm": 0.0}, [1, 2, 3, 4, 5, 6, 7]),
        ({"optim": "adamw_torch_fused", "bf16": True}, [1, 2, 3, 4, 5, 6, 7]),
        ({"gradient_checkpointing": True}, [1, 2, 3, 4, 5, 6, 7]),
    ],
    ids=lambda value: "-".join(value) or "plain" if isinstance(value, dict) else "",
)
def test_every_byte_is_that_of_a_copy_in_the_training_thread(
    options: dict[str, Any], steps: list[int], late: LateCopies, tmp_path: Path
) -> None:
    both(lambda directory, overlap: plain(directory, overlap, **options), tmp_path)
    assert late.steps == steps


def trained(model: Any) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def swap(model: Any) -> None:
    for p in trained(model):
        p.data = p.data * 0.5


def scale_unseen(model: Any) -> None:
    for p in trained(model):
        p.data.mul_(0.5)


def scale(model: Any) -> None:
    with torch.no_grad():
        for p in trained(model):
            p.mul_(0.5)


class ChangeAt(TrainerCallback):
    """Changes the weights at one event of step 3."""

    def __init__(self, event: str, change: Callable[[Any], None]) -> None:
        self.change = change
        setattr(self, event, self._change)

    def _change(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.change(kwargs["model"])


class Declared(ChangeAt):
    changes_weights = False


CHANGES = [swap, scale, scale_unseen]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("event", ["on_step_end", "on_step_begin", "on_substep_end", "on_log"])
def test_a_callback_that_may_change_weights_between_two_updates_turns_overlap_off(
    event: str, change: Callable[[Any], None], late: LateCopies, tmp_path: Path
) -> None:
    options = {"gradient_accumulation_steps": 2, "logging_strategy": "steps", "logging_steps": 1}
    after = lambda ours: [ours, ChangeAt(event, change)]  # noqa: E731  # a list for each training
    both(lambda directory, overlap: plain(directory, overlap, callbacks=after, **options), tmp_path)
    assert late.steps == []


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_changed_before_a_step_is_saved_are_that_step(
    change: Callable[[Any], None], late: LateCopies, tmp_path: Path
) -> None:
    before = lambda ours: [ChangeAt("on_step_end", change), ours]  # noqa: E731
    both(lambda directory, overlap: plain(directory, overlap, callbacks=before), tmp_path)
    # Weights that got other memory are copied anew in the training thread, and from then on all are.
    assert late.steps == ([1, 2, 3] if change is swap else [1, 2, 3, 4, 5, 6, 7])
