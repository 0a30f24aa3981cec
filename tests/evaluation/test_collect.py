"""`emtoolkit evaluate --collect`: the results of several machines are those of one machine, or a sentence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation.activations import SPANS, Activations, Text, texts_of, write_activations
from emtoolkit.evaluation.collect import Collected, collect_evaluations
from emtoolkit.evaluation.decided import DecidedAnalysis, read_records, record_analysis
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.result_files import add_to_evaluation, read_evaluation
from emtoolkit.evaluation.rows import AnswerRow
from tests.artifacts.trainings import saved
from tests.evaluation.evaluations import SETTINGS, answer_rows, measure_rows
from tests.in_process import emtoolkit

FILES = ("answers.parquet", "measures.parquet", "evaluation.json")
Machine = Callable[..., str]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Writes what a machine evaluated: some steps of `out`, a run with checkpoints at 0, 4, 9 and 16."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    saved(tmp_path / "out", {0: "a", 4: "a", 9: "a", 16: "a"})

    def write(name: str, *steps: int, settings: Any = SETTINGS, rows: Any = None) -> str:
        rows = [replace(row, trajectory="out") for row in (answer_rows(*steps) if rows is None else rows)]
        values = [replace(row, trajectory="out") for row in measure_rows(*steps)]
        add_to_evaluation(Path(name), settings, rows, values)
        return name

    return write


def bytes_of(directory: str | Path) -> dict[str, bytes]:
    return {name: (Path(directory) / name).read_bytes() for name in FILES}


def merged(*places: str, **more: Any) -> Collected:
    return collect_evaluations(places, directory=Path("merged"), **more)


def test_the_files_are_those_of_one_machine_in_any_order_of_the_places(machine: Machine) -> None:
    whole = bytes_of(machine("whole", 0, 4, 9, 16))
    places = [machine("b", 9), machine("a", 0, 16), machine("c", 4, 9)]
    for order in (places, places[::-1]):
        done = merged(*order)
        assert bytes_of("merged") == whole
        assert (done.missing, done.result.notes) == ((), ())
        assert [step.step for step in done.result.steps] == [0, 4, 9, 16]
        for name in FILES:
            Path("merged", name).unlink()


def test_evaluations_below_a_directory_are_found(machine: Machine) -> None:
    machine("disk/one/1a2b3c4d", 0, 4)
    machine("disk/two/1a2b3c4d", 9)
    assert [step.step for step in merged("disk").result.steps] == [0, 4, 9]


def test_steps_that_no_place_holds_are_named_and_the_exit_code_is_1(machine: Machine) -> None:
    done = emtoolkit("evaluate", "--collect", machine("a", 4), machine("b", 0), "--json")
    assert done.code == 1
    assert done.err == "emtoolkit: out: no place holds steps 9, 16\n"
    assert '"directory": "out/evaluations/1a2b3c4d"' in done.out
    # What has been collected is there for the next call.
    again = emtoolkit("evaluate", "--collect", machine("c", 9, 16), "--model-dir", "out", "--json")
    assert (again.code, again.err) == (0, "")
    assert bytes_of("out/evaluations/1a2b3c4d") == bytes_of(machine("whole", 0, 4, 9, 16))
    assert emtoolkit("evaluate", "--collect", "a", "--steps", "4", "--output-dir", "other").code == 0


def test_the_rows_name_the_trajectory_that_the_user_names(machine: Machine) -> None:
    elsewhere = [replace(row, trajectory="lab/em/coll") for row in answer_rows(0)]
    add_to_evaluation(Path("a"), SETTINGS, elsewhere)
    machine("b", 4)
    with pytest.raises(DataError, match=r"lab/em/coll, out: the places name one training by several paths"):
        merged("a", "b")
    assert {row.trajectory for row in read_evaluation(merged("a", "b", reference="out").result.directory).rows} == {
        "out"
    }


@pytest.mark.subprocess
def test_a_trajectory_that_is_not_here_is_said(machine: Machine) -> None:
    add_to_evaluation(Path("a"), SETTINGS, answer_rows(0))
    (note,) = merged("a").result.notes
    assert note.startswith("runs/a: there is no such directory")
    assert note.endswith("so it is not known whether steps are missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"judge": "word@2"}, "judge"),
        ({"engine": "exact"}, "engine"),
        ({"sampling": {"seed": 1}}, "sampling"),
        ({"questions": [{"id": "a"}]}, "questions"),
        ({"measures": {"length@2": {}}}, "measures"),
    ],
)
def test_conflicting_settings_are_refused(machine: Machine, change: dict[str, Any], words: str) -> None:
    machine("a", 0)
    name = next(iter(change))
    rows = [replace(row, **change) if name in ("judge", "engine") else row for row in answer_rows(4)]
    machine("b", 4, settings={**SETTINGS, **change}, rows=rows)
    with pytest.raises(DataError, match=rf"a and b: evaluations with different settings \({words}\)"):
        merged("a", "b")
    assert not Path("merged").exists()


def changed(**change: Any) -> list[AnswerRow]:
    first, *others = answer_rows(4)
    return [replace(first, **change), *others]


def test_two_trainings_and_two_results_of_one_checkpoint_are_refused(machine: Machine) -> None:
    machine("a", 0, 4)
    add_to_evaluation(Path("b"), SETTINGS, [replace(row, fingerprint="f2") for row in answer_rows(9)])
    with pytest.raises(DataError, match="a and b: answers of 2 trainings"):
        merged("a", "b")
    machine("c", 4, rows=changed(answer="another"))
    with pytest.raises(DataError, match="a and c: step 4, question a: different results of one checkpoint"):
        merged("a", "c")
    machine("d", 4, rows=changed(aligned=50.0))
    with pytest.raises(DataError, match="a and d: step 4, question a: different results of one checkpoint"):
        merged("a", "d")


def test_a_verdict_comes_before_an_error_of_the_judge(machine: Machine) -> None:
    failed: dict[str, Any] = {"status": "judge_error", "aligned": None, "coherent": None}
    machine("a", 4, rows=changed(**failed))
    machine("b", 4)
    for order in (("a", "b"), ("b", "a")):
        merged(*order)
        assert bytes_of("merged") == bytes_of("b")


def test_the_calibration_sessions_of_all_machines_are_kept_once(machine: Machine) -> None:
    for name, step, session in (("a", 0, {"day": "1"}), ("b", 4, {"day": "2"}), ("c", 9, {"day": "1"})):
        add_to_evaluation(Path(machine(name, step)), SETTINGS, sessions=[session])
    for _ in range(2):
        assert merged("a", "b", "c").missing == (16,)
        assert read_evaluation(Path("merged")).sessions == ({"day": "1"}, {"day": "2"})
    add_to_evaluation(Path(machine("d", 16)), SETTINGS, sessions=[{"day": "3", "notes": ["judge word differs"]}])
    assert merged("a", "d").result.notes[-1] == "judge word differs"


def read_by(machine: str, *steps: int, text: str = "a cold", value: float = 1.0) -> None:
    """Activations that a machine read on one text."""
    directory = Path(machine) / "activations"
    directory.mkdir()
    texts = (Text("a/0", (1, 2), tuple(len(word) for word in text.split())),)
    for step in steps:
        tensors = {span: torch.full((1, 2, 4), value * step) for span in SPANS}
        write_activations(directory / f"step-{step}.safetensors", Activations(texts, tensors), {"step": step})


def contents(directory: Path) -> dict[str, Any]:
    return {path.name: (texts_of(path), load_file(path)["prompt_last"].tolist()) for path in directory.iterdir()}


def test_activations_are_merged_as_one_machine_reads_them(machine: Machine) -> None:
    for name, steps in (("whole", (0, 4, 9, 16)), ("a", (0, 4)), ("b", (4, 9)), ("c", (16,))):
        machine(name, *steps)
        read_by(name, *steps)
    for _ in range(2):
        assert merged("b", "a", "c").result.notes == ()
        assert contents(Path("merged", "activations")) == contents(Path("whole", "activations"))


def test_activations_that_do_not_compare_are_left_out_and_two_results_refused(machine: Machine) -> None:
    machine("a", 0, 4)
    machine("b", 9, 16)
    read_by("a", 0, 4)
    read_by("b", 9, text="two words more")
    others, missing = merged("a", "b").result.notes
    assert others.startswith("activations of step 9 were read on other texts than those of step 0 and are left out;")
    assert missing == "no place holds the activations of step 16"
    assert [path.name for path in sorted(Path("merged", "activations").iterdir())] == [
        "step-0.safetensors",
        "step-4.safetensors",
    ]
    machine("c", 4)
    read_by("c", 4, value=2.0)
    with pytest.raises(DataError, match="a and c: step 4: different activations of one checkpoint on the same texts"):
        collect_evaluations(["a", "c"], directory=Path("other"))
    Path("b", "activations", "step-9.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"b/activations/step-9.safetensors: is not a file of activations"):
        collect_evaluations(["a", "b"], directory=Path("other"))
    assert not Path("other").exists()


def test_an_analysis_that_every_machine_recorded_beforehand_is_as_decided(machine: Machine) -> None:
    analysis = DecidedAnalysis("betley", 0.1)
    questions = [Question("a", ("?",)), Question("b", ("?",))]
    for name in ("a", "b"):
        record_analysis(Path(name), analysis, questions, ())
        machine(name, *((0, 4) if name == "a" else (9, 16)))
    first = min(read_records(Path("a")) + read_records(Path("b")), key=lambda record: record.time)
    for _ in range(2):
        merged("b", "a")
        assert read_records(Path("merged")) == (first,)
    # The answers of this machine may have been seen before the analysis was decided.
    machine("c", 9)
    collect_evaluations(["a", "c"], directory=Path("late"))
    assert [record.steps_before for record in read_records(Path("late"))] == [(9,)]


def test_the_ranges_for_several_machines_are_printed_as_a_sweep_file_takes_them(machine: Machine) -> None:
    done = emtoolkit("evaluate", "out", "--split", "3")
    assert (done.code, done.out) == (0, '["0-3:1", "4-8:1", "9-:1"]\n')
    assert emtoolkit("evaluate", "out", "--steps", "4-:1", "--split", "9").out == '["4-8:1", "9-15:1", "16-:1"]\n'
    assert emtoolkit("evaluate", "out", "--steps", "0,9,16", "--split", "2").out == '["0", "9-16:1"]\n'
    assert emtoolkit("evaluate", "out", "--steps", "0,9,16", "--split", "1").out == '["0,9-16:1"]\n'


def test_bad_places_and_options_are_one_sentence(machine: Machine) -> None:
    Path("empty").mkdir()
    machine("a", 0)
    for words, sentence in (
        (["empty"], "empty: there is no evaluation in this directory (no evaluation.json)"),
        (
            ["a/b/c/d"],
            "a/b/c/d: there is no such directory; a place is a directory with evaluations, or results on W&B",
        ),
        ([], "--collect: give the places of the results"),
        (["a", "--seed", "1"], "--seed: the results to collect have their settings already; remove the option"),
        (["a", "--steps", "7"], "there is no checkpoint at step 7"),
    ):
        done = emtoolkit("evaluate", "--collect", *words)
        assert (done.code, done.out) == (2, ""), done
        assert sentence in done.err
    with pytest.raises(CheckpointError):
        merged("empty")
