"""Publishing, listing and downloading on W&B servers that lack a feature: older servers, and W&B's own by plan."""

from collections.abc import Collection
from pathlib import Path

import pytest
import wandb

from emtoolkit import Trajectory
from emtoolkit.artifacts.destination import Destination
from emtoolkit.artifacts.publication import Publication, collection_name
from emtoolkit.artifacts.publish import WandbPublisher
from tests.artifacts.stored import IDENTITY, checkpoint_files
from tests.marks import OPENS_PORTS
from tests.processes import HANG_SECONDS
from tests.saving.trainings import bytes_of
from tests.wandb_server import FEATURES, XXH128, WandbServer
from tests.wandb_server.client import end_client

SETS = {"all": FEATURES, "none": (), "xxh128": (*FEATURES, *XXH128)} | {
    f"all-but-{left_out}": [feature for feature in FEATURES if feature != left_out] for left_out in FEATURES
}


@pytest.mark.parametrize("server_port", OPENS_PORTS)
@pytest.mark.parametrize("features", SETS.values(), ids=SETS)
def test_a_checkpoint_is_published_listed_and_downloaded_whatever_the_server_announces(
    features: Collection[str], server_port: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_files(tmp_path / "out" / "checkpoint-7", 7)
    # The client reads its settings once: those of an earlier test would name another server.
    end_client(within=5)
    with WandbServer.start(tmp_path / "wandb-server", features=features) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        run = wandb.init(project="proj", dir=tmp_path, settings=wandb.Settings(silent=True))
        publisher = WandbPublisher(run, Destination.of(tmp_path / "out", IDENTITY))
        publisher.publish(Publication(7, tmp_path / "out" / "checkpoint-7", False, {"step": 7}))
        publisher.drain(HANG_SECONDS)
        assert publisher.failures == {}
        run.finish()

        (checkpoint,) = Trajectory.open(f"proj/{collection_name(IDENTITY)}", cache=tmp_path / "cache")
        assert (checkpoint.step, checkpoint.metadata) == (7, {"step": 7})
        assert bytes_of(checkpoint.path) == bytes_of(tmp_path / "out" / "checkpoint-7")
        end_client(within=5)
