"""`--csv` and `--json` of the commands that list rows: the same values, and one of them at a time."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.analysis.evaluations import write_evaluation
from tests.artifacts.stored import IDENTITY
from tests.artifacts.trainings import saved
from tests.in_process import emtoolkit

LOW, HIGH = [0] * 4, [10, 25, 30, 15]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = saved(tmp_path / "a, run", dict.fromkeys([0, 10, 20, 30], "a"), ended_at=30)
    answers = {0: LOW, 10: LOW, 20: HIGH, 30: HIGH}
    write_evaluation(directory / "evaluations" / "abc", answers, fingerprint=IDENTITY.fingerprint)
    return directory


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_checkpoints_as_csv_have_a_column_for_each_fact_and_for_each_that_is_asked_for(run: Path) -> None:
    plain = emtoolkit("checkpoints", run, "--csv")
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.splitlines()[0] == "step,state,final,bytes,fingerprint,path,artifact"
    assert [(row["step"], row["final"], row["path"]) for row in rows(plain.out)] == [
        (str(step), "true" if step == 30 else "false", f"{run}/checkpoint-{step}") for step in (0, 10, 20, 30)
    ]
    asked = emtoolkit("checkpoints", run, "--csv", "--where", "betley>0.1", "--sort", "-step,betley")
    listed = json.loads(emtoolkit("checkpoints", run, "--json", "--where", "betley>0.1", "--sort", "-step").out)
    assert asked.out.splitlines()[0] == "step,state,final,bytes,fingerprint,path,artifact,betley"
    assert [(int(row["step"]), float(row["betley"])) for row in rows(asked.out)] == [
        (each["step"], each["columns"]["betley"]) for each in listed
    ]
    assert [each["step"] for each in listed] == [30, 20]


def test_a_header_stands_above_no_rows_and_pruned_steps_are_listed(run: Path) -> None:
    assert emtoolkit("prune", run, "--drop", "10", "--yes").code == 0
    states = [(row["step"], row["state"], row["bytes"]) for row in rows(emtoolkit("checkpoints", run, "--csv").out)]
    assert states[1] == ("10", "pruned", "0")
    none = emtoolkit("checkpoints", run, "--csv", "--where", "step>99")
    assert none.out == "step,state,final,bytes,fingerprint,path,artifact\n"


def test_schedules_onsets_and_comparisons_are_tables_for_programs_too(run: Path) -> None:
    schedules = rows(emtoolkit("schedule", "0-4:2", "every:3", "--total-steps", "6", "--csv").out)
    assert schedules == [
        {"spec": "0-4:2", "steps": "0 2 4 6", "count": "4", "bytes": "", "largest_gap": "2"},
        {"spec": "every:3", "steps": "3 6", "count": "2", "bytes": "", "largest_gap": "3"},
    ]
    onsets = rows(emtoolkit("onset", run, "--csv").out)
    assert [(row["inference"], row["status"], row["lower"], row["upper"]) for row in onsets][1] == (
        ("these questions", "seen", "10", "20")
    )
    compared = rows(emtoolkit("compare", run, "--schedules", "every:30", "--csv").out)
    assert [row["schedule"] for row in compared] == ["all", "every:30"]


@pytest.mark.parametrize(
    "argv", [["checkpoints"], ["schedule", "--total-steps", "6"], ["onset"], ["compare"], ["dynamics"]], ids=" ".join
)
def test_json_and_csv_together_are_refused(argv: list[str], run: Path) -> None:
    done = emtoolkit(*argv, run, "--json", "--csv")
    assert (done.code, done.out) == (2, "")
    assert done.err == "emtoolkit: --json and --csv exclude each other; give one of them\n"
