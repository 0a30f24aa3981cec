"""Transformers' own W&B callback in a script that saves by a schedule, when W&B's process is killed."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from transformers import TrainerCallback
from transformers.integrations.integration_utils import WandbCallback

from emtoolkit.artifacts.client_process import ClientProcess
from tests.marks import STARTS_PROCESSES
from tests.saving.callbacks import callback
from tests.saving.trainings import make_trainer, saved_steps


class KillWandbAt(TrainerCallback):
    """Kills W&B's process at the end of a step, as the kernel does for want of memory."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            process = ClientProcess.current()._process
            assert process is not None
            process.kill()
            process.wait()


@pytest.fixture(params=STARTS_PROCESSES)
def run(tmp_path: Path) -> Iterator[Any]:
    yield wandb.init(mode="offline", project="tests", dir=tmp_path, settings=wandb.Settings(silent=True))
    wandb.finish()


def test_a_script_trains_on_when_wandbs_process_is_killed(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = callback("every:2")
    trainer = make_trainer(
        tmp_path / "out",
        [ours, KillWandbAt(3)],
        report_to=["wandb"],
        logging_strategy="steps",
        logging_steps=1,
    )
    trainer.train()

    assert trainer.state.global_step == 8
    assert saved_steps(tmp_path / "out") == [2, 4, 6, 8]
    (told,) = [each.message for each in caplog.records if each.levelno >= logging.WARNING and "emtoolkit" in each.name]
    assert f"'emtoolkit sync {tmp_path / 'out'}' publishes them" in told
    assert wandb.run is None


def test_another_error_of_the_wandb_callback_is_raised(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ValueError("not a metric")

    monkeypatch.setattr(WandbCallback, "on_log", fail)
    trainer = make_trainer(
        tmp_path / "out", [callback("every:2")], report_to=["wandb"], logging_strategy="steps", logging_steps=1
    )
    with pytest.raises(ValueError, match="not a metric"):
        trainer.train()
