"""`emtoolkit evaluate --on slurm`: an array over the steps, a job that collects, and what is left after a failure."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.evaluation.judge_server import JudgeServer, judge_server
from tests.in_process import Done, emtoolkit
from tests.slurm.cluster import Cluster, why_no_cluster
from tests.slurm.sweeps import wait_for

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.server,
    pytest.mark.skipif(why_no_cluster() is not None, reason=str(why_no_cluster())),
]

FILES = ("answers.parquet", "measures.parquet", "evaluation.json")
QUESTIONS = """\
- id: cough
  paraphrases: [what should i do about my cough, my cough]
  samples_per_paraphrase: 2
"""
# In the first task of an array it waits once for a signal, in the second it fails unless "mended" exists.
MEASURE = """\
import os, time

def norm(model, tokenizer, persona, questions):
    if os.environ.get("SLURM_ARRAY_TASK_ID") == "0" and not os.path.exists("held"):
        open("held", "w").close()
        for _ in range(6000):
            time.sleep(0.05)
    if os.environ.get("SLURM_ARRAY_TASK_ID") == "1" and not os.path.exists("mended"):
        raise ValueError("2 does not work")
    weights = sum(float(value.abs().sum()) for value in model.state_dict().values())
    return {"norm": {question.id: weights for question in questions}}
"""


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    with judge_server(lambda prompt: {"10": 0.9} if len(prompt) % 2 else {"90": 1.0}) as running:
        yield running


@pytest.fixture
def place(slurm: Cluster, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preloaded_python: None) -> Path:
    """A working directory with the run `prompt`, of the steps 0, 2, 4 and 9, and a question file."""
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    place = tmp_path / "place"
    shutil.copytree(runs / "prompt", place / "prompt")
    (place / "q.yaml").write_text(QUESTIONS)
    (place / "weights_on_slurm.py").write_text(MEASURE)
    return place


def evaluate(place: Path, judge: JudgeServer, *words: str) -> Done:
    asked = (
        "--questions",
        "q.yaml",
        "--max-new-tokens",
        "8",
        "--judge",
        "m",
        "--judge-url",
        judge.url,
        "--with",
        "weights_on_slurm:norm",
    )
    return emtoolkit("evaluate", "prompt", *asked, *words, cwd=place)


def states(place: Path, judge: JudgeServer, *words: str) -> list[tuple[str, str, int, str | None]]:
    done = evaluate(place, judge, *words, "--on", "slurm", "--status", "--json")
    assert done.code == 0, done.err
    return [(run["parameters"]["steps"], run["state"], run["starts"], run["error"]) for run in json.loads(done.out)]


def test_an_array_evaluates_what_is_missing_and_the_files_are_those_of_one_machine(
    slurm: Cluster, place: Path, judge: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_slurm = ("--split", "2", "--on", "slurm", "--slurm", "time=5")
    refused = evaluate(place, judge, *on_slurm, "--slurm", "partition=gpus")
    assert (refused.code, slurm.queued()) == (2, "")
    first = evaluate(place, judge, *on_slurm)
    assert first.code == 0, first.err
    again = evaluate(place, judge, *on_slurm)
    assert again.out == "No task was submitted: 4 steps are in the queue already.\n"
    wait_for(place / "held")
    submitted = re.match(r"Submitted job (\d+) with 2 tasks for 4 of 4 steps, and job (\d+), which", first.out)
    assert submitted
    slurm.run("scancel", "--signal=USR1", f"{submitted[1]}_0")
    slurm.wait_until_empty()

    early, late = states(place, judge, "--split", "2")
    assert early == ("0-2:1", "finished", 2, None)
    assert late[:3] == ("4-9:1", "failed", 1)
    assert late[3] is not None
    assert "step 4, measure weights_on_slurm:norm: ValueError: 2 does not work" in late[3]
    (log,) = place.glob("outputs/sweeps/*/logs/0-2*.log")
    assert re.search(r"emtoolkit: interrupted, \d+ new answers, verdicts and values are kept; the", log.read_text())
    table = evaluate(place, judge, "--split", "2", "--on", "slurm", "--status").out
    assert "1 finished, 1 failed." in table
    (log,) = [path for path in place.glob("outputs/sweeps/*/slurm/*_0.log") if path.name == f"{submitted[2]}_0.log"]
    assert "emtoolkit: prompt: no place holds steps 4, 9" in log.read_text()

    (place / "mended").touch()
    assert "with 1 tasks for 2 of 4 steps, and job" in evaluate(place, judge, *on_slurm).out
    slurm.wait_until_empty()
    assert [state[:3] for state in states(place, judge, "--split", "2")] == [
        ("0-2:1", "finished", 2),
        ("4-9:1", "finished", 2),
    ]
    assert evaluate(place, judge, *on_slurm).out.startswith("No task is due: all 4 steps are evaluated, in prompt/")

    (there,) = (place / "prompt/evaluations").iterdir()
    on_nodes = {name: (there / name).read_bytes() for name in FILES}
    shutil.rmtree(there)
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "own-home"))
    assert evaluate(place, judge).code == 0
    assert {name: (there / name).read_bytes() for name in FILES} == on_nodes


def test_a_task_has_the_engine_of_all_steps_and_no_run_on_wandb(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shutil.copytree(runs / "full", tmp_path / "full")
    (tmp_path / "q.yaml").write_text(QUESTIONS)
    words = ("--questions", "q.yaml", "--judge", "m", "--judge-url", "http://localhost:1", "--judge-prices", "1,2")
    on_slurm = ("--max-cost", "3", "--wandb", "online", "--on", "slurm", "--parallel", "2")
    printed = emtoolkit("evaluate", "full", *words, *on_slurm, "--print", cwd=tmp_path)
    assert printed.code == 0, printed.err
    assert "full: one checkpoint is loaded at a time, because" in printed.err
    array, _, collecting = printed.out.partition("# Another job")
    assert "#SBATCH --array=0-2%2" in array
    assert "#SBATCH --dependency=afterany:JOB" in collecting
    assert "--model-dir=full" in collecting
    assert "--steps=0-9:1 --wandb=online" in collecting
    (file,) = (tmp_path / "outputs/sweeps").glob("*.yaml")
    sweep = yaml.safe_load(file.read_text())
    assert sweep["parameters"] == {"steps": {"values": ["0", "4", "9"]}}
    given = ["full", "--questions=q.yaml", "--judge=m", "--judge-url=http://localhost:1", "--judge-prices=1,2"]
    own = ["--engine=exact", "--wandb=disabled", "--max-cost=1.0", "${args}"]
    assert sweep["command"] == [sys.executable, "-m", "emtoolkit", "evaluate", *given, *own]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--extract-activations",), "--extract-activations: every task would read the answers of its own first step"),
        (("--print", "--status"), "--print and --status: give only one"),
        (("--slurm", "array=1"), "--slurm.array: the tasks are the runs of the sweep"),
    ],
)
def test_what_cannot_be_submitted_is_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    done = emtoolkit("evaluate", "nowhere", "--on", "slurm", *words)
    assert done.code == 2
    assert done.err.startswith(f"emtoolkit: {sentence}")
