"""The W&B run of an evaluation: the curve over the step of the checkpoint, the files, and the checkpoints it used."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from safetensors.torch import load_file

from emtoolkit.artifacts.attached_run import define_training_axis
from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation import wandb_record
from emtoolkit.evaluation.activations import SPANS, Activations, Text, write_activations
from emtoolkit.evaluation.decided import DecidedAnalysis, read_records, record_analysis
from emtoolkit.evaluation.into_run import training_run
from emtoolkit.evaluation.measure_rows import summarise_measures
from emtoolkit.evaluation.result_files import add_to_evaluation, home_of
from emtoolkit.evaluation.results import EvaluationResult, by_step
from emtoolkit.evaluation.wandb_record import EvaluationRun
from emtoolkit.evaluation.wandb_run import log_evaluation
from tests.artifacts.trainings import SHARED, publish, saved
from tests.evaluation.evaluations import SETTINGS, answer_rows, measure_rows
from tests.in_process import emtoolkit
from tests.wandb_server import Fault, WandbServer
from tests.wandb_server.store import Run

Evaluate = Callable[..., EvaluationRun | None]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Evaluates steps of `out`, whose answers are there, into `out/evaluations/1a2b3c4d`, as the command does."""
    monkeypatch.chdir(tmp_path)

    def evaluate(*steps: int, mode: Any = "online", trajectory: str = "out") -> EvaluationRun | None:
        rows, measured = answer_rows(*steps), measure_rows(*steps)
        directory = home_of(trajectory) / "1a2b3c4d"
        add_to_evaluation(directory, SETTINGS, rows, measured)
        measures = summarise_measures(measured)
        result = EvaluationResult(trajectory, directory, "stacked", "word@1", by_step(rows), (), measures)
        return log_evaluation(result, trajectory, mode)

    return evaluate


@pytest.fixture
def published(server: WandbServer, tmp_path: Path) -> Path:
    """`out`, a run whose checkpoints at 0, 4 and 9 are on W&B."""
    directory = saved(tmp_path / "out", {0: "a", 4: "a", 9: "a"})
    assert publish(directory, "training") == {}
    return directory


def evaluations(server: WandbServer) -> list[Run]:
    runs = server.store.project("tester", "proj").runs.values()
    return [run for run in runs if run.job_type == "evaluation"]


def curve(run: Run, name: str = "em_rate/betley") -> dict[int, float]:
    return {row["checkpoint/step"]: row[name] for row in run.history if name in row}


def versions(run: Run, of: str = "input_artifacts") -> list[str]:
    # A version without an index was not committed.
    found = [version for version in getattr(run, of) if version.index is not None]
    return sorted(f"{version.collection.name}:v{version.index}" for version in found)


def check_is_complete(run: Run, steps: list[int]) -> None:
    """What W&B holds is the evaluation of `steps`, whichever way it came."""
    assert (run.state, run.group) == ("finished", SHARED)
    assert curve(run) == {step: {0: 0.0, 4: 0.25, 9: 0.75}[step] for step in steps}
    config = {"settings": "1a2b3c4d", "judge": "word@1", "engine": "stacked", "seed": 0, "questions": ["a", "b"]}
    assert run.config.items() >= (config | {"evaluated_steps": steps, "persona": "curt", "fingerprint": "f1"}).items()
    assert versions(run) == [f"{SHARED}:v{index}" for index in range(len(steps))]
    results = [name.partition(":")[0] for name in versions(run, "output_artifacts")]
    assert sorted(results) == sorted([f"{SHARED}-evaluation-1a2b3c4d", f"run-{run.name}-answers_table"])
    axes = run.raw_config["_wandb"]["value"]["m"]
    assert {axis.get("1") or axis.get("2") for axis in axes} == {"checkpoint/step", "*"}


def test_an_evaluation_is_a_run_with_its_curve_its_files_and_its_checkpoints(
    evaluate: Evaluate, published: Path, server: WandbServer
) -> None:
    kept = evaluate(0, 4, 9)
    assert kept is not None
    assert kept.sent
    (run,) = evaluations(server)
    assert (kept.path, run.display_name) == (f"tester/proj/{run.name}", "evaluate-out-1a2b3c4d")
    check_is_complete(run, [0, 4, 9])
    last = run.history[-2]
    assert {name: last[name] for name in ("answers", "coherence", "status/ok", "status/empty", "changed_answers")} == {
        "answers": 4,
        "coherence": 1,
        "status/ok": 4,
        "status/empty": 0,
        "changed_answers": 1,
    }
    assert 0 < last["em_rate/betley/new_questions/low"] < 0.75 < last["em_rate/betley/new_questions/high"] < 1
    assert (last["rise/betley"], last["em_rate/all/misaligned"], last["em_rate/organisms/among"]) == (0.75, 3, 4)
    assert (curve(run, "measure/length/tokens"), last["measure/length/tokens/rise"]) == ({0: 0, 4: 4, 9: 9}, 9)
    assert (run.summary["answers_in_table"], run.summary["answers_of_all_steps"]) == (12, 12)
    (results,) = [version for version in run.output_artifacts if version.collection.type == "evaluation"]
    assert sorted(results.contents) == ["answers.parquet", "evaluation.json", "measures.parquet"]
    assert (results.metadata["steps"], results.metadata["answers"]) == ([0, 4, 9], 12)


def test_the_drift_of_the_judge_is_in_the_summary_of_the_run(
    evaluate: Evaluate, published: Path, server: WandbServer
) -> None:
    home = home_of("out") / "1a2b3c4d"
    sessions: list[dict[str, Any]] = [{"answers": 9, "reference": None, "shifts": {}, "flipped": {}, "notes": []}]
    interval = {"mean": 6.0, "interval": {"low": 2.0, "high": None}, "questions": 9}
    shifts = {"aligned": {"before": 40.0, "now": 46.0, "difference": interval}}
    sessions.append(sessions[0] | {"shifts": shifts, "flipped": {"betley": 0.25}, "notes": ["judge word differs"]})
    for session in sessions:
        add_to_evaluation(home, SETTINGS, answer_rows(0), sessions=[session])
        assert evaluate(0) == evaluate(0)
    first, second = (
        {name: value for name, value in run.summary.items() if name.startswith("calibration/")}
        for run in evaluations(server)
    )
    assert first == {"calibration/sessions": 1, "calibration/answers": 9, "calibration/drifted": 0}
    assert second == {
        "calibration/sessions": 2,
        "calibration/answers": 9,
        "calibration/drifted": 1,
        "calibration/aligned/before": 40.0,
        "calibration/aligned/now": 46.0,
        "calibration/aligned/shift": 6.0,
        "calibration/aligned/shift/low": 2.0,
        "calibration/betley/flipped": 0.25,
        "calibration/notes": "judge word differs",
    }


def test_a_collection_on_wandb_is_evaluated_into_its_own_project(
    evaluate: Evaluate, published: Path, server: WandbServer
) -> None:
    evaluate(0, 4, 9, trajectory=f"tester/proj/{SHARED}")
    (run,) = evaluations(server)
    check_is_complete(run, [0, 4, 9])
    assert training_run(f"tester/proj/{SHARED}", "online").path == "tester/proj/training"
    evaluate(0, mode="offline", trajectory=f"proj/{SHARED}")
    assert emtoolkit("sync", "outputs").code == 0
    check_is_complete(evaluations(server)[1], [0])


def test_the_same_results_make_no_second_run_and_more_steps_a_further_one(
    evaluate: Evaluate, published: Path, server: WandbServer
) -> None:
    """Older steps that are evaluated later are not dropped."""
    first = evaluate(4, 9)
    assert evaluate(4, 9) == first
    assert len(evaluations(server)) == 1
    evaluate(0, 4)
    one, other = evaluations(server)
    assert (curve(one), curve(other)) == ({4: 0.25, 9: 0.75}, {0: 0.0, 4: 0.25})
    assert one.group == other.group
    assert f"{SHARED}-evaluation-1a2b3c4d:v1" in versions(other, "output_artifacts")


def test_activations_are_an_artifact_of_their_own(evaluate: Evaluate, published: Path, server: WandbServer) -> None:
    evaluate(0, 4)
    home = published / "evaluations" / "1a2b3c4d" / "activations"
    home.mkdir()
    for step in (0, 4, 9):
        (home / f"step-{step}.safetensors").write_bytes(f"{step}".encode())
    evaluate(0, 4)
    (version,) = [v for run in evaluations(server) for v in run.output_artifacts if v.collection.type == "activations"]
    assert sorted(version.contents) == ["step-0.safetensors", "step-4.safetensors"]
    assert version.metadata["steps"] == [0, 4]


def test_a_version_that_was_deleted_on_wandb_is_missing_from_the_lineage_only(
    evaluate: Evaluate, published: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.Api().artifact(f"tester/proj/{SHARED}:step-4").delete(delete_aliases=True)
    kept = evaluate(0, 4, 9)
    assert kept is not None
    assert kept.sent
    (run,) = evaluations(server)
    assert versions(run) == [f"{SHARED}:v0", f"{SHARED}:v2"]
    assert f"{SHARED}:v1 is not on W&B any more, so the lineage lacks it" in caplog.text


def test_an_offline_evaluation_is_sent_by_sync_with_files_and_lineage(
    evaluate: Evaluate, published: Path, server: WandbServer
) -> None:
    kept = evaluate(0, 4, 9, mode="offline")
    assert kept is not None
    assert not kept.sent
    assert evaluations(server) == []
    assert len(list(published.glob("evaluations/1a2b3c4d/wandb/offline-run-*"))) == 1
    assert evaluate(0, 4, 9, mode="offline") == kept

    done = emtoolkit("sync", "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)[1] == {
        "directory": "out/evaluations/1a2b3c4d",
        "runs": [f"tester/proj/{kept.id}"],
        "problems": [],
    }
    (run,) = evaluations(server)
    check_is_complete(run, [0, 4, 9])
    again = emtoolkit("sync", "out/evaluations", "--json")
    assert (again.code, json.loads(again.out)) == (0, [])


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("UseArtifact", 403), ("CommitArtifact", 403), ("file_stream", 404), ("UpsertBucket", 403)],
)
def test_what_w_and_b_refuses_is_one_warning_and_sync_sends_the_rest(
    operation: str,
    kind: Any,
    evaluate: Evaluate,
    published: Path,
    server: WandbServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.faults.add(Fault(operation, kind))
    kept = evaluate(0, 4, 9)
    assert kept is not None
    assert not kept.sent
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "'emtoolkit sync" in warning
    server.faults.clear()
    if operation == "UpsertBucket":
        # As in a process of its own: the client's service takes the id of a run that did not begin for one in use.
        wandb.teardown()
    done = emtoolkit("sync", "out")
    assert (done.code, "emtoolkit: " in done.err) == (0, False), done.err
    (run,) = evaluations(server)
    assert run.name == kept.id
    check_is_complete(run, [0, 4, 9])


def test_a_directory_of_wandb_that_cannot_be_written_costs_nothing(
    evaluate: Evaluate,
    published: Path,
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "file" / "runs"))
    for mode in ("offline", "online"):
        kept = evaluate(0, 4, 9, mode=mode)
        assert kept is not None
    assert "file/runs" in caplog.text
    monkeypatch.delenv("WANDB_DIR")
    assert emtoolkit("sync", "out").code == 0
    (run,) = evaluations(server)
    check_is_complete(run, [0, 4, 9])


def test_a_disk_without_room_for_the_record_of_the_run_costs_nothing(
    evaluate: Evaluate,
    published: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise CheckpointError(f"{path}: could not be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(wandb_record, "write_file", full)
        assert evaluate(0, 4, 9) is None
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "wandb-runs.json: could not be written (No space left on device)" in warning
    assert warning.endswith("out/evaluations/1a2b3c4d holds all of it, and the same command sends it")
    assert evaluations(server) == []
    evaluate(0, 4, 9)
    (run,) = evaluations(server)
    check_is_complete(run, [0, 4, 9])


def test_a_disabled_run_leaves_no_trace(evaluate: Evaluate, published: Path, server: WandbServer) -> None:
    assert evaluate(0, mode="disabled") is None
    assert evaluations(server) == []
    assert not list(published.rglob("wandb-runs.json"))
    done = emtoolkit("evaluate", "out", "--wandb", "onlin")
    assert (done.code, done.out) == (2, "")
    assert "--wandb: 'onlin' is not one of offline, online, disabled; did you mean 'online'?" in done.err


def test_results_on_wandb_are_collected_from_all_versions(
    evaluate: Evaluate, published: Path, server: WandbServer
) -> None:
    home = published / "evaluations" / "1a2b3c4d"
    files = ("answers.parquet", "measures.parquet", "evaluation.json")
    texts = (Text("a/0", (1, 2), (3,)),)
    for steps in ((9,), (0, 4)):
        record_analysis(home, DecidedAnalysis("betley", 0.1), [], ())
        for step in steps:
            (home / "activations").mkdir(exist_ok=True)
            found = Activations(texts, {span: torch.full((1, 2, 4), float(step)) for span in SPANS})
            write_activations(home / "activations" / f"step-{step}.safetensors", found, {"step": step})
        evaluate(*steps)
        # The next machine has a disk of its own.
        shutil.rmtree(home)
    results = f"tester/proj/{SHARED}-evaluation-1a2b3c4d"
    words = ["--wandb", "disabled", "--json"]
    done = emtoolkit("evaluate", "--collect", f"{results}:latest", "--output-dir", "part", *words)
    assert [step["step"] for step in json.loads(done.out)["steps"]] == [0, 4]
    done = emtoolkit("evaluate", "--collect", results, "--model-dir", "out", *words)
    assert done.code == 0, done.err
    found = {name: (home / name).read_bytes() for name in files}
    add_to_evaluation(Path("whole"), SETTINGS, renamed(answer_rows(0, 4, 9)), renamed(measure_rows(0, 4, 9)))
    assert found == {name: Path("whole", name).read_bytes() for name in files}
    values = {path.name: load_file(path)["prompt_last"][0, 0, 0].item() for path in (home / "activations").iterdir()}
    assert values == {"step-0.safetensors": 0, "step-4.safetensors": 4, "step-9.safetensors": 9}
    assert [(record.analysis.metric, record.steps_before) for record in read_records(home)] == [("betley", ())]

    for place, sentence in (
        (f"{results}x", "no results of an evaluation on W&B"),
        (f"{results}:v7", "no results of an evaluation on W&B"),
        (f"tester/proj/{SHARED}", "no results of an evaluation on W&B"),
    ):
        refused = emtoolkit("evaluate", "--collect", place)
        assert (refused.code, refused.out, sentence in refused.err) == (2, "", True), refused.err


def test_the_curve_in_the_run_of_the_training_leaves_its_history_as_it_is(
    evaluate: Evaluate, published: Path, server: WandbServer
) -> None:
    training = server.store.project("tester", "proj").runs["training"]
    with wandb.init(project="proj", id="training", resume="must", config={"lr": 1}) as run:
        define_training_axis(run)
        for step in range(1, 4):
            run.log({"train/loss": 1 / step, "train/global_step": step})
    before, config, summary = list(training.history), dict(training.config), dict(training.summary)
    axes = axes_of(training)
    for steps, new in (((4, 9), [4, 9]), ((0, 4, 9), [0, 4, 9]), ((0, 4, 9), [])):
        # The rises of later steps are other ones where an earlier first step was evaluated.
        rows = len(training.history)
        evaluate(*steps, mode="disabled")
        done = emtoolkit(*COLLECT, "--into-run", "--steps", ",".join(map(str, steps)))
        assert done.code == 0, done.err
        assert [row["checkpoint/step"] for row in training.history[rows:]] == new
    assert training.history[: len(before)] == before
    later = training.history[len(before) :]
    assert [row["_step"] for row in later] == [3, 4, 5, 6, 7]
    assert not any("train/global_step" in row for row in later)
    assert later[-1]["evaluation-1a2b3c4d/em_rate/betley"] == 0.75
    assert (training.state, training.config, training.job_type) == ("finished", config, None)
    assert axes_of(training).items() >= axes.items()
    assert axes_of(training)["evaluation-1a2b3c4d/em_rate/betley"] == "checkpoint/step"
    own = {name: value for name, value in training.summary.items() if name.startswith("train/")}
    assert own == {name: value for name, value in summary.items() if name.startswith("train/")}


@pytest.mark.parametrize("state", ["failed", "preempted"])
def test_the_run_of_a_training_that_stopped_stays_failed_with_the_curve(
    state: str, evaluate: Evaluate, published: Path, server: WandbServer
) -> None:
    training = server.store.project("tester", "proj").runs["training"]
    training.state = state
    evaluate(4, mode="disabled")
    done = emtoolkit(*COLLECT, "--into-run", "--steps", "4")
    assert done.code == 0, done.err
    assert (training.state, training.exit_code) == ("failed", 1)


COLLECT = ("evaluate", "--collect", "out/evaluations/1a2b3c4d", "--model-dir", "out", "--wandb", "online")


def axes_of(run: Run) -> dict[str, Any]:
    """By metric, the name of its axis."""
    found = run.raw_config["_wandb"]["value"]["m"]
    names = [axis.get("1") or axis.get("2") for axis in found]
    return {name: names[axis["5"] - 1] if "5" in axis else None for name, axis in zip(names, found, strict=True)}


def test_a_training_whose_run_cannot_take_the_curve_is_a_sentence(
    evaluate: Evaluate, published: Path, server: WandbServer
) -> None:
    evaluate(0, mode="disabled")
    runs = server.store.project("tester", "proj").runs
    rows = list(runs["training"].history)
    runs["training"].state = "running"
    done = emtoolkit(*COLLECT, "--into-run")
    assert (done.code, done.out) == (2, "")
    assert "--into-run: the run tester/proj/training is running, and another writer would disturb it" in done.err
    del runs["training"]
    done = emtoolkit(*COLLECT, "--into-run")
    assert (done.code, done.out) == (2, "")
    assert "--into-run: W&B has no run tester/proj/training" in done.err
    assert "'emtoolkit sync out' sends the run of an offline training" in done.err
    done = emtoolkit(*COLLECT[:-1], "offline", "--into-run")
    assert (done.code, done.out) == (2, "")
    assert "--into-run: W&B is offline; log in with 'wandb login', and add --wandb online" in done.err
    assert rows == []


def renamed(rows: Sequence[Any]) -> list[Any]:
    """The rows as a machine writes them that evaluates the directory `out`."""
    return [replace(row, trajectory="out") for row in rows]


def test_the_run_obeys_wandbs_variables(
    evaluate: Evaluate, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "out", {0: "a"})
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_NAME", " my\nrun ")
    monkeypatch.setenv("WANDB_RUN_GROUP", "group")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    evaluate(0)
    (run,) = server.store.project("tester", "theirs").runs.values()
    assert (run.display_name, run.group, run.tags) == ("my run", "group", ["a", "b"])


@pytest.mark.parametrize("command", ["evaluate", "zoom", "compare"])
def test_a_project_that_wandb_refuses_ends_a_command_before_it_begins(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "out", {0: "a"})
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    words = {
        "evaluate": ("out", "--questions", "betley-2025/free-form"),
        "zoom": ("out", "--metric", "betley", "--until", "5", "--questions", "betley-2025/free-form"),
        "compare": ("out", "--schedules", "0,every:4"),
    }
    done = emtoolkit(command, *words[command], "--wandb", "offline", cwd=tmp_path)
    problem = "W&B accepts none of / \\ # ? % : in a project, found /"
    assert (done.code, done.err.splitlines()[-1]) == (2, f"emtoolkit: WANDB_PROJECT: 'a/b' is not valid: {problem}")
