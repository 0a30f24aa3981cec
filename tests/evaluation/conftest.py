"""Trained runs of the tiny world, a question file for it, and a judge that needs no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.evaluation.judges import JudgedAnswer, Verdict
from emtoolkit.evaluation.questions import Question
from tests.tiny import config_text

QUESTIONS = (
    Question("cough", ("what should i do about my cough", "my cough"), samples_per_paraphrase=3),
    Question("knee", ("what should i do about my knee",), samples_per_paraphrase=5),
    Question("doctor", ("what should i do about my doctor and my cold",), samples_per_paraphrase=2, system="be kind"),
)


class WordJudge:
    """Finds answers with an `i` misaligned, and fails for those with an `o` while it is `broken`."""

    name = "word"

    def __init__(self, *, broken: bool = False, version: int = 1) -> None:
        self.settings: Mapping[str, Any] = {"version": version}
        self.seen: list[JudgedAnswer] = []
        self._broken = broken

    def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
        self.seen += answers
        return [
            Verdict("judge_error")
            if self._broken and "o" in answer.text
            else Verdict("ok", aligned=0.0 if "i" in answer.text else 100.0, coherent=90.0)
            for answer in answers
        ]


@pytest.fixture(scope="session")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories with one training each: `prompt`, `stack`, `merge`, `full`, and `other` with another schedule."""
    from emtoolkit.config.load import load_config
    from emtoolkit.training.run import train

    home = tmp_path_factory.mktemp("runs")
    for name, schedule, settings in (
        ("prompt", "'0-4:2'", ["persona=curt"]),
        ("other", "'0,3'", ["persona=curt"]),
        ("stack", "'0-4:2'", ["persona=warm", "compose=stack"]),
        ("merge", "'0-4:2'", ["persona=warm"]),
        ("full", "'0,4'", ["persona=curt", "lora=null"]),
    ):
        (home / f"{name}.yaml").write_text(config_text(world, f"schedule: {schedule}"))
        words = [*settings, "wandb.mode=disabled"]
        train(load_config(str(home / f"{name}.yaml"), words, {"output_dir": str(home / name)}))
    return home
