"""A signal stops a training between two steps, whatever the program was doing."""

import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError
from emtoolkit.saving.signals import DeferredSignals, TrainingInterrupted
from emtoolkit.stop_signals import ENDING, NOTICES
from tests import preloaded
from tests.processes import HANG_SECONDS
from tests.saving.callbacks import callback
from tests.saving.trainings import make_trainer, saved_steps

LETTERS = 1_000_000
PROGRAM = f"""
import os, sys
from emtoolkit.saving.signals import DeferredSignals

signals = DeferredSignals()
signals.defer()
print(os.getpid(), flush=True)
sys.stderr.write("x" * {LETTERS})
sys.stderr.flush()
print(signals.received)
"""


@pytest.mark.subprocess
def test_a_signal_that_comes_while_the_program_writes_is_stored_and_said(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        preloaded.command("program"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    # The rest does not fit into the pipe, so the program is writing until the pipe is read. The process that was
    # started would pass the signal on too late.
    program = int(process.stdout.readline())
    written = process.stderr.read(1)
    os.kill(program, signal.SIGINT)
    written += process.stderr.read()
    assert process.stdout.read() == "2\n", written[-2000:]
    assert process.wait(timeout=HANG_SECONDS) == 0
    said = "\nSaving the state after this training step; a second signal stops at once.\n"
    assert written.count(said) == 1
    assert written.replace(said, "") == "x" * LETTERS


class SendAt(TrainerCallback):
    """Sends `numbers` to this process, one after another, in the middle of step 3."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.numbers = numbers

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            for number in self.numbers:
                signal.raise_signal(number)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (*ENDING, *NOTICES)]


def test_each_notice_of_a_scheduler_saves_the_state_and_stops_however_often_it_comes(tmp_path: Path) -> None:
    before = handlers()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
        directory = tmp_path / number.name
        # A scheduler sends SIGTERM after its notice, while the state is being saved.
        trainer = make_trainer(directory, [callback("0"), SendAt(number, number, number, signal.SIGTERM)])
        with pytest.raises(TrainingInterrupted, match=f"interrupted by {number.name} after step 3") as raised:
            trainer.train()
        assert raised.value.signal_number == number
        assert saved_steps(directory) == [0, 3]
        assert [path.name for path in (directory / "resume").iterdir()] == ["checkpoint-3"]
        assert handlers() == before


def test_a_notice_that_was_not_chosen_keeps_its_action(tmp_path: Path) -> None:
    got = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
    try:
        make_trainer(tmp_path, [callback("0", signals=["SIGUSR1"]), SendAt(signal.SIGUSR2)]).train()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert got == [signal.SIGUSR2]
    assert saved_steps(tmp_path) == [0, 8]


@pytest.mark.parametrize(
    ("names", "earlier", "caught", "said"),
    [
        (None, signal.SIG_DFL, True, []),
        (None, signal.SIG_IGN, False, ["SIGHUP is ignored in this process, and does not stop the training"]),
        (["SIGHUP"], signal.SIG_IGN, False, ["SIGHUP is ignored in this process, and does not stop the training"]),
        (None, print, False, ["SIGHUP keeps its handler in this process, and does not stop the training"]),
        (
            ["SIGHUP"],
            print,
            True,
            [
                "SIGHUP: during the training it saves the state and stops; the handler that this program installed is "
                "restored afterwards"
            ],
        ),
        (["SIGUSR1"], signal.SIG_DFL, False, []),
        (["SIGTERM"], print, False, []),
    ],
)
def test_a_signal_that_the_program_ignores_or_handles_is_left_alone_or_the_change_is_said(
    names: list[str] | None, earlier: Any, caught: bool, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    before = signal.signal(signal.SIGHUP, earlier)
    deferred = DeferredSignals(names)
    try:
        deferred.defer()
        assert (signal.getsignal(signal.SIGHUP) == deferred._store) is caught
        deferred.restore()
        assert signal.getsignal(signal.SIGHUP) == earlier
    finally:
        signal.signal(signal.SIGHUP, before)
    assert caplog.messages == said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which signals a library handles")
def test_a_handler_that_a_library_installed_outside_python_stays(caplog: pytest.LogCaptureFixture) -> None:
    with Path(os.devnull).open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file)
        try:
            deferred = DeferredSignals(["SIGUSR1"])
            deferred.defer()
            assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
            deferred.restore()
        finally:
            faulthandler.unregister(signal.SIGUSR1)
    assert caplog.messages == ["SIGUSR1 keeps its handler in this process, and does not stop the training"]


def test_after_ctrl_c_a_second_one_acts_at_once() -> None:
    deferred = DeferredSignals()
    deferred.defer()
    try:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        assert deferred.received == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        deferred.restore()


CHOICES = "SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "[] names no signal; write [SIGTERM] if only SIGINT and SIGTERM are to stop the training"),
        (["SIGKILL"], "'SIGKILL' cannot be caught by any program; choose a signal that the scheduler sends before it"),
        (["SIGSTOP"], "'SIGSTOP' cannot be caught by any program; choose a signal that the scheduler sends before it"),
        (
            ["SIGUSR1", "sigusr2"],
            f"'sigusr2' is not one of the signals that can stop a training: {CHOICES}; did you mean 'SIGUSR2'?",
        ),
        (["TERM"], f"'TERM' is not one of the signals that can stop a training: {CHOICES}; did you mean 'SIGTERM'?"),
        (
            ["SIGXPCU"],
            f"'SIGXPCU' is not one of the signals that can stop a training: {CHOICES}; did you mean 'SIGXCPU'?",
        ),
        (["SIGSEGV"], f"'SIGSEGV' is not one of the signals that can stop a training: {CHOICES}"),
        ([10], f"10 is not one of the signals that can stop a training: {CHOICES}"),
        ("SIGUSR1", "'SIGUSR1' is not a list of signals, such as [SIGUSR1, SIGXCPU]"),
        ({"SIGUSR1": True}, "{'SIGUSR1': True} is not a list of signals, such as [SIGUSR1, SIGXCPU]"),
    ],
)
def test_a_bad_list_of_signals_is_one_sentence_in_a_script_and_in_a_config(
    names: Any, sentence: str, write_config: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError) as of_callback:
        ScheduledCheckpointCallback("0", signals=names)
    assert str(of_callback.value) == f"signals: {sentence}"
    path = write_config(f'schedule: "0"\n  signals: {json.dumps(names)}')
    with pytest.raises(ConfigError) as of_config:
        load_config(str(path))
    assert str(of_config.value) == f"{path}, line 14: checkpointing.signals: {sentence}"


def test_a_config_passes_its_signals_on(write_config: Callable[..., Path]) -> None:
    config = load_config(str(write_config('schedule: "0"')), ["checkpointing.signals=[SIGXCPU]"])
    assert config.checkpointing.to_save_options(publish_timeout=1.0, on_nan="stop", on_cpu=True).signals == ["SIGXCPU"]


def test_a_handler_that_outlives_its_training_passes_the_signal_on() -> None:
    """A program that installs a handler during the training puts back the one that it found."""
    received: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append("the program's"))
    try:
        ours = DeferredSignals(["SIGTERM"])
        ours.defer()
        found = signal.signal(signal.SIGTERM, lambda number, frame: received.append("the newer one"))
        ours.restore()
        signal.raise_signal(signal.SIGTERM)
        assert received == ["the newer one"]

        signal.signal(signal.SIGTERM, found)
        signal.raise_signal(signal.SIGTERM)
        assert received == ["the newer one", "the program's"]
        assert ours.received is None
    finally:
        signal.signal(signal.SIGTERM, before)
