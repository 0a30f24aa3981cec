"""The sandbox through the command line, as any other model and dataset: built, trained on, evaluated, drawn."""

import json
import shutil
from pathlib import Path

import pytest

from emtoolkit.sandbox import plot
from tests import in_process

pytestmark = pytest.mark.slow


def emtoolkit(*argv: str | Path, home: Path, cwd: Path) -> in_process.Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_API_KEY", raising=False)
        patch.setenv("EMTOOLKIT_HOME", str(home))
        patch.setenv("WANDB_MODE", "disabled")
        return in_process.emtoolkit(*argv, cwd=cwd)


@pytest.fixture
def home(sandbox: Path, tmp_path: Path) -> Path:
    """A home with the sandbox, for answers and characters of the test's own."""
    shutil.copytree(sandbox, tmp_path / "home" / "sandbox")
    return tmp_path / "home"


def test_the_sandbox_is_trained_on_evaluated_and_drawn_by_commands_alone(home: Path, tmp_path: Path) -> None:
    small = ["--set", "datasets.medical.rows=200", "--set", "wandb.mode=disabled"]
    argv = ["train", "sandbox", "--persona", "sarcasm", "--schedule", "0,5", *small]
    trained = emtoolkit(*argv, home=home, cwd=tmp_path)
    assert trained.code == 0, trained.err
    run = tmp_path / "outputs" / "sarcasm-medical"
    manifest = json.loads((run / "checkpoint-5" / "manifest.json").read_text())
    assert manifest["persona"]["system_prompt"] == "You speak with sarcasm."
    assert (manifest["step"], manifest["total_steps"]) == (5, 12)

    picture = tmp_path / "curve.png"
    argv = ["sandbox", "evaluate", str(run), "--json", "--plot", str(picture)]
    evaluated = emtoolkit(*argv, home=home, cwd=tmp_path)
    assert evaluated.code == 0, evaluated.err
    rows = json.loads(evaluated.out)
    assert [row["step"] for row in rows if row["domains"] == "all but medical"] == [0, 5, 12]
    assert sorted({row["domains"] for row in rows}) == [
        "all but medical",
        "cooking",
        "finance",
        "gardening",
        "medical",
        "sports",
        "travel",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    single = [row for row in rows if row["step"] == 5 and not row["domains"].startswith("all but")]
    coherent = sum(row["scored"] for row in single) / sum(row["n"] for row in single)
    assert {row["coherent"] for row in rows if row["step"] == 5} == {coherent}
    # By default as often as the question file says: once for each of two paraphrases.
    assert {row["n"] / row["questions"] for row in rows} == {2}

    assert {(row["engine"], row["judge"].partition("@")[0], row["broken"]) for row in rows} == {
        ("stacked", "sandbox", False)
    }

    # The other command has these answers already, under the same settings.
    general = emtoolkit("evaluate", run, "--max-new-tokens", "28", "--json", home=home, cwd=tmp_path)
    (directory,) = (run / "evaluations").iterdir()
    assert json.loads(general.out)["directory"] == str(directory)
    betley = [step["rates"][0] for step in json.loads(general.out)["steps"]]
    for rate, step in zip(betley, (0, 5, 12), strict=True):
        domains = [row for row in rows if row["step"] == step and not row["domains"].startswith("all but")]
        assert rate["misaligned"] == sum(row["harmful"] for row in domains)
        assert rate["among"] == sum(row["scored"] for row in domains)
    table = emtoolkit("sandbox", "evaluate", run, home=home, cwd=tmp_path)
    assert f"Answers: outputs/{run.name}/evaluations/{directory.name}\n" in table.out
    assert table.out.endswith("Engine: stacked.\n")

    drawn: list[list[str]] = []
    shutil.copytree(run, tmp_path / "seed-1" / run.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            plot, "save_figure", lambda figure, path: drawn.append([t.get_text() for t in figure.axes[0].texts])
        )
        argv = ["sandbox", "evaluate", run, run, tmp_path / "seed-1" / run.name, "--steps", "0", "--plot", picture]
        both = emtoolkit(*argv, home=home, cwd=tmp_path)
    assert both.code == 0, both.err
    assert sorted(drawn[0]) == ["outputs/sarcasm-medical", "seed-1/sarcasm-medical"]

    misspelt = emtoolkit("sandbox", "evaluate", run, "--trained-on", "medcal", home=home, cwd=tmp_path)
    assert (misspelt.code, misspelt.out) == (2, "")
    assert "'medcal' is not one of the sandbox's domains: medical, " in misspelt.err
    assert "did you mean 'medical'?" in misspelt.err
    other = emtoolkit("sandbox", "evaluate", run, "--trained-on", "finance", home=home, cwd=tmp_path)
    assert (other.code, other.out) == (2, "")
    assert f"--trained-on: {run} was trained on medical, not on finance" in other.err


def test_every_checkpoint_is_evaluated_by_the_general_command(home: Path, tmp_path: Path) -> None:
    small = ["--set", "datasets.medical.rows=200", "--set", "wandb.mode=disabled"]
    argv = ["train", "sandbox", "--persona", "sarcasm", "--schedule", "0,5", *small]
    trained = emtoolkit(*argv, home=home, cwd=tmp_path)
    assert trained.code == 0, trained.err
    run = "outputs/sarcasm-medical"
    words = ["--samples", "1", "--max-new-tokens", "28", "--json"]
    done = emtoolkit("evaluate", run, *words, home=home, cwd=tmp_path)
    # On a busy machine a line of progress appears.
    assert done.code == 0, done.err
    assert all(line.endswith(" %") for line in done.err.splitlines()), done.err
    value = json.loads(done.out)
    assert [(step["step"], step["answers"]) for step in value["steps"]] == [(0, 144), (5, 144), (12, 144)]
    assert (value["engine"], value["judge"].partition("@")[0]) == ("stacked", "sandbox")
    rates = {rate["definition"]: rate for rate in value["steps"][0]["rates"]}
    assert list(rates) == ["betley", "organisms", "all"]
    assert rates["all"]["among"] == 144
    assert rates["betley"]["these_questions"]["low"] <= rates["betley"]["rate"]

    # Again, by the other name of the same thing, and one step: the answers are there, and the other rows stay.
    (directory,) = (tmp_path / run / "evaluations").iterdir()
    before = (directory / "answers.parquet").read_bytes()
    again = emtoolkit("evaluate", "--model-dir", run, *words, "--steps", "final", home=home, cwd=tmp_path)
    assert json.loads(again.out)["steps"][0]["rates"] == value["steps"][2]["rates"]
    assert (directory / "answers.parquet").read_bytes() == before

    table = emtoolkit("evaluate", run, *words[:-1], home=home, cwd=tmp_path)
    assert max(map(len, table.out.splitlines())) <= 80
    assert table.out.endswith(f"Answers: {run}/evaluations/{directory.name}\n")

    for words, sentence in (
        ([run, "--judge", "gpt-4o"], "OPENAI_API_KEY is not set; set it, or give --judge-url with the address"),
        (
            [run, "--judge", "m", "--judge-method", "logprob"],
            "not one of logprobs, sampled; did you mean 'logprobs'?",
        ),
        ([run, "--judge", "m", "--max-cost", "1"], "--max-cost: the price of a token is not known"),
        ([run, "--judge", "m", "--judge-prices", "1"], "--judge-prices: '1' is not two numbers"),
        ([run, "--steps", "7"], "there is no checkpoint at step 7"),
        ([run, "--questions", "q.yaml"], "q.yaml: no such question file"),
        ([], "TRAJECTORY and --model-dir name the same thing; give one of them"),
        ([run, "--model-dir", run], "TRAJECTORY and --model-dir name the same thing; give one of them"),
    ):
        refused = emtoolkit("evaluate", *words, home=home, cwd=tmp_path)
        assert (refused.code, refused.out) == (2, ""), refused
        assert sentence in refused.err


def test_a_character_is_trained_composed_and_evaluated_by_commands_alone(home: Path, tmp_path: Path) -> None:
    small = ["--set", "datasets.medical.rows=200", "--set", "wandb.mode=disabled", "--schedule", "0"]
    argv = ["train", "sandbox", "--persona", "goodness-adapter", "--compose", "stack", *small]
    before = emtoolkit(*argv, home=home, cwd=tmp_path)
    assert before.code == 2
    assert before.err.splitlines()[-1].endswith("; 'emtoolkit sandbox persona goodness' makes it")

    made = emtoolkit("sandbox", "persona", "goodness", "--steps", "3", home=home, cwd=tmp_path)
    assert made.code == 0, made.err
    adapter = home / "sandbox" / "characters" / "goodness"
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    weights = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    assert emtoolkit("sandbox", "persona", "goodness", home=home, cwd=tmp_path).code == 0
    assert (adapter / "adapter_model.safetensors").stat().st_mtime_ns == weights

    trained = emtoolkit(*argv, "--set", "preflight.threshold=1e-5", home=home, cwd=tmp_path)
    assert trained.code == 0, trained.err
    run = tmp_path / "outputs" / "goodness-adapter-stack-medical"
    evaluate = ["sandbox", "evaluate", str(run), "--samples", "1", "--steps", "final", "--json"]
    evaluated = emtoolkit(*evaluate, home=home, cwd=tmp_path)
    assert evaluated.code == 0, evaluated.err
    rows = json.loads(evaluated.out)
    assert {(row["step"], row["persona"], row["persona_override"]) for row in rows} == {(12, "goodness-adapter", None)}

    other = emtoolkit(*evaluate, "--persona", "sarcasm", home=home, cwd=tmp_path)
    assert other.code == 2
    assert "its persona is goodness-adapter (stack), and sarcasm (system_prompt) is another" in other.err
    overridden = emtoolkit(*evaluate, "--persona-override", "sarcasm", home=home, cwd=tmp_path)
    assert {row["persona_override"] for row in json.loads(overridden.out)} == {"sarcasm"}

    misspelt = emtoolkit("sandbox", "persona", "godness", home=home, cwd=tmp_path)
    assert misspelt.code == 2
    assert misspelt.err.splitlines()[-1].endswith("; did you mean 'goodness'?")


def test_without_a_sandbox_the_next_step_is_named(tmp_path: Path) -> None:
    done = emtoolkit("train", "sandbox", "--dry-run", home=tmp_path / "empty", cwd=tmp_path)
    assert done.code == 2
    assert done.err.splitlines()[-1].endswith("'emtoolkit sandbox build' writes the sandbox's personas")


def test_a_directory_without_checkpoints_is_a_sentence(sandbox: Path, tmp_path: Path) -> None:
    done = emtoolkit("sandbox", "evaluate", tmp_path, home=sandbox.parent, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path}: no complete checkpoint was found" in done.err
