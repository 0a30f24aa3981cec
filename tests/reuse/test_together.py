"""Two processes that train one trajectory into one store at the same time."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from emtoolkit.checkpoints.publications import Publications
from tests import preloaded
from tests.in_process import emtoolkit
from tests.processes import HANG_SECONDS
from tests.reuse.on_disk import digests, steps

pytestmark = pytest.mark.subprocess

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(write_config: Callable[..., Path], tmp_path: Path) -> Iterator[Start]:
    """Start `emtoolkit train` into `tmp_path/NAME` with the store `tmp_path/store`."""
    write_config("schedule: '0,2,7'")
    with ExitStack() as stack:

        def start(name: str, module: str = "emtoolkit") -> "subprocess.Popen[str]":
            words = ["run.yaml", "--reuse", "--trajectory.store=store", "--wandb.mode=disabled", "--output-dir", name]
            process = stack.enter_context(
                subprocess.Popen(
                    preloaded.command(module, "train", *words),
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield start


def whole(directory: Path) -> dict[str, str]:
    """The files of a training that nobody else disturbed."""
    done = emtoolkit("train", "run.yaml", "--wandb.mode=disabled", "--output-dir", "whole", cwd=directory)
    assert done.code == 0, done.err
    return digests(directory / "whole")


def test_of_two_that_start_together_one_trains_and_the_other_takes_its_checkpoints(
    start: Start, tmp_path: Path
) -> None:
    both = {name: start(name) for name in ("first", "second")}
    said = [process.communicate(timeout=HANG_SECONDS)[1] for process in both.values()]
    assert [process.returncode for process in both.values()] == [0, 0], said
    assert sorted(Publications.read(tmp_path / name).reused for name in both) == [frozenset(), {0, 2, 7, 9}]
    (store,) = (tmp_path / "store").glob("*-*")
    assert [steps(place) for place in (store, tmp_path / "first", tmp_path / "second")] == [[0, 2, 7, 9]] * 3
    assert digests(store) == digests(tmp_path / "first") == digests(tmp_path / "second") == whole(tmp_path)
    assert [path for path in tmp_path.rglob(".tmp-*") if "wandb" not in path.parts] == []


def test_the_second_waits_for_the_first_and_trains_if_the_first_is_killed(start: Start, tmp_path: Path) -> None:
    first = start("first", "tests.halted")
    assert first.stdout is not None
    training = int(first.stdout.readline())
    second = start("second")
    assert second.stderr is not None
    waits = next((line for line in iter(second.stderr.readline, "") if "waiting for the training" in line), "")
    assert f"of the same trajectory by process {training} on " in waits
    assert waits.endswith(f", for {tmp_path / 'first'}\n")
    os.kill(training, signal.SIGKILL)
    assert first.wait(HANG_SECONDS) == -signal.SIGKILL
    _, said = second.communicate(timeout=HANG_SECONDS)
    assert (second.returncode, Publications.read(tmp_path / "second").reused) == (0, {0, 2}), said
    (store,) = (tmp_path / "store").glob("*-*")
    assert steps(tmp_path / "first") == [0, 2]
    assert digests(store) == digests(tmp_path / "second") == whole(tmp_path)
