"""Commands in messages: a shell splits each into the words that were meant, whatever a path is called."""

import ast
import os
import re
import shlex
from pathlib import Path

import pytest

from emtoolkit.checkpoints.pruned import how_to_make_again
from emtoolkit.shell_command import quoted_command, shell_command
from tests.artifacts.trainings import saved
from tests.in_process import emtoolkit

HOSTILE = "my runs $(x)"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("outputs/a", "emtoolkit sync outputs/a"),
        (HOSTILE, "emtoolkit sync 'my runs $(x)'"),
        ("~/a", "emtoolkit sync '~/a'"),
        ("it's", """emtoolkit sync 'it'"'"'s'"""),
        ("-x", "emtoolkit sync ./-x"),
        ("a;b&c*", "emtoolkit sync 'a;b&c*'"),
    ],
)
def test_a_shell_takes_each_path_for_one_word(path: str, line: str) -> None:
    assert shell_command("emtoolkit", "sync", Path(path)) == line
    assert os.path.normpath(shlex.split(line)[2]) == path


def test_a_command_with_quotes_stands_in_backticks() -> None:
    assert quoted_command("emtoolkit", "sync", Path("a")) == "'emtoolkit sync a'"
    assert quoted_command("emtoolkit", "sync", Path("a b")) == "`emtoolkit sync 'a b'`"


def test_prune_and_checkpoints_print_commands_for_a_directory_of_any_name(tmp_path: Path) -> None:
    run = saved(tmp_path / HOSTILE, dict.fromkeys([0, 10, 20], "a"), ended_at=20)
    (run / "config.yaml").write_text("seed: 1\n")  # so that `refine` needs no --config
    wanted = ["emtoolkit", "refine", str(run), "--steps", "10"]
    pruned = emtoolkit("prune", run, "--keep", "final", "--yes")
    assert shlex.split(pruned.out.partition("Made again by: ")[2]) == wanted
    listed = emtoolkit("checkpoints", run).out
    assert f"emtoolkit refine '{run}' --steps 10" in listed
    lacking = emtoolkit("onset", run)
    assert lacking.code == 2
    assert shlex.split(lacking.err.split("`")[1]) == ["emtoolkit", "evaluate", str(run)]
    assert how_to_make_again("lab/em/COLLECTION", [10]) == "emtoolkit refine DIR --steps 10"


# `emtoolkit sync {path}`, `emtoolkit sync %s`: a placeholder inside a command.
_UNQUOTED = re.compile(r"\b(?:emtoolkit|wandb) [a-z][a-z -]*(?:[A-Z]+ )*(?:\0|%s)")


def test_no_message_puts_a_value_into_a_command_unquoted() -> None:
    found = []
    for path in sorted(Path("emtoolkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(map(_text, node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            found += [f"{path}: {match[0]}" for match in _UNQUOTED.finditer(text)]
    assert found == []


def _text(part: ast.expr) -> str:
    """A part of an f-string: a null character for a value, nothing for a constant in capitals."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    constant = isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) and part.value.id.isupper()
    return "" if constant else "\0"
