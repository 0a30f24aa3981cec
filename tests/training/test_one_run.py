"""A training that is interrupted and resumed is one W&B run with one history."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emtoolkit import Trajectory
from emtoolkit.artifacts.sync import sync
from emtoolkit.config.load import load_config
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.training.run import RunResult, train
from emtoolkit.training.trainer import _RandomStateKeepingTrainer
from tests import preloaded
from tests.online import versions
from tests.processes import HANG_SECONDS
from tests.wandb_server import Fault, WandbServer

# For `wandb sync`.
pytestmark = pytest.mark.usefixtures("preloaded_python")

Part = Callable[..., RunResult]
ONLINE = ["wandb.project=tests", "wandb.mode=online", "checkpointing.resume_every=3 steps"]


class Killed(BaseException):
    """Ends a training as a kill does, for which no handler is prepared."""


@pytest.fixture
def part(write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Part:
    """Train 9 steps online, or go on with them, until a signal or a failure comes in the step after `until`.

    On a busy machine W&B's client takes more than the two seconds that it gets after a signal.
    """
    for module in ("saving.session", "training.run"):
        monkeypatch.setattr(f"emtoolkit.{module}.SECONDS_AFTER_SIGNAL", float(HANG_SECONDS))

    def part(*settings: str, until: int | None = None, by: str = "signal", name: str = "out") -> Any:
        config = load_config(str(write_config()), [*ONLINE, *settings], {"output_dir": str(tmp_path / name)})
        if until is None:
            return train(config, resume=True)
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, until, by)
            with pytest.raises(TrainingInterrupted if by == "signal" else Killed):
                train(config, resume=True)
        return None

    return part


def stop_after(patch: pytest.MonkeyPatch, number: int, by: str) -> None:
    def acts(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == number:
            if by != "signal":
                raise Killed
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args, **kwargs)

    step = _RandomStateKeepingTrainer.training_step
    patch.setattr(_RandomStateKeepingTrainer, "training_step", acts)


def runs(server: WandbServer, project: str = "tests") -> dict[str, Any]:
    return server.store.project("tester", project).runs


def logged_steps(run: Any, name: str = "train/loss") -> list[int]:
    return [row["train/global_step"] for row in run.history if name in row]


@pytest.mark.parametrize("by", ["signal", "failure"])
def test_an_interrupted_training_is_one_run_with_one_history(by: str, part: Part, wandb_server: WandbServer) -> None:
    evaluates = "evaluation.eval_schedule=0,2,5"
    part(evaluates, until=5, by=by)
    (run,) = runs(wandb_server).values()
    assert (run.exit_code, logged_steps(run)) == (1, [1, 2, 3, 4, 5, 6] if by == "signal" else [1, 2, 3, 4, 5])
    part(evaluates)
    (again,) = runs(wandb_server).values()
    assert (again is run, run.state, run.exit_code) == (True, "finished", 0)
    assert logged_steps(run) == list(range(1, 10))
    assert logged_steps(run, "eval/loss") == [0, 2, 5, 9]
    assert [row["_step"] for row in run.history] == list(range(len(run.history)))
    assert run.summary["train/loss"] == next(row["train/loss"] for row in run.history if row["train/global_step"] == 9)


def test_wandb_shows_a_training_that_a_signal_stopped_as_preempted(part: Part, wandb_server: WandbServer) -> None:
    part(until=1)
    (run,) = runs(wandb_server).values()
    assert (run.preempting, run.state) == (True, "preempted")


def test_a_training_that_was_killed_and_resumed_is_one_run_with_one_history(
    part: Part, write_config: Callable[..., Path], wandb_server: WandbServer, tmp_path: Path
) -> None:
    words = [f"--set={word}" for word in ONLINE]
    command = preloaded.command("tests.halted", "train", write_config(), *words, "--output-dir", tmp_path / "out")
    environment = os.environ | {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "0.01"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        training = int(process.stdout.readline())
        (run,) = runs(wandb_server).values()
        wandb_server.wait_until(lambda: logged_steps(run) == [1, 2, 3, 4, 5])
        os.kill(training, signal.SIGKILL)
        assert process.wait(HANG_SECONDS) == -signal.SIGKILL
    # The steps after the resume state of step 3 are computed again.
    assert part().trained_steps == 6
    (again,) = runs(wandb_server).values()
    assert (again is run, run.state, run.exit_code) == (True, "finished", 0)
    assert logged_steps(run) == list(range(1, 10))
    assert [row["_step"] for row in run.history] == list(range(len(run.history)))
    assert aliases(wandb_server) == [["step-0"], ["step-2"], ["step-4"], ["final", "latest", "step-9"]]


@pytest.mark.parametrize("modes", [("offline", "online"), ("online", "offline"), ("offline", "offline")])
def test_sync_joins_the_parts_of_a_training_into_one_run(
    modes: tuple[str, str], part: Part, wandb_server: WandbServer, tmp_path: Path
) -> None:
    part(f"wandb.mode={modes[0]}", until=5)
    part(f"wandb.mode={modes[1]}")
    done = sync(tmp_path / "out")
    assert (done.problems, done.on_wandb) == ((), (0, 2, 4, 9))
    (run,) = runs(wandb_server).values()
    assert (run.state, logged_steps(run)) == ("finished", list(range(1, 10)))
    assert run.summary["train/loss"] == next(row["train/loss"] for row in run.history if row["train/global_step"] == 9)
    again = sync(tmp_path / "out")
    assert (again.logs, again.problems) == ((), ())


def aliases(server: WandbServer) -> list[list[str]]:
    return [held for _, held in versions(server)]


def test_wandb_lists_the_step_of_an_interruption_until_training_has_passed_it(
    part: Part, wandb_server: WandbServer, tmp_path: Path
) -> None:
    part(until=5)
    assert aliases(wandb_server) == [["step-0"], ["step-2"], ["step-4"], ["latest", "step-6"]]
    (collection,) = wandb_server.store.project("tester", "tests").collections
    remote = f"tester/tests/{collection}"
    assert Trajectory.open(remote).steps == (0, 2, 4)
    assert Trajectory.open(remote, interrupted=True).steps == (0, 2, 4, 6)
    part()
    assert aliases(wandb_server) == [["step-0"], ["step-2"], ["step-4"], [], ["final", "latest", "step-9"]]
    assert Trajectory.open(remote, interrupted=True).steps == (0, 2, 4, 9)


def test_a_resumed_training_publishes_what_its_interrupted_part_could_not(
    part: Part, wandb_server: WandbServer, tmp_path: Path
) -> None:
    wandb_server.faults.add(Fault("CommitArtifact", 403, after=1))
    part(until=5)
    (collection,) = wandb_server.store.project("tester", "tests").collections
    assert Trajectory.open(f"tester/tests/{collection}").steps == (0,)
    wandb_server.faults.clear()
    assert part().unpublished == ()
    assert aliases(wandb_server) == [["step-0"], ["step-2"], ["step-4"], ["final", "latest", "step-9"]]
    assert sync(tmp_path / "out").published == ()


def test_a_schedule_that_contains_the_step_keeps_it_on_wandb(
    part: Part, wandb_server: WandbServer, tmp_path: Path
) -> None:
    part(until=5)
    part("checkpointing.schedule=0-6:2")
    (collection,) = wandb_server.store.project("tester", "tests").collections
    assert Trajectory.open(f"tester/tests/{collection}").steps == (0, 2, 4, 6, 9)
