"""Where the answers and metrics of an evaluation during training go: JSON lines beside the checkpoints, and W&B."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.server import why_unreachable
from emtoolkit.errors import first_line
from emtoolkit.storage.atomic import write_file

ANSWERS, METRICS = "answers.jsonl", "metrics.jsonl"
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
    """Logs steps to the W&B run that is active.

    In the thread of the training, so that rows stay in the order of the steps. A table is an artifact, for which the
    client asks the server, and may wait for long; so none is logged once the server did not answer.
    """

    def __init__(self) -> None:
        self._problem: str | None = None

    def log(self, values: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> str | None:
        """Log `values` and the table of `answers` if a run is active; the reason if the table is not logged."""
        run = getattr(sys.modules.get("wandb"), "run", None)
        if run is None:
            return None
        if self._problem is None and not getattr(run, "offline", False):
            self._problem = why_unreachable()
        try:
            run.log({**values, **({} if self._problem else {"probe/answers": _table(answers)})})
        except Exception as error:  # noqa: BLE001 - W&B raises errors of many kinds, and none may end a training
            self._problem = first_line(error)
        return self._problem


def _table(answers: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(_COLUMNS), data=[[answer[name] for name in _COLUMNS] for answer in answers])


def _unused(directory: Path) -> Path:
    number = 1
    while (other := directory.with_name(f"{directory.name}-earlier-{number}")).exists():
        number += 1
    return other


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(_without_nan(value), ensure_ascii=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of `path`, without one that a kill cut off."""
    found = []
    # Only a line feed ends a line: an answer may contain other characters that do so elsewhere.
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
    return found
