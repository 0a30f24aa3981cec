"""`emtoolkit sync --watch`: checkpoints of a training that is still running, published by another process."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import wandb

from emtoolkit.artifacts.run_directories import run_directories
from emtoolkit.artifacts.sync import Synced, sync
from emtoolkit.artifacts.watch import WatchOptions, WatchTiming, watch_all
from emtoolkit.checkpoints.publications import Publications, WandbRun, add_metrics, add_run, add_saved
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.lock import lock_directory
from tests.artifacts.stored import IDENTITY, TOTAL_STEPS, checkpoint_files
from tests.artifacts.trainings import SHARED, on_wandb, publish, saved
from tests.in_process import emtoolkit
from tests.wandb_server import Fault, WandbServer

COLLECTION = f"tester/proj/{SHARED}"


class Training:
    """The part of a training: it holds the lock of `directory` and saves steps, one action at each pause."""

    def __init__(self, directory: Path) -> None:
        self.directory = saved(directory, {0: ""})
        self.settle(0)
        self.run: str | None = None
        self.lock = lock_directory(directory)

    def save(self, step: int) -> None:
        checkpoint_files(self.directory / f"checkpoint-{step}", step)
        add_saved(self.directory, step, {"step": step, "fingerprint": IDENTITY.fingerprint}, run=self.run)

    def settle(self, step: int) -> None:
        add_metrics(self.directory, step, {"loss": 1.5})

    def save_and_settle(self, step: int) -> None:
        self.save(step)
        self.settle(step)

    def end(self, step: int) -> None:
        TrajectoryRecord(IDENTITY.fingerprint, TOTAL_STEPS, "0", ended_at=step).write(self.directory)
        self.lock.release()


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    training = Training(tmp_path / "out")
    yield training
    training.lock.release()


class Watching:
    """A watch whose pauses run `actions`, one in each; its clock shows only the pauses."""

    def __init__(self, training: Training, actions: Sequence[Callable[[], object]], **options: Any) -> None:
        self.said: list[str] = []
        self.now = 0.0
        self._actions = iter(actions)
        self._training = training
        self._options = WatchOptions(project="proj", **options)

    def run(self) -> Synced:
        timing = WatchTiming(clock=lambda: self.now, pause=self._pause)
        (done,) = watch_all(lambda: [self._training.directory], self._options, self._say, timing)
        return done

    def _pause(self, seconds: float) -> None:
        self.now += seconds
        next(self._actions, lambda: None)()

    def _say(self, sentence: str) -> None:
        self.said.append(sentence.replace(str(self._training.directory), "out"))


def test_each_checkpoint_is_published_once_while_the_training_runs_and_the_watch_ends_with_it(
    training: Training, server: WandbServer
) -> None:
    seen = []
    actions = [
        lambda: seen.append(on_wandb(server)),
        lambda: training.save_and_settle(10),
        lambda: training.save(20),
        lambda: seen.append(on_wandb(server)),
        lambda: training.settle(20),
        lambda: (training.save_and_settle(30), training.end(30)),
    ]
    watching = Watching(training, actions)
    done = watching.run()
    # Step 20 has to wait for its metrics, which W&B would never learn otherwise.
    assert seen == [{SHARED: [0]}, {SHARED: [0, 10]}]
    assert watching.said == [
        f"out: step {step} is published as {COLLECTION}:v{n}" for n, step in enumerate((0, 10, 20, 30))
    ]
    assert (done.on_wandb, done.published, done.problems) == ((0, 10, 20, 30), (0, 10, 20, 30), ())
    versions = server.store.project("tester", "proj").collections[SHARED].versions
    assert [sorted(version.aliases) for version in versions] == [
        ["step-0"],
        ["step-10"],
        ["step-20"],
        ["final", "latest", "step-30"],
    ]
    assert versions[2].metadata["loss"] == 1.5


def test_nothing_of_a_budget_is_published_before_it_is_known_what_stays(
    training: Training, server: WandbServer
) -> None:
    TrajectoryRecord(IDENTITY.fingerprint, TOTAL_STEPS, "budget:3").write(training.directory)
    seen = []
    actions = [
        lambda: training.save_and_settle(10),
        lambda: training.save_and_settle(20),
        lambda: seen.append([*server.store.projects]),
        lambda: shutil.rmtree(training.directory / "checkpoint-10"),
        lambda: (training.save_and_settle(30), training.end(30)),
    ]
    done = Watching(training, actions).run()
    assert seen == [[]]
    assert done.on_wandb == (0, 20, 30)


def test_nothing_of_a_budget_that_was_interrupted_is_published_before_it_has_ended(
    training: Training, server: WandbServer
) -> None:
    TrajectoryRecord(IDENTITY.fingerprint, TOTAL_STEPS, "budget:3").write(training.directory)
    training.save_and_settle(10)
    training.lock.release()
    withheld = (
        f"{training.directory}: the training has not ended, so its checkpoints are not published: the schedule may "
        "still delete some of them, and the resumed training publishes the others; resume it with 'emtoolkit train … "
        "--resume', or in a script with resume_from_checkpoint"
    )
    done = sync(training.directory, project="proj")
    assert (done.on_wandb, done.published, done.problems) == ((), (), (withheld,))

    watching = Watching(training, [], patience=60.0)
    done = watching.run()
    stopped = (
        f"{training.directory}: the training stopped before its end, and gave no sign for 60 s; 'emtoolkit train … "
        "--resume' continues it"
    )
    assert (done.published, done.problems) == ((), (withheld, stopped))
    assert not any("trying again" in sentence for sentence in watching.said)
    assert [*server.store.projects] == []

    shutil.rmtree(training.directory / "checkpoint-10")
    training.save_and_settle(20)
    training.end(20)
    done = sync(training.directory, project="proj")
    assert (done.on_wandb, done.published, done.problems) == ((0, 20), (0, 20), ())


def test_an_offline_training_has_one_run_with_its_checkpoints_and_later_its_log(
    training: Training, server: WandbServer, preloaded_python: None
) -> None:
    run = wandb.init(
        project="proj", id="abc", mode="offline", dir=training.directory, settings=wandb.Settings(silent=True)
    )
    add_run(training.directory, WandbRun.of(run))
    run.log({"train/global_step": 1, "train/loss": 2.0})
    run.finish()
    training.run = "abc"
    actions = [lambda: training.save_and_settle(10), lambda: None, lambda: training.end(10)]
    training.settle(0)
    watching = Watching(training, actions)
    done = watching.run()
    assert (done.on_wandb, done.problems, len(done.logs)) == ((0, 10), (), 1)
    runs = server.store.project("tester", "proj").runs
    ours = {key: each for key, each in runs.items() if not key.startswith("sync-")}
    assert list(ours) == ["abc"]
    assert ours["abc"].state == "finished"
    assert [row["train/loss"] for row in ours["abc"].history if "train/loss" in row] == [2.0]
    assert on_wandb(server) == {SHARED: [0, 10]}


def test_the_publisher_of_an_online_training_goes_first_and_the_watch_takes_what_it_leaves(
    training: Training, server: WandbServer
) -> None:
    publish(training.directory, "online", only=[0])
    training.run = "online"
    actions = [
        lambda: training.save_and_settle(10),
        *[lambda: None] * 5,
        lambda: counts.append(len(server.store.project("tester", "proj").collections[SHARED].versions)),
        lambda: None,
        lambda: training.end(10),
    ]
    counts: list[int] = []
    watching = Watching(training, actions)
    done = watching.run()
    assert counts == [1]
    assert watching.said == [f"out: step 10 is published as {COLLECTION}:v1"]
    assert (done.on_wandb, done.problems) == ((0, 10), ())
    assert len(server.store.project("tester", "proj").collections[SHARED].versions) == 2


def test_a_server_that_is_away_is_said_once_and_asked_again(training: Training, server: WandbServer) -> None:
    server.faults.add(Fault("Viewer", 401))
    actions = [lambda: None, lambda: None, server.faults.clear, lambda: None, lambda: None, lambda: training.end(0)]
    watching = Watching(training, actions)
    done = watching.run()
    assert (done.on_wandb, done.problems) == ((0,), ())
    assert watching.said[0].startswith("W&B could not be queried for proj/")
    assert watching.said[0].endswith("; trying again")
    assert watching.said[1:] == ["out: W&B answers again", f"out: step 0 is published as {COLLECTION}:v0"]


def test_a_training_that_stops_without_its_end_is_waited_for_and_its_resume_goes_on(
    training: Training, server: WandbServer
) -> None:
    def resume() -> None:
        training.lock = lock_directory(training.directory)

    actions = [training.lock.release, lambda: training.save_and_settle(10), resume, lambda: training.end(10)]
    watching = Watching(training, actions)
    done = watching.run()
    assert watching.said == [
        f"out: step 0 is published as {COLLECTION}:v0",
        "out: no process holds the lock, and the training has not ended: it has stopped, or its lock cannot be seen "
        "from this machine; waiting 600 s for a sign of it",
        f"out: step 10 is published as {COLLECTION}:v1",
        "out: the training goes on",
    ]
    assert (done.on_wandb, done.problems) == ((0, 10), ())


def test_a_training_that_is_not_resumed_ends_the_watch_with_a_sentence_and_everything_published(
    training: Training, server: WandbServer
) -> None:
    # The metrics of the last step before a kill were never recorded.
    actions = [lambda: training.save(10), training.lock.release]
    watching = Watching(training, actions, patience=60.0)
    done = watching.run()
    assert done.on_wandb == (0, 10)
    assert done.problems == (
        f"{training.directory}: the training stopped before its end, and gave no sign for 60 s; "
        "'emtoolkit train … --resume' continues it",
    )
    assert 60 < watching.now <= 100


def test_a_damaged_checkpoint_is_named_once_and_holds_nothing_up(training: Training, server: WandbServer) -> None:
    training.save_and_settle(10)
    (training.directory / "checkpoint-10" / "adapter_model.safetensors").write_bytes(b"x" * 200)
    actions = [lambda: None, lambda: training.save_and_settle(20), lambda: None, lambda: training.end(20)]
    watching = Watching(training, actions)
    done = watching.run()
    assert done.on_wandb == (0, 20)
    assert [problem for problem in done.problems if "checkpoint-10" in problem]
    assert sum("checkpoint-10" in sentence for sentence in watching.said) == 1


def test_the_command_prints_a_line_for_each_checkpoint_and_ctrl_c_ends_it_with_a_sentence(
    training: Training, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emtoolkit.artifacts.watch.WatchTiming", lambda: WatchTiming(pause=interrupt))
    done = emtoolkit("sync", "--watch", training.directory, "--project", "proj")
    assert (done.code, done.out) == (130, f"{training.directory}: step 0 is published as {COLLECTION}:v0\n")
    assert done.err.endswith("emtoolkit: interrupted; run the same command again to continue\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--watch", "--every", "nan"], "--every: nan is not a number of seconds, 0.1 or more"),
        (["--watch", "--every", "0"], "--every: 0 is not a number of seconds, 0.1 or more"),
        (["--watch", "--patience", "-1"], "--patience: -1 is not a number of seconds, 0 or more"),
        (["--every", "5"], "--every: belongs to --watch; add --watch"),
        (["--patience", "5"], "--patience: belongs to --watch; add --watch"),
    ],
)
def test_a_bad_pause_is_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = emtoolkit("sync", tmp_path, *words)
    assert (done.code, done.err) == (2, f"emtoolkit: {sentence}\n")


def test_a_look_at_the_lock_keeps_no_training_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = lock_directory(tmp_path)
    # The training asks for the lock again after a pause.
    monkeypatch.setattr(time, "sleep", lambda seconds: looking.release())
    lock_directory(tmp_path).release()


def test_without_a_login_the_watch_ends_at_once(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emtoolkit.artifacts.watch.why_not_logged_in", lambda: "nobody is logged in")
    with pytest.raises(CheckpointError, match="W&B: nobody is logged in; run 'wandb login' to log in"):
        Watching(training, []).run()


def test_a_new_run_below_a_watched_directory_is_watched_too(
    training: Training, server: WandbServer, tmp_path: Path
) -> None:
    second: list[Training] = []
    said: list[str] = []
    actions = iter(
        [
            lambda: second.append(Training(tmp_path / "second")),
            lambda: training.end(0),
            lambda: second[0].end(0),
        ]
    )
    now = iter(range(0, 10_000, 10))
    timing = WatchTiming(clock=lambda: float(next(now)), pause=lambda seconds: next(actions, lambda: None)())
    done = watch_all(lambda: run_directories([tmp_path]), WatchOptions(project="proj"), said.append, timing)
    assert [(each.directory.name, each.on_wandb) for each in done] == [("out", (0,)), ("second", (0,))]
    assert Publications.read(tmp_path / "second").published[0].artifact == f"{COLLECTION}:v0"
