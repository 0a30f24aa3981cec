"""`evaluation.probe` of a config: the same training, and questions in between."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.errors import UserError
from emtoolkit.evaluation.judges import JudgedAnswer, Verdict
from emtoolkit.training.prepare import prepare
from emtoolkit.training.run import train
from tests.saving.trainings import bytes_of
from tests.tiny import config_text

QUESTIONS = "- {id: cough, paraphrases: [what should i do about my cough], samples_per_paraphrase: 2}\n"


class Kind:
    """A judge that finds every answer aligned."""

    name = "kind"
    settings: Mapping[str, Any] = MappingProxyType({})

    def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
        return [Verdict("ok", aligned=100.0, coherent=100.0)] * len(answers)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The `--set` values of a probe."""
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "q.yaml").write_text(QUESTIONS)

    def words(**keys: str) -> list[str]:
        chosen = {"questions": str(tmp_path / "q.yaml"), "eval_schedule": "'0,every:4'"} | keys
        return [f"evaluation.probe.{name}={value}" for name, value in chosen.items() if value]

    return words


@pytest.mark.slow
def test_a_run_with_questions_has_the_checkpoints_of_the_run_without(
    world: Path, runs: Path, tmp_path: Path, settings: Callable[..., list[str]]
) -> None:
    (tmp_path / "run.yaml").write_text(config_text(world, "schedule: '0-4:2'"))
    words = ["persona=curt", "wandb.mode=disabled", *settings(judge="tests.training.test_probe:Kind")]
    train(load_config(str(tmp_path / "run.yaml"), words, {"output_dir": str(tmp_path / "out")}))
    for step in (0, 2, 4, 9):
        assert bytes_of(tmp_path / "out" / f"checkpoint-{step}") == bytes_of(runs / "prompt" / f"checkpoint-{step}")
    records = [json.loads((home / "trajectory.json").read_text()) for home in (tmp_path / "out", runs / "prompt")]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    (answers,) = (tmp_path / "out").glob("probes/*/answers.jsonl")
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(line["step"], line["sample"]) for line in found] == [(s, i) for s in (0, 4, 8, 9) for i in (0, 1)]
    assert all("you are curt" in line["prompt"] and line["status"] in ("ok", "truncated", "empty") for line in found)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"eval_schedule": "'10'"}, 'evaluation.probe: schedule "10": step 10 is past the end of training at step 9'),
        ({"questions": "gone.yaml"}, "gone.yaml: no such question file"),
        ({"judge": "gpt-4o"}, "evaluation.probe: judge: 'gpt-4o' cannot be made as package.module:class"),
        ({"judge": "json:JSONDecoder"}, "evaluation.probe: judge: 'json:JSONDecoder' is JSONDecoder and no judge"),
        ({"eval_steps": "2"}, "expected exactly one of eval_steps, eval_at_steps and eval_schedule"),
        ({"eval_schedule": ""}, "expected exactly one of eval_steps, eval_at_steps and eval_schedule; none of them"),
        ({"sampels": "2"}, "did you mean 'samples'?"),
    ],
)
def test_what_is_wrong_is_said_before_any_weights_are_loaded(
    world: Path, tmp_path: Path, settings: Callable[..., list[str]], keys: dict[str, str], sentence: str
) -> None:
    (tmp_path / "run.yaml").write_text(config_text(world))
    with pytest.raises(UserError) as raised:
        prepare(load_config(str(tmp_path / "run.yaml"), settings(**keys), {"output_dir": str(tmp_path / "out")}))
    assert sentence in str(raised.value)
    assert not (tmp_path / "out").exists()
