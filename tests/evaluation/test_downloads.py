"""The next checkpoint is downloaded while one is used, and a download that fails is told as any other."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emtoolkit import Trajectory
from emtoolkit.artifacts import collection_trajectory
from emtoolkit.artifacts.file_transfer import RetryPolicy, TransferError
from emtoolkit.checkpoints import manifest
from emtoolkit.config.sections import ModelConfig
from emtoolkit.evaluation.downloads import downloading_ahead
from emtoolkit.evaluation.measures import measure_checkpoints
from emtoolkit.evaluation.store import Store
from emtoolkit.storage.digests import FileDigest
from tests.artifacts.stored import REFERENCE, gets, store_steps
from tests.wandb_server import WandbServer
from tests.wandb_server.faults import Fault

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def trajectory(wandb_server: WandbServer, tmp_path: Path) -> Trajectory:
    store_steps(wandb_server, tmp_path / "stored", [1, 2, 3, 4])
    trajectory = Trajectory.open(REFERENCE, cache=tmp_path / "cache")
    wandb_server.clear_requests()
    return trajectory


def weights_asked_for(server: WandbServer) -> int:
    return gets(server).count(WEIGHTS)


def test_the_next_checkpoint_arrives_while_one_is_used_and_no_more_than_that(
    wandb_server: WandbServer, trajectory: Trajectory
) -> None:
    seen = []
    with downloading_ahead(trajectory) as in_order:
        for checkpoint in in_order:
            seen.append(checkpoint.step)
            expected = min(len(seen) + 1, 4)
            wandb_server.wait_for_requests(expected, lambda request: request.path.endswith(WEIGHTS))
            assert weights_asked_for(wandb_server) == expected
    assert seen == [1, 2, 3, 4]
    assert all(checkpoint.path.is_dir() for checkpoint in trajectory)
    assert weights_asked_for(wandb_server) == 4


def test_measures_need_no_answers_and_each_reads_its_checkpoint_while_the_next_one_arrives(
    wandb_server: WandbServer, trajectory: Trajectory, tmp_path: Path
) -> None:
    expected = []

    class Waiting:
        name, settings = "waiting", dict[str, Any]()

        def measure(self, loaded: Any, questions: Any) -> Any:
            expected.append(min(len(expected) + 2, 4))
            wandb_server.wait_for_requests(expected[-1], lambda request: request.path.endswith(WEIGHTS))
            assert weights_asked_for(wandb_server) == expected[-1]
            return {"m": {"q": 1.0}}

    class Loader:
        def load(self, checkpoint: Any) -> Any:
            assert checkpoint.path.is_dir()
            config = ModelConfig.model_validate({"base": "somewhere"})
            model = SimpleNamespace(eval=lambda: None)
            return SimpleNamespace(persona_override=None, tokenizer=None, config=config, model=model)

        describe = load

    loader: Any = Loader()
    rows = measure_checkpoints("t", list(trajectory), [Waiting()], [], Store(tmp_path, "measures"), loader=loader)
    assert expected == [2, 3, 4, 4]
    assert [row.step for row in rows] == [1, 2, 3, 4]


def test_a_download_that_failed_in_the_background_is_told_as_one_that_failed_in_the_foreground(
    wandb_server: WandbServer, trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_one = collection_trajectory.download_one
    impatient = RetryPolicy(attempts=2, pause=0)
    monkeypatch.setattr(
        collection_trajectory, "download_one", lambda *args, **more: download_one(*args, retry=impatient, **more)
    )
    # A checkpoint has three files.
    wandb_server.faults.add(Fault("GET", 500, after=3))
    seen: list[int] = []

    def use_all() -> None:
        with downloading_ahead(trajectory) as in_order:
            seen.extend(checkpoint.step for checkpoint in in_order)

    with pytest.raises(
        TransferError, match=r"the download failed 2 times \(HTTP 500\); run the same command"
    ) as behind:
        use_all()
    assert seen == [1]
    with pytest.raises(TransferError) as before:
        _ = trajectory.at(2).path
    assert str(before.value) == str(behind.value)
    wandb_server.faults.clear()
    assert trajectory.at(2).path.is_dir()


def test_leaving_ends_the_download_in_the_background_and_a_later_one_continues(
    wandb_server: WandbServer, trajectory: Trajectory, tmp_path: Path
) -> None:
    def interrupted() -> None:
        with downloading_ahead(trajectory) as in_order:
            next(in_order)
            wandb_server.faults.add(Fault("GET", 503))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # The pause between two attempts ends at once, so that nothing runs on.
    assert not [thread.name for thread in threading.enumerate() if thread.name == "emtoolkit-download"]
    wandb_server.faults.clear()
    assert all(checkpoint.path.is_dir() for checkpoint in trajectory)
    assert not list((tmp_path / "cache").glob("*arriving*"))


def test_checkpoints_that_are_needed_together_are_downloaded_together_and_hashed_once(
    wandb_server: WandbServer, trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    of = FileDigest.of

    def counted(path: Path, *more: Any) -> FileDigest:
        hashed.append(path.name)
        return of(path, *more)

    monkeypatch.setattr(manifest.FileDigest, "of", counted)
    trajectory.fetch(trajectory[:3])
    assert weights_asked_for(wandb_server) == 3
    assert all(checkpoint.path.is_dir() for checkpoint in trajectory[:3])
    assert hashed.count(WEIGHTS) == 3
    trajectory.fetch(trajectory[:3])
    assert weights_asked_for(wandb_server) == 3
    trajectory.fetch(trajectory)
    assert weights_asked_for(wandb_server) == 4


def test_local_checkpoints_need_no_download(runs: Path) -> None:
    trajectory = Trajectory.open(runs / "prompt")
    trajectory.fetch(trajectory)
    with downloading_ahead(trajectory) as in_order:
        assert [checkpoint.step for checkpoint in in_order] == [0, 2, 4, 9]
