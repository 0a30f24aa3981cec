"""The command of a combination: W&B's macros, replaced as `wandb agent` replaces them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from emtoolkit.errors import ConfigError
from emtoolkit.sweeps.command import Word, as_typed, command_of, with_environment
from emtoolkit.sweeps.search import Sweep, read_sweep

PARAMETERS: dict[str, Any] = {
    "fast": True,
    "lr": 1e-5,
    "none": None,
    "off": False,
    "persona": "baseline",
    # The agent replaces variables in the file's own words only.
    "schedule": "${envvar:PATH} ${args}",
    "training": {"betas": [0.9, None], "x-y": {"z": "it's"}},
}
MACROS = [
    "args",
    "args_no_equals",
    "args_no_hyphens",
    "args_no_boolean_flags",
    "args_json",
    "args_append_hydra",
    "args_override_hydra",
]


def sweep(tmp_path: Path, *command: str, **more: Any) -> Sweep:
    path = tmp_path / "sweep.yaml"
    content = {"method": "grid", "parameters": {"a": {"value": 1}}, **more}
    path.write_text(yaml.safe_dump(content | ({"command": list(command)} if command else {})))
    return read_sweep(path)


@pytest.mark.parametrize("macro", MACROS)
def test_the_arguments_are_those_of_the_agent(tmp_path: Path, macro: str) -> None:
    of_the_agent = wandb_sweeps.create_sweep_command_args({"args": {k: {"value": v} for k, v in PARAMETERS.items()}})
    words = command_of(sweep(tmp_path, f"${{{macro}}}"), PARAMETERS, Path("x.json"))
    assert with_environment(words) == of_the_agent[macro]


def test_a_file_without_a_command_gets_the_agents(tmp_path: Path) -> None:
    words = command_of(sweep(tmp_path, program="train.py"), {"a": 1}, Path("x.json"))
    assert with_environment(words) == ["/usr/bin/env", sys.executable, "train.py", "--a=1"]


def test_environment_variables_are_replaced_as_the_agent_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME", "a b")
    monkeypatch.delenv("NONE", raising=False)
    words = ["x=${envvar:SOME}:${envvar:NONE}", "${envvar:SOME}", "$SOME"]
    ours = with_environment(command_of(sweep(tmp_path, *words), {}, Path("x.json")))
    assert ours == wandb_sweeps.create_sweep_command(list(words)) == ["x=a b:NONE", "a b", "$SOME"]


HOSTILE = [
    *("$(touch ran)", "`touch ran`", "$PATH", "${envvar:PATH}", "; touch ran", "&& touch ran", "| cat", "> ran", "*"),
    *("'", '"', 'it\'s "so"', "\\", "a\\", "!!", "~", "#", " ", "", "a b", "--x", "-", "=", "{a,b}", "007", "1e-4"),
    *("two\nlines  \n", "\ttab", "é ∞ 🙂", "\x1b[31mred", "\r", "$'x'", "$((1+1))", "\\n"),
]
ECHO = "import json, sys; print(json.dumps(sys.argv[1:]))"


def typed_into_a_shell(line: str, directory: Path) -> list[str]:
    done = subprocess.run(["/bin/sh", "-c", line], cwd=directory, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


@pytest.mark.subprocess
def test_a_command_that_is_pasted_into_a_shell_gives_the_words_of_the_sweep_and_runs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME", "$(touch ran) 'a' \"b\" \n*")
    monkeypatch.setenv("WANDB_MODE", "online")
    in_file = [*HOSTILE, *(f"{word}${{envvar:SOME}}{word}${{envvar:NONE}}x${{envvar:WANDB_MODE}}" for word in HOSTILE)]
    words = [Word(sys.executable), Word("-c"), Word(ECHO)]
    words += [*map(Word, HOSTILE), *(Word(word, has_macros=True) for word in in_file)]
    # The sweep sets a variable otherwise than the shell.
    environment = {**os.environ, "WANDB_MODE": "off line"}
    line = as_typed(words, environment)
    assert typed_into_a_shell(line, tmp_path) == with_environment(words, environment)[3:]
    assert list(tmp_path.iterdir()) == []


def test_only_a_variable_of_the_file_is_a_variable_for_the_shell() -> None:
    words = [Word("PATH=.venv/bin:${envvar:PATH}x${envvar:NO}", has_macros=True), Word("${envvar:PATH}")]
    assert as_typed(words, {"PATH": "/bin"}, {"PATH": "/bin"}) == "PATH=.venv/bin:\"$PATH\"xNO '${envvar:PATH}'"
    assert as_typed(words[:1], {"PATH": "/bin"}, {"PATH": "/usr"}) == "PATH=.venv/bin:/binxNO"


def test_an_unknown_macro_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        command_of(sweep(tmp_path, "${interpretr}"), {}, Path("x.json"))
    assert "command: '${interpretr}' is not a W&B macro; expected one of env, interpreter, " in str(raised.value)
    assert str(raised.value).endswith("did you mean 'interpreter'?")


def test_the_program_macro_needs_the_key_program(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"program: the key is missing, and the command contains \$\{program\}"):
        command_of(sweep(tmp_path), {}, Path("x.json"))
