"""The command of a combination: W&B's macros, replaced as `wandb agent` replaces them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from emtoolkit.errors import ConfigError
from emtoolkit.sweeps.command import as_typed, command_of, with_environment
from emtoolkit.sweeps.search import Sweep, read_sweep

PARAMETERS: dict[str, Any] = {"fast": True, "lr": 1e-5, "off": False, "persona": "baseline", "schedule": "every:100"}
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
    assert command_of(sweep(tmp_path, f"${{{macro}}}"), PARAMETERS, Path("x.json")) == of_the_agent[macro]


def test_a_file_without_a_command_gets_the_agents(tmp_path: Path) -> None:
    words = command_of(sweep(tmp_path, program="train.py"), {"a": 1}, Path("x.json"))
    assert words == ["/usr/bin/env", sys.executable, "train.py", "--a=1"]


def test_environment_variables_are_replaced_as_the_agent_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME", "a b")
    monkeypatch.delenv("NONE", raising=False)
    words = ["x=${envvar:SOME}:${envvar:NONE}", "${envvar:SOME}", "$SOME"]
    ours = with_environment(command_of(sweep(tmp_path, *words), {}, Path("x.json")))
    assert ours == wandb_sweeps.create_sweep_command(list(words)) == ["x=a b:NONE", "a b", "$SOME"]


def test_a_command_is_shown_quoted_for_a_shell() -> None:
    words = ["env", "PATH=.venv/bin:${envvar:PATH}", "--out={seed}", "--schedule=every:100"]
    assert as_typed(words) == "env \"PATH=.venv/bin:$PATH\" '--out={seed}' --schedule=every:100"


def test_an_unknown_macro_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        command_of(sweep(tmp_path, "${interpretr}"), {}, Path("x.json"))
    assert "command: '${interpretr}' is not a W&B macro; expected one of env, interpreter, " in str(raised.value)
    assert str(raised.value).endswith("did you mean 'interpreter'?")


def test_the_program_macro_needs_the_key_program(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"program: the key is missing, and the command contains \$\{program\}"):
        command_of(sweep(tmp_path), {}, Path("x.json"))
