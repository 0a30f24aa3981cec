"""Terms whose steps are chosen during training: what they save and thin, from distances alone."""

import random
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from emtoolkit.errors import CheckpointError, ScheduleError
from emtoolkit.schedules.adaptive import AdaptiveTerm, Budget, Distances, Moved, WeightPath
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.selection import select_steps


def run(term: AdaptiveTerm, positions: Iterable[float], *, stops: frozenset[int] = frozenset()) -> tuple[int, ...]:
    """The steps that remain of a training on a line, at `positions` after steps 0, 1, 2, …

    After the steps of `stops` the state goes through its JSON, as in a resume.
    """
    at = list(positions)
    total, path = len(at) - 1, WeightPath()
    kept_at = measured_at = at[0]
    for step in range(1, total + 1):
        if term.is_measured(step, total):
            moved = abs(at[step] - (kept_at if term.moved_since_kept else measured_at))
            path, due = term.measured(path, Distances(moved, abs(at[step] - at[0])))
            measured_at = at[step]
            if due:
                path, kept_at = path.keeping(step), at[step]
                if (surplus := term.surplus(path)) is not None:
                    path = path.without(surplus)
        if step in stops:
            path = WeightPath.from_json(path.to_json())
    path = path.keeping(total)
    if (surplus := term.surplus(path)) is not None:
        path = path.without(surplus)
    return path.steps


def test_moved_saves_at_each_share_of_the_distance_from_the_start() -> None:
    """On a straight path at even speed a half means 1, 2, 4, 8, …: each step is half of its distance away."""
    assert run(Moved(0.5), range(41)) == (0, 1, 2, 4, 8, 16, 32, 40)
    assert run(Moved(0.2), range(21)) == (0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 20)


def test_moved_saves_the_first_step_that_differs_from_the_start() -> None:
    assert run(Moved(0.5), [0, 0, 0, 1e-30, 1e-30, 1e-30]) == (0, 3, 5)


def test_moved_sees_weights_that_turn_back_to_the_start() -> None:
    assert run(Moved(0.5), [0, 4, 3, 2, 1, 0, 0]) == (0, 1, 3, 4, 5, 6)


@pytest.mark.parametrize("term", [Moved(0.05), Budget(5)])
def test_weights_that_never_move_are_saved_first_and_last(term: AdaptiveTerm) -> None:
    assert run(term, [0.0] * 30) == (0, 29)


@pytest.mark.parametrize("term", [Moved(0.05), Budget(5)])
def test_weights_that_are_no_numbers_are_saved_at_the_end_only(term: AdaptiveTerm) -> None:
    assert run(term, [0.0, *[float("nan")] * 10]) == (0, 10)
    assert run(term, [0.0, *[float("inf")] * 10]) == (0, 10)


def test_moved_measures_every_step_first_and_then_every_tenth_of_its_share() -> None:
    measured = [step for step in range(2000) if Moved(0.05).is_measured(step, 10_000)]
    assert measured[:400] == list(range(1, 401))
    assert {b - a for a, b in pairwise(measured)} == {1, 2, 4, 8}
    assert all(b - a <= max(1, 0.005 * b) for a, b in pairwise(measured))


SPEEDS: list[Callable[[random.Random, float], float]] = [
    lambda _, done: 1.0,
    lambda draw, _: draw.random(),
    lambda _, done: 1.01 - done,
    lambda _, done: 10.0 if done < 0.1 else 0.1,
    lambda _, done: 0.1 if done < 0.8 else 10.0,
]


@pytest.mark.parametrize("speed", range(len(SPEEDS)))
@pytest.mark.parametrize("count", [3, 5, 20])
def test_a_budget_is_spent_evenly_along_the_path(count: int, speed: int) -> None:
    draw = random.Random(speed)
    for total in (97, 240, 397):
        positions = [0.0]
        for step in range(total):
            positions.append(positions[-1] + SPEEDS[speed](draw, step / total))
        kept = run(Budget(count), positions)
        assert count // 2 <= len(kept) <= count
        assert (kept[0], kept[-1]) == (0, total)
        widest = max(positions[b] - positions[a] for a, b in pairwise(kept))
        # One step is not divided, and may be a large part of the path.
        stride = max(1, total // (16 * count))
        one = max(positions[min(step + stride, total)] - positions[step] for step in range(total))
        assert widest <= 1.7 * positions[-1] / (count - 1) + one


def test_a_budget_of_two_is_the_first_and_the_last_step() -> None:
    assert run(Budget(2), range(41)) == (0, 40)


def test_a_budget_larger_than_the_run_keeps_every_step() -> None:
    assert run(Budget(1_000_000), range(9)) == (0, 1, 2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize("term", [Moved(0.07), Budget(7)])
def test_interruptions_change_no_step(term: AdaptiveTerm) -> None:
    draw = random.Random(3)
    positions = [0.0]
    for _ in range(300):
        positions.append(positions[-1] + draw.random() ** 5 - 0.05)
    whole = run(term, positions)
    assert run(term, positions, stops=frozenset(range(301))) == whole
    assert len(whole) > 6


# The grammar


@pytest.mark.parametrize(
    ("spec", "term"),
    [
        ("moved:5%", Moved(0.05)),
        ("moved:0.3%", Moved(0.003)),
        ("moved:99.9%", Moved(0.999)),
        ("budget:20", Budget(20)),
        ("budget:2", Budget(2)),
    ],
)
def test_a_term_is_read_and_written(spec: str, term: AdaptiveTerm) -> None:
    schedule = Schedule.parse(spec)
    assert schedule.terms == (term,)
    assert schedule.adaptive == term
    assert str(schedule) == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("moved:0%", "the share must be more than 0% and less than 100%, such as moved:5%"),
        ("moved:0.0%", "the share must be more than 0% and less than 100%"),
        ("moved:100%", "the share must be more than 0% and less than 100%"),
        ("moved:150%", "the share must be more than 0% and less than 100%"),
        ("moved:-5%", "expected moved:PERCENT% such as moved:5%"),
        ("moved:5", 'expected moved:PERCENT% such as moved:5%; did you mean "moved:5%"?'),
        ("moved:0.05", 'expected moved:PERCENT% such as moved:5%; did you mean "moved:5%"?'),
        ("moved", "expected moved:PERCENT% such as moved:5%"),
        ("moved:nan%", "expected moved:PERCENT% such as moved:5%"),
        ("budget:0", "the number of checkpoints must be at least 2"),
        ("budget:1", "the number of checkpoints must be at least 2"),
        ("budget:2.5", "expected budget:COUNT such as budget:20"),
        ("budget:-3", "expected budget:COUNT such as budget:20"),
        ("budget:10%", "expected budget:COUNT such as budget:20"),
        ("budget", "expected budget:COUNT such as budget:20"),
        ("budgt:20", "did you mean 'budget'?"),
        ("budget:20,300", 'budget:20 bounds all checkpoints of the run, so it stands alone; remove "300"'),
        ("every:25,budget:20,0", 'so it stands alone; remove "every:25,0"'),
        ("budget:20,budget:30", 'remove "budget:30"'),
        ("budget:20,moved:5%", 'remove "moved:5%"'),
        ("moved:5%,moved:10%", 'schedule "moved:5%,moved:10%": two shares; keep "moved:5%"'),
    ],
)
def test_a_term_without_meaning_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=r"^schedule") as raised:
        Schedule.parse(spec)
    assert message in str(raised.value)


def test_a_budget_is_united_with_nothing() -> None:
    with pytest.raises(ScheduleError, match="stands alone"):
        _ = Schedule.parse("budget:20") | Schedule.parse("0")
    assert str(Schedule.parse("moved:5%") | Schedule.parse("300")) == "moved:5%,300"


@pytest.mark.parametrize("spec", ["moved:5%", "budget:20", "moved:5%,300"])
def test_steps_that_are_not_known_are_refused(spec: str) -> None:
    schedule = Schedule.parse(spec)
    refused = rf'^schedule "{spec}": \S+ chooses its steps during training, so they are not known beforehand; name'
    with pytest.raises(ScheduleError, match=refused):
        schedule.steps(400)
    with pytest.raises(ScheduleError, match=refused):
        _ = 7 in schedule
    with pytest.raises((ScheduleError, CheckpointError), match="chooses its steps during training"):
        select_steps(spec, (0, 300, 400), lambda: 400)


def test_the_first_the_last_and_the_written_steps_are_known() -> None:
    assert list(Schedule.parse("moved:5%,300,every:150").known_steps(400)) == [0, 150, 300, 400]
    assert list(Schedule.parse("budget:20").known_steps(400)) == [0, 400]
    assert list(Schedule.parse("every:150").known_steps(400)) == [150, 300, 400]
    assert 0 in Schedule.parse("budget:20")
    assert 300 in Schedule.parse("moved:5%,300")


def test_a_written_step_past_the_end_is_refused_beside_a_share() -> None:
    with pytest.raises(ScheduleError, match="step 500 is past the end"):
        Schedule.parse("moved:5%,500").check_reachable(400)
    assert Schedule.parse("budget:500").check_reachable(400) is None
