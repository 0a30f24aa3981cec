"""Everything a resume must keep: each training ends with the bytes of an uninterrupted training."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, default_data_collator

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.saving.adapter_state import model_state
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.resume_state import ResumeState
from emtoolkit.saving.session import SavingSession
from emtoolkit.saving.signals import TrainingInterrupted
from tests.saving.callbacks import FailAt, callback
from tests.saving.trainings import base_model, bytes_of, lora_model, make_trainer, saved_steps

pytestmark = pytest.mark.slow


def whole_and_resumed(
    home: Path, *stops: int, make_more: Any = list, make_model: Any = lora_model, collator: Any = None, **options: Any
) -> tuple[Trainer, Trainer]:
    """An uninterrupted trainer, and one that was stopped and resumed after the resume save of each of `stops`.

    `make_more` creates the other callbacks.
    """

    def trainer(directory: Path, schedule: str, *others: TrainerCallback, every: str = "never") -> Trainer:
        ours = callback(schedule, resume_every=every)
        made = make_trainer(directory, [ours, *make_more(), *others], model=make_model(dropout=0.1), **options)
        ours.follow(made)
        if collator is not None:
            made.data_collator = collator
        return made

    whole = trainer(home / "whole", "0,every:1")
    whole.train()
    resume_from = None
    for stop in stops:
        stopped = trainer(home / "resumed", "0", FailAt(stop, "on_step_begin"), every=f"{stop} steps")
        with pytest.raises(RuntimeError, match="a fault of the training's own"):
            stopped.train(resume_from_checkpoint=resume_from)
        ours = next(c for c in stopped.callback_handler.callbacks if isinstance(c, ScheduledCheckpointCallback))
        ours.save_after_failure()
        resume_from = str(home / "resumed" / "resume" / f"checkpoint-{stop}")
    resumed = trainer(home / "resumed", "0,every:1")
    resumed.train(resume_from_checkpoint=resume_from)
    return whole, resumed


def assert_same_bytes(home: Path) -> None:
    steps = saved_steps(home / "whole")
    assert saved_steps(home / "resumed")[-1] == steps[-1]
    for step in saved_steps(home / "resumed"):
        name = f"checkpoint-{step}"
        assert bytes_of(home / "resumed" / name) == bytes_of(home / "whole" / name), step


@pytest.mark.parametrize("stopped_at", [2, 3, 4])
def test_gradient_accumulation_with_a_remainder(tmp_path: Path, stopped_at: int) -> None:
    """8 batches an epoch, three a step, are 3 steps, the last of two batches; epochs end at steps 3 and 6."""
    whole, _ = whole_and_resumed(tmp_path, stopped_at, gradient_accumulation_steps=3, num_train_epochs=2)
    assert whole.state.max_steps == 6
    assert_same_bytes(tmp_path)


def test_a_full_fine_tune(tmp_path: Path) -> None:
    whole_and_resumed(tmp_path, 5, make_model=base_model)
    assert_same_bytes(tmp_path)


@pytest.mark.parametrize("stopped_at", [4, 5, 8])
def test_evaluations_that_draw_random_numbers(tmp_path: Path, stopped_at: int) -> None:
    """A stock evaluation changes the dropout of later steps; the resume state is saved after the evaluation."""
    whole_and_resumed(tmp_path, stopped_at, eval_strategy="steps", eval_steps=4, num_train_epochs=2)
    assert_same_bytes(tmp_path)


def _masking(rows: list[dict[str, Any]]) -> Any:
    """Masks other random tokens in each batch."""
    batch = default_data_collator(rows)
    batch["labels"] = batch["labels"].masked_fill(torch.rand(batch["labels"].shape) < 0.3, -100)
    return batch


def test_a_collator_that_draws_random_numbers(tmp_path: Path) -> None:
    """Resumed at the end of an epoch: within an epoch the Trainer draws the batch before it sets the generators."""
    whole_and_resumed(tmp_path, 8, collator=_masking, num_train_epochs=2)
    assert_same_bytes(tmp_path)


class Improves(TrainerCallback):
    """Makes the metric improve until step 4 and stay equal after it."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        metrics["eval_score"] = float(min(state.global_step, 4))


def test_early_stopping_continues_to_count(tmp_path: Path) -> None:
    """No improvement after step 4 and a patience of 4: training ends at step 8, with or without stops at 6 and 7."""
    options: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "score",
        "greater_is_better": True,
        "num_train_epochs": 2,
        "restore_callback_states_from_checkpoint": True,
    }
    whole, resumed = whole_and_resumed(
        tmp_path, 6, 7, make_more=lambda: [Improves(), EarlyStoppingCallback(4)], **options
    )
    assert whole.state.global_step == 8
    assert resumed.state.global_step == 8
    assert [info.step for info in list_checkpoints(tmp_path / "resumed") if info.final] == [8]
    assert_same_bytes(tmp_path)


def test_a_callback_whose_state_a_resume_would_lose_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 4, "metric_for_best_model": "loss"}
    make_trainer(tmp_path, [callback("0"), EarlyStoppingCallback(9)], **options).train()
    assert "EarlyStoppingCallback: a resume would begin with a new one; call follow(trainer)" in caplog.text


def test_a_keyboard_interrupt_without_a_signal_loses_no_step(tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    ours = callback("0,2", resume_every="3 steps")
    trainer = make_trainer(tmp_path / "stopped", [ours, Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    ours.save_after_failure()
    make_trainer(tmp_path / "whole", [callback("every:1")]).train()
    assert saved_steps(tmp_path / "stopped") == [0, 2, 5]
    name = "checkpoint-5"
    assert bytes_of(tmp_path / "stopped" / name) == bytes_of(tmp_path / "whole" / name)

    again = make_trainer(tmp_path / "stopped", [callback("0,2,7")])
    again.train(resume_from_checkpoint=str(tmp_path / "stopped" / "resume" / "checkpoint-3"))
    assert saved_steps(tmp_path / "stopped") == [0, 2, 7, 8]
    for step in (7, 8):
        name = f"checkpoint-{step}"
        assert bytes_of(tmp_path / "stopped" / name) == bytes_of(tmp_path / "whole" / name)


def test_a_signal_that_comes_late_in_this_process_does_not_interrupt_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes get the same signal at different moments; the other process is simulated."""
    asked = iter(range(1, 9))
    close = SavingSession.close

    def all_reduce_max(self: Ranks, due: int, received: int, requested: int) -> list[int]:
        return [due, signal.SIGTERM if next(asked) == 3 else received, requested]

    def signalled(self: SavingSession, *, interrupted: bool = False) -> None:
        signal.raise_signal(signal.SIGTERM)
        close(self, interrupted=interrupted)

    def unexpected(*_: Any) -> None:
        raise RuntimeError("the signal ended the process")

    monkeypatch.setattr(Ranks, "all_reduce_max", all_reduce_max)
    monkeypatch.setattr(SavingSession, "close", signalled)
    before = signal.signal(signal.SIGTERM, unexpected)
    try:
        with pytest.raises(TrainingInterrupted, match="interrupted by SIGTERM after step 3"):
            make_trainer(tmp_path, [callback("0")]).train()
        assert signal.getsignal(signal.SIGTERM) is unexpected
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved_steps(tmp_path) == [0, 3]
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["checkpoint-3"]


def test_a_resume_checkpoint_is_kept_at_the_end_with_resume_at_end(tmp_path: Path) -> None:
    make_trainer(tmp_path, [callback("0", resume_every="3 steps", resume_at_end=True)]).train()
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["checkpoint-8"]
    state = json.loads((tmp_path / "resume" / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["global_step"] == 8


def test_the_scaler_of_float16_is_kept(tmp_path: Path) -> None:
    """Read from accelerate's optimizer; training in float16 needs a GPU."""
    model = lora_model()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(model.parameters()), scaler=scaler)
    trainer = make_trainer(tmp_path)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer.optimizer)
    state = ResumeState.capture(model_state(model), optimizer, scheduler, trainer.state, [])
    assert state.scaler is not None
    assert state.scaler["scale"] == 1024.0
