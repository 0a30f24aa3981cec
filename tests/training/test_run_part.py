"""Which W&B run a resumed training continues, and where it is a new one."""

import re
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.artifacts.run_history import PART, RunHistory
from emtoolkit.checkpoints.publications import WandbRun, add_run
from emtoolkit.launch import is_requeued
from emtoolkit.training.run_part import RunPart, next_part
from tests.wandb_server import WandbServer
from tests.wandb_server.store import Run

HERE: dict[str, Any] = {"project": "tests", "entity": None}


def logged(directory: Path, run_id: str = "first", *, part: str = "run-1-first", project: str = "tests") -> WandbRun:
    """Record that a run has logged to `directory`."""
    run = WandbRun(run_id, "tester", project, directory / "wandb" / part / f"run-{run_id}.wandb")
    add_run(directory, run)
    return run


def on_server(server: WandbServer, run_id: str, part: str) -> None:
    project = server.store.open_project("tester", "tests")
    run = server.store.keep(Run(server.store.new_id("Run"), run_id, project, run_id))
    run.raw_config = {PART: {"value": part}}
    project.runs[run_id] = run


def is_new(part: RunPart, *earlier: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}", part.id) is not None and part.id not in earlier and not part.may_exist


def test_the_first_training_in_a_directory_has_an_id_of_its_own(tmp_path: Path) -> None:
    assert is_new(next_part(tmp_path, HERE, "offline"))


@pytest.mark.parametrize("place", [HERE, {"project": "tests", "entity": "tester"}, {}])
def test_the_newest_run_of_the_directory_is_continued(place: dict[str, Any], tmp_path: Path) -> None:
    for run_id in ("first", "second", "first"):
        logged(tmp_path, run_id, part=f"run-1-{run_id}")
    assert next_part(tmp_path, place, "offline").arguments == {"id": "first", "resume": "allow", "entity": "tester"}


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"project": "other"}, "its W&B run first is in the project tests, and wandb.project is other"),
        ({"project": "tests", "entity": "me"}, "its W&B run first is in the entity tester, and wandb.entity is me"),
    ],
)
def test_another_place_on_wandb_is_another_run(
    place: dict[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logged(tmp_path)
    assert is_new(next_part(tmp_path, place, "offline"), "first")
    assert reason in caplog.text


def test_the_id_of_an_agent_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "first")
    logged(tmp_path)
    assert next_part(tmp_path, {}, "online") == RunPart("first", may_exist=True)
    assert not caplog.messages
    monkeypatch.setenv("WANDB_RUN_ID", "second")
    assert next_part(tmp_path, {}, "online") == RunPart("second", may_exist=True)
    assert caplog.messages == [
        "WANDB_RUN_ID: W&B gives this training the run second; the earlier part of the training is in the run first"
    ]


def test_the_run_on_wandb_decides_whether_it_is_still_that_of_the_directory(
    wandb_server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logged(tmp_path)
    on_server(wandb_server, "first", "run-1-first")
    assert next_part(tmp_path, HERE, "online") == RunPart("first", may_exist=True, entity="tester")
    assert not caplog.messages
    on_server(wandb_server, "first", "run-2-first")
    assert is_new(next_part(tmp_path, HERE, "online"), "first")
    assert "another copy of this directory has continued the W&B run first" in caplog.text
    wandb_server.store.project("tester", "tests").runs.clear()
    assert is_new(next_part(tmp_path, HERE, "online"), "first")
    assert "W&B has no run first any more" in caplog.text


def test_an_offline_run_that_was_not_sent_yet_is_continued_online(wandb_server: WandbServer, tmp_path: Path) -> None:
    logged(tmp_path, part="offline-run-1-first")
    assert next_part(tmp_path, HERE, "online").id == "first"


def test_a_history_lacks_the_values_that_it_does_not_have_at_the_step() -> None:
    axis = "train/global_step"
    history = RunHistory([{"_step": 0, axis: 4, "train/loss": 1.0, "eval/loss": None}, {"_step": 1, "other": 2.0}])
    assert history.lacking({axis: 4, "train/loss": 1.0}) == {}
    assert history.lacking({axis: 4.0, "train/loss": 1.0, "eval/loss": 2.0}) == {axis: 4.0, "eval/loss": 2.0}
    assert history.lacking({axis: 5, "train/loss": 1.0}) == {axis: 5, "train/loss": 1.0}
    assert history.lacking({"other": 3.0}) == {"other": 3.0}


@pytest.mark.parametrize(("count", "requeued"), [(None, False), ("0", False), ("1", True), ("12", True), ("x", False)])
def test_a_job_that_slurm_runs_again_is_a_resume(count: str | None, requeued: bool) -> None:
    assert is_requeued({} if count is None else {"SLURM_RESTART_COUNT": count}) is requeued
