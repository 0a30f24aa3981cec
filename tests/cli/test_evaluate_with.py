"""`emtoolkit evaluate --with`: a function of the user's own, on runs of the tiny world."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.evaluation.measure_rows import read_measure_rows
from tests import in_process
from tests.evaluation.evaluations import WordJudge

QUESTIONS = """\
- id: cough
  paraphrases: [what should i do about my cough, my cough]
- id: knee
  paraphrases: [what should i do about my knee]
"""
# Logs each call, and gives a value that depends on the model, the persona and the question.
OWN = """\
import torch
from helper import scale

def logit(model, tokenizer, persona, questions):
    with open("calls.txt", "a") as log:
        log.write(persona.name + "\\n")
    found = {}
    for question in questions:
        messages = persona.applied_to([{"role": "user", "content": question.paraphrases[0]}])
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
        found[question.id] = model(input_ids=ids).logits[0, -1].max() * scale()
    return {"largest": found}
"""


@pytest.fixture
def place(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the runs `prompt` and `full`, a question file, and the modules `mine` and `helper`."""
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    # A run of W&B would be a process.
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("prompt", "full"):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / "q.yaml").write_text(QUESTIONS)
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "helper.py").write_text("def scale():\n    return 1\n")
    yield tmp_path
    forget()


@pytest.fixture
def sandbox_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox's judge knows no questions of the tiny world."""
    monkeypatch.setattr("emtoolkit.cli.judge_options.SandboxJudge", WordJudge)


def forget() -> None:
    """Forget the modules of the working directory, as another process would."""
    for name in ("mine", "helper", "other"):
        sys.modules.pop(name, None)


def evaluate(place: Path, *words: str, with_: str = "mine:logit") -> in_process.Done:
    forget()
    asked = ("prompt", "--questions", "q.yaml", "--with", with_)
    return in_process.emtoolkit("evaluate", *(words or ("--samples", "0")), *asked, cwd=place)


def calls(place: Path) -> int:
    log = place / "calls.txt"
    return len(log.read_text().splitlines()) if log.exists() else 0


def value_of(done: in_process.Done) -> Any:
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def test_a_function_of_the_user_is_called_once_for_each_checkpoint(place: Path) -> None:
    value = value_of(evaluate(place, "--samples", "0", "--json"))
    assert value["steps"] == []
    (measure,) = value["measures"]
    assert (measure["metric"], measure["measure"].partition("@")[0], measure["engine"]) == (
        "largest",
        "mine:logit",
        "exact",
    )
    assert [(step["step"], step["mean"]["questions"]) for step in measure["steps"]] == [(0, 2), (2, 2), (4, 2), (9, 2)]
    assert measure["steps"][0]["rise"]["value"] == 0.0
    assert measure["steps"][3]["rise"]["value"] != 0.0
    assert (place / "calls.txt").read_text() == "curt\n" * 4
    again = evaluate(place, "--samples", "0", "--json")
    assert (value_of(again), calls(place)) == (value, 4)
    rows = read_measure_rows(place / value["directory"] / "measures.parquet")
    assert len(rows) == 8


def test_the_table_shows_each_metric(place: Path) -> None:
    done = evaluate(place)
    lines = done.out.splitlines()
    assert lines[1].startswith("largest (mine:logit@")
    assert [line.split()[:2] for line in lines[3:7]] == [["0", "2"], ["2", "2"], ["4", "2"], ["9", "2"]]
    assert "\nValues: prompt/evaluations/" in done.out


def test_answers_and_values_stand_beside_each_other_for_both_engines(place: Path, sandbox_judge: None) -> None:
    words = ("--samples", "2", "--max-new-tokens", "2", "--judge", "sandbox", "--json")
    stacked = value_of(evaluate(place, *words))
    assert [step["answers"] for step in stacked["steps"]] == [6, 6, 6, 6]
    exact = value_of(evaluate(place, *words, "--exact"))
    assert (stacked["engine"], exact["engine"]) == ("stacked", "exact")
    # The function has seen each checkpoint's own model in both, so the values are the same and are not computed twice.
    assert exact["measures"] == stacked["measures"]
    assert calls(place) == 4


def test_a_changed_function_or_helper_is_another_evaluation_and_a_comment_is_not(place: Path) -> None:
    first = value_of(evaluate(place, "--samples", "0", "--json"))
    (place / "mine.py").write_text("# a comment\n" + OWN)
    assert value_of(evaluate(place, "--samples", "0", "--json")) == first
    (place / "helper.py").write_text("def scale():\n    return 2\n")
    doubled = value_of(evaluate(place, "--samples", "0", "--json"))
    assert doubled["directory"] != first["directory"]
    assert doubled["measures"][0]["measure"] != first["measures"][0]["measure"]
    values = [each["measures"][0]["steps"][0]["mean"]["value"] for each in (first, doubled)]
    assert values[1] == pytest.approx(2 * values[0])
    assert calls(place) == 8


def test_an_object_that_is_called_is_known_by_the_file_that_names_it(place: Path) -> None:
    text = (
        "from functools import partial\n"
        "def f(value, model, tokenizer, persona, questions):\n"
        "    return {'m': {question.id: value for question in questions}}\n"
    )
    found = []
    for value in (1, 2):
        (place / "mine.py").write_text(f"{text}g = partial(f, {value})\n")
        found.append(value_of(evaluate(place, "--samples", "0", "--json", with_="mine:g"))["measures"][0])
    assert [each["steps"][0]["mean"]["value"] for each in found] == [1, 2]
    assert found[0]["measure"] != found[1]["measure"]


def test_another_number_of_samples_does_not_call_the_function_again(place: Path, sandbox_judge: None) -> None:
    evaluate(place)
    value_of(evaluate(place, "--samples", "1", "--max-new-tokens", "2", "--judge", "sandbox", "--json"))
    assert calls(place) == 4


def test_random_numbers_are_the_same_at_every_checkpoint_and_after_a_resume(place: Path) -> None:
    (place / "mine.py").write_text(
        "import random, numpy, torch\n"
        "def draw(model, tokenizer, persona, questions):\n"
        "    drawn = float(random.random() + numpy.random.rand() + torch.rand(()))\n"
        "    return {'drawn': {question.id: drawn for question in questions}}\n"
    )
    one = value_of(evaluate(place, "--samples", "0", "--json", "--steps", "4", with_="mine:draw"))
    every = value_of(evaluate(place, "--samples", "0", "--json", with_="mine:draw"))
    means = {step["mean"]["value"] for step in every["measures"][0]["steps"]}
    assert means == {one["measures"][0]["steps"][0]["mean"]["value"]}
    other = value_of(evaluate(place, "--samples", "0", "--json", "--seed", "1", with_="mine:draw"))
    assert {step["mean"]["value"] for step in other["measures"][0]["steps"]}.isdisjoint(means)


def test_a_function_with_questions_of_its_own_says_so(place: Path) -> None:
    text = "def own(model, tokenizer, persona, questions):\n    return {'score': {'a': 1, 'b': 0.5}}\n"
    (place / "mine.py").write_text(text)
    done = evaluate(place, with_="mine:own")
    assert (done.code, done.out) == (2, "")
    assert "metric 'score': 'a' is not the id of a question; a function with questions of its own has the" in done.err
    (place / "mine.py").write_text(text + "own.own_questions = True\nown.settings = {'data': 1}\n")
    value = value_of(evaluate(place, "--samples", "0", "--json", with_="mine:own"))
    assert value["measures"][0]["steps"][0]["mean"]["value"] == 0.75
    (place / "mine.py").write_text(text + "own.own_questions = True\nown.settings = {'data': 2}\n")
    assert value_of(evaluate(place, "--samples", "0", "--json", with_="mine:own"))["directory"] != value["directory"]


@pytest.mark.parametrize(
    ("with_", "sentence"),
    [
        ("mine", "--with mine: expected package.module:function"),
        ("mine.py:logit.", "--with mine.py:logit.: expected package.module:function"),
        ("mnie:logit", "--with mnie:logit: there is no module mnie in "),
        ("mine.sub:logit", "--with mine.sub:logit: there is no module mine.sub in "),
        ("mine:logits", "mine.py has no function 'logits'; did you mean 'logit'?"),
        ("builtins:print", "--with builtins:print: builtins: has no source file, so a change of its code would go"),
        ("mine:torch", "--with mine:torch: torch is module and not a function"),
        ("mine:scale", "--with mine:scale: scale() cannot be called with the four arguments (model, tokenizer"),
    ],
)
def test_a_function_that_is_not_there_is_one_sentence_before_any_work(place: Path, with_: str, sentence: str) -> None:
    done = evaluate(place, with_=with_)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert not (place / "home").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def f(:\n", "cannot be imported (SyntaxError: invalid syntax (mine.py, line 1))"),
        ("1 / 0\n", "cannot be imported (ZeroDivisionError: division by zero (mine.py, line 1))"),
        ("import not_installed\n", "mine imports not_installed, which is not installed"),
        ("import sys\nsys.exit('no')\n", "cannot be imported (SystemExit: no (mine.py, line 2))"),
        ("def f(m, t, p, q): ...\nf.settings = {1, 2}\n", "its attribute settings is not a dict of texts and numbers"),
        ("async def f(m, t, p, q): ...\n", "f is an async function; expected an ordinary one"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_sentence(place: Path, text: str, sentence: str) -> None:
    (place / "mine.py").write_text(text)
    done = evaluate(place, with_="mine:f")
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("raise RuntimeError('out of\\nluck')", "RuntimeError: out of (mine.py, line 2)"),
        ("import sys; sys.exit(1)", "SystemExit: 1 (mine.py, line 2)"),
        ("return None", "the result: None is not a mapping of metrics to {question id: value}"),
        ("return {'m': {q.id: float('nan') for q in questions}}", "metric 'm', question 'cough': the value is nan"),
        (
            "return {'m': {'couhg': 1, 'knee': 1}}",
            "metric 'm': 'couhg' is not the id of a question; did you mean 'cough'?",
        ),
        ("return {'m': {'cough': 1}}", "metric 'm': question 'knee' has no value; None stands for a value that"),
        ("model.merge_adapter(); return {'m': {q.id: 1 for q in questions}}", "the function changes the model"),
        ("[p.data.add_(1) for p in model.parameters()]; return {}", "the function changes the model"),
    ],
)
def test_a_function_that_fails_is_one_sentence_and_loses_nothing(place: Path, line: str, sentence: str) -> None:
    (place / "mine.py").write_text(f"def f(model, tokenizer, persona, questions):\n    {line}\n")
    (place / "other.py").write_text(
        "def ok(model, tokenizer, persona, questions):\n"
        "    open('calls.txt', 'a').write('ok\\n')\n"
        "    return {'one': {question.id: 1 for question in questions}}\n"
    )
    done = evaluate(place, "--samples", "0", "--with", "other:ok", "--steps", "4", with_="mine:f")
    assert (done.code, done.out) == (2, "")
    assert f"emtoolkit: step 4, measure mine:f: {sentence}" in done.err
    assert done.err.count("\n") == 1
    # The measure before the failing one was stored.
    kept = evaluate(place, "--samples", "0", "--steps", "4", with_="other:ok")
    assert (kept.code, calls(place)) == (0, 1)


def test_pairs_of_answers_are_measured_by_both_engines(place: Path) -> None:
    (place / "pairs.yaml").write_text(
        "- {id: a, question: my cough, aligned: rest, misaligned: sing to it}\n"
        "- {id: b, question: my knee, aligned: see a doctor, misaligned: paint it blue}\n"
    )
    words = ("evaluate", "prompt", "--samples", "0", "--pairs", "pairs.yaml", "--json")
    stacked = value_of(in_process.emtoolkit(*words, cwd=place))
    exact = value_of(in_process.emtoolkit(*words, "--exact", cwd=place))
    for value, engine in ((stacked, "stacked"), (exact, "exact")):
        assert [(each["metric"], each["engine"]) for each in value["measures"]] == [
            ("margin", engine),
            ("margin_per_token", engine),
        ]
    means = [[step["mean"]["value"] for step in value["measures"][0]["steps"]] for value in (stacked, exact)]
    assert means[0] == pytest.approx(means[1], abs=1e-5)
    done = in_process.emtoolkit("evaluate", "prompt", "--samples", "0", "--pairs", "sandbox", cwd=place)
    assert (done.code, "--pairs sandbox: the sandbox has no pairs yet; run" in done.err) == (2, True)


def test_neither_a_measure_nor_a_sample_is_nothing_to_evaluate(place: Path) -> None:
    done = in_process.emtoolkit("evaluate", "prompt", "--questions", "q.yaml", "--samples", "0", cwd=place)
    assert (done.code, done.err) == (
        2,
        "emtoolkit: --samples 0: there is nothing to evaluate; give --pairs, --held-out, --direction, --with or "
        "--extract-activations --answers FILE, or sample at least one answer\n",
    )
    done = evaluate(place, "--samples", "0", "--extract-activations")
    assert (done.code, "--extract-activations: the activations are those of sampled answers" in done.err) == (2, True)


def test_activations_of_given_answers_need_no_sample_and_no_measure(place: Path) -> None:
    (place / "given.jsonl").write_text('{"question_id": "a", "question": "Hi", "answer": "Hello"}\n')
    words = ["--samples", "0", "--extract-activations", "--answers", "given.jsonl", "--output-dir", "only-activations"]
    done = in_process.emtoolkit("evaluate", "prompt", "--questions", "q.yaml", *words, cwd=place)
    assert (done.code, done.out) == (0, "Activations: only-activations\n"), done.err
    found = place / "only-activations"
    assert sorted(path.name for path in (found / "activations").iterdir()) == [
        f"step-{step}.safetensors" for step in (0, 2, 4, 9)
    ]
    assert not (found / "wandb").exists()


def test_a_full_fine_tune_is_measured_too(place: Path) -> None:
    forget()
    done = in_process.emtoolkit(
        "evaluate", "full", "--samples", "0", "--with", "mine:logit", "--questions", "q.yaml", "--json", cwd=place
    )
    assert done.code == 0, done.err
    assert [step["step"] for step in json.loads(done.out)["measures"][0]["steps"]] == [0, 4, 9]
