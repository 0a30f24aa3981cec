"""Selecting from existing steps by a schedule and the word `final`."""

import pytest

from emtoolkit.errors import CheckpointError, ScheduleError, UserError
from emtoolkit.schedules.selection import named_by, select_steps, spec_of, split_steps

STEPS = (0, 25, 50, 75, 100, 125, 150, 200, 250, 300, 397)


def final() -> int:
    return 397


def not_asked() -> int:
    pytest.fail("the length of the run decides nothing here")


@pytest.mark.parametrize(
    ("spec", "selected"),
    [
        ("0-150:25,final", (0, 25, 50, 75, 100, 125, 150, 397)),
        ("final", (397,)),
        (" 25 , 0 ", (0, 25)),
        ("every:100", (100, 200, 300)),
        ("300-:97", (300, 397)),
        ("log2:512,0", (0,)),
        ("dense-early", (0, 25, 50, 75, 100, 125, 150, 200, 250, 300)),
        ("0-1000000000000:1", STEPS),
    ],
)
def test_a_range_selects_whatever_exists_and_nothing_else_is_selected(spec: str, selected: tuple[int, ...]) -> None:
    assert select_steps(spec, STEPS, final, not_asked) == selected


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("0-150:25,90", 'steps "0-150:25,90": there is no checkpoint at step 90; the nearest is 100'),
        ("398", 'steps "398": there is no checkpoint at step 398; the nearest is 397'),
        ("2-24:2", 'steps "2-24:2": no checkpoint is selected; the steps are 0, 25, 50, 75, …, 200, 250, 300, 397'),
        ("", 'steps "": schedule "": expected at least one term'),
        ("final,", 'steps "final,": schedule "final,": there is an empty term beside a comma; did you mean "final"?'),
        ("0-150", 'steps "0-150": schedule term "0-150": expected a stride after the range; did you mean "0-150:1"?'),
        ("last", 'steps "last": schedule term "last": expected a step such as 40'),
    ],
)
def test_a_spec_that_selects_nothing_or_cannot_be_read_is_an_error(spec: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        select_steps(spec, STEPS, final, not_asked)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(("spec", "meant"), [("finl", "final"), ("every:25,finl", "final"), ("evry:25,final", "every")])
def test_a_misspelt_word_is_named_once_wherever_the_word_stands(spec: str, meant: str) -> None:
    with pytest.raises(ScheduleError, match=rf"; did you mean '{meant}'\?$") as error:
        select_steps(spec, STEPS, final, not_asked)
    assert str(error.value).count("did you mean") == 1


def test_a_selection_is_not_offered_terms_that_select_nothing() -> None:
    with pytest.raises(ScheduleError) as error:
        select_steps("budgt:5", STEPS, final, not_asked)
    assert "geom:1-1000/10, final or a preset" in str(error.value)
    assert "did you mean" not in str(error.value)


def test_a_trajectory_of_step_zero_alone_has_no_rule_that_fails() -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint is selected; the steps are 0$"):
        select_steps("every:25,300-:100,every:5%", (0,), final, lambda: 397)


FIVE_PERCENT_OF_400 = tuple(range(20, 401, 20))


@pytest.mark.parametrize("last", [20, 140, 240, 400])
def test_a_fraction_is_one_of_the_whole_run_however_much_of_the_run_is_there(last: int) -> None:
    """A run that is killed, or downloaded in part, has the steps that it saved by `every:5%`."""
    there = tuple(step for step in FIVE_PERCENT_OF_400 if step <= last)
    assert select_steps("every:5%", there, final, lambda: 400) == there


@pytest.mark.parametrize(
    ("spec", "selected"),
    [
        ("every:5%,0", (0, 20, 40, 60, 100)),
        ("every:10%", (40,)),
        ("every:25%", (100,)),
        ("0-50:10,every:12.5%", (0, 10, 20, 30, 40, 50, 100)),  # every 50 steps
        ("log2:64,every:50%", (1, 2, 4)),
        ("dense-early,every:15%", (0, 25, 50, 60, 100)),
    ],
)
def test_a_fraction_beside_other_terms_takes_its_own_steps_only(spec: str, selected: tuple[int, ...]) -> None:
    there = (0, 1, 2, 4, 10, 20, 25, 30, 40, 50, 60, 100)
    assert select_steps(spec, there, final, lambda: 400) == selected


def test_a_fraction_of_a_run_of_unknown_length_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r'"every:5%" is a part of the whole run, and no checkpoint says how long'
    ):
        select_steps("0,every:5%", STEPS, final, lambda: None)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 11, 20])
def test_the_ranges_of_several_machines_hold_every_step_once(parts: int) -> None:
    selected = [select_steps(spec, STEPS, final) for spec in split_steps(STEPS, parts)]
    assert [step for steps in selected for step in steps] == list(STEPS)
    sizes = [len(steps) for steps in selected]
    assert len(sizes) == min(parts, len(STEPS))
    assert max(sizes) - min(sizes) <= 1


def test_the_last_range_is_open() -> None:
    assert split_steps(STEPS, 4) == ["0-49:1", "50-124:1", "125-249:1", "250-:1"]
    assert split_steps([7], 4) == ["7-:1"]


@pytest.mark.parametrize(
    ("chosen", "spec"),
    [((0,), "0"), ((0, 10), "0-10:1"), ((0, 20, 30, 50), "0,20-30:1,50"), ((0, 10, 20, 30, 40, 50), "0-50:1")],
)
def test_a_text_selects_exactly_the_steps_that_it_was_written_for(chosen: tuple[int, ...], spec: str) -> None:
    steps = (0, 10, 20, 30, 40, 50)
    assert spec_of(chosen, steps) == spec
    assert select_steps(spec, steps, lambda: 50) == chosen
    assert named_by(spec, steps) == chosen


def test_the_steps_that_a_text_names_are_those_that_are_left_of_them() -> None:
    assert named_by("0,20-30:1,50", (10, 20, 50, 60)) == (20, 50)
