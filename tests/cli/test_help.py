"""Help pages, the version, shell completion, and the sentence that a usage error is."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from emtoolkit.cli.app import app
from tests.cli.terminals import ESCAPE_CODE, in_terminal
from tests.in_process import emtoolkit


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, each in getattr(command, "commands", {}).items():
        yield from _commands(each, (*words, name))


COMMANDS = dict(_commands(get_command(app)))
EVERY_COMMAND = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@EVERY_COMMAND
def test_a_help_page_fits_80_columns_and_names_no_python_type(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = emtoolkit(*words, "--help", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) > 10
    assert [line for line in lines if len(line) > 80] == []
    for type_name in ("<bool>", "<list", "<path>"):
        assert type_name not in done.out
    # In a pipe there is no colour, and nothing is drawn twice.
    assert not ESCAPE_CODE.search(done.out)
    assert "\r" not in done.out


@EVERY_COMMAND
def test_a_help_page_ends_with_three_examples_that_parse(words: tuple[str, ...]) -> None:
    title, _, *lines = COMMANDS[words].epilog.splitlines()
    assert title == "Examples:"
    assert len(lines) == 3
    for line in lines:
        assert len(line.strip()) <= 78
        program, *argv = shlex.split(line)
        assert (program, tuple(argv[: len(words)])) == ("emtoolkit", words)
        # The example of a group is a line of one of its commands.
        deepest = max((each for each in COMMANDS if tuple(argv[: len(each)]) == each), key=len)
        assert not hasattr(COMMANDS[deepest], "commands")
        COMMANDS[deepest].make_context("emtoolkit", argv[len(deepest) :])


@EVERY_COMMAND
def test_an_option_is_described_by_a_noun_phrase_or_an_imperative(words: tuple[str, ...]) -> None:
    for parameter in COMMANDS[words].params:
        text = parameter.help
        assert text[0].isupper(), text
        assert text.endswith("."), text
        assert not text.startswith(("Of ", "Such as ", "Where ", "By default")), text


def test_help_shows_the_version_and_version_prints_it(tmp_path: Path) -> None:
    assert emtoolkit("--version", cwd=tmp_path).out == "emtoolkit 0.1.0\n"
    assert "emtoolkit 0.1.0" in emtoolkit("--help", cwd=tmp_path).out


def test_emtoolkit_alone_prints_its_help_page_and_exits_with_2(tmp_path: Path) -> None:
    done = emtoolkit(cwd=tmp_path)
    assert (done.code, done.err) == (2, "")
    assert done.out.rstrip() == emtoolkit("--help", cwd=tmp_path).out.rstrip()


def test_the_help_of_sync_shows_its_default(tmp_path: Path) -> None:
    assert "Default: outputs." in emtoolkit("sync", "--help", cwd=tmp_path).out


@pytest.mark.subprocess
@pytest.mark.subprocess
def test_a_shell_gets_a_completion_script(tmp_path: Path) -> None:
    # The shell is found among the parents of the process; `:` keeps bash from giving its place to Python.
    line = f"{shlex.quote(sys.executable)} -m emtoolkit --show-completion bash; :"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "COMPREPLY=(" in done.stdout
    assert done.stderr == ""


@pytest.mark.subprocess
@pytest.mark.subprocess
def test_a_terminal_of_80_columns_shows_the_help_page_in_colour_unless_no_color_is_set(tmp_path: Path) -> None:
    coloured = in_terminal("schedule", "--help", cwd=tmp_path, columns=80)
    assert coloured.code == 0
    assert "\x1b[" in coloured.output
    assert max(map(len, coloured.lines)) == 80
    plain = in_terminal("schedule", "--help", cwd=tmp_path, columns=80, environment={"NO_COLOR": "1"})
    assert "\x1b" not in plain.output
    assert plain.lines == coloured.lines


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "trian: no such command; expected one of train, plan, "),
        (["trian"], "; did you mean 'train'?"),
        (["sandbox", "buld"], "buld: no such command; expected one of build, persona, evaluate; did you mean 'build'?"),
        (["schedule", "every:3", "--totl-steps", "5"], "--totl-steps: no such option; did you mean '--total-steps'?"),
        (["--vrsion"], "--vrsion: no such option; did you mean '--version'?"),
        (["schedule", "every:3"], "--total-steps: missing; see '"),
        (["schedule", "--total-steps", "5"], "SPEC...: missing; see '"),
        (["schedule", "every:3", "--total-steps"], "--total-steps: requires an argument; see '"),
        (["schedule", "every:3", "--total-steps", "many"], "--total-steps: 'many' is not valid: input should be a"),
        (["sweep", "a.yaml", "--jobs", "0"], "--jobs: '0' is not valid: input should be greater than or equal to 1"),
        (
            ["schema", "confg"],
            "config|sweep|persona|analysis|preset: 'confg' is not one of 'config', 'sweep', 'persona', "
            "'analysis', 'preset'; see",
        ),
        (["checkpoints", "a", "--json=3"], "--json: does not take a value; see '"),
        (["checkpoints", "a", "b"], "emtoolkit checkpoints: got unexpected extra argument"),
    ],
)
def test_a_usage_error_names_the_flag_in_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = emtoolkit(*words, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("emtoolkit: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1
