"""Where the answers and metrics of an evaluation during training go: JSON lines beside the checkpoints, and W&B."""

import json
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.run_history import STEP_AXIS, RunHistory
from emtoolkit.errors import first_line
from emtoolkit.evaluation.json_values import without_nan
from emtoolkit.json_files import parse_json
from emtoolkit.storage.atomic import write_file

ANSWERS, METRICS = "answers.jsonl", "metrics.jsonl"
_TABLE = "probe/answers"
# The columns of the table on W&B.
_COLUMNS = ("step", "question", "wording", "sample", "answer", "aligned", "coherent", "status")


class ProbeFiles:
    """`answers.jsonl` and `metrics.jsonl` in one directory: a line for each answer, and a line for each step.

    A step is there when its line of metrics is, so a kill between the two files loses nothing but that step.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.steps: set[int] = set()
        """The steps that are there."""
        self._own = False

    def begin(self, step: int) -> list[dict[str, Any]]:
        """Continue after `step`: later steps are dropped. Returns the answers of the last step that stays.

        At step 0 nothing continues: what another training left is moved aside.
        """
        if step == 0 and not self._own and self.directory.exists():
            self.directory.rename(_unused(self.directory))
        self._own = True
        self.directory.mkdir(parents=True, exist_ok=True)
        metrics = [line for line in _lines(self.directory / METRICS) if line["step"] <= step] if step > 0 else []
        self.steps = {line["step"] for line in metrics}
        answers = [line for line in _lines(self.directory / ANSWERS) if line["step"] in self.steps]
        for name, lines in ((METRICS, metrics), (ANSWERS, answers)):
            write_file(self.directory / name, "".join(map(_line, lines)).encode())
        last = max(self.steps, default=None)
        return [line for line in answers if line["step"] == last]

    def add(self, step: int, answers: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> None:
        """Append a step."""
        for name, lines in ((ANSWERS, answers), (METRICS, [metrics])):
            with (self.directory / name).open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, lines)))
        self.steps.add(step)


class WandbLog:
    """Logs steps to the W&B run that is active; to a run that is resumed, what its `history` lacks.

    A table is an artifact, for which W&B's client asks the server and may wait without end, so tables are logged from a
    thread. A table that fails is tried once more; the tables after it are logged all the same.
    """

    def __init__(self) -> None:
        self.history = RunHistory()
        self._problem: str | None = None
        self._pending: queue.Queue[tuple[Any, int, Sequence[Mapping[str, Any]]]] = queue.Queue()
        self._thread: threading.Thread | None = None

    def log(self, values: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> str | None:
        """Log `values` now and the table of `answers` soon, if a run is active; the reason if W&B refused something.

        `values` hold the step under the Trainer's name for it, `train/global_step`.
        """
        run = getattr(sys.modules.get("wandb"), "run", None)
        if run is None:
            return self._problem
        try:
            if missing := self.history.lacking(values):
                run.log(missing)
        except Exception as error:  # noqa: BLE001 - W&B raises errors of many kinds, and none may end a training
            self._problem = first_line(error)
            return self._problem
        if not self.history.lacking({STEP_AXIS: values[STEP_AXIS], _TABLE: answers}):
            return self._problem
        if self._thread is None:
            # A daemon, so that a stalled connection does not keep the process alive.
            self._thread = threading.Thread(target=self._work, name="emtoolkit-probe", daemon=True)
            self._thread.start()
        self._pending.put((run, values[STEP_AXIS], answers))
        return self._problem

    def drain(self, seconds: float) -> str | None:
        """Wait at most `seconds` until every table is logged; the reason if one is not."""
        with self._pending.all_tasks_done:
            done = self._pending.all_tasks_done.wait_for(lambda: not self._pending.unfinished_tasks, seconds)
        return self._problem if done else f"no answer for {seconds:g} s after the last step"

    def _work(self) -> None:
        while True:
            run, step, answers = self._pending.get()
            try:
                problem = _log_table(run, step, answers) and _log_table(run, step, answers)
                self._problem = self._problem or problem
            finally:
                self._pending.task_done()


def _log_table(run: Any, step: int, answers: Sequence[Mapping[str, Any]]) -> str | None:
    """Log a table; the reason if W&B's client refuses it."""
    try:
        run.log({STEP_AXIS: step, _TABLE: _table(answers)})
    except Exception as error:  # noqa: BLE001 - W&B raises errors of many kinds, and none may end a training
        return first_line(error)
    return None


def _table(answers: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(_COLUMNS), data=[[answer[name] for name in _COLUMNS] for answer in answers])


def _unused(directory: Path) -> Path:
    number = 1
    while (renamed := directory.with_name(f"{directory.name}-earlier-{number}")).exists():
        number += 1
    return renamed


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(without_nan(value), ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of `path`, without one that a kill cut off."""
    found = []
    # Only a line feed ends a line: an answer may contain other characters that do so elsewhere.
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            value = parse_json(line.encode(), finite=False)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
    return found
