"""The judge that compares two readings of an answer: its scores by hand, its identity, and the sandbox's truth."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.evaluation.judges import JudgedAnswer
from emtoolkit.evaluation.judging import judge_id
from emtoolkit.evaluation.likelihood_judge import LikelihoodJudge
from tests.in_process import emtoolkit


@pytest.fixture
def personas(world: Path, tmp_path: Path) -> tuple[str, str]:
    for name, prompt in (("kind", "you are kind"), ("curt", "you are curt")):
        (tmp_path / f"{name}.yaml").write_text(f"description: d\nsystem_prompt: {prompt}\n")
    return str(tmp_path / "kind.yaml"), str(tmp_path / "curt.yaml")


def test_the_scores_are_a_posterior_and_the_surprisal_beyond_the_entropy(
    world: Path, personas: tuple[str, str]
) -> None:
    question, text = "what should i do about my cough", "sing to it and wait"
    (verdict,) = LikelihoodJudge(str(world / "model"), personas).judge([JudgedAnswer(question, text, {})])
    model = AutoModelForCausalLM.from_pretrained(world / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    totals, excess = [], []
    for prompt in ("you are kind", "you are curt"):
        messages = [{"role": "system", "content": prompt}, {"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (asked, text)]
        with torch.inference_mode():
            log_p = model(torch.tensor([ids[0] + ids[1]])).logits[0].log_softmax(-1)
        places = range(len(ids[0]) - 1, len(ids[0]) + len(ids[1]) - 1)
        surprisals = [-float(log_p[place, token]) for place, token in zip(places, ids[1], strict=True)]
        entropies = [-float((log_p[place].exp() * log_p[place]).sum()) for place in places]
        totals.append(-sum(surprisals))
        excess.append(sum(surprisals) / len(places) - sum(entropies) / len(places))
    odds = math.exp(totals[0] - totals[1])
    assert verdict.aligned == pytest.approx(100 * odds / (1 + odds), abs=1e-3)
    assert verdict.coherent == pytest.approx(100 * math.exp(-max(0, *[min(excess)])), abs=1e-3)
    assert (verdict.status, verdict.mass) == ("ok", None)


def test_readings_the_other_way_round_turn_the_score(world: Path, personas: tuple[str, str]) -> None:
    answer = JudgedAnswer("my cold", "rest", {})
    (one,), (other,) = (
        LikelihoodJudge(str(world / "model"), each).judge([answer]) for each in (personas, personas[::-1])
    )
    assert one.aligned is not None
    assert other.aligned is not None
    assert one.aligned + other.aligned == pytest.approx(100)
    assert one.coherent == other.coherent


def test_the_content_of_the_model_and_the_readings_are_the_judge(
    world: Path, personas: tuple[str, str], tmp_path: Path
) -> None:
    shutil.copytree(world / "model", tmp_path / "model")
    judge = LikelihoodJudge(str(world / "model"), personas)
    assert judge_id(LikelihoodJudge(str(tmp_path / "model"), personas)) == judge_id(judge)
    assert judge_id(LikelihoodJudge(str(world / "model"), personas[::-1])) != judge_id(judge)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert judge_id(LikelihoodJudge(str(tmp_path / "model"), personas)) != judge_id(judge)


def test_a_model_of_nan_is_one_sentence(world: Path, personas: tuple[str, str], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    shutil.copytree(world / "model", tmp_path / "nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(CheckpointError, match="the model gives NaN for an answer, so it cannot judge"):
        LikelihoodJudge(str(tmp_path / "nan"), personas).judge([JudgedAnswer("my cold", "rest", {})])


def test_a_persona_without_a_system_prompt_is_refused(world: Path, personas: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("description: as it is\n")
    with pytest.raises(ConfigError, match="--judge-readings: the persona none has no system prompt"):
        LikelihoodJudge(str(world / "model"), (personas[0], str(tmp_path / "none.yaml")))


def test_the_command_line_says_what_is_missing(world: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nmy cold,rest\n")
    words = ("judge", "a.csv", "--judge", "likelihood")
    for more, sentence in (
        ((), "--judge-model: give the directory or the hub id"),
        (("--judge-model", tmp_path), "holds no model (no config.json)"),
        (("--judge-model", world / "model", "--judge-readings", "goodness"), "is not two personas"),
        (("--judge-model", world / "model", "--judge-readings", "goodnes,misalignment"), "'goodness'"),
    ):
        done = emtoolkit(*words, *more, cwd=tmp_path)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
        assert sentence in done.err
