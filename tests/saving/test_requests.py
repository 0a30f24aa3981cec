"""Requests to a running training: `save-now` saves a step and goes on, `stop-now` saves the state and stops."""

import itertools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from emtoolkit.checkpoints.publications import Publications, add_answer
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.requests import SAVE, STOP, Answer, NotAnsweredError, RequestedSaves, ask
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.storage.lock import lock_directory
from tests.in_process import emtoolkit
from tests.processes import HANG_SECONDS
from tests.saving.callbacks import callback
from tests.saving.trainings import bytes_of, make_trainer, saved_steps


class DoAt(TrainerCallback):
    """Calls `action` in the middle of step `step`."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step, self.action = step, action

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.action()


def training(directory: Path, step: int, action: Callable[[], object], schedule: str = "0", **options: Any) -> Any:
    """A training whose clock shows one second more each time; `action` is called in the middle of `step`."""
    ours = callback(schedule, clock=itertools.count().__next__, **options)
    return make_trainer(directory, [ours, DoAt(step, action)])


class Asking:
    """A call of `ask` in another thread."""

    def __init__(self, directory: Path, kind: Any) -> None:
        self.answer: Answer | None = None
        self._written = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(directory, kind))

    def start(self) -> None:
        """Return when the request is written."""
        self._thread.start()
        assert self._written.wait(HANG_SECONDS)

    def result(self) -> Answer | None:
        self._thread.join(HANG_SECONDS)
        return self.answer

    def _ask(self, directory: Path, kind: Any) -> None:
        self.answer = ask(directory, kind, HANG_SECONDS, pause=self._pause)

    def _pause(self, seconds: float) -> None:
        self._written.set()
        threading.Event().wait(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    make_trainer(directory, [callback("every:1")]).train()
    return directory


def test_an_empty_file_makes_a_training_save_the_step_it_is_at_and_go_on(tmp_path: Path, whole: Path) -> None:
    training(tmp_path, 3, (tmp_path / "save-now").touch).train()
    assert saved_steps(tmp_path) == [0, 3, 8]
    assert bytes_of(tmp_path / "checkpoint-3") == bytes_of(whole / "checkpoint-3")
    assert bytes_of(tmp_path / "checkpoint-8") == bytes_of(whole / "checkpoint-8")
    assert not (tmp_path / "save-now").exists()
    publications = Publications.read(tmp_path)
    assert (publications.asked, publications.answers) == ({3}, ((3, "", True),))


def test_the_asker_learns_the_step_and_a_second_asker_the_same(tmp_path: Path) -> None:
    first, second = Asking(tmp_path, "save"), Asking(tmp_path, "save")

    def both() -> None:
        first.start()
        second.start()

    training(tmp_path, 5, both).train()
    assert first.result() == Answer(5, tmp_path / "checkpoint-5", stopped=False)
    assert second.result() == first.answer
    assert saved_steps(tmp_path) == [0, 5, 8]


def test_a_step_that_the_schedule_saves_is_answered_too(tmp_path: Path) -> None:
    asking = Asking(tmp_path, "save")
    training(tmp_path, 5, asking.start, schedule="0,5").train()
    assert asking.result() == Answer(5, tmp_path / "checkpoint-5", stopped=False)
    assert saved_steps(tmp_path) == [0, 5, 8]


def test_stop_saves_the_state_and_stops_and_a_resume_ends_with_the_same_bytes(tmp_path: Path, whole: Path) -> None:
    asking = Asking(tmp_path, "stop")
    with pytest.raises(TrainingInterrupted, match=r"^stopped by stop-now after step 4$") as raised:
        training(tmp_path, 4, asking.start).train()
    assert raised.value.signal_number == signal.SIGTERM
    assert asking.result() == Answer(4, tmp_path / "checkpoint-4", stopped=True)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["checkpoint-4"]
    assert not (tmp_path / "stop-now").exists()
    make_trainer(tmp_path, [callback("0")]).train(resume_from_checkpoint=True)
    assert bytes_of(tmp_path / "checkpoint-8") == bytes_of(whole / "checkpoint-8")


def test_both_requests_at_once_stop_the_training_and_keep_the_step_and_both_are_answered(tmp_path: Path) -> None:
    def both() -> None:
        (tmp_path / "save-now").write_text("a")
        (tmp_path / "stop-now").write_text("b")

    with pytest.raises(TrainingInterrupted, match=r"^stopped by stop-now after step 2$"):
        training(tmp_path, 2, both).train()
    publications = Publications.read(tmp_path)
    assert publications.answers == ((2, "a", True), (2, "b", True))
    assert (publications.asked, publications.saved_for[2]) == ({2}, "asked")


def test_what_was_asked_of_an_earlier_training_is_removed_and_not_obeyed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("save-now", "stop-now"):
        (tmp_path / name).touch()
    make_trainer(tmp_path, [callback("0", clock=itertools.count().__next__)]).train()
    assert saved_steps(tmp_path) == [0, 8]
    assert [message for message in caplog.messages if "asked" in message] == [
        f"{tmp_path / name}: asked an earlier training, so the file is removed and not obeyed"
        for name in ("save-now", "stop-now")
    ]


def test_a_request_that_comes_too_late_is_removed_with_the_end_of_the_training(tmp_path: Path) -> None:
    training(tmp_path, 8, (tmp_path / "stop-now").touch).train()
    assert not (tmp_path / "stop-now").exists()
    assert saved_steps(tmp_path) == [0, 8]


def test_another_process_that_took_the_request_makes_this_one_save_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 0 looks; the others learn from it."""
    asked = itertools.count(1)
    monkeypatch.setattr(
        "emtoolkit.saving.ranks.Ranks.all_reduce_max",
        lambda self, due, received, requested: [due, received, SAVE if next(asked) == 3 else 0],
    )
    make_trainer(tmp_path, [callback("0")]).train()
    assert saved_steps(tmp_path) == [0, 3, 8]


def test_a_training_looks_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = RequestedSaves()
    requests.begin(tmp_path, 0.0)
    looks = []
    monkeypatch.setattr(os.path, "lexists", lambda path: looks.append(path))
    assert [requests.look(step / 10) for step in range(31)] == [0] * 31
    assert looks == [tmp_path / "save-now", tmp_path / "stop-now"] * 4


def test_a_request_that_cannot_be_removed_is_obeyed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "stop-now").mkdir()
    requests = RequestedSaves()
    requests.begin(tmp_path, 0.0)
    assert [requests.look(0.0), requests.look(2.0)] == [STOP, 0]
    assert caplog.messages == [f"{tmp_path / 'stop-now'}: cannot be removed (Is a directory), and is obeyed only once"]


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """The directory of a training that never looks; its lock is held."""
    TrajectoryRecord("f" * 64, 60, "0").write(tmp_path)
    return tmp_path


def test_without_a_training_the_command_says_so_in_one_sentence(running: Path, tmp_path: Path) -> None:
    for command in ("save", "stop"):
        missing = emtoolkit(command, running / "missing")
        assert (missing.code, missing.err) == (2, f"emtoolkit: {running}/missing: there is no such directory\n")
        free = emtoolkit(command, running)
        assert (free.code, free.err) == (
            2,
            f"emtoolkit: {running}: no training runs here (no process holds the lock); if one runs on another machine "
            f"whose locks this one does not see, make the file {running}/{command}-now yourself\n",
        )
        assert not (running / f"{command}-now").exists()
    TrajectoryRecord("f" * 64, 60, "0", ended_at=60).write(running)
    complete = emtoolkit("save", running)
    assert (complete.code, complete.err) == (
        2,
        f"emtoolkit: {running}: the training is complete; it ended at step 60\n",
    )
    (running / "trajectory.json").unlink()
    other = emtoolkit("save", running)
    assert (other.code, other.err) == (
        2,
        f"emtoolkit: {running}: is not the output directory of a run (no trajectory.json); name the directory that "
        "holds the checkpoint-N/\n",
    )


def test_a_request_that_nobody_takes_in_time_is_withdrawn(running: Path) -> None:
    lock = lock_directory(running)
    try:
        done = emtoolkit("save", running, "--timeout", "0")
    finally:
        lock.release()
    assert (done.code, done.err) == (
        1,
        f"emtoolkit: {running}: the training did not take the request within 0 s (it looks once a second, between two "
        "steps, and not while it evaluates); the request is withdrawn; --timeout waits longer\n",
    )
    assert sorted(path.name for path in running.iterdir()) == [".lock", "trajectory.json"]


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_a_wait_has_a_bound(seconds: str, running: Path) -> None:
    done = emtoolkit("stop", running, f"--timeout={seconds}")
    sentence = f"emtoolkit: --timeout: {seconds} is not a number of seconds, 0 or more\n"
    assert (done.code, done.err) == (2, sentence)


def test_a_training_that_ends_without_an_answer_is_named(running: Path) -> None:
    lock = lock_directory(running)

    def end(seconds: float) -> None:
        TrajectoryRecord("f" * 64, 60, "0", ended_at=60).write(running)
        lock.release()

    with pytest.raises(NotAnsweredError) as raised:
        ask(running, "save", HANG_SECONDS, pause=end)
    assert str(raised.value) == (f"{running}: the training ended before it took the request; its last step 60 is saved")


def test_a_save_that_failed_is_no_answer(running: Path) -> None:
    lock = lock_directory(running)

    def fail(seconds: float) -> None:
        token = (running / "save-now").read_text()
        (running / "save-now").unlink()
        add_answer(running, 7, token, saved=False)

    try:
        with pytest.raises(NotAnsweredError, match="step 7 could not be saved; the training says why"):
            ask(running, "save", HANG_SECONDS, pause=fail)
    finally:
        lock.release()


def test_a_directory_that_cannot_be_written_is_one_sentence(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    lock = lock_directory(running)
    monkeypatch.setattr(Path, "write_text", refuse)
    try:
        with pytest.raises(CheckpointError) as raised:
            ask(running, "save", 0)
    finally:
        lock.release()
    assert str(raised.value) == f"{running}/save-now: cannot be written (Permission denied)"


@pytest.mark.parametrize(
    ("command", "stopped", "said"),
    [
        ("save", False, "out/checkpoint-38: step 38 is saved; training goes on\n"),
        ("stop", True, "out/checkpoint-38: step 38 is saved; training has stopped\n"),
        ("stop", False, "out/checkpoint-38: step 38 is saved; training stops\n"),
    ],
)
def test_the_command_prints_the_step(
    command: str, stopped: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Answer(38, Path("out/checkpoint-38"), stopped)
    monkeypatch.setattr("emtoolkit.saving.requests.ask", lambda directory, kind, timeout: answer)
    assert emtoolkit(command, "out", cwd=tmp_path).out == said
    as_json = f'{{"step": 38, "path": "out/checkpoint-38", "stopped": {str(stopped).lower()}}}\n'
    assert emtoolkit(command, "out", "--json", cwd=tmp_path).out == as_json
