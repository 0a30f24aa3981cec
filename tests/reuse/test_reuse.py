"""Runs of one trajectory share its checkpoints: what is trained, what is taken, and that the bytes are the same."""

import errno
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.load import load_config
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import CheckpointError
from emtoolkit.reuse import environment
from emtoolkit.reuse.inputs import environment_of
from emtoolkit.reuse.store import Training, TrajectoryStore, may_train, note_training, wait_to_train
from emtoolkit.saving.requests import STOP, RequestedSaves
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.training.cost import plan_several
from emtoolkit.training.reusing import take_without_training, why_trains_alone
from emtoolkit.training.run import train
from tests.online import versions
from tests.processes import HANG_SECONDS
from tests.reuse.on_disk import digests, steps
from tests.tiny import config_text
from tests.wandb_server import WandbServer

Config = Callable[..., RunConfig]


@pytest.fixture
def config(world: Path, tmp_path: Path) -> Config:
    """The tiny run into `tmp_path/<name>`, with the store `tmp_path/store`."""

    def config(name: str, schedule: str, *settings: str, reuse: bool = True) -> RunConfig:
        file = tmp_path / f"{name}.yaml"
        file.write_text(config_text(world, f"schedule: '{schedule}'"))
        words = ["wandb.mode=disabled", f"trajectory.store={tmp_path / 'store'}", *settings]
        return load_config(str(file), words, {"output_dir": str(tmp_path / name), "trajectory.reuse": reuse})

    return config


@pytest.fixture(scope="module")
def separate(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without reuse that saves every step."""
    home = tmp_path_factory.mktemp("separate")
    (home / "run.yaml").write_text(config_text(world, "schedule: '0,every:1'"))
    train(load_config(str(home / "run.yaml"), ["wandb.mode=disabled"], {"output_dir": str(home / "run")}))
    return home / "run"


def of_steps(directory: Path, *wanted: int) -> dict[str, str]:
    return {name: digest for name, digest in digests(directory).items() if int(name.split("/")[0][11:]) in wanted}


def test_a_second_schedule_is_taken_without_a_training(config: Config, tmp_path: Path, separate: Path) -> None:
    first = train(config("first", "0,2", "trajectory.also_save=3-7:2"))
    assert (first.trained, steps(tmp_path / "first"), first.reused) == (True, [0, 2, 9], ())
    second = take_without_training(config("second", "3,7"), resume=False)
    assert second is not None
    assert (second.trained, second.reused, steps(tmp_path / "second")) == (False, (3, 7, 9), [3, 7, 9])
    assert digests(tmp_path / "first") == of_steps(separate, 0, 2, 9)
    assert digests(tmp_path / "second") == of_steps(separate, 3, 7, 9)


def test_a_step_of_which_the_store_lost_its_record_is_taken_with_a_warning(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config("first", "0,2,3"))
    (store,) = (tmp_path / "store").glob("*-*")
    lines = (store / "publications.jsonl").read_text().splitlines(keepends=True)
    torn = [line[:20] + "\n" if '"step": 2' in line or '"step": 3' in line else line for line in lines]
    assert torn != lines
    (store / "publications.jsonl").write_text("".join(torn))
    second = take_without_training(config("second", "0,2,3"), resume=False)
    assert second is not None
    assert digests(tmp_path / "second") == digests(tmp_path / "first")
    told = [message for message in caplog.messages if "has no record of step" in message]
    assert told == [
        f"{store / 'publications.jsonl'}: has no record of step 2, so the metadata of such steps lack their losses and "
        "their environment; the checkpoints themselves are intact"
    ]


def test_what_is_taken_is_the_file_of_the_store_or_a_copy_where_no_link_can_be_made(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def files(directory: Path) -> dict[str, int]:
        return {str(path.relative_to(directory)): path.stat().st_ino for path in directory.glob("checkpoint-2/*")}

    monkeypatch.setattr("emtoolkit.storage.links._clone", lambda *_: False)
    train(config("first", "2"))
    (store,) = (tmp_path / "store").glob("*-*")
    assert take_without_training(config("linked", "2"), resume=False) is not None
    monkeypatch.setattr("os.link", refused)
    assert take_without_training(config("copied", "2"), resume=False) is not None
    kept = files(store)
    assert len(kept) == 3
    assert [files(tmp_path / name) == kept for name in ("first", "linked", "copied")] == [True, True, False]
    assert digests(tmp_path / "copied") == digests(store)


def test_what_a_killed_training_left_half_written_goes_with_the_next_run(config: Config, tmp_path: Path) -> None:
    train(config("first", "0,2"))
    (store,) = (tmp_path / "store").glob("*-*")
    left = store / ".tmp-trajectory.json-1"
    left.write_text("{")
    training = wait_to_train(store)
    assert take_without_training(config("second", "2"), resume=False) is not None
    # Another training may be writing the file.
    assert left.exists()
    training.release()
    assert take_without_training(config("third", "2"), resume=False) is not None
    assert not left.exists()


def test_a_run_whose_own_steps_are_there_trains_those_of_the_other_runs_of_its_group(
    config: Config, tmp_path: Path, separate: Path
) -> None:
    """The first run of a sweep may find its steps in an older store, and still trains the union of the schedules."""
    train(config("older", "0,6"))
    group = "trajectory.also_save='0,2,4,6,7'"
    runs = {name: config(name, own, group) for name, own in (("first", "0,6"), ("second", "2,7"), ("third", "4"))}
    planned = plan_several([({}, run) for run in runs.values()])
    assert [(run.plan.total_steps, run.steps_with_reuse) for run in planned] == [(9, 7), (9, 0), (9, 0)]
    assert take_without_training(config("first", "0,6", group), resume=False) is None
    first = train(config("first", "0,6", group))
    assert (first.trained_steps, first.reused, steps(tmp_path / "first")) == (7, (0, 6, 9), [0, 6, 9])
    for name, own in (("second", (2, 7, 9)), ("third", (4, 9))):
        taken = take_without_training(runs[name], resume=False)
        assert taken is not None
        assert (taken.reused, digests(tmp_path / name)) == (own, of_steps(separate, *own))


def test_a_plan_counts_a_run_whose_held_out_losses_the_other_training_does_not_compute(config: Config) -> None:
    evaluates = config("second", "0,2", "evaluation.eval_steps=3")
    planned = plan_several([({}, config("first", "0,2")), ({}, evaluates), ({}, config("third", "2"))])
    assert [run.steps_with_reuse for run in planned] == [9, 9, 0]


def test_a_run_whose_own_steps_are_there_does_not_wait_for_the_training_of_the_others(
    config: Config, tmp_path: Path
) -> None:
    train(config("older", "0,6"))
    group = "trajectory.also_save='0,2,6'"
    (store,) = (tmp_path / "store").glob("*-*")
    lock = wait_to_train(store)
    try:
        assert train(config("meanwhile", "6", group)).trained is False
    finally:
        lock.release()
    # A resumed run lacks nothing, and is not the one that trains for others.
    again = train(config("meanwhile", "6", group), resume=True)
    assert (again.trained, steps(store)) == (False, [0, 6, 9])


def test_a_missing_stretch_is_trained_to_its_last_step(config: Config, tmp_path: Path, separate: Path) -> None:
    train(config("first", "0,6"))
    assert take_without_training(config("second", "2,4,6"), resume=False) is None
    result = train(config("second", "2,4,6"))
    assert (result.trained, result.reused, steps(tmp_path / "second")) == (True, (6, 9), [2, 4, 6, 9])
    assert digests(tmp_path / "second") == of_steps(separate, 2, 4, 6, 9)
    assert [info.step for info in list_checkpoints(tmp_path / "second") if info.final] == [9]


def test_a_stretch_begins_at_the_nearest_earlier_resume_state(config: Config, tmp_path: Path, separate: Path) -> None:
    every_two = "checkpointing.resume_every=2 steps"
    train(config("first", "0", every_two))
    # It stops at step 5, so the resume state of step 4 stays.
    assert train(config("second", "5", every_two)).trained_steps == 5
    third = train(config("third", "6,7", every_two))
    assert (third.trained_steps, third.reused, steps(tmp_path / "third")) == (3, (9,), [6, 7, 9])
    assert digests(tmp_path / "third") == of_steps(separate, 6, 7, 9)


def test_another_run_goes_on_where_an_interrupted_one_stopped(
    config: Config, tmp_path: Path, separate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([0, 0, 0, STOP])
    with monkeypatch.context() as patch:
        patch.setattr(RequestedSaves, "look", lambda self, now: next(looks, 0))
        with pytest.raises(TrainingInterrupted):
            train(config("first", "0,2,6"))
    assert steps(tmp_path / "first") == [0, 2]
    result = train(config("second", "2,5"))
    assert (result.reused, result.trained_steps) == ((2,), 5)
    assert digests(tmp_path / "second") == of_steps(separate, 2, 5, 9)
    (store,) = (tmp_path / "store").glob("*-*")
    assert steps(store) == [0, 2, 5, 9]  # without the step of the interruption


def test_a_damaged_checkpoint_of_the_store_is_made_again(
    config: Config, tmp_path: Path, separate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config("first", "0,3"))
    (weights,) = (tmp_path / "store").glob("*/checkpoint-3/adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    assert take_without_training(config("second", "3"), resume=False) is None
    result = train(config("second", "3"))
    assert (result.reused, result.trained_steps) == ((9,), 3)
    assert digests(tmp_path / "second") == of_steps(separate, 3, 9)
    assert (
        "its content does not match the digest in the manifest; the checkpoint of step 3 is made again" in caplog.text
    )


def test_a_stretch_whose_checkpoint_cannot_be_saved_is_an_error(config: Config, tmp_path: Path) -> None:
    """A training that reaches its end raises the error there; a stretch stops before."""
    train(config("first", "0"))
    (store,) = (path.parent for path in (tmp_path / "store").glob("*/trajectory.json"))
    (store / "checkpoint-3").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"checkpoint-3: could not be written \(a file is in the way\)"):
        train(config("second", "3"))
    assert steps(tmp_path / "second") == [9]

    result = train(config("third", "3", "checkpointing.on_error=warn"))
    assert (steps(tmp_path / "third"), len(result.failures)) == ([9], 1)


def test_another_environment_is_named_and_not_reused(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config("first", "0"))
    (store,) = (tmp_path / "store").glob("*-*")
    record = TrajectoryRecord.read_if_any(store)
    assert record is not None
    for function, found, named in (
        ("_processor", {"processor": "another"}, "processor was .* there and is another here"),
        ("_version", "9.9", "torch was .* there and is 9.9 here"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(environment, function, lambda *_, found=found: found)
            here = TrajectoryStore(config("second", "0").trajectory, environment_of(config("second", "0").model))
            assert here.directory(record.fingerprint) != store
            assert re.search(named, "; ".join(here.other_environments(record.fingerprint)[store]))
            assert take_without_training(config("second", "0"), resume=False) is None
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert take_without_training(config("second", "0"), resume=False) is None
    result = train(config("second", "0"))
    assert (result.trained_steps, result.reused) == (9, ())
    assert (
        "not reused, because a training here may give other bytes: MKL_CBWR was not set there and is COMPATIBLE here"
    ) in caplog.text


def test_a_store_that_cannot_be_written_costs_the_run_nothing(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").write_text("a file\n")
    result = train(config("alone", "0,2"))
    assert (result.trained_steps, steps(tmp_path / "alone")) == (9, [0, 2, 9])
    assert "cannot be written to (Not a directory); the run trains alone" in caplog.text


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("training.on_nan=continue", "training.on_nan: continue trains through numbers that are not finite"),
        (
            "checkpointing.resume_at_end=true",
            "checkpointing.resume_at_end keeps the resume state of the run's own training",
        ),
        (
            "checkpointing.resume_keep=every:2",
            "checkpointing.resume_keep keeps the resume states of the run's own training",
        ),
        (
            "evaluation.probe={questions: q.yaml, eval_steps: 3}",
            "evaluation.probe asks the model during training",
        ),
    ],
)
def test_a_run_that_needs_its_own_training_says_so(config: Config, setting: str, why: str) -> None:
    usual, special = config("run", "0"), config("run", "0", setting)
    assert why_trains_alone(usual.training, usual.checkpointing, usual.evaluation) is None
    assert why_trains_alone(special.training, special.checkpointing, special.evaluation) == why


def test_a_directory_that_was_begun_without_reuse_stays_its_own(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config("run", "0,2", reuse=False))
    again = train(config("run", "0,2,5"), resume=True)
    assert (again.reused, steps(tmp_path / "run")) == ((), [0, 2, 5, 9])
    assert "was begun without reuse, so the run trains what it lacks" in caplog.text
    assert not (tmp_path / "store").exists()


@pytest.mark.subprocess
def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from emtoolkit.reuse import store\n"
        "lock = store.wait_to_train(Path(sys.argv[1]))\n"
        "store.note_training(Path(sys.argv[1]), store.Training('outputs/killed'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (done.returncode, (tmp_path / "training.json").is_file()) == (-9, True)
    assert may_train(tmp_path)
    wait_to_train(tmp_path).release()


def test_a_second_run_waits_for_the_training_and_says_for_whom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    held = wait_to_train(tmp_path)
    note_training(tmp_path, Training("outputs/first", host="node7", process=4711))
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(wait_to_train, tmp_path)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.5)
        held.release()
        second.result(timeout=HANG_SECONDS).release()
    assert [record.message for record in caplog.records if "waiting" in record.message] == [
        f"{tmp_path}: waiting for the training of the same trajectory by process 4711 on node7, for outputs/first"
    ]


@pytest.mark.subprocess
def test_a_run_that_takes_everything_imports_no_torch(config: Config, tmp_path: Path) -> None:
    train(config("first", "0,2"))
    code = (
        "import sys; from emtoolkit.cli.app import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'transformers', 'peft', 'datasets'} & sys.modules.keys()), file=sys.stderr)"
    )
    words = ["train", str(tmp_path / "first.yaml"), "--schedule=2", "--reuse", "--wandb.mode=disabled"]
    words += [f"--trajectory.store={tmp_path / 'store'}", f"--output-dir={tmp_path / 'second'}", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert [(each["step"], each["reused"]) for each in json.loads(done.stdout)] == [(2, True), (9, True)]
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_loss_curve_and_the_versions_of_a_reused_run_are_those_of_the_training(
    config: Config, wandb_server: WandbServer
) -> None:
    online = ("wandb.mode=online", "wandb.project=tests")
    train(config("first", "0,2", "trajectory.also_save='4'", *online))
    second = take_without_training(config("second", "2,4", *online), resume=False)
    assert second is not None
    project = wandb_server.store.project("tester", "tests")
    first_run, second_run = project.runs.values()
    losses = [
        [(row["train/global_step"], row["train/loss"]) for row in run.history if "train/loss" in row]
        for run in (first_run, second_run)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, 10))
    assert second_run.config["reuse"]["reused_steps"] == [2, 4, 9]
    assert second_run.config["reuse"]["trained_by"]["run"] == first_run.name
    assert {key: second_run.summary[key] for key in ("reused_checkpoints", "trained_steps", "checkpoints")} == {
        "reused_checkpoints": 3,
        "trained_steps": 0,
        "checkpoints": 3,
    }
    assert versions(wandb_server) == [
        (0, ["step-0"]),
        (1, ["step-2"]),
        (2, ["final", "latest", "step-9"]),
        (3, ["step-4"]),
    ]
    (collection,) = project.collections
    assert [info.published for info in second.checkpoints] == [f"tester/tests/{collection}:v{n}" for n in (1, 3, 2)]
