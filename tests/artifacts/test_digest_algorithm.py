"""MD5 and XXH128: which one a collection gets, that it keeps it, and that both are verified."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import wandb

from emtoolkit import Trajectory
from emtoolkit.artifacts.digest_algorithm import Algorithm, new_artifact
from emtoolkit.artifacts.publication import CheckedArtifact, DamagedError, Publication
from emtoolkit.artifacts.sync import sync
from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from emtoolkit.checkpoints.manifest import MANIFEST, TrajectorySeal
from emtoolkit.checkpoints.remote import RefusedError
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.digests import FileDigest
from tests.artifacts.stored import IDENTITY, TOTAL_STEPS, checkpoint_files, store_version
from tests.artifacts.trainings import SHARED, on_wandb, publish, saved
from tests.saving.trainings import bytes_of
from tests.wandb_log import artifacts
from tests.wandb_server import FEATURES, XXH128, Fault, WandbServer
from tests.wandb_server.blobs import hex_of
from tests.wandb_server.client import end_client

ANNOUNCED, ENABLED = XXH128


@pytest.fixture(autouse=True)
def _new_client(server: WandbServer) -> Iterator[None]:
    """The client asks for the server's features once."""
    announce(server, XXH128)
    yield
    announce(server, ())


def announce(server: WandbServer, more: Collection[str]) -> None:
    server.context = replace(server.context, features=(*FEATURES, *more))
    end_client(within=5)


def kinds(server: WandbServer, collection: str = SHARED) -> list[str]:
    """The kind of digest of each version."""
    versions = server.store.project("tester", "proj").collections[collection].versions
    return [version.digest_algorithm.removeprefix("MANIFEST_") for version in versions]


def asked(server: WandbServer, operation: str) -> int:
    return sum(request.operation == operation for request in server.requests)


def test_a_new_collection_gets_xxh128_and_is_synced_listed_and_downloaded(server: WandbServer, tmp_path: Path) -> None:
    directory = saved(tmp_path / "a", dict.fromkeys([0, 2, 4], "a"))
    assert publish(directory, "run-a") == {}
    assert kinds(server) == ["XXH128"] * 3
    assert asked(server, "DigestAlgorithm") == 1
    for checkpoint in Trajectory.open(f"proj/{SHARED}", cache=tmp_path / "cache"):
        assert bytes_of(checkpoint.path) == bytes_of(directory / f"checkpoint-{checkpoint.step}")
    (directory / "publications.jsonl").unlink()
    again = saved(tmp_path / "b", dict.fromkeys([0, 2, 4, 6], "a"))
    assert publish(again, "run-b") == {}
    assert kinds(server) == ["XXH128"] * 4
    assert on_wandb(server) == {SHARED: [0, 2, 4, 6]}
    assert sync(again).published == ()


@pytest.mark.parametrize("features", [(), (ANNOUNCED,)], ids=["not announced", "not enabled"])
def test_a_server_without_xxh128_gets_md5(features: Collection[str], server: WandbServer, tmp_path: Path) -> None:
    announce(server, features)
    assert publish(saved(tmp_path / "a", {0: "a", 2: "a"}), "run-a") == {}
    assert kinds(server) == ["MD5", "MD5"]
    assert asked(server, "DigestAlgorithm") == len(features)


def test_a_collection_with_md5_keeps_md5_and_one_of_its_own_gets_xxh128(server: WandbServer, tmp_path: Path) -> None:
    announce(server, ())
    assert publish(saved(tmp_path / "a", {0: "a", 2: "a"}), "run-a") == {}
    announce(server, XXH128)
    assert publish(saved(tmp_path / "b", {0: "a", 2: "a", 4: "a"}), "run-b") == {}
    assert publish(saved(tmp_path / "c", {0: "a", 2: "c"}), "run-c") == {}
    assert (kinds(server), kinds(server, f"{SHARED}-run-c")) == (["MD5"] * 3, ["XXH128"] * 2)
    assert on_wandb(server) == {SHARED: [0, 2, 4], f"{SHARED}-run-c": [0, 2]}


@pytest.mark.parametrize("held", ["MD5", "XXH128"])
def test_an_equal_checkpoint_of_the_other_kind_is_the_same_and_gets_no_second_version(
    held: str, server: WandbServer, tmp_path: Path
) -> None:
    """As another client of W&B may log it into the collection."""
    first = saved(tmp_path / "a", {0: "a"})
    announce(server, () if held == "XXH128" else XXH128)
    assert publish(first, "run-a") == {}
    announce(server, XXH128)
    foreign = new_artifact(SHARED, {"step": 2}, "XXH128" if held == "XXH128" else "MD5")
    for name in checkpoint_files(tmp_path / "foreign", 2, training="a"):
        foreign.add_file(str(tmp_path / "foreign" / name), name=name)
    run = wandb.init(project="proj", id="foreign", dir=tmp_path, settings=wandb.Settings(silent=True))
    logged = run.log_artifact(foreign, aliases=["step-2"]).wait()
    run.finish()
    version = server.store.project("tester", "proj").collections[SHARED].versions[-1]
    assert version.digest == logged.digest
    before = kinds(server)

    both = saved(tmp_path / "b", {0: "a", 2: "a"})
    assert publish(both, "run-b") == {}
    assert kinds(server) == before
    assert on_wandb(server) == {SHARED: [0, 2]}
    assert sync(both).published == ()


@pytest.mark.parametrize("training", ["a", "other"])
def test_an_old_version_of_the_other_kind_is_another_training_only_with_other_files(
    training: str, server: WandbServer, tmp_path: Path
) -> None:
    directory = saved(tmp_path / "a", {0: "a", 2: "a"})
    assert publish(directory, "run-a", only=[0]) == {}
    assert publish(directory, "run-b", only=[2]) == {}
    files = checkpoint_files(tmp_path / "old", 2, training=training)
    metadata = {"step": 2, "fingerprint": IDENTITY.fingerprint}
    older = store_version(server, files, [], metadata, collection=SHARED)
    older.created_by = server.store.project("tester", "proj").runs["run-a"]
    assert kinds(server) == ["XXH128", "XXH128", "MD5"]
    opened = partial(Trajectory.open, f"proj/{SHARED}", cache=tmp_path / "cache")
    if training == "a":
        assert opened().steps == (0, 2)
    else:
        with pytest.raises(CheckpointError, match=r"mixes several trainings: .* \(v2 and v1\)"):
            opened()


def test_a_file_that_differs_from_its_xxh128_is_refused(server: WandbServer, tmp_path: Path) -> None:
    assert publish(saved(tmp_path / "a", {0: "a"}), "run-a") == {}
    (version,) = server.store.project("tester", "proj").collections[SHARED].versions
    blob = server.context.transfers.blobs.get(hex_of(version.contents["adapter_model.safetensors"]["digest"]))
    assert blob is not None
    blob.path.write_bytes(bytes(blob.size))
    (checkpoint,) = Trajectory.open(f"proj/{SHARED}", cache=tmp_path / "cache")
    with pytest.raises(RefusedError, match="does not match the digest declared by W&B"):
        _ = checkpoint.path


@pytest.mark.parametrize("algorithm", ["XXH128", "MD5"])
def test_a_checkpoint_of_this_process_is_compared_by_the_digests_of_the_client(
    algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = list[str]()
    is_of = FileDigest.is_of
    monkeypatch.setattr(FileDigest, "is_of", lambda self, path, *more: compared.append(path.name) or is_of(self, path))
    path = saved(tmp_path / "a", {0: "a"}) / "checkpoint-0"
    (path / MANIFEST).unlink()
    publication = Publication(0, path, False, {}, TrajectorySeal(IDENTITY, TOTAL_STEPS).seal(path, 0))
    assert MANIFEST in CheckedArtifact.of(publication, "name", algorithm).names
    assert sorted(compared) == ([] if algorithm == "XXH128" else [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
    (path / ADAPTER_WEIGHTS).write_bytes(bytes((path / ADAPTER_WEIGHTS).stat().st_size))
    with pytest.raises(DamagedError, match=f"{ADAPTER_WEIGHTS}: its content does not match the digest in the manifest"):
        CheckedArtifact.of(publication, "name", algorithm)


def test_a_question_that_fails_is_asked_again(server: WandbServer, tmp_path: Path) -> None:
    server.faults.add(Fault(on="DigestAlgorithm", kind="half_answer", times=1))
    assert publish(saved(tmp_path / "a", {0: "a"}), "run-a") == {}
    assert kinds(server) == ["XXH128"]


def test_the_log_of_an_offline_run_has_md5(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server that it will be sent to is not known."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert publish(saved(tmp_path / "a", {0: "a"}), "run-a") == {}
    (run,) = (tmp_path / "a" / "wandb").glob("offline-run-*")
    # The client writes the end of its log when it ends.
    end_client(within=5)
    assert [artifact.digest_algorithm for artifact in artifacts(run)] == ["MANIFEST_MD5"]


def test_an_artifact_with_xxh128_prints_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert str(new_artifact("name", {}, "XXH128").digest_algorithm).endswith("XXH128")
    assert capsys.readouterr().err == ""
    wandb.termwarn("a warning")
    assert "a warning" in capsys.readouterr().err
