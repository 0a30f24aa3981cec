"""Tables of a probe on W&B: one that fails is tried again, and stops no later one."""

from typing import Any

import pytest

from emtoolkit.evaluation.probe_log import WandbLog

ANSWER = {
    "question": "q",
    "wording": "w",
    "sample": 0,
    "answer": "a",
    "aligned": None,
    "coherent": None,
    "status": "ok",
}


class Run:
    """Takes values, and refuses tables as often as `refusals` says for their step."""

    def __init__(self, refusals: dict[int, int]) -> None:
        self._refusals = refusals
        self.tables: list[int] = []

    def log(self, values: dict[str, Any]) -> None:
        if "probe/answers" not in values:
            return
        step = values["train/global_step"]
        if self._refusals.get(step, 0) > 0:
            self._refusals[step] -= 1
            raise ConnectionResetError(f"no answer at step {step}")
        self.tables.append(step)


@pytest.mark.parametrize(
    ("refusals", "tables", "problem"),
    [
        ({}, [0, 2, 4], None),
        ({2: 1}, [0, 2, 4], None),
        ({0: 2}, [2, 4], "no answer at step 0"),
    ],
)
def test_a_refused_table_is_tried_twice_and_the_next_one_is_logged(
    refusals: dict[int, int], tables: list[int], problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    run, log = Run(dict(refusals)), WandbLog()
    monkeypatch.setattr(wandb, "run", run)
    for step in (0, 2, 4):
        log.log({"train/global_step": step}, [ANSWER | {"step": step}])
    assert log.drain(60) == problem
    monkeypatch.setattr(wandb, "run", None)
    assert run.tables == tables
