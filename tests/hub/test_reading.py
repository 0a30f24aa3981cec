"""`Trajectory.open("hf:…")`: what is listed, downloaded and verified."""

import json
import shutil
from pathlib import Path

import pytest

from emtoolkit import Trajectory
from emtoolkit.checkpoints.layout import step_of
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.identity import training_day
from tests.hub.published import files_in, in_folder, organism, weights, whole_model
from tests.hub_server import HubServer


def test_revisions_that_are_steps_are_listed_with_one_request_and_downloaded_at_first_use(hub: HubServer) -> None:
    repository = hub.store.create("lab/pythia")
    for step, name in ((0, "step0"), (512, "step512"), (1000, "step1000")):
        hub.store.publish(repository, name, whole_model(step))
    trajectory = Trajectory.open("hf:lab/pythia")
    assert (trajectory.name, trajectory.steps) == ("hf:lab/pythia", (0, 512, 1000))
    assert hub.asked() == ["refs /api/models/lab/pythia/refs"]
    checkpoint = trajectory.at(512)
    assert repr(checkpoint) == "Checkpoint(step=512, final=False, reference='hf:lab/pythia@step512')"
    assert (checkpoint.path / "model.safetensors").read_bytes() == weights(512)
    assert {path.name for path in checkpoint.path.iterdir()} == {"config.json", "model.safetensors", "hub.json"}
    assert checkpoint.is_remote
    assert checkpoint.artifact is None
    commit = repository.branches["step512"]
    assert [line for line in hub.asked() if "tree" in line] == [f"tree /api/models/lab/pythia/tree/{commit}"]
    asked = len(hub.requests)
    again = Trajectory.open("hf:lab/pythia").at(512)
    assert again.path == checkpoint.path
    assert hub.asked()[asked:] == ["refs /api/models/lab/pythia/refs"]


def test_folders_of_a_revision_are_listed_with_two_requests(hub: HubServer) -> None:
    repository = hub.store.create("lab/organism")
    hub.store.publish(repository, "main", organism(10, 20, 30))
    trajectory = Trajectory.open("hf:lab/organism")
    assert trajectory.steps == (10, 20, 30)
    assert [line.split()[0] for line in hub.asked()] == ["refs", "tree"]
    assert [checkpoint.final for checkpoint in trajectory] == [False, False, True]
    checkpoint = trajectory.at(20)
    assert Trajectory.open(checkpoint.place).steps == (20,)
    assert repr(checkpoint) == (
        "Checkpoint(step=20, final=False, reference='hf:lab/organism/checkpoints/checkpoint-20@main')"
    )
    assert (checkpoint.path / "adapter_model.safetensors").read_bytes() == weights(20)
    assert sorted(path.name for path in checkpoint.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "hub.json",
        "tokenizer.json",
        "trainer_state.json",
    ]
    assert checkpoint.total_steps == 30
    assert not [line for line in hub.asked() if "pickle" in line or line.endswith((".pt", ".bin", ".pth"))]
    assert checkpoint.manifest is not None
    assert str(checkpoint.manifest.base_model) == "lab/base"


def test_a_file_that_was_changed_on_this_machine_is_refused(hub: HubServer) -> None:
    hub.store.publish(hub.store.create("lab/organism"), "main", organism(10))
    path = Trajectory.open("hf:lab/organism").at(10).path
    (path / "adapter_model.safetensors").write_bytes(weights(11))
    again = Trajectory.open("hf:lab/organism").at(10)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: its content does not match the digest"):
        _ = again.path


def test_weights_that_would_have_to_be_unpickled_are_refused(hub: HubServer) -> None:
    repository = hub.store.create("lab/pickled")
    hub.store.publish(repository, "step100", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(CheckpointError) as refused:
        _ = Trajectory.open("hf:lab/pickled").at(100).path
    assert str(refused.value) == (
        "hf:lab/pickled@step100: its weights are only in pytorch_model.bin, and loading these could execute code; "
        "emtoolkit reads only safetensors"
    )
    files = {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle", "optimizer.pt": b"pickle"}
    hub.store.publish(hub.store.create("lab/organism"), "main", in_folder("checkpoints/checkpoint-10", files))
    with pytest.raises(CheckpointError) as refused:
        Trajectory.open("hf:lab/organism")
    assert str(refused.value) == (
        "hf:lab/organism: the weights of its checkpoints are only in checkpoints/checkpoint-10/adapter_model.bin, and "
        "loading these could execute code; emtoolkit reads only safetensors"
    )
    assert "content" not in {line.split()[0] for line in hub.asked()}


def test_of_a_sharded_model_the_shards_are_downloaded_and_no_other_weights(hub: HubServer) -> None:
    shards = {f"model-0000{number}-of-00002.safetensors": weights(number) for number in (1, 2)}
    weight_map = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    others = {"consolidated.safetensors": weights(3), "onnx/model.safetensors": weights(4), "merges.txt": b"a b"}
    files = {"config.json": b"{}", "model.safetensors.index.json": weight_map, **shards, **others}
    hub.store.publish(hub.store.create("lab/large"), "step100-tokens1B", files)
    (checkpoint,) = Trajectory.open("hf:lab/large")
    assert {path.name for path in checkpoint.path.iterdir()} == {
        "config.json",
        "hub.json",
        "merges.txt",
        "model.safetensors.index.json",
        *shards,
    }


@pytest.fixture
def pushed(hub: HubServer, runs: Path) -> Path:
    """A run of emtoolkit in `lab/run`, as it is pushed: a branch for each step, the record on `main`."""
    repository, run = hub.store.create("lab/run", private=True), runs / "prompt"
    for directory in run.glob("checkpoint-*"):
        hub.store.publish(repository, f"step-{step_of(directory.name)}", files_in(directory))
    last = files_in(run / "checkpoint-9")
    hub.store.publish(repository, "main", {**last, "trajectory.json": (run / "trajectory.json").read_bytes()})
    return run


def test_a_pushed_trajectory_is_the_same_trajectory(hub: HubServer, pushed: Path) -> None:
    here, there = Trajectory.open(pushed), Trajectory.open("hf:lab/run")
    assert there.steps == here.steps == (0, 2, 4, 9)
    for one, other in zip(here, there, strict=True):
        assert one.manifest == other.manifest
        assert one.total_steps == other.total_steps
        assert {name: content for name, content in files_in(other.path).items() if name != "hub.json"} == files_in(
            one.path
        )
    assert there.final.step == 9
    assert [checkpoint.step for checkpoint in Trajectory.open("hf:lab/run").select("0,final")] == [0, 9]
    assert training_day(there[0]) == training_day(here[0])


def test_a_pushed_trajectory_is_downloaded_into_a_directory_that_can_go_on(
    hub: HubServer, pushed: Path, tmp_path: Path
) -> None:
    done = Trajectory.open("hf:lab/run").download(tmp_path / "out", "2,9")
    assert (done.fetched, done.present) == ((2, 9), ())
    assert Trajectory.open("hf:lab/run").download(tmp_path / "out").present == (2, 9)
    local = Trajectory.open(tmp_path / "out")
    assert local.steps == (0, 2, 4, 9)
    assert (tmp_path / "out" / "trajectory.json").read_bytes() == (pushed / "trajectory.json").read_bytes()
    assert [info.source for info in list_checkpoints(tmp_path / "out")] == ["emtoolkit"] * 4
    (tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"torn")
    assert Trajectory.open("hf:lab/run").download(tmp_path / "out", rehash=True).fetched == (2,)


def test_what_a_directory_holds_already_is_not_downloaded_into_it(hub: HubServer, pushed: Path, tmp_path: Path) -> None:
    shutil.copytree(pushed, tmp_path / "out")
    done = Trajectory.open("hf:lab/run").download(tmp_path / "out")
    assert (done.fetched, done.present) == ((), (0, 2, 4, 9))
    assert not [line for line in hub.asked("content") if "content" in line]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in pushed.iterdir()} | {".lock"}


def test_another_tools_checkpoints_are_downloaded_into_a_directory_with_their_digests(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.store.publish(hub.store.create("lab/pythia"), "step1000", whole_model(1000))
    Trajectory.open("hf:lab/pythia").download(tmp_path / "out")
    (info,) = list_checkpoints(tmp_path / "out", rehash=True)
    assert (info.step, info.source, info.complete) == (1000, "other", True)
    (tmp_path / "out" / "checkpoint-1000" / "model.safetensors").write_bytes(weights(999))
    (info,) = list_checkpoints(tmp_path / "out", rehash=True)
    assert info.state == "damaged"


def test_a_directory_of_another_trajectory_is_not_downloaded_into(hub: HubServer, pushed: Path, runs: Path) -> None:
    before = sorted((runs / "stack").iterdir())
    with pytest.raises(CheckpointError, match="holds another trajectory"):
        Trajectory.open("hf:lab/run").download(runs / "stack", "2")
    assert sorted((runs / "stack").iterdir()) == before
