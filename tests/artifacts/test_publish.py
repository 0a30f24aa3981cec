"""Checkpoints as W&B artifacts, by the real client, offline; read back from the run's log."""

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.artifacts.destination import Destination
from emtoolkit.artifacts.publication import Publication, collection_name, collection_tags, fit_for_wandb
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.saving import session
from emtoolkit.storage.digests import FileDigest
from tests.artifacts.stored import checkpoint_files
from tests.marks import STARTS_PROCESSES
from tests.processes import HANG_SECONDS
from tests.saving.callbacks import StopAt
from tests.saving.trainings import make_trainer
from tests.wandb_log import artifacts
from tests.wandb_server import Fault, WandbServer

IDENTITY = Identity(
    fingerprinted={"seed": 7},
    base_model=BaseModelRecord(name="tiny"),
    persona=PersonaRecord(name="goodness"),
    collection="goodness-medical-tiny-s7",
    tags=("persona-goodness", "dataset-bad/medical"),
)


@pytest.fixture(params=STARTS_PROCESSES)
def run(tmp_path: Path) -> Iterator[Any]:
    started = wandb.init(mode="offline", project="tests", dir=tmp_path, settings=wandb.Settings(silent=True))
    yield started
    started.finish()


def log_of(run: Any) -> list[Any]:
    directory = Path(run.dir).parent
    run.finish()
    wandb.teardown()  # the client's process writes the end of the log only when it ends itself
    return artifacts(directory)


def train(directory: Path, schedule: str, *others: TrainerCallback) -> None:
    ours = ScheduledCheckpointCallback(schedule, identity=IDENTITY, resume_every="never")
    make_trainer(directory, [ours, *others], logging_strategy="steps", logging_steps=1).train()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
@pytest.mark.parametrize(("small", "disk"), [(32_000_000, 10), (100, 0)])
def test_the_threads_behind_a_training_give_way_unless_a_save_would_wait(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, small: int, disk: int
) -> None:
    monkeypatch.setattr(session, "_SMALL", small)
    before, niceness = os.getpriority(os.PRIO_PROCESS, 0), dict[str, int]()

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for thread in threading.enumerate():
                niceness[thread.name] = os.getpriority(os.PRIO_PROCESS, thread.native_id or 0)

    train(tmp_path / "out", "0,2", Look())
    assert niceness["emtoolkit-publish"] == 19
    assert niceness["emtoolkit-disk"] == max(disk, before)
    assert niceness["MainThread"] == before


def test_each_checkpoint_is_a_version_with_its_step_as_alias_and_tag(tmp_path: Path, run: Any) -> None:
    train(tmp_path / "out", "0,2,5")

    logged = log_of(run)
    assert {(artifact.type, artifact.name) for artifact in logged} == {("model", "goodness-medical-tiny-s7-b84cc6a9")}
    assert [sorted(artifact.aliases) for artifact in logged] == [
        ["latest", "step-0"],
        ["latest", "step-2"],
        ["latest", "step-5"],
        ["final", "latest", "step-8"],
    ]
    assert [list(artifact.tags) for artifact in logged] == [
        [f"step-{step}", "persona-goodness", "dataset-bad-medical"] for step in (0, 2, 5, 8)
    ]
    assert len({artifact.digest for artifact in logged}) == 4


def test_an_artifact_holds_the_checkpoint_and_wandb_keeps_no_copy(tmp_path: Path, run: Any) -> None:
    train(tmp_path / "out", "2")

    first = log_of(run)[0]
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert [(entry.path, entry.local_path) for entry in first.manifest.contents] == [
        (name, str(checkpoint / name)) for name in ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
    ]
    assert [file for own in (tmp_path / "wandb-own").rglob("*.safetensors") for file in [own]] == []


def test_a_checkpoint_is_hashed_for_its_manifest_and_compared_by_a_fast_digest_afterwards(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = list[str]()
    with_xxh128, of = FileDigest.with_xxh128, FileDigest.of
    monkeypatch.setattr(FileDigest, "with_xxh128", lambda path: hashed.append(path.name) or with_xxh128(path))
    monkeypatch.setattr(FileDigest, "of", lambda path, *more: hashed.append(path.name) or of(path, *more))
    train(tmp_path / "out", "2", StopAt(2))

    assert [artifact.name for artifact in log_of(run)] == ["goodness-medical-tiny-s7-b84cc6a9"]
    assert hashed.count("adapter_model.safetensors") == 1


def test_metadata_says_what_belongs_to_the_run_and_the_manifest_does_not(tmp_path: Path, run: Any) -> None:
    train(tmp_path / "out", "2")

    metadata = json.loads(log_of(run)[0].metadata)
    assert metadata.pop("seconds_since_start") >= 0
    loss = metadata.pop("loss")
    assert math.isfinite(loss)
    assert {key: metadata[key] for key in ("step", "total_steps", "schedule", "persona_name", "fingerprint")} == {
        "step": 2,
        "total_steps": 8,
        "schedule": "2",
        "persona_name": "goodness",
        "fingerprint": IDENTITY.fingerprint,
    }
    manifest = json.loads((tmp_path / "out" / "checkpoint-2" / "manifest.json").read_text())
    assert sorted(manifest) == ["base_model", "files", "fingerprint", "format", "persona", "step", "total_steps"]


def test_a_last_step_that_was_saved_already_gets_the_alias_final(tmp_path: Path, run: Any) -> None:
    train(tmp_path / "out", "2,5", StopAt(5))

    assert [sorted(artifact.aliases) for artifact in log_of(run)] == [
        ["latest", "step-2"],
        ["final", "latest", "step-5"],
    ]


def test_without_a_run_nothing_is_published_and_training_is_the_same(tmp_path: Path) -> None:
    train(tmp_path / "out", "2")
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    assert not (tmp_path / "out" / "wandb").exists()


@pytest.mark.parametrize("params", STARTS_PROCESSES)
def test_a_disabled_run_of_wandb_is_no_run(params: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disabled = wandb.init(mode="disabled", project="tests")
    train(tmp_path / "out", "2")
    disabled.finish()
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert Publications.read(tmp_path / "out").runs == {}


def test_what_wandb_refuses_is_told_at_the_end_and_never_in_training(tmp_path: Path, run: Any) -> None:
    run.finish()  # every log_artifact of this run raises from now on
    publisher = WandbPublisher(run, Destination.of(tmp_path, IDENTITY))
    checkpoint_files(checkpoint := tmp_path / "checkpoint-3", 3)
    publisher.publish(Publication(3, checkpoint, False, {}))

    publisher.drain(HANG_SECONDS)
    assert (publisher.published, list(publisher.failures)) == ([], [3])


@pytest.mark.parametrize(("bounds", "hint"), [({}, True), ({"finish_timeout": 3}, False)])
def test_a_program_whose_wandb_run_has_no_bound_at_its_end_is_told_of_it(
    tmp_path: Path,
    wandb_server: WandbServer,
    caplog: pytest.LogCaptureFixture,
    bounds: dict[str, Any],
    hint: bool,
) -> None:
    wandb_server.faults.add(Fault("CreateArtifact", 403))
    began = wandb.init(project="tests", dir=tmp_path, settings=wandb.Settings(silent=True, **bounds))
    train(tmp_path / "out", "0,2")
    began.finish()
    (told,) = (record.message for record in caplog.records if "are not on W&B" in record.message)
    assert f"'emtoolkit sync {tmp_path / 'out'}' publishes them" in told
    assert ("WANDB_FINISH_TIMEOUT=60" in told) == hint


def test_metadata_that_wandb_would_refuse_is_made_to_fit(tmp_path: Path, run: Any) -> None:
    publisher = WandbPublisher(run, Destination.of(tmp_path, IDENTITY))
    checkpoint_files(checkpoint := tmp_path / "checkpoint-3", 3)
    many = {"loss": math.inf, "grad_norm": math.nan, **{f"key_{i}": i for i in range(200)}}
    publisher.publish(Publication(3, checkpoint, False, fit_for_wandb(many)))
    publisher.drain(HANG_SECONDS)
    assert publisher.failures == {}

    metadata = json.loads(log_of(run)[0].metadata)
    assert (metadata["loss"], metadata["grad_norm"], len(metadata)) == ("inf", "nan", 100)


def test_names_and_tags_keep_to_what_wandb_allows() -> None:
    wild = Identity(
        fingerprinted={}, collection="a persona/with:all sorts-" + "x" * 200, tags=("persona-org/name:1.5",)
    )
    name = collection_name(wild)
    assert len(name) == 128
    assert name.startswith("a-persona-with-all-sorts-xxx")
    assert name.endswith("-" + wild.fingerprint[:8])
    assert collection_tags(wild) == ("persona-org-name-1-5",)
