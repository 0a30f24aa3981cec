"""When to save: the grammar, its presets, and the exact steps of runs up to a million steps long."""

import copy
import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from emtoolkit.errors import ScheduleError
from emtoolkit.paths import shipped
from emtoolkit.schedules.presets import shipped_presets
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import Steps
from emtoolkit.schedules.terms import MAX_STEP, At, Between, Every, EveryFraction, From, Geom, Log2, Preset, Term
from tests import processes

prove = settings(derandomize=True, deadline=None, max_examples=300)

PRESETS = {name: Schedule.parse(text) for name, text in shipped_presets().items()}
A_TERM = (
    "expected a step such as 40, a range such as 0-150:25 or 300-:100, every:25, every:5%, log2:512, "
    "geom:1-1000/10, moved:5%, budget:20 or a preset (dense-early, pt1-3, pythia)"
)


def steps_of(spec: str, total_steps: int) -> list[int]:
    return list(Schedule.parse(spec).steps(total_steps))


def a_step(most: int = 2000) -> st.SearchStrategy[int]:
    return st.integers(0, most)


def terms() -> st.SearchStrategy[Term]:
    stride = st.integers(1, 300)
    ends = st.tuples(a_step(), a_step()).map(sorted)
    geometric = ends.map(lambda pair: (pair[0] + 1, pair[1] + 2))
    return st.one_of(
        st.builds(At, a_step()),
        st.builds(Every, stride),
        st.builds(EveryFraction, st.floats(0, 1, exclude_min=True, exclude_max=True)),
        st.builds(lambda pair, every: Between(*pair, every), ends, stride),
        st.builds(From, a_step(), stride),
        st.builds(Log2, st.integers(1, 5000)),
        geometric.flatmap(lambda pair: st.integers(2, min(40, pair[1] - pair[0] + 1)).map(lambda n: Geom(*pair, n))),
        st.sampled_from([Preset(name, schedule.terms) for name, schedule in PRESETS.items()]),
    )


def schedules() -> st.SearchStrategy[Schedule]:
    return st.lists(terms(), min_size=1, max_size=6).map(lambda some: Schedule(tuple(some)))


# The grammar, row by row


@pytest.mark.parametrize(
    ("spec", "term"),
    [
        ("40", At(40)),
        ("0", At(0)),
        ("007", At(7)),
        ("every:25", Every(25)),
        ("every:5%", EveryFraction(0.05)),
        ("every:7%", EveryFraction(0.07)),
        ("every:0.3%", EveryFraction(0.003)),
        ("every:99.9%", EveryFraction(0.999)),
        ("0-150:25", Between(0, 150, 25)),
        ("10-10:1", Between(10, 10, 1)),
        ("300-:100", From(300, 100)),
        ("log2:512", Log2(512)),
        ("geom:1-1000/10", Geom(1, 1000, 10)),
        ("dense-early", Preset("dense-early", (Between(0, 150, 25), Between(150, 300, 50)))),
    ],
)
def test_a_term_is_read_as_this_value(spec: str, term: Term) -> None:
    assert Schedule.parse(spec) == Schedule((term,))


@pytest.mark.parametrize(
    ("spec", "total_steps", "steps"),
    [
        ("40", 100, [40, 100]),
        ("0", 1, [0, 1]),
        ("100", 100, [100]),
        ("every:25", 100, [25, 50, 75, 100]),
        ("every:100", 397, [100, 200, 300, 397]),
        ("every:500", 397, [397]),
        ("every:5%", 100, [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 100]),
        ("every:7%", 100, [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 100]),
        ("every:30%", 397, [120, 240, 360, 397]),
        ("every:0.3%", 3, [1, 2, 3]),
        ("0-150:25", 397, [0, 25, 50, 75, 100, 125, 150, 397]),
        ("0-149:25", 397, [0, 25, 50, 75, 100, 125, 397]),
        ("10-10:5", 397, [10, 397]),
        ("300-:100", 650, [300, 400, 500, 600, 650]),
        ("300-:100", 600, [300, 400, 500, 600]),
        ("log2:512", 1000, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]),
        ("log2:511", 1000, [1, 2, 4, 8, 16, 32, 64, 128, 256, 1000]),
        ("log2:1", 10, [1, 10]),
        ("geom:1-1000/10", 1000, [1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]),
        ("geom:1-1000/4", 2000, [1, 10, 100, 1000, 2000]),
        ("geom:1-5/5", 5, [1, 2, 3, 5]),
        ("geom:7-50/2", 50, [7, 50]),
        ("dense-early", 397, [0, 25, 50, 75, 100, 125, 150, 200, 250, 300, 397]),
        ("dense-early", 120, [0, 25, 50, 75, 100, 120]),
        (" 0 , every:100\t,5 ", 200, [0, 5, 100, 200]),
        ("5,5,every:5,0-10:5", 10, [0, 5, 10]),
        ("every:4,every:6", 24, [4, 6, 8, 12, 16, 18, 20, 24]),
        ("0-20:10,20-60:20", 60, [0, 10, 20, 40, 60]),
    ],
)
def test_a_schedule_saves_exactly_these_steps(spec: str, total_steps: int, steps: list[int]) -> None:
    assert steps_of(spec, total_steps) == steps


@pytest.mark.parametrize(
    ("name", "total_steps", "count"),
    [("pt1-3", 328146, 63), ("pythia", 143000, 154), ("dense-early", 397, 11), ("dense-early", 400, 11)],
)
def test_a_preset_has_as_many_checkpoints_as_its_paper_says(name: str, total_steps: int, count: int) -> None:
    assert len(Schedule.parse(name).steps(total_steps)) == count


def test_the_presets_are_these_texts_and_each_is_described() -> None:
    assert shipped_presets() == {
        "dense-early": "0-150:25,150-300:50",
        "pt1-3": "0,10,30,60,100,200,300,500,700,1000,2000-10000:1000,10000-60000:3000,60000-320000:10000,328146",
        "pythia": "0,log2:512,1000-:1000",
    }
    for path in shipped("schedules").glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(content) == {"description", "schedule"}
        assert content["description"]


def test_a_preset_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert steps_of("dense-early", 60) == [0, 25, 50, 60]


def test_presets_are_looked_up_only_for_a_term_of_no_other_form() -> None:
    def never() -> dict[str, str]:
        raise AssertionError("asked for presets")

    spec = "40,every:25,every:5%,0-150:25,300-:100,log2:512,geom:1-1000/10"
    assert str(Schedule.parse(spec, presets=never)) == spec


def test_the_caller_may_bring_presets() -> None:
    assert list(Schedule.parse("mine,7", presets=lambda: {"mine": "1-3:1"}).steps(9)) == [1, 2, 3, 7, 9]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (
            {"outer": "5,inner", "inner": "1"},
            'preset "outer": expected a schedule without presets, but it names "inner"',
        ),
        ({"outer": "outer"}, 'preset "outer": expected a schedule without presets, but it names "outer"'),
        ({"outer": ""}, 'preset "outer": expected at least one term'),
        ({"outer": "0-100:0"}, 'preset "outer": schedule term "0-100:0": the stride must be at least 1'),
    ],
)
def test_a_bad_preset_is_an_error_that_names_it(texts: dict[str, str], sentence: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.parse("outer", presets=lambda: texts)
    assert str(caught.value) == sentence


def test_a_preset_value_cannot_hold_a_preset_either() -> None:
    inner = Preset("inner", (At(1),))
    with pytest.raises(ScheduleError, match=r'^schedule term "outer": a preset must not name another preset'):
        Preset("outer", (inner,))


@pytest.mark.parametrize("name", ["40", "a,b", "every", "", "log2:8"])
def test_a_preset_must_have_a_name_that_reads_back_as_that_preset(name: str) -> None:
    with pytest.raises(ScheduleError, match="the name of a preset is letters, digits, dots and dashes"):
        Preset(name, (At(1),))


# Bad input


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("10-5:1", 'schedule term "10-5:1": the stop must not be before the start; did you mean "5-10:1"?'),
        ("0-100:0", 'schedule term "0-100:0": the stride must be at least 1'),
        ("300-:0", 'schedule term "300-:0": the stride must be at least 1'),
        ("every:0", 'schedule term "every:0": the stride must be at least 1'),
        (
            "every:-3",
            'schedule term "every:-3": expected every:STRIDE such as every:25, or every:PERCENT% such as every:5%',
        ),
        (
            "every",
            'schedule term "every": expected every:STRIDE such as every:25, or every:PERCENT% such as every:5%',
        ),
        (
            "every:0.05",
            'schedule term "every:0.05": expected every:STRIDE such as every:25, or every:PERCENT% such as '
            'every:5%; did you mean "every:5%"?',
        ),
        (
            "every:150%",
            'schedule term "every:150%": the fraction must be more than 0% and less than 100%, such as every:5%',
        ),
        (
            "every:100%",
            'schedule term "every:100%": the fraction must be more than 0% and less than 100%, such as every:5%',
        ),
        (
            "every:0%",
            'schedule term "every:0%": the fraction must be more than 0% and less than 100%, such as every:5%',
        ),
        ("log2:x", 'schedule term "log2:x": expected log2:LIMIT such as log2:512'),
        ("log2:0", 'schedule term "log2:0": the limit must be at least 1'),
        ("geom:1-1000", 'schedule term "geom:1-1000": expected geom:START-STOP/COUNT such as geom:1-1000/10'),
        ("geom:0-10/3", 'schedule term "geom:0-10/3": the start must be at least 1'),
        ("geom:1-1000/1", 'schedule term "geom:1-1000/1": the count must be at least 2'),
        ("geom:10-5/3", 'schedule term "geom:10-5/3": the stop must be after the start, 10'),
        ("geom:5-5/2", 'schedule term "geom:5-5/2": the stop must be after the start, 5'),
        (
            "geom:1-10/11",
            'schedule term "geom:1-10/11": there are only 10 steps to choose from; did you mean "geom:1-10/10"?',
        ),
        ("10-20", 'schedule term "10-20": expected a stride after the range; did you mean "10-20:1"?'),
        ("10-", 'schedule term "10-": expected a stride after the range; did you mean "10-:1"?'),
        ("dense-erly", f"schedule term \"dense-erly\": {A_TERM}; did you mean 'dense-early'?"),
        ("evry:5", f"schedule term \"evry:5\": {A_TERM}; did you mean 'every'?"),
        ("nonsense", f'schedule term "nonsense": {A_TERM}'),
        ("-5", f'schedule term "-5": {A_TERM}'),
        ("+5", f'schedule term "+5": {A_TERM}'),
        ("1_000", f'schedule term "1_000": {A_TERM}'),
        ("1e3", f'schedule term "1e3": {A_TERM}'),
        ("٣", f'schedule term "٣": {A_TERM}'),
        ("0 - 5:1", f'schedule term "0 - 5:1": {A_TERM}'),
        ("1000000000001", 'schedule term "1000000000001": the step must be at most 1000000000000'),
        ("1,,2", 'schedule "1,,2": there is an empty term beside a comma; did you mean "1,2"?'),
        ("1,2,", 'schedule "1,2,": there is an empty term beside a comma; did you mean "1,2"?'),
        (" ,1", 'schedule " ,1": there is an empty term beside a comma; did you mean "1"?'),
        ("", 'schedule "": expected at least one term, such as every:25 or dense-early'),
        (",", 'schedule "": expected at least one term, such as every:25 or dense-early'),
    ],
)
def test_what_cannot_be_read_is_one_sentence(spec: str, sentence: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.parse(spec)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: At(-1), 'schedule term "-1": the step must be at least 0'),
        (lambda: At(2.5), 'schedule term "2.5": the step must be a whole number'),
        (lambda: At(True), 'schedule term "True": the step must be a whole number'),
        (lambda: Every(-3), 'schedule term "every:-3": the stride must be at least 1'),
        (lambda: Between(-1, 5, 1), 'schedule term "-1-5:1": the start must be at least 0'),
        (lambda: EveryFraction(1), 'schedule term "every:1": the fraction must be a float such as 0.05'),
        (
            lambda: EveryFraction(float("nan")),
            'schedule term "every:NaN%": the fraction must be more than 0% and less than 100%, such as every:5%',
        ),
        (lambda: Schedule.of([1, 2.5]), 'schedule term "2.5": the step must be a whole number'),
        (lambda: Schedule.of([]), 'schedule "": expected at least one term, such as every:25 or dense-early'),
        (
            lambda: Schedule.of(["0", "every:25"]),  # type: ignore[list-item]  # as a script passes it
            'schedule term "0": the step must be a whole number; write all terms as one text, such as "0,every:25"',
        ),
        (
            lambda: Schedule.of_argument(25),  # type: ignore[arg-type]  # as a script passes it
            'schedule term "25": is a number; write "every:25" for an interval, or [25] for that step',
        ),
        (
            lambda: Schedule.of_argument(b"5"),
            'schedule term "b\'5\'": expected a text such as "dense-early", a Schedule, or a list of steps',
        ),
        (
            lambda: Schedule.of_argument(np.array(5)),
            'schedule term "5": expected a text such as "dense-early", a Schedule, or a list of steps',
        ),
        (lambda: Schedule.of([True]), 'schedule term "True": the step must be a whole number'),
        (
            lambda: Schedule.of_argument(None),  # type: ignore[arg-type]  # as a script passes it
            'schedule term "None": expected a text such as "dense-early", a Schedule, or a list of steps',
        ),
        (lambda: Schedule.parse("5").steps(0), "a run has 1 to 1000000000000 steps, not 0"),
        (lambda: Schedule.parse("5").steps(MAX_STEP + 1), "a run has 1 to 1000000000000 steps, not 1000000000001"),
    ],
)
def test_an_invalid_value_dies_where_it_is_built(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        build()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "steps", [[5, 0, 10], range(0, 11, 5), np.array([0, 5, 10]), "0-10:5", Schedule.of([5, 0, 10])]
)
def test_an_argument_may_be_a_list_of_steps_a_text_or_a_schedule(steps: str | Schedule | list[int]) -> None:
    assert list(Schedule.of_argument(steps).steps(20)) == [0, 5, 10, 20]


@given(st.text(alphabet=st.sampled_from("0123456789-:,/%. evrylogm2dns٣_+"), max_size=12) | st.text(max_size=8))
@prove
@pytest.mark.slow
def test_any_text_is_a_schedule_that_reads_back_or_a_schedule_error(text: str) -> None:
    try:
        schedule = Schedule.parse(text)
    except ScheduleError:
        return
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize("spec", ["9" * 5000, f"every:{'9' * 5000}", f"every:0.{'0' * 5000}1%"])
def test_a_number_of_thousands_of_digits_is_an_ordinary_error(spec: str) -> None:
    with pytest.raises(ScheduleError):
        Schedule.parse(spec)


def test_a_preset_file_that_is_not_one_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emtoolkit.schedules.presets.shipped", lambda kind: tmp_path)
    (tmp_path / "bad.yaml").write_text("schedule: 40\n", encoding="utf-8")
    with pytest.raises(ScheduleError) as caught:
        Schedule.parse("bad")
    assert str(caught.value) == f"{tmp_path}/bad.yaml: expected the keys description and schedule, both text"
    (tmp_path / "bad.yaml").write_text("schedule: [\n", encoding="utf-8")
    with pytest.raises(ScheduleError, match=r"bad\.yaml: not YAML: "):
        Schedule.parse("bad")


# Steps past the end of training


@pytest.mark.parametrize(
    ("spec", "total_steps", "steps"),
    [
        ("0-150:25", 100, [125, 150]),
        ("0-150:25", 150, []),
        ("40,500", 397, [500]),
        ("log2:512", 200, [256, 512]),
        ("geom:1-1000/4", 99, [100, 1000]),
        ("300-:100", 299, [300]),
        ("300-:100", 300, []),
        ("every:500,every:50%,dense-early,pt1-3,pythia", 10, []),
        ("600,dense-early,500-600:50", 100, [500, 550, 600]),
    ],
)
def test_steps_written_by_hand_past_the_end_are_unreachable(spec: str, total_steps: int, steps: list[int]) -> None:
    assert list(Schedule.parse(spec).unreachable(total_steps)) == steps


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "0-150:25",
            'schedule "0-150:25": step 125 and 1 more are past the end of training at step 100; an open rule such '
            "as 0-:25 stops there by itself, and allow_unreachable turns this error into a warning",
        ),
        (
            "every:5,500",
            'schedule "every:5,500": step 500 is past the end of training at step 100; an open rule such as '
            "every:25 stops there by itself, and allow_unreachable turns this error into a warning",
        ),
        (
            "900,200-:7",
            'schedule "900,200-:7": step 200 and 1 more are past the end of training at step 100; an open rule '
            "such as every:7 stops there by itself, and allow_unreachable turns this error into a warning",
        ),
        (
            "0-1000000000000:1",
            'schedule "0-1000000000000:1": step 101 and 999999999899 more are past the end of training at step '
            "100; an open rule such as 0-:1 stops there by itself, and allow_unreachable turns this error into a "
            "warning",
        ),
    ],
)
def test_an_unreachable_step_is_an_error_that_names_it(spec: str, sentence: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.parse(spec).check_reachable(100)
    assert str(caught.value) == sentence


def test_the_warning_is_the_same_words_without_the_advice() -> None:
    schedule = Schedule.parse("0-150:25")
    assert schedule.check_reachable(100, allow_unreachable=True) == (
        'schedule "0-150:25": step 125 and 1 more are past the end of training at step 100'
    )
    assert schedule.check_reachable(150, allow_unreachable=True) is None


def test_a_schedule_that_training_reaches_passes_in_silence() -> None:
    Schedule.parse("0-150:25,dense-early,pt1-3,every:500").check_reachable(150)


# A schedule as a value


@given(schedules())
@prove
def test_parsing_the_printed_form_gives_the_same_value_back(schedule: Schedule) -> None:
    assert Schedule.parse(str(schedule)) == schedule
    assert hash(Schedule.parse(str(schedule))) == hash(schedule)


@given(schedules(), st.integers(1, 3000))
@prove
def test_steps_are_sorted_unique_within_the_run_and_end_with_the_last(schedule: Schedule, total: int) -> None:
    steps = schedule.steps(total)
    listed = list(steps)
    assert listed == sorted(set(listed))
    assert listed[0] >= 0
    assert listed[-1] == total
    assert set(listed) == {total}.union(*(term.steps(total) for term in schedule.terms))


@given(schedules(), st.integers(1, 3000))
@prove
def test_every_question_to_steps_agrees_with_listing_them(schedule: Schedule, total: int) -> None:
    steps = schedule.steps(total)
    listed = list(steps)
    assert len(steps) == len(listed)
    assert [step for step in range(total + 2) if step in steps] == listed
    assert steps.largest_gap() == max(after - before for before, after in pairwise([0, *listed]))
    assert steps[-1] == total
    assert [steps[position] for position in range(min(5, len(listed)))] == listed[:5]
    for piece in (slice(None, 3), slice(-3, None), slice(1, -1, 2), slice(None, None, -1), slice(5, 2)):
        assert list(steps[piece]) == listed[piece]
    assert steps == Steps.union([tuple(listed)])
    assert hash(steps) == hash(Steps.union([tuple(listed)]))


@given(schedules(), a_step())
@prove
def test_a_step_is_in_the_schedule_exactly_when_a_long_run_saves_it(schedule: Schedule, step: int) -> None:
    by_length = [term for term in schedule.terms if isinstance(term, EveryFraction)]
    named = any(step in term.steps(MAX_STEP) for term in schedule.terms if not isinstance(term, EveryFraction))
    if named or not by_length:
        assert (step in schedule) == named
    else:
        with pytest.raises(ScheduleError, match="depends on the length of the run"):
            _ = step in schedule


@given(schedules(), schedules(), st.integers(1, 3000))
@prove
def test_the_union_saves_what_either_saves(first: Schedule, second: Schedule, total: int) -> None:
    assert set((first | second).steps(total)) == set(first.steps(total)) | set(second.steps(total))
    assert (first | first).steps(total) == first.steps(total)


@given(schedules(), st.integers(1, 3000))
@prove
def test_unreachable_steps_are_past_the_end_and_ascending(schedule: Schedule, total: int) -> None:
    steps = list(schedule.unreachable(total))
    assert steps == sorted(set(steps))
    assert all(step > total for step in steps)
    assert not set(steps) & set(schedule.steps(total))


def test_a_union_prints_both_and_keeps_a_common_term_once() -> None:
    assert str(Schedule.parse("0,every:25") | Schedule.parse("dense-early,0")) == "0,every:25,dense-early"


def test_a_list_of_steps_is_a_schedule_in_order_and_once_each() -> None:
    schedule = Schedule.of([50, 0, 25, 50, np.int64(7)])
    assert schedule == Schedule((At(0), At(7), At(25), At(50)))
    assert str(schedule) == "0,7,25,50"


def test_membership_without_a_total_knows_no_last_step() -> None:
    schedule = Schedule.parse("0,every:25,dense-early")
    assert [step for step in range(60) if step in schedule] == [0, 25, 50]
    assert 397 not in schedule
    assert 397 in schedule.steps(397)


def test_membership_of_a_fraction_without_a_total_says_what_to_ask() -> None:
    with pytest.raises(ScheduleError) as caught:
        _ = 10 in Schedule.parse("every:5%")
    assert str(caught.value) == (
        'schedule term "every:5%": depends on the length of the run; ask steps(total_steps) instead'
    )


def test_a_schedule_its_terms_and_its_steps_are_frozen_and_copy() -> None:
    schedule = Schedule.parse("0-150:25,every:5%,dense-early")
    with pytest.raises(FrozenInstanceError):
        schedule.terms = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        schedule.steps(10).blocks = ()  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    assert pickle.loads(pickle.dumps(schedule.steps(397))) == schedule.steps(397)


def test_steps_differ_from_other_steps_and_from_lists_and_print_short() -> None:
    steps = Schedule.parse("every:1").steps(100)
    assert steps != Schedule.parse("every:1").steps(101)
    assert steps != list(range(1, 101))
    assert repr(steps) == "<Steps 1, 2, 3, 4, 5, …, 97, 98, 99, 100>"
    assert repr(Schedule.parse("0,5").steps(9)) == "<Steps 0, 5, 9>"


def test_asking_for_a_step_that_is_no_integer_is_a_mistake_not_a_no() -> None:
    with pytest.raises(TypeError, match="float"):
        _ = 25.0 in Schedule.parse("every:25").steps(100)


def test_an_index_past_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError, match=r"^index 4 is out of range for 4 steps$"):
        _ = Schedule.parse("every:100").steps(400)[4]


@pytest.mark.parametrize(
    ("spec", "total_steps", "gap"),
    [
        ("every:100", 400, 100),
        ("every:100", 397, 100),
        ("0-150:25", 397, 247),
        ("300-:10", 400, 300),
        ("dense-early", 400, 100),
        ("every:4,every:6", 24, 4),
        ("0", 1, 1),
    ],
)
def test_the_largest_gap_counts_from_the_start_of_training(spec: str, total_steps: int, gap: int) -> None:
    assert Schedule.parse(spec).steps(total_steps).largest_gap() == gap


# A million steps


@pytest.mark.parametrize(
    ("spec", "count", "gap"),
    [
        ("every:1", 1_000_000, 1),
        ("0-:1", 1_000_001, 1),
        ("every:7", 142_858, 7),
        ("every:2,every:3", 666_667, 2),
        ("every:997,every:991", 2_012, 991),
        ("0,log2:524288,every:1000", 1_021, 1000),
        ("every:0.3%", 334, 3000),
    ],
)
def test_a_million_steps_are_counted_exactly(spec: str, count: int, gap: int) -> None:
    steps = Schedule.parse(spec).steps(1_000_000)
    assert (len(steps), steps.largest_gap(), steps[-1]) == (count, gap, 1_000_000)


def test_a_million_steps_are_not_listed_to_be_asked_about() -> None:
    schedule = Schedule.parse("every:1,500001,log2:512")
    Schedule.parse("every:2,every:3").steps(10)
    tracemalloc.start()
    try:
        steps = schedule.steps(1_000_000)
        interleaved = Schedule.parse("every:2,every:3").steps(1_000_000)
        assert 999_999 in steps
        assert 0 not in steps
        assert 1_000_001 not in steps
        assert 999_999 in interleaved
        assert 999_997 not in interleaved
        assert np.int64(999_999) in steps
        assert len(steps) == 1_000_000
        assert steps.largest_gap() == 1
        assert steps[-2:] == (999_999, 1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000


def test_a_run_of_a_million_million_steps_is_no_slower() -> None:
    steps = Schedule.parse("every:3,0").steps(10**12)
    assert len(steps) == 333_333_333_335
    assert 999_999_999_999 in steps
    assert steps.largest_gap() == 3


# Hugging Face's own arithmetic


def test_a_fraction_is_the_stride_that_transformers_computes() -> None:
    from transformers import TrainerState

    state = TrainerState()
    for text, fraction in [("7", 0.07), ("5", 0.05), ("0.3", 0.003), ("33.3", 0.333), ("29", 0.29), ("99.9", 0.999)]:
        term = EveryFraction(fraction)
        assert Schedule.parse(f"every:{text}%") == Schedule((term,))
        for total in [*range(1, 1500), 143_000, 328_146, 999_999, 1_000_000]:
            args = SimpleNamespace(logging_steps=None, eval_steps=None, save_steps=fraction)
            state.compute_steps(args, total)
            assert term.steps(total).step == state.save_steps, (text, total)


@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(1, 10**6))
@prove
def test_any_fraction_is_the_stride_that_transformers_computes(fraction: float, total: int) -> None:
    from transformers import TrainerState

    state = TrainerState()
    state.compute_steps(SimpleNamespace(logging_steps=None, eval_steps=None, save_steps=fraction), total)
    assert EveryFraction(fraction).steps(total).step == state.save_steps


@given(st.floats(1, 1000), st.integers(1, 10**6), st.integers(2, 50))
@prove
def test_log_spaced_steps_are_those_of_numpy(start: float, width: int, count: int) -> None:
    first, last = int(start), int(start) + width
    count = min(count, width + 1)
    exact = np.geomspace(first, last, count)
    ours = np.array(Geom(first, last, count).steps(MAX_STEP))
    # A value that is half-way between two steps may round either way.
    assert {ours[0], ours[-1]} == {first, last}
    assert np.all(np.min(np.abs(exact[None, :] - ours[:, None]), axis=1) <= 0.5 + 1e-6)
    assert np.all(np.min(np.abs(exact[:, None] - ours[None, :]), axis=1) <= 0.5 + 1e-6)


@pytest.mark.subprocess
def test_the_public_schedule_costs_no_heavy_import() -> None:
    code = (
        "import sys, emtoolkit; emtoolkit.Schedule.parse('every:5%').steps(100); "
        "print([name for name in ('torch', 'transformers', 'wandb', 'pydantic', 'yaml', 'numpy') "
        "if name in sys.modules])"
    )
    assert processes.python(code) == "[]\n"
