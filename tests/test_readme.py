"""What the README shows is run, or compared with what is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftModel
from transformers import Trainer

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.config.sections import DatasetConfig, load_config
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.training import run as training
from tests.saving.trainings import base_model, make_trainer, saved_steps
from tests.tiny import config_text

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_callback_in_a_script_of_ones_own(tmp_path: Path) -> None:
    (code,) = (block for block in PYTHON if "Trainer(" in block)
    ready = make_trainer(tmp_path, num_train_epochs=10, logging_strategy="no")
    names = {"Trainer": Trainer, "model": ready.model, "args": ready.args, "data": ready.train_dataset}
    exec(code, names)
    assert saved_steps(tmp_path) == [0, 25, 50, 75, 80]


def test_the_checkpoints_of_a_run_are_read_in_a_script(tmp_path: Path) -> None:
    (code,) = (block for block in PYTHON if "load_adapter" in block)
    ours = ScheduledCheckpointCallback("0,2", resume_every="never")
    make_trainer(tmp_path, [ours], logging_strategy="no").train()
    names = {"base": base_model()}
    exec(code.replace("outputs/goodness-medical", str(tmp_path)), names)
    assert isinstance(names["model"], PeftModel)


def test_the_models_of_a_run_are_put_together_in_a_script(world: Path, tmp_path: Path) -> None:
    (code,) = (block for block in PYTHON if "ModelLoader" in block)
    (tmp_path / "run.yaml").write_text(config_text(world))
    words = ["persona=warm", "compose=stack", "wandb.mode=disabled"]
    training.train(load_config(str(tmp_path / "run.yaml"), words, {"output_dir": str(tmp_path / "out")}))
    names: dict[str, Any] = {}
    exec(code.replace("outputs/goodness-medical", str(tmp_path / "out")), names)
    assert names["rebuilt"].persona.composition == "stack"


GRAMMAR = README.split("## When to save")[1].split("```")[0]


@pytest.mark.parametrize("term", re.findall(r"^\| `([^`]+)` \|", GRAMMAR, flags=re.MULTILINE))
def test_every_term_in_the_grammar_table_parses(term: str) -> None:
    assert str(Schedule.parse(term)) == term


def test_the_comparison_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from emtoolkit.cli import app as cli

    command, shown = re.findall(r"```\n\$ emtoolkit (schedule [^\n]*)\n(.*?)```", README, flags=re.DOTALL)[0]
    cli.app(command.split(), standalone_mode=False)
    assert capsys.readouterr().out == shown


def test_the_presets_in_the_table_are_those_that_ship() -> None:
    for name in ("dense-early", "pythia"):
        (grammar,) = re.findall(rf"^\| `{name}` \| a preset: `([^`]+)`", README, flags=re.MULTILINE)
        assert list(Schedule.parse(name).steps(143000)) == list(Schedule.parse(grammar).steps(143000))


def test_the_data_sets_and_the_forms_of_rows_shown_are_accepted() -> None:
    section = README.split("## Data")[1].split("\n## ")[0]
    (shown,) = re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)
    entries = yaml.safe_load(shown)["datasets"]
    read = {name: DatasetConfig.model_validate(entry) for name, entry in entries.items()}
    assert (read["medical"].control, read["advice"].path) == ("medical-good", "org/name")
    columns = [set(re.findall(r'"(\w+)":', row)) for row in re.findall(r"^\| `(\{[^`]*)`", section, flags=re.MULTILINE)]
    assert columns == [{"messages", "role", "content"}, {"prompt", "completion"}, {"instruction", "output"}]


def test_the_shipped_configs_are_listed_with_the_gpu_that_their_plan_fits_on() -> None:
    from emtoolkit.models.memory import GPUS_GB
    from emtoolkit.paths import shipped
    from emtoolkit.training import plan as planning

    table = README.split("| shipped |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| (\d+) GB \|", table, flags=re.MULTILINE))
    assert {*rows, "sandbox"} == {path.stem for path in shipped("training").glob("*.yaml")}
    for name, size in rows.items():
        memory = planning.plan(load_config(name)).memory
        assert memory is not None
        assert next(str(gpu) for gpu in GPUS_GB if memory.fits(gpu)) == size
