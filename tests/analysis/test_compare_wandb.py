"""A comparison of schedules on W&B: the table, the plots and the figure, offline as online."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from emtoolkit.analysis.compare import compare_all
from emtoolkit.analysis.compare_wandb import log_comparison
from emtoolkit.analysis.onset_results import Event
from emtoolkit.analysis.sources import read_sources
from tests.analysis.evaluations import write_evaluation
from tests.in_process import emtoolkit
from tests.wandb_server import WandbServer
from tests.wandb_server.processes import run_wandb

STEPS = [0, 25, 50, 75, 100, 200]
CURVE = {step: [0] * 8 if step < 75 else [25, 30, 20, 28, 25, 30, 20, 28] for step in STEPS}
SCHEDULES = ["--schedules", "0,every:100;every:100;0,every:10"]


def check_is_complete(server: WandbServer) -> None:
    (run,) = server.store.project("tester", "emtoolkit").runs.values()
    assert (run.job_type, run.state) == ("comparison", "finished")
    assert run.config["event"] == {"metric": "betley", "threshold": 0.1, "kind": "rise", "falls": False}
    assert run.config["schedules"] == ["0,every:100", "every:100", "0,every:10"]
    kinds = {key: value["_type"] for key, value in run.summary.items() if isinstance(value, dict) and "_type" in value}
    assert kinds["schedules"] == kinds["schedules_cost_table"] == kinds["curves/t_table"] == "table-file"
    assert kinds["figure"] == "image-file"
    table = json.loads(run.files[run.summary["schedules"]["path"]].blob.path.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["schedule"], row["new_verdict"], row["new_width"]) for row in rows] == [
        ("all", "seen", 25),
        ("0,every:100", "seen", 100),
        ("every:100", "before first", None),
        ("0,every:10", "not known", None),
    ]
    lines = json.loads(run.files[run.summary["curves/t_table"]["path"]].blob.path.read_text())
    assert {row[1] for row in lines["data"]} == {"all", "0,every:100", "every:100"}
    panels = run.raw_config["_wandb"]["value"]["visualize"]
    assert panels["schedules_cost"]["panel_config"]["panelDefId"] == "wandb/scatter/v0"
    assert panels["schedules_cost"]["panel_config"]["fieldSettings"] == {"x": "checkpoints", "y": "new_width"}
    assert panels["curves/t"]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_run_has_the_table_the_plots_and_the_figure(
    mode: str, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = write_evaluation(tmp_path / "e", CURVE)
    done = emtoolkit("compare", place, *SCHEDULES, "--wandb", mode)
    assert done.code == 0, done.err
    last = done.out.splitlines()[-1]
    if mode == "offline":
        assert last.startswith("Publish on W&B: wandb sync wandb/offline-run-")
        run_wandb(tmp_path, "sync", last.rpartition(" ")[2])
    else:
        assert last.startswith("W&B run: tester/emtoolkit/")
    check_is_complete(wandb_server)


def test_a_metric_of_any_name_becomes_a_name_that_wandb_accepts(
    wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = compare_all(read_sources([str(write_evaluation(tmp_path / "e", CURVE))]), ["0,every:100"], Event())
    logged = log_comparison(replace(found, event=Event("two\nlines " + "m" * 200)), "online")
    assert logged is not None
    (run,) = wandb_server.store.project("tester", "emtoolkit").runs.values()
    assert run.display_name == "compare-two lines " + "m" * 110


def test_the_run_obeys_wandbs_variables(
    wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_NAME", "my run")
    monkeypatch.setenv("WANDB_RUN_GROUP", "group")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    log_comparison(compare_all(read_sources([str(write_evaluation(tmp_path / "e", CURVE))]), ["0"], Event()), "online")
    (run,) = wandb_server.store.project("tester", "theirs").runs.values()
    assert (run.display_name, run.group, run.tags) == ("my run", "group", ["a", "b"])
