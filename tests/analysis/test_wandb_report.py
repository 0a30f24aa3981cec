"""The W&B Report: its blocks, run sets and panels as the client sends them, and what stops it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.evaluation.wandb_record import EvaluationRun, keep_run
from tests.analysis.evaluations import measure_rows, write_evaluation
from tests.in_process import emtoolkit
from tests.wandb_server import WandbServer

CURVE = {step: [0] * 8 if step < 75 else [25, 30, 20, 28, 25, 30, 20, 28] for step in (0, 50, 100)}
ON_WANDB = EvaluationRun("r1", "digest", "t", (0, 50, 100), "tester", "proj", sent=True)


def evaluation(directory: Path, run: EvaluationRun | None = ON_WANDB, **same: Any) -> Path:
    margin = measure_rows("margin", {step: [0.1 * step, 0.2 * step] for step in CURVE}, **same)
    place = write_evaluation(directory, CURVE, margin, **same)
    if run is not None:
        keep_run(place, run)
    return place


def texts(blocks: list[dict[str, Any]], kind: str) -> list[str]:
    return ["".join(child["text"] for child in block["children"]) for block in blocks if block["type"] == kind]


def test_the_report_has_the_panels_of_the_runs_and_the_tables_of_the_page(
    wandb_server: WandbServer, tmp_path: Path
) -> None:
    one = evaluation(tmp_path / "one")
    other = evaluation(tmp_path / "other", None, fingerprint="f1", persona="a|<b>")
    wandb_server.store.open_project("tester", "proj")
    out = tmp_path / "report.html"
    done = emtoolkit("report", one, other, "--out", out, "--schedules", "0,100", "--no-weights", "--wandb")
    assert done.code == 0, done.err
    assert out.is_file()
    assert f"{other}: W&B does not have this evaluation, so the W&B Report lacks its curve" in done.err
    (view,) = wandb_server.store.project("tester", "proj").reports.values()
    assert done.out.splitlines()[-1].endswith(f"--{view.id}")
    assert (view.type, view.display_name) == (
        "runs",
        "When it appeared: betley rises since step 0 by more than 10 points",
    )
    blocks = json.loads(view.spec)["blocks"]
    assert texts(blocks, "heading") == [
        "Onset",
        "Curves",
        "Coherence",
        "Continuous companions",
        "What each schedule would have seen",
        "Answers",
        "What was run",
    ]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    for grid in grids:
        (runs,) = grid["runSets"]
        assert (runs["project"]["entityName"], runs["project"]["name"]) == ("tester", "proj")
        assert json.dumps(runs["filters"]).count('"r1"') == 1
    drawn = [
        (panel["config"]["xAxis"], panel["config"]["metrics"])
        for grid in grids
        for panel in grid["panelBankSectionConfig"]["panels"]
        if panel["viewType"] == "Run History Line Plot"
    ]
    assert drawn == [
        ("checkpoint/step", ["rise/betley"]),
        ("checkpoint/step", ["em_rate/betley", "em_rate/organisms", "em_rate/all"]),
        ("checkpoint/step", ["coherence", "truncation"]),
        ("checkpoint/step", ["changed_answers"]),
        ("checkpoint/step", ["measure/of_margin/margin"]),
    ]
    onset, schedules, run = (block["content"] for block in blocks if block["type"] == "markdown-block")
    assert "| goodness | t | in (50, 100\\] | in (50, 100\\] |" in onset
    assert "| a\\|\\<b\\> | t |" in onset
    assert "| goodness | t | 0,100 | 2 | — | 0.1821 | seen (0, 100\\] | seen (0, 100\\] |" in schedules
    assert "| goodness | t | f0 | 3 | 1200 | exact | word@1 |" in run


@pytest.mark.parametrize(("run", "sentence"), [(None, "W&B has none of the 1 evaluations; run 'emtoolkit sync'")])
def test_a_report_of_evaluations_that_wandb_lacks_is_a_sentence(
    run: EvaluationRun | None, sentence: str, wandb_server: WandbServer, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    done = emtoolkit("report", evaluation(tmp_path / "one", run), "--out", out, "--no-weights", "--wandb")
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert out.is_file()


@pytest.mark.subprocess
def test_without_a_server_or_the_package_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, out = evaluation(tmp_path / "one"), tmp_path / "report.html"
    done = emtoolkit("report", place, "--out", out, "--no-weights", "--wandb")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--wandb: a W&B Report needs W&B's server, which cannot be used (" in done.err
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports", None)
    done = emtoolkit("report", place, "--out", out, "--no-weights", "--wandb")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "run pip install 'emtoolkit[report]'" in done.err
