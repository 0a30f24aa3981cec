"""`emtoolkit compare` of a sweep on W&B, through the real client."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb

from tests.analysis.evaluations import write_evaluation
from tests.in_process import emtoolkit
from tests.wandb_server import WandbServer

STEPS = [0, 50, 100, 200]
SWEEP = {"program": "emtoolkit", "method": "grid", "parameters": {"seed": {"values": [1, 2, 3]}}}


def curve(at: int) -> dict[int, list[int]]:
    return {step: [25, 30, 20, 28, 25, 30, 20, 28] if step >= at else [0] * 8 for step in STEPS}


def log(config: Mapping[str, Any], artifact: wandb.Artifact, sweep: str | None = None, **options: Any) -> str:
    """A finished run with one artifact; its name on W&B."""
    settings = wandb.Settings(silent=True, x_disable_stats=True, sweep_id=sweep)
    with wandb.init(project="proj", config=dict(config), settings=settings, **options) as run:
        run.log_artifact(artifact).wait()
        return str(run.id)


def training(sweep: str, collection: str, base: str, scratch: Path) -> str:
    file = scratch / f"{collection}.txt"
    file.write_text(collection)
    artifact = wandb.Artifact(collection, type="model")
    artifact.add_file(str(file))
    config = {"schedule": "0,every:100", "emtoolkit": {"model": {"base": base}}}
    return log(config, artifact, sweep, group=collection)


def evaluated(collection: str, directory: Path) -> None:
    artifact = wandb.Artifact(f"{collection}-evaluation-abc", type="evaluation")
    artifact.add_dir(str(directory))
    log({}, artifact, job_type="evaluation")


def test_a_sweep_is_compared_by_the_evaluations_of_its_checkpoints(
    wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = wandb.sweep(SWEEP, project="proj")
    place = f"tester/proj/{sweep}"
    none = emtoolkit("compare", place, "--schedules", "0,every:100")
    assert (none.code, none.out) == (2, "")
    assert f"{place}: none of its 0 runs has an evaluation on W&B yet; run 'emtoolkit evaluate" in none.err

    training(sweep, "a", "qwen", tmp_path)
    training(sweep, "b", "gemma", tmp_path)
    third = training(sweep, "c", "gemma", tmp_path)
    for number, collection in enumerate("ab"):
        evaluated(collection, write_evaluation(tmp_path / collection, curve(50 + 50 * number), fingerprint=collection))
    wandb_server.store.project("tester", "proj").runs[third].state = "crashed"

    done = emtoolkit("compare", place, "--schedules", "0,every:100", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["trajectories"]
    assert [each["directory"] for each in found] == ["tester/proj/a-evaluation-abc", "tester/proj/b-evaluation-abc"]
    seen = [each["schedules"][0]["new_questions"] for each in found]
    assert [(each["lower"], each["upper"]) for each in seen] == [(0, 100), (0, 100)]
    assert "1 of 3 runs of the sweep have not finished (" in done.err
    assert f"run {third} has no evaluation" in done.err
    assert "has no evaluation on W&B, so it is left out" in done.err
    assert "the runs have different base models (gemma in " in done.err

    unknown = emtoolkit("compare", "tester/proj/nosweep", "--schedules", "0,every:100")
    assert (unknown.code, unknown.out, unknown.err.count("\n")) == (2, "", 1)
    assert "tester/proj/nosweep: there is no such directory, and no sweep of this id on http" in unknown.err


@pytest.mark.subprocess
def test_without_a_login_the_sentence_says_what_a_place_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    done = emtoolkit("compare", "lab/proj/abc", "--schedules", "0,every:100")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "lab/proj/abc: there is no such directory, and W&B could not be asked (" in done.err
    assert "a sweep on W&B is written entity/project/sweep-id" in done.err
