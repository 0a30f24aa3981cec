"""What a run with reuse takes from its W&B project, and what it trains although the project has the step."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from emtoolkit.artifacts.collection import Reference
from emtoolkit.checkpoints.publications import Publications, add_saved
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.load import load_config
from emtoolkit.config.sections import RunConfig
from emtoolkit.progress import silent
from emtoolkit.reuse import from_wandb
from emtoolkit.reuse.environment import Environment
from emtoolkit.reuse.from_wandb import fetch
from emtoolkit.reuse.inputs import environment_of
from emtoolkit.reuse.own_directory import intact
from emtoolkit.training import run as training_run
from emtoolkit.training.reusing import environment_to_record
from emtoolkit.training.run import train
from tests.artifacts.stored import COLLECTION, IDENTITY, TOTAL_STEPS, checkpoint_files, gets, store_version
from tests.reuse.on_disk import digests, steps
from tests.tiny import config_text
from tests.wandb_server import WandbServer
from tests.wandb_server.faults import Fault

Config = Callable[..., RunConfig]
HERE = Environment({"torch": "2.13.0", "threads": "1"})
REFERENCE = Reference("tester", "proj", COLLECTION)
RECORD = TrajectoryRecord.of(IDENTITY, TOTAL_STEPS, "every:1")


@pytest.fixture
def config(world: Path, tmp_path: Path) -> Config:
    """The tiny run into `tmp_path/<name>`, online unless a setting says otherwise, with the store `tmp_path/store`."""

    def config(name: str, schedule: str, *settings: str, reuse: bool = True) -> RunConfig:
        file = tmp_path / f"{name}.yaml"
        file.write_text(config_text(world, f"schedule: '{schedule}'"))
        words = ["wandb.mode=online", "wandb.project=tests", f"trajectory.store={tmp_path / 'store'}", *settings]
        return load_config(str(file), words, {"output_dir": str(tmp_path / name), "trajectory.reuse": reuse})

    return config


def no_model(*arguments: Any) -> None:
    raise AssertionError("a model is loaded")


def test_a_run_takes_from_its_project_what_is_no_longer_on_this_machine(
    config: Config,
    tmp_path: Path,
    wandb_server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The first run has no store; its versions name the environment all the same.
    train(config("first", "0,2,5", reuse=False))
    before = digests(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "composed_model", no_model)
        result = train(config("second", "2,5"))
    assert (result.trained, result.reused, steps(tmp_path / "second")) == (False, (2, 5, 9), [2, 5, 9])
    assert digests(tmp_path / "second") == {k: v for k, v in before.items() if not k.startswith("checkpoint-0/")}
    project = wandb_server.store.project("tester", "tests")
    (collection,) = project.collections.values()
    assert [sorted(version.aliases) for version in collection.versions] == [
        ["step-0"],
        ["step-2"],
        ["step-5"],
        ["final", "latest", "step-9"],
    ]
    _, second = project.runs.values()
    assert second.config["reuse"]["reused_steps"] == [2, 5, 9]
    assert second.config["reuse"]["trained_by"]["directory"] == f"tester/tests/{collection.name}"
    used = [version.index for version in collection.versions if second in version.used_by]
    assert used == [1, 2, 3]

    # The next run trains a step that the project lacks and one whose version is damaged, and takes the others.
    shutil.rmtree(tmp_path / "store")
    damaged = collection.versions[1].contents
    damaged["adapter_model.safetensors"] = dict(collection.versions[2].contents["adapter_model.safetensors"])
    third = train(config("third", "0,2,3,9"))
    assert (third.reused, third.trained_steps, steps(tmp_path / "third")) == ((0, 9), 3, [0, 2, 3, 9])
    assert f"{collection.name}:v1/adapter_model.safetensors: its content does not match the digest" in caplog.text
    assert {k: v for k, v in digests(tmp_path / "third").items() if k in before} == {
        k: v for k, v in before.items() if not k.startswith("checkpoint-5/")
    }

    # Another environment trains for itself.
    shutil.rmtree(tmp_path / "store")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    fourth = train(config("fourth", "0"))
    assert (fourth.reused, fourth.trained_steps) == ((), 9)
    assert (
        f"tester/tests/{collection.name}: 2 of 2 wanted checkpoints are not reused, because a training here may give "
        "other bytes: MKL_CBWR was not set there and is COMPATIBLE here"
    ) in caplog.text


def test_what_a_run_takes_from_the_store_of_this_machine_are_inputs_of_its_run_on_wandb(
    config: Config, tmp_path: Path, wandb_server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    train(config("first", "0,2"))
    wandb_server.clear_requests()
    assert train(config("second", "2")).trained is False
    asked = Counter(request.operation for request in wandb_server.requests)
    # One listing, however many the steps are. The publication looks for each step, and for the last one twice.
    assert [asked[name] for name in ("ProjectArtifacts", "UseArtifact", "ArtifactMembershipByName")] == [1, 2, 3]
    assert train(config("third", "0,3,9")).trained_steps == 3
    project = wandb_server.store.project("tester", "tests")
    (collection,) = project.collections.values()
    first, second, third = project.runs.values()
    assert {version.index: version.used_by for version in collection.versions} == {
        0: [third],
        1: [second],
        2: [second, third],
        3: [],
    }
    assert [version.created_by for version in collection.versions] == [first, first, first, third]

    # A version that is gone is no input, and the run publishes its step anew.
    wandb.Api().artifact(f"tester/tests/{collection.name}:step-3").delete(delete_aliases=True)
    assert train(config("fourth", "3")).reused == (3, 9)
    assert [version.index for version in collection.versions] == [0, 1, 2, 4]
    *_, fourth = project.runs.values()
    assert [version.index for version in collection.versions if fourth in version.used_by] == [2]
    assert not [
        each for each in caplog.records if each.levelno >= logging.WARNING and each.name.startswith("emtoolkit")
    ]


def test_a_lineage_that_fails_is_one_warning_and_costs_no_publication(
    config: Config, wandb_server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    train(config("first", "0,2"))
    for name, operation in (("second", "ProjectArtifacts"), ("third", "UseArtifact")):
        caplog.clear()
        wandb_server.clear_requests()
        wandb_server.faults.add(Fault(operation, 403))
        result = train(config(name, "0,2"))
        wandb_server.faults.clear()
        assert (result.reused, result.unpublished) == ((0, 2, 9), ())
        (warning,) = (text for text in warnings(caplog) if "W&B" in text)
        assert warning.startswith("W&B did not take the inputs of the run, so its lineage lacks checkpoints (")
        assert [request.operation for request in wandb_server.requests].count(operation) == 1
        *_, run = wandb_server.store.project("tester", "tests").runs.values()
        assert run.state == "finished"


def test_a_run_that_is_not_online_asks_nobody(config: Config, tmp_path: Path, wandb_server: WandbServer) -> None:
    train(config("run", "0", "wandb.mode=offline"))
    assert [request.path for request in wandb_server.requests] == []


def test_a_training_of_two_environments_records_none(config: Config, tmp_path: Path) -> None:
    run, directory = config("run", "0"), tmp_path / "run"
    kept = config("kept", "0", "checkpointing.resume_keep=every:2")
    here = environment_of(run.model).facts
    assert environment_to_record(run.model, run.training, directory) == here
    assert environment_to_record(kept.model, kept.training, directory) == here
    directory.mkdir()
    add_saved(directory, 0, {"step": 0, "environment": dict(here)}, None)
    assert environment_to_record(run.model, run.training, directory) == here
    add_saved(directory, 2, {"step": 2, "environment": {**here, "torch": "1.0"}}, None)
    assert environment_to_record(run.model, run.training, directory) is None
    other = config("other", "0", "training.on_nan=continue")
    assert environment_to_record(other.model, other.training, tmp_path / "other") is None


def publish(
    server: WandbServer, scratch: Path, step: int, metadata: dict[str, Any] | None = None, **changed: bytes
) -> None:
    """A version of `step`, trained in `HERE` unless `metadata` says otherwise, with files that may be changed."""
    own = {"step": step, "fingerprint": IDENTITY.fingerprint, "environment": dict(HERE.facts)}
    files = checkpoint_files(scratch / f"published-{step}", step) | {
        name.replace("__", "."): content for name, content in changed.items()
    }
    aliases = [f"step-{step}", *(["final"] if step == TOTAL_STEPS else [])]
    store_version(server, files, aliases, {**own, **(metadata or {})})


def fetched(store: Path, *wanted: int, patience: float = 60.0) -> list[int]:
    """The steps of `store` that are complete after `wanted` steps were fetched."""
    store.mkdir(exist_ok=True)
    fetch(REFERENCE, store, HERE, RECORD, wanted, patience=patience, progress=silent)
    found, _ = intact(store, wanted, IDENTITY.fingerprint)
    return sorted(found)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_wanted_steps_arrive_with_their_metadata(wandb_server: WandbServer, tmp_path: Path) -> None:
    for step in (0, 5, 10):
        publish(wandb_server, tmp_path, step, {"loss": step / 4})
    assert fetched(tmp_path / "store", 5, 10, 15) == [5, 10]
    stored = Publications.read(tmp_path / "store")
    assert {step: metadata["loss"] for step, metadata in stored.metadata.items()} == {5: 1.25, 10: 2.5}
    assert not (tmp_path / "store" / "checkpoint-0").exists()


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        (
            {"environment": {"torch": "2.12.0", "threads": "1"}},
            "a training here may give other bytes: torch was",
        ),
        ({"environment": {"torch": "2.13.0"}}, "a training here may give other bytes: threads was not set there"),
        ({"environment": None}, "they do not name the environment in which they were trained"),
        ({"environment": "torch 2.13.0"}, "their metadata cannot be read"),
        ({"resumed_with_differences": 1e-3}, "they were resumed with differences"),
        ({"fingerprint": "ab" * 32}, "they belong to trajectory abababab"),
    ],
)
def test_a_version_of_another_training_is_left_and_one_warning_says_why(
    metadata: dict[str, Any], why: str, wandb_server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(wandb_server, tmp_path, 5, metadata)
    publish(wandb_server, tmp_path, 10, metadata)
    publish(wandb_server, tmp_path, 15)
    assert fetched(tmp_path / "store", 5, 10, 15) == [15]
    (warning,) = warnings(caplog)
    assert warning.startswith(f"tester/proj/{COLLECTION}: 2 of 3 wanted checkpoints are not reused, because {why}")


@pytest.mark.parametrize(
    "changed", [{"adapter_model__safetensors": b"other"}, {"manifest__json": b"{}"}, {"manifest__json": b"["}]
)
def test_a_damaged_version_is_left_and_the_others_are_taken(
    changed: dict[str, bytes], wandb_server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(wandb_server, tmp_path, 5, **changed)
    publish(wandb_server, tmp_path, 10)
    assert fetched(tmp_path / "store", 5, 10) == [10]
    (warning,) = warnings(caplog)
    assert warning.startswith(f"trajectory.reuse: tester/proj/{COLLECTION}:v0")
    assert warning.endswith("; the missing steps are trained")
    assert not (tmp_path / "store" / "checkpoint-5").exists()


def test_a_checkpoint_of_another_trajectory_under_this_name_is_left(
    wandb_server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = checkpoint_files(tmp_path / "other", 5)["manifest.json"]
    foreign = manifest.replace(IDENTITY.fingerprint.encode(), b"ab" * 32)
    assert foreign != manifest
    publish(wandb_server, tmp_path, 5, manifest__json=foreign)
    assert fetched(tmp_path / "store", 5) == []
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("fault", [Fault("GET", 500), Fault("graphql", "html")], ids=str)
def test_a_failing_server_is_one_warning(
    fault: Fault,
    wandb_server: WandbServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(from_wandb, "_RETRY", from_wandb.RetryPolicy(attempts=2, pause=0.01))
    monkeypatch.setattr("emtoolkit.artifacts.retries._PAUSES", (0.01,))
    publish(wandb_server, tmp_path, 5)
    wandb_server.faults.add(fault)
    assert fetched(tmp_path / "store", 5) == []
    (warning,) = warnings(caplog)
    assert warning.endswith("; the missing steps are trained")


def test_a_download_that_does_not_end_is_given_up(
    wandb_server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(wandb_server, tmp_path, 5)
    wandb_server.faults.add(Fault("GET", "hang"))
    assert fetched(tmp_path / "store", 5, patience=0.3) == []
    assert warnings(caplog) == [
        f"trajectory.reuse: tester/proj/{COLLECTION}: 0 of 1 checkpoints had arrived after 0 s, which is too slow; "
        "the missing steps are trained"
    ]


def test_a_project_without_the_collection_is_no_warning(
    wandb_server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fetched(tmp_path / "store", 5) == []
    assert warnings(caplog) == []


def test_a_damaged_checkpoint_of_the_store_is_replaced(wandb_server: WandbServer, tmp_path: Path) -> None:
    publish(wandb_server, tmp_path, 5)
    store = tmp_path / "store"
    assert fetched(store, 5) == [5]
    weights = store / "checkpoint-5" / "adapter_model.safetensors"
    weights.write_bytes(bytes(200))
    assert fetched(store, 5) == [5]
    assert weights.read_bytes() != bytes(200)
    assert gets(wandb_server)  # from W&B
