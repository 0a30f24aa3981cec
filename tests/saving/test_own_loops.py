"""Trainers that do not call the methods they override: saved rightly, or told in one sentence what is missing."""

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.saving.describe import describe
from emtoolkit.saving.training_call import watch_trainers
from tests.saving.callbacks import StopAt, callback
from tests.saving.trainings import bytes_of, make_trainer, saved_steps

pytestmark = pytest.mark.slow

ALL = frozenset({"train_begin", "step_begin", "pre_optimizer_step", "optimizer_step", "step_end", "train_end"})
MOST = ALL - {"pre_optimizer_step", "optimizer_step"}


class OwnLoop(Trainer):
    """A `train` from scratch, of 8 steps, that sends `events` and calls no method of the base class by its name."""

    events = ALL
    counts_steps = counts_beforehand = True
    ends_steps_early = False
    fails_at: int | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        loader = self.get_train_dataloader()
        self.optimizer = torch.optim.SGD([each for each in self.model.parameters() if each.requires_grad], lr=0.1)
        if self.counts_beforehand:
            self.state.max_steps = len(loader)
        self.send("train_begin")
        for step, batch in enumerate(loader, 1):
            self.send("step_begin")
            self.model(**batch).loss.backward()
            if step == self.fails_at:
                raise RuntimeError("a fault of the loop's own")
            if not self.ends_steps_early:
                self.update()
            self.state.global_step += int(self.counts_steps)
            self.send("step_end")
            if self.ends_steps_early:
                self.update()
        self.send("train_end")
        return self.state

    def update(self) -> None:
        self.send("pre_optimizer_step")
        self.optimizer.step()
        self.send("optimizer_step")
        self.optimizer.zero_grad()

    def send(self, event: str) -> None:
        if event in self.events:
            getattr(self.callback_handler, f"on_{event}")(self.args, self.state, self.control)


class OwnInnerLoop(OwnLoop):
    """The same loop in place of the inner one."""

    train = Trainer.train

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        return OwnLoop.train(self)


def made(directory: Path, cls: type[Trainer], *callbacks: Any, **attributes: Any) -> Trainer:
    plain = make_trainer(directory)
    kind = type(cls.__name__, (cls,), attributes) if attributes else cls
    return kind(model=plain.model, args=plain.args, train_dataset=plain.train_dataset, callbacks=list(callbacks))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    made(directory, OwnLoop, callback("0,every:2")).train()
    return directory


@pytest.mark.parametrize("cls", [OwnLoop, OwnInnerLoop])
@pytest.mark.parametrize("events", [ALL, ALL - {"train_end"}, MOST, MOST - {"train_end", "step_begin"}])
def test_a_loop_that_sends_the_events_it_needs_saves_the_weights_of_each_step(
    tmp_path: Path, whole: Path, cls: type[Trainer], events: frozenset[str]
) -> None:
    ours = callback("0,every:2")
    made(tmp_path, cls, ours, events=events).train()
    assert saved_steps(tmp_path) == [0, 2, 4, 6, 8]
    assert ours.ended_at == 8
    assert all(info.complete for info in list_checkpoints(tmp_path, rehash=True))
    for step in (0, 2, 8):
        name = f"checkpoint-{step}/adapter_model.safetensors"
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), step


def test_a_loop_that_fails_leaves_nothing_behind_and_its_last_step_is_saved(tmp_path: Path, whole: Path) -> None:
    handler, threads = signal.getsignal(signal.SIGTERM), set(threading.enumerate())
    ours = callback("0,every:2", resume_every="3 steps")
    with pytest.raises(RuntimeError, match="a fault of the loop's own"):
        made(tmp_path, OwnLoop, ours, fails_at=6).train()
    assert saved_steps(tmp_path) == [0, 2, 4, 5]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert set(threading.enumerate()) <= threads
    # The loop has no scheduler, so the state has none.
    state = {file.name for file in (tmp_path / "resume" / "checkpoint-3").iterdir()}
    assert "optimizer.pt" in state
    assert "scheduler.pt" not in state


@pytest.mark.parametrize(
    ("attributes", "sentence", "saved"),
    [
        ({"events": ALL - {"train_begin"}}, "an event of a training came before on_train_begin; add the callback", []),
        (
            {"counts_beforehand": False},
            "max_steps: 0 when training begins, so there is no step to train; raise num_train",
            [],
        ),
        (
            {"counts_steps": False},
            "global_step: 0 at the end of the step after step 0; a training loop of your",
            [0, 1],
        ),
        ({"ends_steps_early": True}, "step 1 ended with the weights of step 0; a training loop of your own calls", [0]),
        (
            {"ends_steps_early": True, "events": MOST},
            "step 1 ended with the weights of step 0; a training loop of your own calls",
            [0],
        ),
        (
            {"events": frozenset({"train_begin"}), "counts_steps": False},
            "training has changed the weights and ended at step 0, where it began; a training loop of your own adds 1",
            [0],
        ),
    ],
)
def test_a_loop_that_would_save_other_weights_under_a_step_is_refused_with_the_line_to_add(
    tmp_path: Path, attributes: dict[str, Any], sentence: str, saved: list[int]
) -> None:
    with pytest.raises((CheckpointError, ConfigError)) as raised:
        made(tmp_path, OwnLoop, callback("0,every:2"), **attributes).train()
    assert sentence in str(raised.value)
    assert saved_steps(tmp_path) == saved


@pytest.mark.parametrize("cls", [OwnLoop, OwnInnerLoop])
def test_a_loop_without_events_is_told_once_that_nothing_was_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cls: type[Trainer]
) -> None:
    made(tmp_path, cls, callback("0,every:2"), events=frozenset()).train()
    (record,) = caplog.records
    assert f"{cls.__name__} has trained without the event on_train_begin, so no checkpoint was saved" in record.message
    assert saved_steps(tmp_path) == []


def test_scheduled_steps_that_no_event_ended_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path, OwnLoop, callback("0,every:2"), events=frozenset({"train_begin"})).train()
    assert [record.message.partition(":")[0] for record in caplog.records if record.levelno == logging.WARNING] == [
        "no checkpoint of the scheduled steps 2, 4, 6"
    ]
    assert saved_steps(tmp_path) == [0, 8]


class Dropping(Trainer):
    """Takes callbacks and passes none on."""

    def __init__(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Clearing(Trainer):
    """Replaces the callbacks by its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.callback_handler.callbacks = [StopAt(1)]


@pytest.mark.parametrize("cls", [Dropping, Clearing])
def test_a_trainer_that_drops_the_callback_is_told_when_training_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cls: type[Trainer]
) -> None:
    # Nobody else refers to the callback.
    trainer = made(tmp_path, cls, ScheduledCheckpointCallback("every:2"))
    for _ in range(2):
        trainer.train()
    warned = [record.message for record in caplog.records if "ScheduledCheckpointCallback" in record.message]
    assert [message.partition(",")[0] for message in warned] == [
        f"{cls.__name__} trains without the ScheduledCheckpointCallback that was made"
    ]
    assert saved_steps(tmp_path) == []


class Quiet(Trainer):
    """Neither logs nor evaluates nor saves."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        pass


class OwnOptimizer(Trainer):
    """Creates its optimizer, and returns nothing."""

    def create_optimizer(self, model: Any = None) -> Any:
        self.optimizer = torch.optim.SGD([each for each in self.model.parameters() if each.requires_grad], lr=0.1)


class OwnArguments(Trainer):
    """A `train` whose first argument is not the place to resume from."""

    def train(self, epochs: float, **kwargs: Any) -> Any:
        self.args.num_train_epochs = epochs
        return super().train(**kwargs)


def test_overridden_methods_that_send_no_event_change_no_byte(tmp_path: Path) -> None:
    made(tmp_path / "plain", Trainer, callback("0,every:2")).train()
    made(tmp_path / "quiet", Quiet, callback("0,every:2")).train()
    made(tmp_path / "arguments", OwnArguments, callback("0,every:2")).train(1.0)  # type: ignore[arg-type]
    made(tmp_path / "optimizer", OwnOptimizer, callback("0,every:2")).train()
    added = made(tmp_path / "added", Quiet)
    added.add_callback(callback("0,every:2"))
    added.train()
    for name in ("plain", "quiet", "arguments", "optimizer", "added"):
        assert saved_steps(tmp_path / name) == [0, 2, 4, 6, 8], name
        if name != "optimizer":
            weights = [
                bytes_of(tmp_path / each / "checkpoint-8")["adapter_model.safetensors"] for each in (name, "plain")
            ]
            assert weights[0] == weights[1], name


def test_a_callback_that_is_added_while_training_runs_says_when_to_add_it(tmp_path: Path) -> None:
    class Adding(StopAt):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                trainer.add_callback(callback("every:2"))

    trainer = made(tmp_path, Trainer, Adding(8))
    with pytest.raises(ConfigError, match="an event of a training came before on_train_begin; add the callback before"):
        trainer.train()


def test_the_fingerprint_sees_the_users_train_and_not_the_function_around_it() -> None:
    def own(doubles: bool) -> type[Trainer]:
        class Own(Trainer):
            def train(self, *args: Any, **kwargs: Any) -> Any:
                return super().train(*args, **kwargs)

            if doubles:

                def train(self, *args: Any, **kwargs: Any) -> Any:
                    super().train(*args, **kwargs)
                    return super().train(*args, **kwargs)

        return Own

    one, other = own(doubles=False), own(doubles=True)
    before = describe(one)
    watch_trainers()
    assert describe(one) == before
    assert describe(other) != before
