"""A node without a network trains, and `emtoolkit sync --watch` on another machine publishes its checkpoints."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.artifacts.watch import WatchOptions, WatchTiming, watch_all
from tests import preloaded
from tests.online import EVERYTHING, versions
from tests.processes import HANG_SECONDS, run
from tests.wandb_server import WandbServer


def why_no_namespace() -> str | None:
    if shutil.which("unshare") is None:
        return "there is no command unshare here"
    done = run("unshare", "--net", "true")
    return None if done.returncode == 0 else f"network namespaces are not permitted here ({done.stderr.strip()})"


def test_a_node_without_a_network_waits_for_nothing_while_the_login_node_publishes_each_step_once(
    wandb_server: WandbServer, write_config: Callable[..., Path], tmp_path: Path, preloaded_python: None
) -> None:
    if (why := why_no_namespace()) is not None:
        pytest.skip(why)
    write_config(rest="wandb: {project: tests}")
    node = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "HF_HUB_OFFLINE")}
    training = subprocess.Popen(
        preloaded.command("tests.artifacts.without_network", "train", "run.yaml", "--output-dir", "out"),
        cwd=tmp_path,
        env=node,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    published_meanwhile = []

    def pause(seconds: float) -> None:
        time.sleep(0.05)
        # The watch itself would try again for ever.
        assert (tmp_path / "go").exists() or training.poll() is None, "W&B lacks steps 0 to 4 of a training that waits"
        known = wandb_server.store.find_project(wandb_server.entity, "tests") is not None
        if known and not (tmp_path / "go").exists() and len(found := versions(wandb_server)) == 3:
            published_meanwhile.extend(aliases for _, aliases in found)
            (tmp_path / "go").touch()

    end = time.monotonic() + HANG_SECONDS
    while not (tmp_path / "out" / "trajectory.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    (done,) = watch_all(lambda: [tmp_path / "out"], WatchOptions(), lambda said: None, WatchTiming(pause=pause))
    said = training.communicate(timeout=HANG_SECONDS)[0]

    assert training.returncode == 0, said
    assert published_meanwhile == [["step-0"], ["step-2"], ["latest", "step-4"]]
    assert (done.problems, done.published) == ((), (0, 2, 4, 9))
    assert versions(wandb_server) == EVERYTHING
    assert not (tmp_path / "asked").exists()
    with wandb_server.store.lock:
        (of_training,) = wandb_server.store.project(wandb_server.entity, "tests").runs.values()
    steps = [row["train/global_step"] for row in of_training.history if "train/loss" in row]
    assert steps == list(range(1, 10))
