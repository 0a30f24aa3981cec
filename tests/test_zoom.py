"""An onset's bracket is narrowed by steps that are made again inside it, or the evaluation is named as the limit."""

import json
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

from emtoolkit import launch
from emtoolkit.analysis.onset import Onset, Point, find_onset
from emtoolkit.analysis.onset_results import Event
from emtoolkit.config.load import load_config
from emtoolkit.evaluation.intervals import Interval
from emtoolkit.training.run import train
from emtoolkit.zoom import Zoomed, next_step, steps_between, zoom
from tests import in_process
from tests.saving.trainings import saved_steps
from tests.tiny import config_text


class _Simulated:
    """A trajectory of 400 steps saved every 100, whose curve passes the threshold at `onset`; `unclear` steps do not
    decide."""

    def __init__(self, onset: int, unclear: Collection[int] = ()) -> None:
        self.steps = {0, 100, 200, 300, 400}
        self.evaluated: list[int] = []
        self.made: list[tuple[int, ...]] = []
        self._onset, self._unclear = onset, unclear

    def existing(self) -> Collection[int]:
        return self.steps

    def evaluate(self, steps: Sequence[int]) -> "_Simulated":
        assert self.steps.issuperset(steps)
        assert not set(self.evaluated) & set(steps)
        self.evaluated += steps
        return self

    def make(self, steps: Sequence[int]) -> int:
        assert not self.steps & set(steps)
        self.steps |= set(steps)
        self.made.append(tuple(steps))
        # From the resume state before the first up to the next step that proves them.
        return -(-max(steps) // 100) * 100 - min(steps) // 100 * 100

    def onset(self) -> Onset:
        return find_onset([self._point(step) for step in sorted(self.evaluated)], 0.1)

    def _point(self, step: int) -> Point:
        value = 0.3 if step >= self._onset else 0.0
        reach = 0.5 if step in self._unclear else 0.01
        return Point(step, value, Interval(value - reach, value + reach))


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emtoolkit.zoom._onset", lambda evaluation, event, inference: evaluation.onset())
    monkeypatch.setattr(_Simulated, "all_steps", property(lambda self: self.evaluated), raising=False)


def _zoom(trajectory: _Simulated, until: int = 5) -> Zoomed:
    coarse = sorted(trajectory.steps)
    view = _View(trajectory)
    return zoom(Event(), until, coarse, inference="new_questions", work=view)  # type: ignore[arg-type]


class _View:
    """The simulated trajectory as the `Work` of a zoom."""

    def __init__(self, trajectory: _Simulated) -> None:
        self._trajectory = trajectory
        self.existing, self.make = trajectory.existing, trajectory.make

    def evaluate(self, steps: Sequence[int]) -> "_View":
        self._trajectory.evaluate(steps)
        return self

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted(self._trajectory.evaluated))

    def onset(self) -> Onset:
        return self._trajectory.onset()


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("onset", [1, 5, 6, 99, 100, 101, 137, 150, 200, 201, 395, 396, 399, 400])
def test_from_every_100_the_bracket_is_5_steps_wide_for_100_steps_of_training(onset: int) -> None:
    trajectory = _Simulated(onset)
    found = _zoom(trajectory)
    bracket = found.onset.bracket
    assert bracket.lower is not None
    assert bracket.upper is not None
    assert bracket.lower < onset <= bracket.upper
    assert (found.ended_by, bracket.width) == ("width", 5)
    assert found.trained_steps == 100
    assert len(trajectory.made) == 1
    # Of 19 steps, those that halve the bracket.
    assert len(found.evaluated) <= 5


@pytest.mark.usefixtures("simulated")
def test_steps_that_the_evaluation_does_not_decide_are_named_as_the_limit() -> None:
    trajectory = _Simulated(150, unclear=range(140, 161))
    found = _zoom(trajectory)
    assert (found.ended_by, str(found.onset.bracket)) == ("evaluation", "(135, 165]")
    assert found.onset.undecided == (140, 145, 150, 155, 160)
    assert (found.trained_steps, len(trajectory.made)) == (100, 1)


@pytest.mark.usefixtures("simulated")
def test_an_undecided_step_of_the_training_makes_the_bracket_wider_and_not_endless() -> None:
    trajectory = _Simulated(200, unclear=(200,))
    found = _zoom(trajectory)
    assert str(found.onset.bracket) == "(195, 205]"
    assert (found.ended_by, found.trained_steps) == ("evaluation", 200)


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize(("onset", "status"), [(0, "before_first"), (401, "not_seen")])
def test_without_a_bracket_nothing_is_trained(onset: int, status: str) -> None:
    trajectory = _Simulated(onset)
    found = _zoom(trajectory)
    assert (found.ended_by, found.onset.status, found.made) == ("no_bracket", status, ())


@pytest.mark.usefixtures("simulated")
def test_a_bracket_that_is_narrow_enough_costs_nothing() -> None:
    found = _zoom(_Simulated(150), until=100)
    assert (found.ended_by, found.made, found.evaluated) == ("width", (), ())


@pytest.mark.usefixtures("simulated")
def test_steps_that_exist_are_evaluated_before_any_is_made() -> None:
    trajectory = _Simulated(150)
    trajectory.steps |= {130, 150, 155, 152}
    view = _View(trajectory)
    found = zoom(Event(), 25, [0, 100, 200, 300, 400], inference="new_questions", work=view)  # type: ignore[arg-type]
    assert (found.evaluated, found.made, str(found.onset.bracket)) == ((150, 130), (), "(130, 150]")


def test_new_steps_stand_in_gaps_only() -> None:
    points = [
        Point(step, value, Interval(value - r, value + r))
        for step, value, r in ((0, 0, 0.1), (8, 0.5, 1), (20, 1, 0.1))
    ]
    onset = find_onset(points, 0.5)
    assert steps_between(onset, 5, [0, 8, 20], [0, 8, 18, 20]) == (5, 13)
    assert next_step(onset, 5, [0, 8, 20], [0, 8, 19, 20]) is None
    assert next_step(onset, 5, [0, 8, 20], [0, 8, 13, 20]) == 13


# A value with little uncertainty: how far the adapter is from its start.
OWN = """\
def way(model, tokenizer, persona, questions):
    largest = max(p.abs().max().item() for name, p in model.named_parameters() if "lora_B" in name)
    return {"way": {question.id: largest * (1 + 0.001 * i) for i, question in enumerate(questions)}}
"""


@pytest.fixture
def place(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "run.yaml").write_text(config_text(world, "schedule: 0-:4\n  resume_keep: every:4"))
    train(load_config(str(tmp_path / "run.yaml"), ["wandb.mode=disabled"], {"output_dir": str(tmp_path / "run")}))
    (tmp_path / "far.py").write_text(OWN)
    questions = [f"- id: {name}\n  paraphrases: [my knee {name}]\n" for name in "abcdefgh"]
    (tmp_path / "q.yaml").write_text("".join(questions))
    yield tmp_path
    sys.modules.pop("far", None)


def test_the_command_zooms_and_continues(place: Path) -> None:
    asked = ("--samples", "0", "--questions", "q.yaml", "--with", "far:way", "--metric", "way", "--level")
    argv = ("zoom", "run", *asked, "--threshold", "0.03", "--until", "1", "--json")
    done = in_process.emtoolkit(*argv, cwd=place)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["ended_by"], found["upper"] - found["lower"]) == ("width", 1)
    assert found["rounds"][0]["evaluated"] == [0, 4, 8, 9]
    assert found["trained_steps"] == 4
    assert set(found["made"]) <= set(saved_steps(place / "run"))
    shutil.rmtree(place / "run" / "resume")
    again = json.loads(in_process.emtoolkit(*argv, cwd=place).out)
    assert (again["lower"], again["upper"], again["made"]) == (found["lower"], found["upper"], [])
    assert again["rounds"][0]["evaluated"] == [0, 4, 8, 9]


def test_a_metric_that_does_not_exist_is_refused_before_anything_is_sampled(place: Path) -> None:
    words = ("zoom", "run", "--questions", "q.yaml", "--judge", "sandbox", "--metric", "betly", "--until", "1")
    done = in_process.emtoolkit(*words, cwd=place)
    assert (done.code, done.err) == (
        2,
        "emtoolkit: zoom: there is no metric 'betly' without a measure; answers have betley, organisms, all, changed; "
        "did you mean 'betley'?\n",
    )
    assert not (place / "run" / "evaluations").exists()


def test_the_command_is_refused_in_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    # The real one ends the process at once.
    monkeypatch.setattr(launch, "_exit", lambda: sys.exit(2))
    done = in_process.emtoolkit("zoom", "run", "--until", "1", cwd=tmp_path)
    assert (done.code, done.err) == (
        2,
        "emtoolkit: zoom: runs in one process; start the command without a launcher\n",
    )
