"""Both `wandb sync` and `wandb beta sync` send a whole offline run, and repeating them changes nothing."""

from pathlib import Path

import pytest

from tests.wandb_server import WandbServer
from tests.wandb_server.processes import run_script, run_wandb

OFFLINE = """
import json, os, pathlib
os.environ["WANDB_MODE"] = "offline"
import wandb
with wandb.init(project="proj", id="away", config={"lr": 0.1}, tags=["t"]) as run:
    for step in range(3):
        run.log({"loss": 3 - step})
        here = pathlib.Path(f"checkpoint-{step}")
        here.mkdir()
        (here / "weights.bin").write_bytes(bytes([step]) * 100)
        artifact = wandb.Artifact("traj", type="model")
        artifact.add_dir(str(here), policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=[f"step-{step}"])
    directory = run.dir
print(json.dumps(os.path.dirname(directory)))
"""


@pytest.mark.parametrize("command", [("sync", "--include-synced"), ("beta", "sync", "--no-skip-synced")])
def test_all_that_an_offline_run_logged_arrives_once(
    wandb_server: WandbServer, tmp_path: Path, command: tuple[str, ...]
) -> None:
    directory = run_script(OFFLINE, tmp_path / "work")
    assert wandb_server.requests == []

    for _ in range(2):
        run_wandb(tmp_path / "work", *command, directory)

        project = wandb_server.store.project("tester", "proj")
        run = project.runs["away"]
        assert (run.state, run.config, run.tags) == ("finished", {"lr": 0.1}, ["t"])
        assert [(row["_step"], row["loss"]) for row in run.history] == [(0, 3), (1, 2), (2, 1)]
        versions = project.collections["traj"].versions
        assert [version.aliases for version in versions] == [["step-0"], ["step-1"], ["latest", "step-2"]]
        assert [sorted(version.contents) for version in versions] == [["weights.bin"]] * 3
