"""Output in a terminal and in a pipe: widths, colours, progress, and nothing that libraries print for developers."""

import io
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.text import Text

from emtoolkit.cli import terminal
from emtoolkit.cli.layout import Column, ElidedSteps, Records, facts, here, line, prose
from emtoolkit.cli.terminal import progress_bar, show
from tests.cli.terminals import ESCAPE_CODE, in_terminal

WriteConfig = Callable[..., Path]


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that `show` prints in a pipe with $COLUMNS set to `columns`."""

    def lines(result: object, columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        show(result)  # type: ignore[arg-type]  # any renderable
        return capsys.readouterr().out.splitlines()

    return lines


RECORDS = Records(
    [Column("persona", "left"), Column("judge calls"), Column("error", "left", at_least=12)],
    [["goodness", "1,600", "exit code 1: out of memory"], ["sarcasm", "80", "—"]],
)


def test_a_table_that_fits_has_one_line_a_record(printed: Callable[..., list[str]]) -> None:
    assert printed(RECORDS, 80) == [
        "persona   judge calls  error",
        "goodness        1,600  exit code 1: out of memory",
        "sarcasm            80  —",
    ]


def test_an_elastic_column_takes_several_lines(printed: Callable[..., list[str]]) -> None:
    assert printed(RECORDS, 38) == [
        "persona   judge calls  error",
        "goodness        1,600  exit code 1:",
        "                       out of memory",
        "sarcasm            80  —",
    ]


def test_a_header_takes_several_lines_before_the_table_becomes_a_list(printed: Callable[..., list[str]]) -> None:
    assert printed(RECORDS, 31) == [
        "          judge",
        "persona   calls  error",
        "goodness  1,600  exit code 1:",
        "                 out of memory",
        "sarcasm      80  —",
    ]


def test_columns_with_one_value_for_all_records_stand_above_a_table_that_does_not_fit(
    printed: Callable[..., list[str]],
) -> None:
    columns = [Column("dataset", "left"), Column("persona", "left"), Column("steps")]
    rows = [["medical", "goodness", "397"], ["medical", "sarcasm", "397"]]
    assert printed(Records(columns, rows), 80)[0] == "dataset  persona   steps"
    assert printed(Records(columns, rows), 20) == [
        "dataset  medical",
        "steps    397",
        "",
        "persona",
        "goodness",
        "sarcasm",
    ]


def test_a_table_that_does_not_fit_becomes_a_list_of_records(printed: Callable[..., list[str]]) -> None:
    assert printed(RECORDS, 28) == [
        "persona      goodness",
        "judge calls  1,600",
        "error        exit code 1:",
        "             out of memory",
        "",
        "persona      sarcasm",
        "judge calls  80",
        "error        —",
    ]


def test_steps_lose_their_middle_and_a_million_steps_take_no_time(printed: Callable[..., list[str]]) -> None:
    assert printed(facts([("saves at", ElidedSteps(range(1, 1_000_001)))]), 30) == ["saves at  1, 2, …, 1000000"]


def test_prose_is_broken_between_words_and_a_command_is_not(printed: Callable[..., list[str]]) -> None:
    assert printed(prose("Training waited for the disk."), 20) == ["Training waited for", "the disk."]
    assert printed(line("emtoolkit sync outputs/baseline-medical"), 20) == ["emtoolkit sync outputs/baseline-medical"]
    assert printed(Text("[red]x[/red] :smile:"), 80) == ["[red]x[/red] :smile:"]


def test_json_is_printed_on_one_line(printed: Callable[..., list[str]]) -> None:
    assert printed('{"steps": [1, 2, 3, 4, 5, 6, 7, 8, 9]}', 20) == ['{"steps": [1, 2, 3, 4, 5, 6, 7, 8, 9]}']


def test_a_path_below_the_working_directory_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert here(tmp_path / "outputs" / "a") == "outputs/a"
    assert here(tmp_path.parent) == str(tmp_path.parent)


@pytest.mark.parametrize(("seconds", "bar"), [(3600.0, False), (0.0, True)])
def test_long_work_shows_a_bar_in_a_terminal_and_short_work_does_not(
    seconds: float, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = _Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "_SECONDS_BEFORE_BAR", seconds)
    with progress_bar() as progress:
        progress("reading medical.jsonl", 1, 2)
    assert ("% |" in screen.getvalue()) is bar
    # The bar is removed at the end.
    assert screen.getvalue().rpartition("\r")[2] == ""


def test_a_bar_of_few_pieces_moves_after_a_bar_of_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "_SECONDS_BEFORE_BAR", 0.0)
    seconds = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(seconds)))
    with progress_bar() as progress:
        progress("hashing", 0, 10**9)
        progress("hashing", 10**9, 10**9)
        for done in range(4):
            progress(f"checkpoint {done}", done, 4)
    shown = re.findall(r"checkpoint \d +(\d+)%", screen.getvalue())
    assert shown == ["0", "25", "50", "75"]


def test_long_work_writes_a_line_now_and_then_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with progress_bar() as progress:
        progress("reading medical.jsonl", 1, 2)
    assert pipe.getvalue() == ""
    # The first line comes after two seconds, the next one after thirty more.
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with progress_bar() as progress:
        for seconds, done in ((0.0, 0), (1.9, 1), (2.0, 2), (31.9, 3), (32.0, 4)):
            now[0] = seconds
            progress("reading medical.jsonl", done, 4)
    assert pipe.getvalue() == "emtoolkit: reading medical.jsonl: 50 %\nemtoolkit: reading medical.jsonl: 100 %\n"


@pytest.mark.subprocess
def test_training_in_a_pipe_writes_one_line_for_each_logging_interval(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(rest="wandb: {mode: disabled}")
    argv = [sys.executable, "-m", "emtoolkit", "train", str(config), "--set", "training.logging_steps=4"]
    # With WANDB_MODE=offline, which tests set, transformers prints a line when it is imported.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=True, env=environment)
    text = done.stdout + done.stderr
    assert "\r" not in text
    assert not ESCAPE_CODE.search(text)
    lines = done.stderr.splitlines()
    # Everything is a sentence of emtoolkit: no bar, no dict of metrics, no FutureWarning.
    assert [each for each in lines if not each.startswith("emtoolkit: ")] == []
    steps = [each for each in lines if each.startswith("emtoolkit: step ")]
    assert [each.split(", loss ")[0] for each in steps] == [
        "emtoolkit: step 1 of 9",
        "emtoolkit: step 4 of 9",
        "emtoolkit: step 8 of 9",
    ]
    assert [each for each in steps if not each.endswith(" left")] == []


@pytest.mark.slow
@pytest.mark.subprocess
def test_training_in_a_terminal_shows_one_bar(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config("schedule: '1'", rest="wandb: {mode: disabled}")
    # A bar appears after two seconds: 1,000 steps of two milliseconds take as long on the fastest machine.
    argv = ["train", config, "--set", "training.max_steps=1000", "--set", "training.logging_steps=50"]
    session = in_terminal(*argv, cwd=tmp_path, environment={"NO_COLOR": "1"})
    assert session.code == 0, session.output
    frames = [frame for frame in session.output.split("\r") if "% |" in frame]
    assert frames
    assert {frame.split(",")[0] for frame in frames} == {"training"}
    assert any(", loss " in frame and " left " in frame for frame in frames)
    assert [frame for frame in frames if len(frame) > 80] == []
    assert "step 50 of" not in session.output
    assert "\x1b" not in session.output
    assert [each for each in session.lines if each.startswith(("{", "[transformers]"))] == []
    assert "FutureWarning" not in session.output


@pytest.mark.subprocess
def test_a_terminal_colours_a_table_unless_no_color_is_set(tmp_path: Path) -> None:
    argv = ["schedule", "every:100", "every:1", "--total-steps", "400"]
    coloured = in_terminal(*argv, cwd=tmp_path, columns=60)
    assert "\x1b[1m" in coloured.output
    plain = in_terminal(*argv, cwd=tmp_path, columns=60, environment={"NO_COLOR": "1"})
    assert "\x1b" not in plain.output
    assert plain.lines == coloured.lines
    assert max(map(len, plain.lines)) <= 60
