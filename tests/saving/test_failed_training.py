"""An exception ends `Trainer.train` in a script that does not expect it: nothing stays behind, and no step is lost."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from emtoolkit.errors import UserError
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.trainer_identity import running_trainer
from tests.saving.callbacks import FailAt, callback
from tests.saving.trainings import bytes_of, make_trainer, saved_steps

FAULT = "a fault of the training's own"
AT_STEP_3: dict[str, Any] = {"logging_strategy": "steps", "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing ends, every step of which is saved."""
    directory = tmp_path_factory.mktemp("whole")
    make_trainer(directory, [callback("every:1")], **AT_STEP_3).train()
    return directory


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.fixture
def nothing_is_left() -> Callable[[], bool]:
    # A test before may have left the thread that ends W&B's client.
    before, threads = handlers(), {*threading.enumerate()}

    def check() -> bool:
        new = [each for each in threading.enumerate() if each not in threads and each.name.startswith("emtoolkit")]
        return handlers() == before and not new

    return check


class Fails(TrainerCallback):
    """Lets the next call of a method of the Trainer fail; the Trainer has fetched the rows of step 4."""

    def __init__(self, method: str, error: BaseException) -> None:
        self.method = method
        self.error = error

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            setattr(running_trainer(self), self.method, self._fail)

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("fault", "first", "steps"),
    [
        (lambda: FailAt(0, "on_train_begin"), False, [0]),
        (lambda: FailAt(0, "on_train_begin"), True, []),
        (lambda: FailAt(3, "on_step_end"), True, [0, 2, 3]),
        (lambda: FailAt(3, "on_evaluate"), False, [0, 2, 3]),
        (lambda: FailAt(3, "on_log"), False, [0, 2, 3]),
        (lambda: FailAt(8, "on_train_end"), True, [0, 2, 8]),
        (lambda: Fails("compute_loss", RuntimeError(FAULT)), False, [0, 2, 3]),
        (lambda: Fails("_prepare_inputs", KeyboardInterrupt(FAULT)), False, [0, 2, 3]),
        (lambda: Fails("get_batch_samples", SystemExit(FAULT)), False, [0, 2, 4]),
    ],
)
def test_a_failed_training_leaves_its_last_whole_step_and_the_directory_free(
    tmp_path: Path,
    whole: Path,
    nothing_is_left: Callable[[], bool],
    fault: Callable[[], TrainerCallback],
    first: bool,
    steps: list[int],
) -> None:
    callbacks = [callback("0,2,8"), fault()]
    trainer = make_trainer(tmp_path, callbacks[::-1] if first else callbacks, **AT_STEP_3)
    with pytest.raises(BaseException, match=FAULT):
        trainer.train()
    assert nothing_is_left()
    assert saved_steps(tmp_path) == steps
    for step in set(steps) - {0}:
        name = f"checkpoint-{step}"
        assert bytes_of(tmp_path / name) == bytes_of(whole / name)

    make_trainer(tmp_path, [callback("0,2,8")], **AT_STEP_3).train()
    assert saved_steps(tmp_path) == [0, 2, 8]


class Sam(Trainer):
    """Trains at a point beside the weights, as sharpness-aware minimization does, and fails there at step 3."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.5)
        if self.state.global_step == 3:
            raise RuntimeError(FAULT)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.sub_(0.5)
        return loss


class Averaged(TrainerCallback):
    """Puts other weights into the model for an evaluation, which fails."""

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.mul_(0.5)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise RuntimeError(FAULT)


@pytest.mark.parametrize(("cls", "others"), [(Sam, []), (Trainer, [Averaged()])])
def test_weights_beside_those_of_the_step_are_not_saved(
    tmp_path: Path,
    nothing_is_left: Callable[[], bool],
    cls: type[Trainer],
    others: list[TrainerCallback],
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = make_trainer(tmp_path, **AT_STEP_3)
    trainer = cls(
        model=plain.model,
        args=plain.args,
        train_dataset=plain.train_dataset,
        eval_dataset=plain.eval_dataset,
        callbacks=[callback("0,2,8"), *others],
    )
    with pytest.raises(RuntimeError, match=FAULT), caplog.at_level(logging.WARNING, logger="emtoolkit"):
        trainer.train()
    assert nothing_is_left()
    assert saved_steps(tmp_path) == [0, 2]
    assert "training failed while the weights were those of no step, so only scheduled steps are saved" in caplog.text


def test_an_error_of_one_process_is_told_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[UserError | None] = []

    def gather(errors: list[Any], own: UserError | None, group: Any) -> None:
        told.append(own)
        errors[:] = [told[0], None]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    with pytest.raises(RuntimeError, match="no memory"), Ranks(0, 2, "the group").raise_on_all():
        raise RuntimeError("no memory")
    with (
        pytest.raises(UserError, match="process 0: RuntimeError: no memory"),
        Ranks(1, 2, "the group").raise_on_all(),
    ):
        pass
