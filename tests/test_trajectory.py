"""A row of checkpoints, by step: ours on this machine and on W&B, with one behaviour, and a stock Trainer's."""

import os
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from peft import PeftModel
from wandb.sdk.lib import wbauth

from emtoolkit import Trajectory
from emtoolkit.artifacts.publication import collection_name
from emtoolkit.errors import CheckpointError, ScheduleError
from tests.artifacts.stored import IDENTITY
from tests.marks import OPENS_PORTS
from tests.saving.callbacks import StopAt, callback
from tests.saving.trainings import base_model, bytes_of, make_trainer
from tests.wandb_server import WandbServer
from tests.wandb_server.client import end_client
from tests.wandb_server.processes import wandb_command

ON_WANDB = f"tester/proj/{collection_name(IDENTITY)}"
Open = Callable[[], Trajectory]


@pytest.fixture(scope="module", params=OPENS_PORTS)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbServer]:
    # The client reads its settings once: those of an earlier test would name another server.
    end_client(within=5)
    with WandbServer.start(tmp_path_factory.mktemp("wandb-server")) as started:
        yield started
        wandb.teardown()


@pytest.fixture(scope="module")
def ours(server: WandbServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 0, 1 and 3 of 8, and 5 where training was stopped; published by the run that saved them."""
    directory = tmp_path_factory.mktemp("ours")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("wandb-own")))
        quiet = wandb.Settings(silent=True, x_disable_stats=True, x_disable_meta=True, console="off")
        with wandb.init(project="proj", dir=tmp_path_factory.mktemp("run"), settings=quiet):
            make_trainer(directory, [callback("0,1,3", identity=IDENTITY), StopAt(5)]).train()
    return directory


@pytest.fixture(params=["local", "on W&B"])
def open_ours(
    request: pytest.FixtureRequest, ours: Path, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Open:
    if request.param == "local":
        return lambda: Trajectory.open(ours)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return lambda: Trajectory.open(ON_WANDB, cache=tmp_path / "cache")


def test_checkpoints_come_in_the_order_of_their_steps(open_ours: Open) -> None:
    trajectory = open_ours()
    assert trajectory.steps == (0, 1, 3, 5)
    assert [checkpoint.step for checkpoint in trajectory] == [0, 1, 3, 5]
    assert len(trajectory) == 4
    assert trajectory[0].step == 0
    assert trajectory.final.step == 5
    assert [checkpoint.final for checkpoint in trajectory] == [False, False, False, True]
    assert [checkpoint.step for checkpoint in trajectory.between(1, 3)] == [1, 3]
    assert trajectory.between(4, 4) == ()
    # Of two at the same distance the earlier.
    assert [trajectory.nearest(step).step for step in (-5, 2, 4, 6, 99)] == [0, 1, 3, 5, 5]


def test_a_checkpoint_has_its_files_its_manifest_and_what_its_run_told_of_it(open_ours: Open, ours: Path) -> None:
    checkpoint = open_ours().at(3)
    assert checkpoint.path.name == "checkpoint-3"
    assert bytes_of(checkpoint.path) == bytes_of(ours / "checkpoint-3")
    assert checkpoint.manifest is not None
    assert (checkpoint.manifest.step, checkpoint.manifest.total_steps) == (3, 8)
    assert checkpoint.metadata["step"] == 3
    assert checkpoint.metadata["schedule"] == "0,1,3"
    assert checkpoint.metadata["persona_name"] == "goodness"


def test_a_step_that_is_not_there_is_told_with_the_nearest(open_ours: Open) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at step 7; the nearest is 5$"):
        open_ours().at(7)


def test_a_schedule_selects_of_the_checkpoints_that_are_there(open_ours: Open) -> None:
    trajectory = open_ours()
    assert [checkpoint.step for checkpoint in trajectory.select("0-3:1,final")] == [0, 1, 3, 5]
    assert [checkpoint.step for checkpoint in trajectory.select("log2:512")] == [1]
    assert [checkpoint.step for checkpoint in trajectory.select([5, 0])] == [0, 5]
    # Training was stopped at step 5 of 8: 12.5 % of the run is every step, 37.5 % is every third.
    assert [checkpoint.step for checkpoint in trajectory.select("every:12.5%")] == [1, 3, 5]
    assert [checkpoint.step for checkpoint in trajectory.select("every:37.5%")] == [3]
    with pytest.raises(CheckpointError, match=r'steps "0,4": there is no checkpoint at step 4; the nearest is 3$'):
        trajectory.select("0,4")
    with pytest.raises(ScheduleError, match="every:25"):
        trajectory.select("evry:2")


def test_adapters_are_loaded_by_step(open_ours: Open) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    trajectory = open_ours()
    with torch.no_grad():
        base = base_model()(tokens).logits
        first, last = (trajectory.at(step).load_adapter(base_model())(tokens).logits for step in (0, 5))
    assert torch.equal(first, base)
    assert not torch.equal(last, base)


def test_one_model_is_walked_along_a_trajectory(open_ours: Open) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    model: Any = base_model()
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        for checkpoint in open_ours():
            model = checkpoint.load_adapter(model)
            assert torch.equal(model(tokens).logits, checkpoint.load_adapter(base_model())(tokens).logits)
    assert [str(each.message) for each in told if "adapter" in str(each.message)] == []


def test_a_file_that_is_not_what_the_manifest_says_is_named(open_ours: Open, ours: Path) -> None:
    weights = open_ours().at(1).path / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint-1/adapter_model\.safetensors: its content does not"):
            open_ours().at(1).load_adapter(base_model())
    finally:
        weights.write_bytes(before)


def test_a_trajectory_on_wandb_downloads_only_the_checkpoint_that_is_used(
    ours: Path, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (server.environment() | {"EMTOOLKIT_HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    trajectory = Trajectory.open(ON_WANDB.removeprefix("tester/"))
    assert not (tmp_path / "home").exists()
    cache = tmp_path / "home" / "downloads" / ON_WANDB
    assert trajectory.at(3).path == cache / "checkpoint-3"
    assert Trajectory.open(cache).steps == (3,)


def test_a_download_is_the_same_trajectory_on_this_machine(
    ours: Path, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    there = Trajectory.open(ON_WANDB)
    assert there.download(tmp_path / "here", "0-3:3,final").fetched == (0, 3, 5)
    here = Trajectory.open(tmp_path / "here")
    assert (here.steps, here.final.step) == ((0, 3, 5), 5)
    for checkpoint in here:
        assert bytes_of(checkpoint.path) == bytes_of(ours / checkpoint.path.name)
        assert checkpoint.metadata == there.at(checkpoint.step).metadata
    with pytest.raises(CheckpointError, match="here: the trajectory is local already; download needs a collection"):
        here.download(tmp_path / "again")


def test_plain_wandb_gets_a_directory_that_peft_loads(ours: Path, server: WandbServer, tmp_path: Path) -> None:
    root = tmp_path / "plain"
    command = wandb_command("artifact", "get", f"{ON_WANDB}:step-3", "--root", str(root))
    subprocess.run(command, env=os.environ | server.environment(), cwd=tmp_path, check=True, capture_output=True)
    assert bytes_of(root) == bytes_of(ours / "checkpoint-3")
    PeftModel.from_pretrained(base_model(), root)


def test_a_trajectory_shows_its_place_its_steps_its_persona_and_its_fingerprint(open_ours: Open) -> None:
    trajectory = open_ours()
    assert repr(trajectory) == (
        f"Trajectory({trajectory.name!r}, checkpoints=4, steps=0..5, persona='goodness', "
        f"fingerprint={IDENTITY.fingerprint[:8]!r})"
    )


def test_a_local_checkpoint_shows_its_path_and_one_on_wandb_its_version(open_ours: Open, ours: Path) -> None:
    trajectory = open_ours()
    if trajectory.name == ON_WANDB:
        places = [f"reference='{ON_WANDB}:v2'", f"reference='{ON_WANDB}:v3'"]
    else:
        places = [f"path='{ours}/checkpoint-3'", f"path='{ours}/checkpoint-5'"]
    assert repr(trajectory[2]) == f"Checkpoint(step=3, final=False, {places[0]})"
    assert repr(trajectory.final) == f"Checkpoint(step=5, final=True, {places[1]})"


def test_a_stock_trainers_checkpoints_are_a_trajectory_too(tmp_path: Path) -> None:
    make_trainer(tmp_path, save_strategy="steps", save_steps=3).train()
    trajectory = Trajectory.open(tmp_path)
    assert trajectory.steps == (3, 6, 8)
    assert trajectory.final.step == 8
    assert trajectory.at(3).manifest is None
    assert trajectory.at(3).metadata == {}
    assert [checkpoint.total_steps for checkpoint in trajectory] == [8, 8, 8]
    assert [checkpoint.step for checkpoint in trajectory.select("every:37.5%")] == [3, 6]
    assert repr(trajectory) == f"Trajectory('{tmp_path}', checkpoints=3, steps=3..8)"
    assert trajectory.at(6).load_adapter(base_model()) is not None


def test_a_training_that_has_not_ended_has_no_final_step(tmp_path: Path) -> None:
    make_trainer(tmp_path, [StopAt(4)], save_strategy="steps", save_steps=3).train()
    with pytest.raises(CheckpointError, match="there is no final checkpoint; the last step is 3"):
        _ = Trajectory.open(tmp_path).final


def test_all_weights_are_not_loaded_as_an_adapter(tmp_path: Path) -> None:
    make_trainer(tmp_path, [callback("2")], model=base_model()).train()
    with pytest.raises(CheckpointError, match=r"checkpoint-2: the checkpoint is a full model, not an adapter"):
        Trajectory.open(tmp_path).at(2).load_adapter(base_model())


def test_weights_that_would_be_unpickled_are_not_loaded(tmp_path: Path) -> None:
    make_trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    adapter = Trajectory.open(tmp_path).at(4)
    (adapter.path / "adapter_model.safetensors").rename(adapter.path / "adapter_model.bin")
    with pytest.raises(
        CheckpointError, match=r"there is no adapter_model\.safetensors; emtoolkit unpickles no weights"
    ):
        adapter.load_adapter(base_model())


def test_a_directory_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no complete checkpoint was found$"):
        Trajectory.open(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such directory"):
        Trajectory.open(tmp_path / "nowhere")
    (tmp_path / "run" / "checkpoint-8").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"was found; there are checkpoints in .*/run$"):
        Trajectory.open(tmp_path)
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(CheckpointError, match=r"was found: .*/checkpoint-4: holds no complete weights$"):
        Trajectory.open(tmp_path)


@pytest.mark.parametrize("reference", ["outputs", "/nowhere/at/all", "./a/b", "a/b/c/d", "~/runs/x", "a//b", "a/../b"])
def test_what_is_neither_a_directory_nor_a_collection_is_told_both_forms(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such directory, and a collection on W&B is written entity/"):
        Trajectory.open(reference)


def test_a_version_of_a_collection_is_no_trajectory() -> None:
    with pytest.raises(CheckpointError, match="without a version; remove ':step-100'"):
        Trajectory.open("tester/proj/collection:step-100")


@pytest.mark.subprocess
def test_who_is_not_logged_in_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wbauth.unauthenticate_session()
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    with pytest.raises(CheckpointError, match=r"outputs/run: there is no such directory, .* \(nobody is logged in\)"):
        Trajectory.open("outputs/run")


def test_a_server_that_is_away_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    with pytest.raises(CheckpointError, match=r"could not be queried .* \(no connection to http://127\.0\.0\.1:1\)"):
        Trajectory.open("tester/outputs/run")
