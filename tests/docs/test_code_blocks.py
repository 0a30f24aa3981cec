"""What the README and the documentation show is run, read by the code that would read it, or marked as not run."""

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer
from typer.main import get_command

from emtoolkit.cli.app import app
from emtoolkit.config.load import load_config
from emtoolkit.evaluation.answer_pairs import read_pairs
from emtoolkit.evaluation.decided import read_analysis
from emtoolkit.evaluation.questions import read_questions
from emtoolkit.personas import load_persona
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.sweeps.search import read_sweep
from emtoolkit.training import run as training
from tests.docs.pages import PAGES, ROOT, Block, all_blocks, blocks, commands, inline_commands
from tests.in_process import emtoolkit
from tests.saving.trainings import make_trainer, saved_steps
from tests.tiny import config_text

WITH_PYTHON = [page for page in PAGES if any(b.language == "python" and b.is_run for b in blocks(page))]
SHELL = [*all_blocks("bash"), *all_blocks("console")]


def _page(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds `outputs/goodness-medical`, a finished run."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "run.yaml").write_text(config_text(world))
    flags = {"output_dir": str(directory / "outputs" / "goodness-medical"), "wandb.mode": "disabled"}
    training.train(load_config(str(directory / "run.yaml"), flags=flags))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=_page)
def test_the_python_of_a_page_runs(
    page: Path, finished: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order and in one namespace, as a reader would; each block that trains has a Trainer's arguments of its own."""
    monkeypatch.chdir(finished)
    names: dict[str, Any] = {"Trainer": Trainer, "base": AutoModelForCausalLM.from_pretrained(world / "model")}
    for number, block in enumerate(b for b in blocks(page) if b.language == "python" and b.is_run):
        ready = make_trainer(tmp_path / str(number), num_train_epochs=10, logging_strategy="no")
        names |= {"model": ready.model, "args": ready.args, "data": ready.train_dataset}
        exec(compile(block.text, str(block), "exec"), names)
        if "load_adapter" in block.text:
            assert isinstance(names["model"], PeftModel)
        elif 'ScheduledCheckpointCallback("dense-early")' in block.text:
            assert saved_steps(tmp_path / str(number)) == [0, 25, 50, 75, 80]
        elif "ModelLoader()" in block.text:
            assert names["loaded"].persona.composition == "system_prompt"


def test_the_callback_is_the_first_code_of_the_readme() -> None:
    first = next(block for block in blocks(ROOT / "README.md") if block.language == "python")
    assert "ScheduledCheckpointCallback" in first.text


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_of_ours_that_a_shell_block_shows_parses(block: Block) -> None:
    for line in commands(block):
        words = shlex.split(line)
        if (ours := _ours(words)) is not None:
            _parse(ours)
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None


@pytest.mark.parametrize("page", [page for page in PAGES if inline_commands(page)], ids=_page)
def test_every_command_of_ours_that_the_prose_names_exists_with_its_options(page: Path) -> None:
    for line in inline_commands(page):
        command: Any = get_command(app)
        words = line.split()[1:]
        while getattr(command, "commands", None) and words:
            command = command.commands[words.pop(0)]
        options = {flag for parameter in command.params for flag in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options, line


def test_the_outputs_shown_are_what_the_commands_print(tmp_path: Path) -> None:
    for block in all_blocks("console"):
        first, _, shown = block.text.partition("\n")
        if block.is_run:
            done = emtoolkit(*shlex.split(first.removeprefix("$ emtoolkit ")), cwd=tmp_path)
            assert (done.code, done.out) == (0, shown), str(block)


@pytest.mark.parametrize("block", [block for block in all_blocks("yaml") if block.is_run], ids=str)
def test_the_yaml_shown_is_accepted_by_what_reads_it(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "shown.yaml"
    file.write_text(block.text)
    if block.comment == "a persona":
        load_persona(str(file))
    elif block.comment == "a preset":
        Schedule.parse(yaml.safe_load(block.text)["schedule"])
    elif block.comment == "a sweep":
        read_sweep(file)
    elif block.comment == "questions":
        read_questions(file)
    elif block.comment == "an analysis":
        read_analysis(file)
    elif block.comment == "pairs":
        read_pairs(file)
    else:
        # Some sections of a config, here over those of a whole one.
        whole = yaml.safe_load((ROOT / "configs" / "training" / "sandbox.yaml").read_text())
        file.write_text(yaml.safe_dump(whole | yaml.safe_load(block.text)))
        load_config(str(file))


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_the_json_shown_is_json(block: Block) -> None:
    json.loads(block.text)


def test_every_block_names_its_language() -> None:
    known = {"python", "bash", "console", "yaml", "json", "text"}
    assert [str(block) for page in PAGES for block in blocks(page) if block.language not in known] == []


def _ours(words: list[str]) -> list[str] | None:
    """The words behind `emtoolkit`, also behind a launcher's; None if another program is run."""
    at = next((i for i, word in enumerate(words) if Path(word).name == "emtoolkit"), None)
    return None if at is None or "pip" in words[0] else words[at + 1 :]


def _parse(words: list[str]) -> None:
    """As the command line does, without running anything; an unknown command or option is an error."""
    command: Any = get_command(app)
    while getattr(command, "commands", None):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


@pytest.mark.slow
def test_the_manifest_shown_has_the_keys_of_one_that_is_written(finished: Path) -> None:
    (shown,) = (json.loads(block.text) for block in all_blocks("json") if '"fingerprint"' in block.text)
    written = json.loads((finished / "outputs" / "goodness-medical" / "checkpoint-0" / "manifest.json").read_text())
    assert list(shown) == list(written)
    for section in ("base_model", "persona", "files"):
        assert list(shown[section]) == list(written[section])
