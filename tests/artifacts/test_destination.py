"""Two trainings under one name on W&B: no alias moves to other bytes, by the live publisher and by sync alike."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from emtoolkit import Trajectory
from emtoolkit.artifacts.destination import Destination
from emtoolkit.artifacts.sync import sync
from emtoolkit.checkpoints.publications import Publications, WandbRun, add_collection, add_run
from emtoolkit.errors import CheckpointError
from tests.artifacts.stored import IDENTITY, checkpoint_files, store_version
from tests.artifacts.trainings import SHARED, on_wandb, publish, saved
from tests.saving.trainings import bytes_of
from tests.wandb_server import Fault, WandbServer
from tests.wandb_server.store import Artifact, Run


def publish_later(directory: Path, run_id: str) -> Mapping[int, str]:
    """Publish with `emtoolkit sync`, as of a run whose log W&B has."""
    (log := directory / "wandb" / f"run-{run_id}.wandb").parent.mkdir(exist_ok=True)
    log.touch()
    add_run(directory, WandbRun(run_id, "tester", "proj", log))
    WandbRun(run_id, "tester", "proj", log).mark_synced()
    return dict(enumerate(sync(directory).problems))


PUBLISH = pytest.mark.parametrize("publish", [publish, publish_later])
Publish = Callable[..., Mapping[int, str]]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.message
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("emtoolkit")
    ]


@PUBLISH
def test_a_training_with_other_bytes_gets_a_collection_of_its_own_and_says_so_once(
    publish: Publish, server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = saved(tmp_path / "a", dict.fromkeys([0, 2, 4, 6], "a"))
    other = saved(tmp_path / "b", {0: "a", 2: "a", 4: "b", 6: "b"})
    assert publish(first, "run-a") == {}
    assert publish(other, "run-b") == {}

    assert on_wandb(server) == {SHARED: [0, 2, 4, 6], f"{SHARED}-run-b": [0, 2, 4, 6]}
    for directory, collection in ((first, SHARED), (other, f"{SHARED}-run-b")):
        for checkpoint in Trajectory.open(f"proj/{collection}", cache=tmp_path / "cache" / collection):
            assert bytes_of(checkpoint.path) == bytes_of(directory / f"checkpoint-{checkpoint.step}")
    (told,) = warnings(caplog)
    assert told.startswith(
        f"step 4 differs from the checkpoint that another run published (tester/proj/{SHARED}:v2), so this is another "
        "training; all checkpoints in "
    )
    assert told.endswith(f" are published as {SHARED}-run-b")

    caplog.clear()
    assert publish(other, "run-c") == {}
    assert sync(other).problems == ()
    assert (sorted(on_wandb(server)), warnings(caplog)) == ([SHARED, f"{SHARED}-run-b"], [])


def test_steps_that_a_training_added_before_it_was_seen_to_differ_leave_the_shared_collection(
    server: WandbServer, tmp_path: Path
) -> None:
    first = saved(tmp_path / "a", dict.fromkeys([0, 6], "a"))
    other = saved(tmp_path / "b", {0: "a", 2: "b", 4: "b", 6: "b"})
    publish(first, "run-a")
    publish(other, "run-b", only=[0, 2, 4])
    assert on_wandb(server) == {SHARED: [0, 2, 4, 6]}
    # A second process of the training, as after a kill.
    publish(other, "run-c", only=[6])
    assert on_wandb(server) == {SHARED: [0, 6], f"{SHARED}-run-c": [0, 2, 4, 6]}
    assert Trajectory.open(f"proj/{SHARED}").steps == (0, 6)


@PUBLISH
def test_trainings_with_the_same_bytes_share_a_collection(
    publish: Publish, server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(saved(tmp_path / "a", dict.fromkeys([0, 4], "a")), "run-a")
    publish(saved(tmp_path / "b", dict.fromkeys([0, 2, 4], "a")), "run-b")
    assert (on_wandb(server), warnings(caplog)) == ({SHARED: [0, 2, 4]}, [])
    assert Trajectory.open(f"proj/{SHARED}").steps == (0, 2, 4)


@PUBLISH
def test_a_training_that_ended_earlier_does_not_take_the_end_of_the_longer_one(
    publish: Publish, server: WandbServer, tmp_path: Path
) -> None:
    publish(saved(tmp_path / "a", dict.fromkeys([0, 2, 4], "a"), ended_at=4), "run-a")
    short = saved(tmp_path / "b", dict.fromkeys([0, 2], "a"), ended_at=2)
    publish(short, "run-b")
    assert Trajectory.open(f"proj/{SHARED}").final.step == 4
    assert sync(short).published == ()


def test_a_damaged_version_on_wandb_is_replaced_by_the_checkpoint_that_fits_its_manifest(
    server: WandbServer, tmp_path: Path
) -> None:
    directory = saved(tmp_path / "a", {0: "a"})
    files = bytes_of(directory / "checkpoint-0")
    flipped = files | {"adapter_model.safetensors": b"x" * 200}
    store_version(server, flipped, ["step-0"], {"step": 0}, collection=SHARED)
    assert sync(directory, project="proj").published == (0,)
    assert on_wandb(server) == {SHARED: [0]}
    (checkpoint,) = Trajectory.open(f"proj/{SHARED}", cache=tmp_path / "cache")
    assert bytes_of(checkpoint.path) == files


def test_a_version_with_more_files_than_the_manifest_lists_is_the_same_checkpoint(
    server: WandbServer, tmp_path: Path
) -> None:
    """Older versions of emtoolkit published every file in the directory."""
    directory = saved(tmp_path / "a", {0: "a"})
    files = bytes_of(directory / "checkpoint-0") | {"notes.txt": b"x"}
    store_version(server, files, ["step-0"], {"step": 0}, collection=SHARED)
    done = sync(directory, project="proj")
    assert (done.on_wandb, done.published, done.problems) == ((0,), (), ())


def test_other_bytes_in_the_directorys_own_collection_stay_and_are_a_problem(
    server: WandbServer, tmp_path: Path
) -> None:
    directory = saved(tmp_path / "a", {0: "a", 2: "a"})
    add_collection(directory, f"{SHARED}-run-a", [], own=True)
    theirs = bytes_of(saved(tmp_path / "b", {2: "b"}) / "checkpoint-2")
    store_version(server, theirs, ["step-2"], {"step": 2}, collection=f"{SHARED}-run-a")
    done = sync(directory, project="proj")
    (problem,) = done.problems
    assert "step 2 differs" in problem
    assert "the directory has a collection of its own already; publish it to another project" in problem
    assert done.published == (0,)
    assert list(publish(directory, "run-a")) == [2]
    assert on_wandb(server) == {f"{SHARED}-run-a": [0, 2]}


@PUBLISH
@pytest.mark.parametrize(("shared", "stays"), [([0], False), ([0, 2], True)], ids=["at step 0", "at a trained step"])
def test_a_training_on_a_gpu_adds_steps_to_another_runs_collection_only_after_a_trained_step_was_equal(
    publish: Publish, shared: list[int], stays: bool, server: WandbServer, tmp_path: Path
) -> None:
    """Disjoint steps of two trainings look like one, if nothing compares them."""
    publish(saved(tmp_path / "a", dict.fromkeys([*shared, 6], "a"), on_cpu=False), "run-a")
    other = saved(tmp_path / "b", dict.fromkeys(shared, "a") | {4: "b", 8: "b"}, on_cpu=False)
    publish(other, "run-b")
    both, apart = [[*shared, 4, 6, 8]], [[*shared, 6], [*shared, 4, 8]]
    assert list(on_wandb(server).values()) == (both if stays else apart)


# ---- what a reader refuses


def stored(server: WandbServer, scratch: Path, step: int, training: str, run: str, *aliases: str, **about: Any) -> None:
    """One version of the shared collection, as an older emtoolkit or a plain `wandb sync` left it."""
    store, files = server.store, checkpoint_files(scratch / f"{training}{step}", step, training=training)
    metadata = {"step": step, "fingerprint": IDENTITY.fingerprint} | about
    artifact: Artifact = store_version(server, files, aliases, metadata, collection=SHARED)
    project = store.open_project(server.entity, "proj")
    if run not in project.runs:
        project.runs[run] = store.keep(Run(store.new_id("Run"), run, project, run))
    artifact.created_by = project.runs[run]


def test_a_mixture_of_two_runs_is_refused_with_the_steps_of_each(server: WandbServer, tmp_path: Path) -> None:
    for step in (0, 2, 4, 6):
        stored(server, tmp_path, step, "a", "aaaa", *([] if step == 4 else [f"step-{step}"]))
    for step in (4, 8):
        stored(server, tmp_path, step, "b", "bbbb", f"step-{step}")
    with pytest.raises(CheckpointError) as refused:
        Trajectory.open(f"proj/{SHARED}")
    assert str(refused.value) == (
        f"tester/proj/{SHARED}: mixes several trainings: run aaaa published steps 0, 2, 6; run bbbb published steps "
        "4, 8; step 4 exists with different bytes (v2 and v4). 'emtoolkit sync DIR --project NAME' publishes each "
        "run's directory to a clean project"
    )


def test_versions_without_an_alias_do_no_harm(server: WandbServer, tmp_path: Path) -> None:
    """A run that gave up, whose aliases all belong to the run that was repeated; and a step that nobody else has."""
    for step in (2, 4):
        stored(server, tmp_path, step, "a", "aaaa")
    stored(server, tmp_path, 3, "b", "bbbb")
    for step in (2, 4):
        stored(server, tmp_path, step, "b", "bbbb", f"step-{step}")
    assert Trajectory.open(f"proj/{SHARED}").steps == (2, 4)


def test_an_alias_that_was_moved_by_hand_to_another_step_is_refused(server: WandbServer, tmp_path: Path) -> None:
    stored(server, tmp_path, 2, "a", "aaaa")
    stored(server, tmp_path, 4, "a", "aaaa", "step-2", "step-4")
    with pytest.raises(CheckpointError, match=r":v1: the version has the alias step-2 and was saved as step 4; move"):
        Trajectory.open(f"proj/{SHARED}")


def test_two_trajectories_under_one_name_are_refused_before_a_download(server: WandbServer, tmp_path: Path) -> None:
    stored(server, tmp_path, 2, "a", "aaaa", "step-2")
    stored(server, tmp_path, 4, "a", "aaaa", "step-4", fingerprint="f" * 64)
    ours = IDENTITY.fingerprint[:8]
    with pytest.raises(CheckpointError, match=f"mixes several trajectories: steps 2 belong to {ours}; steps 4 belong"):
        Trajectory.open(f"proj/{SHARED}")


@pytest.mark.parametrize("refused", [False, True])
def test_of_two_equal_versions_made_at_once_the_older_stays(
    refused: bool,
    server: WandbServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = saved(tmp_path / "a", dict.fromkeys([0, 2, 4], "a"))
    older = store_version(server, checkpoint_files(tmp_path / "other", 2, training="a"), [], collection=SHARED)
    remove = Destination.remove_duplicates

    def remove_after_another(self: Destination, run: Any) -> None:
        """Another publisher began the older version at the same time, so W&B could not see that both are equal."""
        collection = server.store.project("tester", "proj").collections[SHARED]
        older.digest = next(member for member in collection.members if "step-2" in member.aliases).artifact.digest
        remove(self, run)

    monkeypatch.setattr(Destination, "remove_duplicates", remove_after_another)
    if refused:
        server.faults.add(Fault("DeleteArtifact", 403))
    assert publish(directory, "run-a") == {}
    told = [warning for warning in warnings(caplog) if "could not be made one" in warning]
    assert len(told) == refused
    if not refused:
        assert on_wandb(server) == {SHARED: [0, 2, 4]}
        assert len(server.store.project("tester", "proj").collections[SHARED].versions) == 3
        assert Publications.read(directory).published[2].artifact == f"tester/proj/{SHARED}:v0"
