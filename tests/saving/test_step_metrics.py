"""A checkpoint's metadata state the numbers of its own step, however and whenever the Trainer logs and evaluates."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from emtoolkit import Trajectory
from emtoolkit.checkpoints.publications import Publications
from tests.saving.callbacks import FailAt, StopAt, callback
from tests.saving.trainings import lora_model, make_trainer, token_rows

EVERY_STEP = "every:1"


class OwnLogs(TrainerCallback):
    """Logs a number of its own at some steps, before and after the checkpoint callback sees them."""

    trainer: Trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 3 == 2:
            self.trainer.log({"margin": float(state.global_step)})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 3 == 0:
            self.trainer.log({"margin": float(state.global_step)})


class LogsInTheForwardPass(Trainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.model.training:
            self.log({"batch": float(self.state.global_step)})
        return super().compute_loss(*args, **kwargs)


CADENCES: dict[str, dict[str, Any]] = {
    "every step": {"logging_strategy": "steps", "logging_steps": 1},
    "every third step": {"logging_strategy": "steps", "logging_steps": 3},
    "every third and the first": {"logging_strategy": "steps", "logging_steps": 3, "logging_first_step": True},
    "epochs": {"logging_strategy": "epoch", "num_train_epochs": 2},
    "never": {"logging_strategy": "no"},
    "evaluated more often than logged": {
        "logging_strategy": "steps",
        "logging_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
    },
    "evaluated at the start and each epoch's end": {
        "logging_strategy": "steps",
        "logging_steps": 5,
        "eval_strategy": "epoch",
        "eval_on_start": True,
        "num_train_epochs": 2,
    },
    "accumulated": {"logging_strategy": "steps", "logging_steps": 2, "gradient_accumulation_steps": 3},
    "half an epoch": {"logging_strategy": "steps", "logging_steps": 2, "max_steps": 5},
}


def logged_at(trainer: Trainer, step: int) -> dict[str, float]:
    """What the Trainer's own history says of `step`; its summary of the run is not about a step."""
    history = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    return {key: value for entry in history if entry["step"] == step for key, value in entry.items() if key != "step"}


def check_metrics(trainer: Trainer, directory: Path) -> int:
    """Compare the metrics of every checkpoint with the Trainer's history; return how many were compared."""
    names = {key for entry in trainer.state.log_history for key in entry} - {"step"}
    compared = 0
    for checkpoint in Trajectory.open(directory):
        stated = {key: value for key, value in checkpoint.metadata.items() if key in names | {"epoch"}}
        epoch = stated.pop("epoch")
        expected = logged_at(trainer, checkpoint.step)
        assert epoch == expected.pop("epoch", epoch)
        assert stated == expected, checkpoint.step
        compared += len(expected)
    return compared


@pytest.mark.parametrize("cadence", CADENCES)
def test_each_checkpoint_states_what_was_logged_at_its_step_and_nothing_else(cadence: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", [callback(EVERY_STEP)], **CADENCES[cadence])
    trainer.train()
    assert (check_metrics(trainer, tmp_path / "out") > 0) == (cadence != "never")
    steps_an_epoch = 8 if cadence != "accumulated" else 8 / 3
    for checkpoint in Trajectory.open(tmp_path / "out"):
        whole_epoch = cadence == "accumulated" and checkpoint.step == 3
        assert checkpoint.metadata["epoch"] == pytest.approx(1 if whole_epoch else checkpoint.step / steps_an_epoch)


@pytest.mark.parametrize("order", ["before", "after"])
def test_numbers_that_other_callbacks_log_stand_at_the_step_that_they_were_logged_at(
    order: str, tmp_path: Path
) -> None:
    own, ours = OwnLogs(), callback(EVERY_STEP)
    both = [own, ours] if order == "before" else [ours, own]
    own.trainer = trainer = make_trainer(tmp_path / "out", both, logging_strategy="steps", logging_steps=4)
    trainer.train()
    margins = {c.step: c.metadata["margin"] for c in Trajectory.open(tmp_path / "out") if "margin" in c.metadata}
    assert margins.items() <= {(step, float(step)) for step in (2, 3, 5, 6, 8)}
    assert {3, 6} <= margins.keys()
    assert "train_loss" not in Trajectory.open(tmp_path / "out").final.metadata


def test_a_number_that_is_logged_in_the_next_forward_pass_is_not_taken_for_a_measurement_of_the_step(
    tmp_path: Path,
) -> None:
    like = make_trainer(tmp_path / "out")
    trainer = LogsInTheForwardPass(
        model=lora_model(), args=like.args, train_dataset=token_rows(16), callbacks=[callback(EVERY_STEP)]
    )
    trainer.train()
    assert [c.step for c in Trajectory.open(tmp_path / "out") if "batch" in c.metadata] == []


def test_a_last_step_that_is_saved_when_training_ends_states_its_own_numbers(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", [callback("0,2"), StopAt(5)], logging_strategy="steps", logging_steps=1)
    trainer.train()
    assert Trajectory.open(tmp_path / "out").steps == (0, 2, 5)
    assert check_metrics(trainer, tmp_path / "out") > 0


def test_a_training_that_fails_in_an_evaluation_has_the_loss_of_the_step_and_no_older_evaluation(
    tmp_path: Path,
) -> None:
    trainer = make_trainer(
        tmp_path / "out",
        [ours := callback(EVERY_STEP), FailAt(4, "on_evaluate")],
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
    )
    with pytest.raises(RuntimeError):
        trainer.train()
    ours.save_after_failure()
    assert check_metrics(trainer, tmp_path / "out") > 0


def test_a_resumed_training_keeps_the_numbers_of_the_first_and_adds_those_that_were_not_recorded(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"logging_strategy": "steps", "logging_steps": 2}
    ours = callback("0,2,4,6,8", resume_every="4 steps")
    first = make_trainer(tmp_path / "out", [ours, FailAt(6, "on_step_begin")], **options)
    with pytest.raises(RuntimeError):
        first.train()
    ours.save_after_failure()
    publications = tmp_path / "out" / "publications.jsonl"
    # As after a kill between the save of step 6 and its log.
    lines = publications.read_text().splitlines(keepends=True)
    publications.write_text("".join(line for line in lines if '"metrics", "step": 6' not in line))
    assert [step for step, values in Publications.read(tmp_path / "out").metadata.items() if "loss" in values] == [2, 4]

    second = make_trainer(tmp_path / "out", [callback("0,2,4,6,8", resume_every="4 steps")], **options)
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "resume" / "checkpoint-4"))
    losses = {c.step: c.metadata.get("loss") for c in Trajectory.open(tmp_path / "out")}
    assert losses == {0: None} | {step: logged_at(second, step)["loss"] for step in (2, 4, 6, 8)}
