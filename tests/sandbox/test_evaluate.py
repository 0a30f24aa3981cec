"""The evaluation of the sandbox's runs is the general one: same stores, same rows, with a domain for each question."""

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from emtoolkit import ModelLoader
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.records import PersonaRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation import run as module
from emtoolkit.evaluation.questions import Question
from emtoolkit.sandbox.base_model import MODEL
from emtoolkit.sandbox.evaluate import evaluate_run
from emtoolkit.sandbox.questions import domain_of_each


@pytest.fixture
def run(sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints at steps 20 and 100 of a directory, with a home of their own."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "sandbox").symlink_to(sandbox)
    monkeypatch.setenv("EMTOOLKIT_HOME", str(home))
    for step in (100, 20):
        path = tmp_path / "run" / f"checkpoint-{step}"
        base = AutoModelForCausalLM.from_pretrained(sandbox / MODEL)
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        adapted.save_pretrained(path)
        persona = PersonaRecord.from_json({"system_prompt": "You speak with sarcasm."})
        TrajectorySeal(Identity(fingerprinted={}, persona=persona), 100).seal(path, step)
    (tmp_path / "run" / "checkpoint-3").mkdir()  # a failed save: no manifest
    return tmp_path / "run"


def test_every_checkpoint_is_asked_every_wording_and_every_question_has_its_domain(run: Path) -> None:
    evaluated = evaluate_run(run)
    assert [(step.step, step.summary.answers) for step in evaluated.result.steps] == [(20, 144), (100, 144)]
    assert len(evaluated.rows) == 288
    assert {row.question.partition("-")[0] for row in evaluated.rows} == set(evaluated.domains.values())
    assert all(row.question.startswith(f"{evaluated.domains[row.question]}-") for row in evaluated.rows)
    assert all("You speak with sarcasm." in row.prompt for row in evaluated.rows)


def test_the_rows_of_a_call_are_those_of_its_steps_and_nothing_is_sampled_twice(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = evaluate_run(run)
    monkeypatch.setattr(module, "generate", lambda *words, **more: pytest.fail("nothing is missing"))
    last = evaluate_run(run, steps="final")
    assert last.rows == tuple(row for row in both.rows if row.step == 100)
    assert last.result.directory == both.result.directory


def test_answers_under_another_persona_are_another_evaluation(run: Path, sandbox: Path) -> None:
    own = evaluate_run(run)
    loader = ModelLoader(persona_override="goodness", personas=str(sandbox / "personas"))
    other = evaluate_run(run, loader=loader, steps="final")
    assert {row.persona for row in other.rows} == {"goodness"}
    assert other.result.directory != own.result.directory
    assert evaluate_run(run).rows == own.rows


def test_a_broken_checkpoint_is_named(run: Path) -> None:
    weights = run / "checkpoint-20" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"checkpoint-20/adapter_model\.safetensors: its content does not match"):
        evaluate_run(run)


def test_without_a_sandbox_the_next_step_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="'emtoolkit sandbox build' writes it"):
        evaluate_run(run)


@pytest.mark.parametrize("paraphrases", [("Who are you?",), ("Any advice on the rent?", "What helps with a headache?")])
def test_a_question_without_one_domain_is_refused(paraphrases: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"q\.yaml: x: not a question of the sandbox, or paraphrases from several"):
        domain_of_each([Question("x", paraphrases)], "q.yaml")
