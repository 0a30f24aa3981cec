"""Trainings that their time limit stops: those that get on are requeued, and those that stall fail."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from emtoolkit.sweeps.attempts import Attempt, Attempts
from emtoolkit.sweeps.slurm_task import is_at_time_limit
from emtoolkit.sweeps.time_limits import Kind, after_stop, carried_over, kind_of

STALLS = "the time limit stopped the run 2 times in a row before it had trained "


def stops(
    *errors: str | None, kind: Kind | None = "training", by_time_limit: bool = True
) -> list[tuple[str, int | None, int]]:
    """State, step and stalls after each of several attempts that a signal stopped, each with its error."""
    before, found = Attempt({}, inputs="a"), []
    for number, error in enumerate(errors, start=1):
        attempt = carried_over(Attempt({}, "running", inputs="a", number=number), before)
        stopped = replace(attempt, state="interrupted", error=error)
        before = after_stop(stopped, kind, by_time_limit=lambda: by_time_limit)
        found.append((before.state, before.step, before.stalls))
    return found


def after(step: int) -> str:
    return f"exit code 143: interrupted by SIGTERM after step {step}; the same command with --resume continues"


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((after(3), after(6), after(9)), [("interrupted", 3, 0), ("interrupted", 6, 0), ("interrupted", 9, 0)]),
        (("killed by SIGTERM", "killed by SIGTERM"), [("interrupted", None, 1), ("failed", None, 2)]),
        ((after(0), after(0)), [("interrupted", None, 1), ("failed", None, 2)]),
        ((after(3), after(3), "exit code 143"), [("interrupted", 3, 0), ("interrupted", 3, 1), ("failed", 3, 2)]),
        (
            (after(3), "exit code 143", after(4), "exit code 143"),
            [("interrupted", 3, 0), ("interrupted", 3, 1), ("interrupted", 4, 0), ("interrupted", 4, 1)],
        ),
        # The newest state was lost with its node.
        ((after(9), after(3), after(6)), [("interrupted", 9, 0), ("interrupted", 3, 0), ("interrupted", 6, 0)]),
    ],
)
def test_two_stops_in_a_row_without_a_new_step_fail(
    errors: tuple[str, ...], expected: list[tuple[str, int | None, int]]
) -> None:
    assert stops(*errors) == expected


def test_a_stop_by_a_preemption_or_of_another_program_does_not_count() -> None:
    twice = ("exit code 143", "exit code 143")
    assert stops(*twice, by_time_limit=False) == [("interrupted", None, 0)] * 2
    assert stops(*twice, kind=None) == [("interrupted", None, 0)] * 2
    # A script of one's own says after which step it stopped.
    assert stops(after(3), *twice, kind=None)[-1] == ("failed", 3, 2)


def test_an_evaluation_gets_on_with_what_it_keeps() -> None:
    kept = "exit code 143: interrupted, {} new answers, verdicts and values are kept; the same command continues"
    files = "exit code 143: interrupted, 2 new files of activations are kept; the same command continues"
    none = kept.format(0)
    assert kind_of(["python", "-m", "emtoolkit", "evaluate", "out"], trains=False) == "evaluation"
    assert kind_of(["python", "evaluate.py"], trains=False) is None
    assert stops(none, kept.format(10), none, files, none, kind="evaluation") == [
        ("interrupted", None, stalls) for stalls in (1, 0, 1, 0, 1)
    ]
    assert stops(none, "exit code 143", kind="evaluation") == [("interrupted", None, 1), ("failed", None, 2)]


def test_the_sentence_names_the_step_and_the_remedies() -> None:
    attempt = Attempt({}, "interrupted", error="exit code 143", step=7, stalls=1)
    error = after_stop(attempt, "training", by_time_limit=lambda: True).error
    assert error == (
        f"{STALLS}a step after step 7; give it more time (--slurm time=4:00:00), or save its state more often "
        "(checkpointing.resume_every), and submit it with --retry-failed"
    )


@pytest.mark.parametrize("before", [{"inputs": "b"}, {"state": "failed", "inputs": "a"}])
def test_another_training_and_one_that_is_tried_again_begin_to_count_anew(before: dict[str, str]) -> None:
    earlier = Attempt(**{"parameters": {}, "state": "interrupted", "step": 4, "stalls": 1} | before)
    assert carried_over(Attempt({}, "running", inputs="a"), earlier).stalls == 0


def test_an_attempt_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "attempts").mkdir()
    written = {"format": 2, "parameters": {"a": 1}, "state": "interrupted", "exit_code": 143, "error": "x"}
    (tmp_path / "attempts" / "k.json").write_text(json.dumps(written | {"inputs": None, "number": 3}))
    assert Attempts(tmp_path).get("k") == Attempt({"a": 1}, "interrupted", 143, "x", None, 3)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("JobState=RUNNING Reason=None PreemptTime=None", True),
        ("JobState=RUNNING Reason=None PreemptTime=2026-11-26T22:52:12", False),
        ("JobState=CANCELLED Reason=None PreemptTime=None", False),
        ("", False),
    ],
)
def test_a_task_is_at_its_time_limit_if_nobody_cancels_or_preempts_it(
    tmp_path: Path, fields: str, expected: bool
) -> None:
    command = tmp_path / "scontrol"
    command.write_text(f"#!/bin/sh\necho JobId=7 {fields}\n")
    command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    assert is_at_time_limit(environment) is expected
    assert not is_at_time_limit({"PATH": str(tmp_path)})
