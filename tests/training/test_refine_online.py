"""Refined steps on W&B: published like others, and made again from a collection that is nowhere else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.artifacts.sync import sync
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.config.load import load_config
from emtoolkit.training.run import train
from tests.in_process import emtoolkit
from tests.online import versions
from tests.saving.trainings import bytes_of, saved_steps
from tests.wandb_server import WandbServer

# For `wandb sync`.
pytestmark = pytest.mark.usefixtures("preloaded_python")


def test_refined_steps_are_published_and_a_collection_is_refined(
    write_config: Callable[..., Path], wandb_server: WandbServer, tmp_path: Path
) -> None:
    path = write_config("schedule: '0-9:4'")
    train(load_config(str(path), ["wandb.project=tests"], {"output_dir": str(tmp_path / "out")}))
    (collection,) = wandb_server.store.project("tester", "tests").collections
    assert _aliases(wandb_server) == {"step-0", "step-4", "step-8", "step-9", "final", "latest"}

    done = emtoolkit("refine", tmp_path / "out", "--steps", "5")
    assert done.code == 0, done.err
    assert "step-5" in _aliases(wandb_server)
    assert Publications.read(tmp_path / "out").published[5].artifact.endswith(":v4")

    made = bytes_of(tmp_path / "out" / "checkpoint-5")
    shutil.rmtree(tmp_path / "out")
    reference = f"tester/tests/{collection}"
    without = emtoolkit("refine", reference, "--steps", "3")
    assert (without.code, "pass --to DIR" in without.err) == (2, True)
    done = emtoolkit("refine", reference, "--steps", "2,3", "--to", tmp_path / "local")
    assert done.code == 0, done.err
    assert saved_steps(tmp_path / "local") == [0, 2, 3, 4, 5, 8, 9]
    assert bytes_of(tmp_path / "local" / "checkpoint-5") == made
    if 3 not in Publications.read(tmp_path / "local").published:
        sync(tmp_path / "local")
    assert {"step-2", "step-3"} <= _aliases(wandb_server)

    # A run of the same trajectory takes refined steps from W&B, because their versions name the environment.
    settings = ["wandb.project=tests", "checkpointing.schedule='2,3,5'", f"trajectory.store={tmp_path / 'store'}"]
    taken = train(load_config(str(path), settings, {"output_dir": str(tmp_path / "run"), "trajectory.reuse": True}))
    assert (taken.trained, taken.reused) == (False, (2, 3, 5, 9))
    assert bytes_of(tmp_path / "run" / "checkpoint-5") == made


def _aliases(server: WandbServer) -> set[str]:
    return {alias for _, aliases in versions(server) for alias in aliases}
