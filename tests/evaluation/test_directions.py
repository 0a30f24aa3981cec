"""A persona direction from scored answers, and the projection of every checkpoint on the same texts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from emtoolkit import ModelLoader, Trajectory
from emtoolkit.errors import DataError
from emtoolkit.evaluation.activations import activations
from emtoolkit.evaluation.directions import (
    Direction,
    Projection,
    make_direction,
    published_sets,
    read_direction,
    write_direction,
)
from emtoolkit.evaluation.measures import measure_checkpoints
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.store import Store
from emtoolkit.evaluation.texts import GivenText, TextOptions, read_texts, tokenized
from tests.evaluation.evaluations import QUESTIONS
from tests.in_process import emtoolkit

WORDS = ("sing to it", "paint it blue", "rest and wait", "see a doctor")


def scored(count: int = 10) -> list[GivenText]:
    """`count` misaligned and `count` aligned answers, and answers that are in neither set."""
    texts = [
        GivenText(
            f"q{i % 3}", f"{WORDS[2 * aligned + i % 2]} {i % 3 * 'and '}wait", "", f"what about my cough {i}", score, 90
        )
        for i in range(count)
        for aligned, score in ((0, 49.9), (1, 50.0))
    ]
    none = [GivenText("q", "blue", "", "what", 10, 49.9), GivenText("q", "blue", "", "what", None, 90)]
    return [*texts, *none, GivenText("q", " ", "", "what", 10, 90), GivenText("q", "blue", "", "what", 10, None)]


@pytest.fixture(scope="module")
def made(runs: Path) -> Direction:
    checkpoint = Trajectory.open(runs / "prompt").at(9)
    return make_direction(ModelLoader().load(checkpoint), checkpoint, scored())


def test_the_sets_are_those_of_the_published_recipe() -> None:
    misaligned, aligned = published_sets(scored())
    assert (len(misaligned), len(aligned)) == (10, 10)
    assert {text.aligned for text in misaligned} == {49.9}
    assert {text.aligned for text in aligned} == {50.0}


def test_too_few_answers_on_a_side_are_a_sentence() -> None:
    with pytest.raises(DataError, match=r"of 22 answers 9 are misaligned \(below 50\) and 9 aligned"):
        published_sets(scored(9))


def test_the_direction_is_the_difference_of_the_means_of_both_sets(made: Direction, runs: Path) -> None:
    loaded = ModelLoader().load(Trajectory.open(runs / "prompt").at(9))
    means = [
        activations(loaded.model, tokenized(loaded, each)).tensors["answer_mean"].double().mean(0)
        for each in published_sets(scored())
    ]
    assert made.vectors.shape == (2, 16)
    assert torch.allclose(made.vectors.double(), means[0] - means[1], atol=1e-6)
    assert made.separation[1] > 0
    assert (made.facts["step"], made.facts["misaligned"], made.facts["span"]) == (9, 10, "answer_mean")
    assert made.facts["base_model"]["content"]


def test_a_file_keeps_the_direction_and_its_provenance(made: Direction, tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    write_direction(path, made)
    read = read_direction(path)
    assert torch.equal(read.vectors, made.vectors)
    assert (read.facts, read.separation) == (made.facts, made.separation)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["emtoolkit"])["facts"]["step"] == 9
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match="not a file of a direction"):
        read_direction(path)


def test_every_checkpoint_is_projected_on_the_same_texts(made: Direction, runs: Path, tmp_path: Path) -> None:
    texts = (GivenText("a", "sing to it", "", "my cough"), GivenText("a", "rest", "", "my knee"), GivenText("b", ""))
    texts = (*texts[:2], replace(texts[2], wording="my cold"))
    checkpoints = list(Trajectory.open(runs / "prompt"))
    measure = Projection(made, 1, texts)
    rows = measure_checkpoints("t", checkpoints, [measure], QUESTIONS, Store(tmp_path, "measures"))
    assert {row.metric for row in rows} == {"projection_layer_1"}
    for checkpoint in checkpoints:
        loaded = ModelLoader().load(checkpoint)
        found = activations(loaded.model, tokenized(loaded, texts[:2])).tensors["answer_mean"][:, 1].double()
        direction = made.vectors[1].double()
        expected = float((found @ direction / direction.norm()).mean())
        values = {row.question: row.value for row in rows if row.step == checkpoint.step}
        assert values["a"] == pytest.approx(expected, abs=1e-6)
        # An answer without tokens is a gap, not a zero.
        assert values["b"] is None


def test_without_texts_the_last_token_of_each_prompt_is_projected(made: Direction, runs: Path) -> None:
    loaded = ModelLoader().load(Trajectory.open(runs / "prompt").at(4))
    (values,) = Projection(made, 1).measure(loaded, QUESTIONS).values()
    assert sorted(values) == ["cough", "doctor", "knee"]
    plain, system = (
        Projection(made, 1).measure(loaded, [Question("q", ("my knee",), system=text)]) for text in (None, "be kind")
    )
    assert plain != system


@pytest.mark.parametrize(("layer", "sentence"), [(2, "2 is not one of 0 to 1"), (-1, "-1 is not one"), (0, "is zero")])
def test_a_layer_that_says_nothing_is_refused(made: Direction, layer: int, sentence: str) -> None:
    vectors = made.vectors.clone()
    vectors[0] = 0
    with pytest.raises(DataError, match=sentence):
        Projection(replace(made, vectors=vectors), layer, place="d.safetensors")


def test_a_direction_of_another_model_is_refused(made: Direction, runs: Path, tmp_path: Path) -> None:
    checkpoints = list(Trajectory.open(runs / "prompt"))
    base = dict(made.facts["base_model"]) | {"content": "0" * 64}
    other = Projection(replace(made, facts={**made.facts, "base_model": base}), 1, place="d.safetensors")
    with pytest.raises(DataError, match=r"d.safetensors: the direction is one of the base model .* step 0 has"):
        measure_checkpoints("t", checkpoints, [other], QUESTIONS, Store(tmp_path, "measures"))
    wide = replace(made, vectors=torch.ones(3, 8), facts={})
    with pytest.raises(DataError, match="with 2 layers of 8, and this one has 1 layers of 16"):
        Projection(wide, 1).measure(ModelLoader().load(checkpoints[0]), QUESTIONS)


def test_texts_of_a_file_are_chosen_by_question_and_by_value(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"question_id": f"q{i}", "question": "my cough", "answer": "rest", "step": i} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [text.question for text in read_texts(path, {"step": "1"})] == ["q1"]
    assert [text.question for text in TextOptions(read_texts(path), ("q[12]",)).chosen([])] == ["q1", "q2"]
    with pytest.raises(DataError, match="--activation-questions x: no question has such an id"):
        TextOptions(read_texts(path), ("x",)).chosen([])
    with pytest.raises(DataError, match="no row is left of 3"):
        read_texts(path, {"step": "7"})
    path.write_text('{"question": "my cough"}\n')
    with pytest.raises(DataError, match="line 1: the columns are question; expected 'answer', and 'prompt'"):
        read_texts(path)


def test_the_command_makes_a_direction_that_an_evaluation_projects_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    rows = [
        {"question": t.wording, "answer": t.answer, "aligned": t.aligned, "coherent": t.coherent} for t in scored()[:20]
    ]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "q.yaml").write_text("- {id: cough, paraphrases: [my cough], judge: sandbox}\n")
    done = emtoolkit("direction", runs / "prompt", "scored.jsonl", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "10 misaligned, 10 aligned" in done.out
    words = ("--questions", "q.yaml", "--samples", "0", "--output-dir", "out", "--wandb", "disabled", "--json")
    words += ("--direction", "direction.safetensors")
    refused = emtoolkit("evaluate", runs / "prompt", *words, cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert "--direction: give --layer, one of 0 to 1; direction.safetensors separates its answers best" in refused.err
    done = emtoolkit("evaluate", runs / "prompt", *words, "--layer", "1", cwd=tmp_path)
    assert done.code == 0, done.err
    (summary,) = json.loads(done.out)["measures"]
    assert summary["metric"] == "projection_layer_1"
    assert [step["step"] for step in summary["steps"]] == [0, 2, 4, 9]
    short = emtoolkit("direction", runs / "prompt", "scored.jsonl", "--where", "aligned=50.0", cwd=tmp_path)
    assert (short.code, short.out) == (2, "")
    assert "of 10 answers 0 are misaligned" in short.err
