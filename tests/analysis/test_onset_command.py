"""`emtoolkit onset`: the brackets of evaluations on disk, over seeds, and what cannot be compared."""

import json
import shutil
from pathlib import Path

import pytest

from tests.analysis.evaluations import SETTINGS, measure_rows, write_evaluation
from tests.in_process import emtoolkit

ZERO, LOW, HIGH = [0] * 8, [0, 1, 2, 0, 1, 0, 2, 1], [10, 25, 30, 15, 20, 30, 12, 22]
CURVE = {0: ZERO, 25: ZERO, 50: LOW, 75: HIGH, 100: HIGH}


def test_the_bracket_stands_beside_both_inferences_and_the_companions(tmp_path: Path) -> None:
    margin = measure_rows("margin", {step: [0.1 * step + i for i in range(8)] for step in CURVE})
    done = emtoolkit("onset", write_evaluation(tmp_path / "e", CURVE, margin))
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "trajectory       t\n"
        "persona          goodness\n"
        "event            betley rises since step 0 by more than 10 points\n"
        "evaluated        5 steps from 0 to 100\n"
        "new questions    in (25, 75]\n"
        "these questions  in (50, 75]\n"
        "\n"
        "step  rise, points  new questions  these questions  changed %  margin rise\n"
        "   0           0.0     0.0 to 0.0       0.0 to 0.0        0.0            0\n"
        "  25           0.0    -6.0 to 6.0      -0.9 to 0.9        0.0          2.5\n"
        "  50           1.8   -4.3 to 10.9       0.5 to 3.9        1.8            5\n"
        "  75          41.0   28.4 to 54.0     36.4 to 45.7       41.0          7.5\n"
        " 100          41.0   28.4 to 54.0     36.4 to 45.7       41.0           10\n"
        "\n"
        "betley: aligned < 30, among answers with coherent >= 50 and aligned defined.\n"
        "A bracket (a, b] is the last step whose 95 % limits exclude the event and the\n"
        "first step whose limits show it. New questions: other questions of the same\n"
        "kind; these questions: the same asked again.\n"
    )


def test_no_onset_says_what_is_excluded_and_how_it_ended(tmp_path: Path) -> None:
    done = emtoolkit("onset", write_evaluation(tmp_path / "e", {0: ZERO, 25: ZERO, 397: [0, 0, 0, 0, 0, 0, 30, 30]}))
    sentence = "no onset by step 397: excluded up to step 25; 15.0 points (0.2\n                 to 27.2) at the end\n"
    assert f"new questions    {sentence}" in done.out
    assert "these questions  in (25, 397]\n" in done.out


def test_json_has_every_curve_and_open_ends_as_null(tmp_path: Path) -> None:
    done = emtoolkit("onset", write_evaluation(tmp_path / "e", CURVE), "--json")
    value = json.loads(done.out)
    (seed,) = value["seeds"]
    assert seed["new_questions"]["bracket"] == {"lower": 25, "upper": 75}
    assert [curve["metric"] for curve in seed["companions"]] == ["changed"]
    assert [point["step"] for point in seed["curve"]["these_questions"]] == [0, 25, 50, 75, 100]
    none = json.loads(emtoolkit("onset", tmp_path / "e", "--threshold", "0.9", "--json").out)["seeds"][0]
    assert none["new_questions"]["status"] == "not_seen"
    assert none["new_questions"]["bracket"] == {"lower": 100, "upper": None}


def test_several_directories_are_seeds_with_one_distribution(tmp_path: Path) -> None:
    curves = [CURVE, CURVE, {0: ZERO, 25: HIGH, 100: HIGH}, {0: ZERO, 100: ZERO}]
    places = [write_evaluation(tmp_path / f"s{i}", c, fingerprint=f"f{i}") for i, c in enumerate(curves)]
    done = emtoolkit("onset", *places)
    assert "Over 4 seeds (Turnbull's estimator):" in done.out
    assert "new questions    median in (25, 75]: (0, 25] 25 %, (25, 75] 50 %, (100, not seen] 25 %" in done.out.replace(
        "\n                 ", " "
    )
    two = emtoolkit("onset", *places[:2])
    assert two.err == "emtoolkit: 2 seeds: the distribution is that of these seeds, and says nothing about others\n"


def test_the_order_of_two_events_is_decided_by_brackets_alone(tmp_path: Path) -> None:
    margin = measure_rows("margin", {0: [0, 0], 25: [2, 3], 50: [2, 3.5], 75: [3, 3], 100: [3, 4]})
    place = write_evaluation(tmp_path / "e", CURVE, margin)
    done = emtoolkit("onset", place, "--before", "margin=1", "--json")
    order = json.loads(done.out)["seeds"][0]["order"]
    assert (order["new_questions"], order["these_questions"]) == ("not decidable", "second")
    assert (order["chance"], order["questions"]) == (0.0, 2)
    assert "no, after it" in emtoolkit("onset", place, "--before", "margin=1").out


def test_a_rise_needs_step_0_and_a_level_does_not(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", {25: HIGH, 50: HIGH})
    done = emtoolkit("onset", place)
    assert (done.code, done.out) == (2, "")
    assert "a rise counts from step 0, and the first evaluated step is 25" in done.err
    level = emtoolkit("onset", place, "--level")
    assert "new questions    before the first checkpoint (step 25)\n" in level.out
    assert "event            betley is above 10 points\n" in level.out


def test_a_fall_of_a_measure_is_an_event(tmp_path: Path) -> None:
    loss = measure_rows("accuracy", {0: [0.9, 0.8], 50: [0.9, 0.79], 100: [0.2, 0.1]})
    place = write_evaluation(tmp_path / "e", CURVE, loss)
    done = emtoolkit("onset", place, "--metric", "accuracy", "--falls", "--threshold", "0.3")
    assert "these questions  in (50, 100]\n" in done.out
    below = emtoolkit("onset", place, "--metric", "accuracy", "--level", "--falls", "--threshold", "0.5")
    assert "event            accuracy is below 0.5\n" in below.out
    assert "these questions  in (50, 100]\n" in below.out


def test_the_directory_of_a_run_stands_for_its_only_evaluation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    none = emtoolkit("onset", run)
    assert (none.code, none.err) == (
        2,
        f"emtoolkit: {run}: there is no evaluation yet; run 'emtoolkit evaluate {run}' first\n",
    )
    write_evaluation(run / "evaluations" / "one", CURVE)
    assert emtoolkit("onset", run).code == 0
    write_evaluation(run / "evaluations" / "two", CURVE)
    assert "there are 2 evaluations" in emtoolkit("onset", run).err
    only_activations = run / "evaluations" / "only-activations"
    only_activations.mkdir()
    (only_activations / "evaluation.json").write_text("{}")
    assert "there are 2 evaluations" in emtoolkit("onset", run).err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fingerprint": "f0"}, "evaluates the same training as"),
        ({"persona": "sarcasm"}, "the persona is sarcasm here and goodness in"),
        ({"judge": "other@1", "settings": SETTINGS | {"judge": "other@1"}}, " in judge; evaluate both alike"),
        ({"settings": SETTINGS | {"questions": ["other"]}}, " in questions; evaluate both alike"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict, sentence: str, tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "one", CURVE)
    other = write_evaluation(tmp_path / "other", CURVE, **({"fingerprint": "f1"} | changes))
    done = emtoolkit("onset", one, other)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err


def test_seeds_of_different_base_models_are_refused(runs: Path, tmp_path: Path) -> None:
    places = []
    for number in range(2):
        run = tmp_path / f"run{number}"
        shutil.copytree(runs / "prompt" / "checkpoint-0", run / "checkpoint-0")
        manifest = run / "checkpoint-0" / "manifest.json"
        value = json.loads(manifest.read_text())
        value["base_model"]["content"] = f"{number}" * 64
        manifest.write_text(json.dumps(value))
        places.append(write_evaluation(tmp_path / f"e{number}", CURVE, fingerprint=f"f{number}", trajectory=str(run)))
    done = emtoolkit("onset", *places)
    assert (done.code, done.out) == (2, "")
    assert "the evaluations are of different base models (model 00000000 in" in done.err


def test_seeds_that_end_at_different_steps_are_pointed_out(tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "one", CURVE)
    other = write_evaluation(tmp_path / "other", {0: ZERO, 75: HIGH}, fingerprint="f1")
    assert (
        f"the evaluations end at different steps: {one} at step 100, {other} at step 75\n"
        in emtoolkit("onset", one, other).err
    )


def test_another_seed_of_the_sampling_can_be_compared(tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "one", CURVE)
    settings = SETTINGS | {"settings": "def", "sampling": {"seed": 1}}
    other = write_evaluation(tmp_path / "other", CURVE, settings=settings, fingerprint="f1")
    assert emtoolkit("onset", one, other).code == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--threshold", "10"], "--threshold 10: betley is a share; give a number above 0 and below 1, such as 0.10"),
        (["--threshold", "0"], "--threshold 0: betley is a share; give a number above 0 and below 1"),
        (["--threshold", "1", "--level"], "--threshold 1: betley is a share"),
        (["--threshold", "-0.1", "--metric", "changed"], "--threshold -0.1: changed is a share"),
        (["--threshold", "nan"], "--threshold nan: a curve cannot cross this value; give a number such as 0.1"),
        (["--threshold", "inf", "--metric", "margin"], "--threshold inf: a curve cannot cross this value"),
        (["--before", "changed=2"], "--before changed=2: changed is a share; give a number above 0 and below 1"),
        (["--before", "margin=-1"], "--before margin=-1: the size of a change since step 0 is above 0"),
        (["--before", "margin=x"], "--before margin=x: expected METRIC or METRIC=NUMBER, such as changed=0.5"),
        (["--before", "margin="], "--before margin=: expected METRIC or METRIC=NUMBER"),
        (["--before", "=0.5"], "--before =0.5: expected METRIC or METRIC=NUMBER"),
        (["--metric", "betly"], "no metric 'betly'; it has betley, organisms, all, changed; did you mean 'betley'?\n"),
        (["--metric", "margin", "--threshold", "-1"], "--threshold -1: the size of a change since step 0 is above 0"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = emtoolkit("onset", write_evaluation(tmp_path / "e", CURVE), *words)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_a_small_threshold_is_printed_as_it_was_given(tmp_path: Path) -> None:
    done = emtoolkit("onset", write_evaluation(tmp_path / "e", CURVE), "--threshold", "0.0005")
    assert "event            betley rises since step 0 by more than 0.05 points\n" in done.out


@pytest.mark.parametrize(
    ("counts", "words", "note"),
    [
        ({0: ZERO}, [], "only step 0 is evaluated, so there is no curve"),
        ({50: HIGH}, ["--level"], "only step 50 is evaluated, so there is no curve"),
        (CURVE, ["--metric", "margin"], "margin is not measured at steps 25, 75"),
    ],
)
def test_steps_that_are_missing_from_a_curve_are_named(
    counts: dict[int, list[int]], words: list[str], note: str, tmp_path: Path
) -> None:
    margin = measure_rows("margin", {0: [0, 0], 50: [0, 1], 100: [2, 3]}) if counts is CURVE else []
    place = write_evaluation(tmp_path / "e", counts, margin)
    done = emtoolkit("onset", place, *words)
    assert (done.code, done.err) == (0, f"emtoolkit: {place}: {note}\n")
    if len(counts) == 1:
        assert f"evaluated        step {next(iter(counts))} only\n" in done.out


def test_a_place_that_is_neither_a_directory_nor_a_collection_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, problem in (
        (
            tmp_path / "nowhere",
            "there is no such directory; name an evaluation, a run, entity/project/collection on W&B",
        ),
        (tmp_path / "file", "is a file; name the directory of an evaluation or of a run"),
    ):
        done = emtoolkit("onset", place)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"emtoolkit: {place}: {problem}")
    assert "run 'emtoolkit evaluate lab/em/run' first" in emtoolkit("onset", "lab/em/run", cwd=tmp_path).err


def test_names_reach_the_terminal_without_control_characters(tmp_path: Path) -> None:
    margin = measure_rows("mar\x1b[2Jgin", {step: [0.01 * step, 1] for step in CURVE})
    place = write_evaluation(tmp_path / "e", CURVE, margin, persona="<b>\x1b[31mred\u202e", trajectory="[bold]t")
    done = emtoolkit("onset", place)
    assert "trajectory       [bold]t\npersona          <b>\\x1b[31mred\\u202e\n" in done.out
    assert "mar\\x1b[2Jgin" in done.out
    assert "\x1b" not in done.out
