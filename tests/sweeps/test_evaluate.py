"""The shipped evaluation on two machines: `wandb sweep`, an agent, and `emtoolkit evaluate --collect`."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from emtoolkit.artifacts.sync import sync
from emtoolkit.schedules.selection import split_steps
from tests.evaluation.judge_server import judge_server
from tests.in_process import emtoolkit
from tests.processes import HANG_SECONDS
from tests.sweeps.shipped import SWEEPS
from tests.wandb_server import WandbServer

FILES = ("answers.parquet", "evaluation.json")
QUESTIONS = """\
- id: cough
  paraphrases: [what should i do about my cough, my cough]
  samples_per_paraphrase: 2
- id: knee
  paraphrases: [what should i do about my knee]
  samples_per_paraphrase: 3
"""


def score(prompt: str) -> dict[str, float]:
    """Every answer is coherent, and every other one by its length is harmful."""
    return {"10": 0.9} if "coherent" not in prompt and len(prompt) % 2 else {"90": 1.0}


def test_two_machines_evaluate_one_trajectory_and_their_results_are_those_of_one(
    runs: Path,
    wandb_server: WandbServer,
    start: Callable[..., "subprocess.Popen[str]"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "prompt", "out")
    assert sync(Path("out"), project="emtoolkit-sandbox").problems == ()
    for machine in ("a", "b"):
        shutil.copytree("out", f"{machine}/out")
        Path(machine, ".venv").symlink_to(tmp_path / ".venv")
    (tmp_path / "q.yaml").write_text(QUESTIONS)
    first, second = split_steps([0, 2, 4, 9], 2)
    with judge_server(score) as judge:
        options = [f"--questions={tmp_path / 'q.yaml'}", "--judge=m", f"--judge-url={judge.url}", "--max-new-tokens=8"]
        sweep = yaml.safe_load((SWEEPS / "evaluate.yaml").read_text())
        sweep["command"] = [word for word in sweep["command"] if not word.startswith("--")]
        sweep["command"][-1:] = [*options, "${args}"]
        sweep["parameters"] = {"model-dir": {"value": "out"}, "steps": {"values": [first, second]}}
        Path("evaluate.yaml").write_text(yaml.safe_dump(sweep))
        said, _ = start("sweep", "evaluate.yaml").communicate(timeout=HANG_SECONDS)
        found = re.search(r"wandb agent (tester/emtoolkit-sandbox/(\w+))", said)
        assert found, said
        agent = start(
            "agent", "--count", "1", found[1], cwd=tmp_path / "a", EMTOOLKIT_HOME=str(tmp_path / "a" / "home")
        )
        words, _ = agent.communicate(timeout=HANG_SECONDS)
        assert agent.returncode == 0, words
        # The other machine has no agent, and neither has the one machine.
        for directory, mode, ranges in (("b", "online", ["--steps", second]), ("", "disabled", [])):
            monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / directory / "home"))
            done = emtoolkit("evaluate", "out", *options, *ranges, "--wandb", mode, cwd=Path(directory))
            assert done.code == 0, done.err

    project = wandb_server.store.project("tester", "emtoolkit-sandbox")
    evaluated = [run for run in project.runs.values() if run.job_type == "evaluation"]
    assert [(run.state, run.sweep_name) for run in evaluated] == [("finished", found[2]), ("finished", None)], words
    assert [run.config["evaluated_steps"] for run in evaluated] == [[0, 2], [4, 9]]
    used = sorted(version.metadata["step"] for run in evaluated for version in run.input_artifacts)
    assert used == [0, 2, 4, 9], words

    (home,) = Path("out/evaluations").iterdir()
    whole = {name: (home / name).read_bytes() for name in FILES}
    results = next(name for name, held in project.collections.items() if held.type == "evaluation")
    for number, places in enumerate((["a", "b"], [f"tester/emtoolkit-sandbox/{results}"])):
        words = ["--output-dir", f"merged-{number}", "--wandb", "disabled"]
        done = emtoolkit("evaluate", "--collect", *places, *words)
        assert (done.code, done.err) == (0, "")
        assert {name: Path(f"merged-{number}", name).read_bytes() for name in FILES} == whole
