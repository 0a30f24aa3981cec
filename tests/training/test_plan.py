"""`emtoolkit plan`: the cost of each run and of all runs, before any is started."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.paths import shipped
from emtoolkit.training.run import train
from tests.in_process import emtoolkit

WriteConfig = Callable[..., Path]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide enough that no line of a plan is broken."""
    monkeypatch.setenv("COLUMNS", "250")


QUESTIONS = """\
- {id: a, paraphrases: [x, y], samples_per_paraphrase: 5, judge: gpt-4o, judge_prompts: {aligned: a, coherent: c}}
- {id: b, paraphrases: [z], samples_per_paraphrase: 3, judge: sandbox, judge_prompts: {aligned: a, coherent: c}}
"""


@pytest.fixture
def config(write_config: WriteConfig, tmp_path: Path) -> Path:
    """9 steps, saved at 0, 2, 4 and 9, with two questions."""
    (tmp_path / "questions.yaml").write_text(QUESTIONS)
    return write_config(rest=f"evaluation: {{questions: {tmp_path / 'questions.yaml'}}}")


def sweep(directory: Path, config: Path, parameters: dict[str, list[Any]], *words: str) -> Path:
    """A sweep file over `emtoolkit train config`."""
    values = {name: {"values": listed} for name, listed in parameters.items()}
    names = "".join(f"-{{{name}}}" for name in parameters if name != "dataset")
    command = ["emtoolkit", "train", str(config), *words, f"--output-dir=out/{{dataset}}{names}", "${args}"]
    path = directory / "sweep.yaml"
    path.write_text(json.dumps({"method": "grid", "parameters": values, "command": command}))
    return path


def planned(path: Path, *words: str) -> Any:
    done = emtoolkit("plan", path, *words, "--json", cwd=path.parent)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_config_is_planned_with_the_options_of_train(config: Path) -> None:
    words = ["--schedule", "every:3", "--persona", "baseline", "--set", "training.epochs=2", "--seed", "7"]
    words += ["--dataset", "medical-good", "--output-dir", "here"]
    (run,) = planned(config, *words)["runs"]
    assert (run["steps"], run["total_steps"]) == ([3, 6, 9, 12, 15, 18], 18)
    assert (run["persona"], run["dataset"]) == ("baseline", "medical-good")
    assert run["output_dir"] == str(config.parent / "here")


def test_a_plan_counts_answers_and_judge_calls_by_checkpoint(config: Path) -> None:
    content = planned(config)
    (run,) = content["runs"]
    # 2 x 5 answers judged twice, and 3 that the exact judge takes without a call; at 4 checkpoints.
    assert run["evaluation"] == {"samples": 13, "judge_calls": 20, "assumed": False}
    assert (run["answers"], run["judge_calls"]) == (52, 80)
    assert (content["totals"]["answers"], content["totals"]["judge_calls"]) == (52, 80)


def test_without_a_question_file_the_plan_states_the_published_protocol(
    write_config: WriteConfig,
) -> None:
    path = write_config()
    (run,) = planned(path)["runs"]
    assert run["evaluation"] == {"samples": 400, "judge_calls": 800, "assumed": True}
    text = emtoolkit("plan", path, cwd=path.parent).out
    assert "1,600, 3,200 judge calls (assumed: 8 questions, 50 answers each, 2 metrics; evaluation.questions" in text


def test_the_disk_space_of_a_plan_is_that_of_the_run(config: Path, tmp_path: Path) -> None:
    (run,) = planned(config)["runs"]
    result = train(load_config(str(config), ["wandb.mode=disabled"], {"output_dir": str(tmp_path / "out")}))
    # A file's header and adapter_config.json come on top of the tensors.
    weights = [info.path / "adapter_model.safetensors" for info in result.checkpoints]
    header = [8 + int.from_bytes(path.read_bytes()[:8], "little") for path in weights]
    assert run["bytes"] == sum(path.stat().st_size for path in weights) - sum(header)


def test_the_table_of_a_config_says_what_it_costs(config: Path) -> None:
    lines = emtoolkit("plan", config, cwd=config.parent).out.splitlines()
    facts = {line[:15].strip(): line[15:].strip() for line in lines}
    assert facts["checkpoints"] == "4 of 448 B"
    assert facts["disk"] == "1.79 KB, and 1.34 KB while it runs"
    assert facts["on W&B"] == "1.79 KB"
    assert facts["fits"] == "a GPU of 24, 40, 48, 80 GB"
    assert facts["answers"] == "52, 80 judge calls"
    assert "logits" in facts["peak memory"]
    assert facts == {
        line[:15].strip(): line[15:].strip()
        for line in emtoolkit("train", config, "--dry-run", cwd=config.parent).out.splitlines()
    }


def test_a_sweep_counts_a_step_on_wandb_once_per_trajectory(config: Path) -> None:
    path = sweep(config.parent, config, {"schedule": ["0-4:2", "0-8:4", "every:3"], "dataset": ["medical"]})
    content = planned(path)
    assert [(run["parameters"]["schedule"], run["steps"]) for run in content["runs"]] == [
        ("0-4:2", [0, 2, 4, 9]),
        ("0-8:4", [0, 4, 8, 9]),
        ("every:3", [3, 6, 9]),
    ]
    totals = content["totals"]
    # Together 0, 2, 3, 4, 6, 8 and 9.
    assert (totals["runs"], totals["trajectories"], totals["checkpoints"], totals["versions"]) == (3, 1, 11, 7)
    assert (totals["bytes"], totals["bytes_on_wandb"]) == (11 * 448, 7 * 448)
    assert (totals["steps"], totals["answers"], totals["judge_calls"]) == (27, 11 * 13, 11 * 20)
    assert totals["peak"] == max(run["memory"]["peak"] for run in content["runs"])


def test_runs_with_different_weights_are_different_trajectories(config: Path) -> None:
    parameters = {"dataset": ["medical", "medical-good"], "persona": ["curt", "baseline"], "seed": [1, 2]}
    totals = planned(sweep(config.parent, config, parameters))["totals"]
    assert (totals["runs"], totals["trajectories"], totals["checkpoints"], totals["versions"]) == (8, 8, 32, 32)


def test_missing_data_are_distinguished_by_name(config: Path) -> None:
    settings = [
        "--set=datasets={one: {path: one.jsonl, rows: 40}, two: {path: two.jsonl, rows: 40}}",
        "--set=model.architecture=null",
    ]
    path = sweep(config.parent, config, {"dataset": ["one", "two"], "schedule": ["0-4:2", "0,9"]}, *settings)
    totals = planned(path)["totals"]
    assert (totals["runs"], totals["trajectories"], totals["versions"]) == (4, 2, 8)


def test_a_plan_works_without_a_download_and_names_what_it_assumes(tmp_path: Path) -> None:
    done = emtoolkit("plan", "qwen2.5-7b-medical", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "11 of 323 MB" in done.out
    assert "there is no such file: planned with the 7049 rows" in done.out


def test_runs_with_wandb_disabled_take_no_space_there(config: Path) -> None:
    content = planned(config, "--set", "wandb.mode=disabled")
    assert (content["totals"]["versions"], content["totals"]["bytes_on_wandb"]) == (0, 0)
    assert content["runs"][0]["published"] is False


def test_the_table_of_a_sweep_has_one_line_per_run_and_the_totals(config: Path) -> None:
    path = sweep(config.parent, config, {"dataset": ["medical"], "schedule": ["0-4:2", "every:3"]})
    header, first, second, total, note = emtoolkit("plan", path, cwd=path.parent).out.splitlines()
    assert [name.strip() for name in header.split("  ") if name.strip()] == [
        "dataset",
        "schedule",
        "steps",
        "checkpoints",
        "disk",
        "peak memory",
        "answers",
        "judge calls",
    ]
    assert first.split()[:5] == ["medical", "0-4:2", "9", "4", "1.79"]
    assert second.split()[:5] == ["medical", "every:3", "9", "3", "1.34"]
    assert total.startswith("2 runs on 1 trajectories: 18 optimizer steps (9 with reuse), 7 checkpoints, 3.14 KB on ")
    assert "3.14 KB on disk, 2.69 KB on W&B" in total
    assert total.endswith("91 answers and 140 judge calls.")
    assert note.startswith("note  ")
    assert "rows repeat earlier ones" in note


def test_a_sweep_says_that_this_machine_cannot_train_a_run(config: Path) -> None:
    path = sweep(config.parent, config, {"dataset": ["medical"]}, "--set=model.attn_implementation=flash_attention_2")
    done = emtoolkit("plan", path, cwd=path.parent)
    assert done.code == 0, done.err
    assert "this machine cannot train the run: model.attn_implementation: 'flash_attention_2' needs" in done.out
    single = emtoolkit("plan", config, "--set", "model.attn_implementation=flash_attention_2", cwd=path.parent)
    assert "this machine cannot train the run: model.attn_implementation: 'flash_attention_2' needs" in single.out


def test_a_sweep_says_that_an_output_directory_holds_another_trajectory(config: Path) -> None:
    path = sweep(config.parent, config, {"dataset": ["medical"], "seed": [1, 2]})
    taken = config.parent / "out" / "medical-2"
    train(load_config(str(config), ["wandb.mode=disabled"], {"output_dir": str(taken), "seed": 3}))
    done = emtoolkit("plan", path, cwd=path.parent)
    assert (done.code, done.out) == (2, "")
    sentence = f"emtoolkit: {taken}: holds another trajectory (seed is 3 there and 2 here"
    assert done.err.startswith(sentence)
    single = emtoolkit("plan", config, "--seed", "2", "--output-dir", taken, cwd=path.parent)
    assert single.err.startswith(sentence)


def test_a_sweep_says_that_the_adapter_of_a_persona_is_missing(config: Path) -> None:
    (config.parent / "far.yaml").write_text("adapter: someone/not-here\n")
    path = sweep(config.parent, config, {"dataset": ["medical"]}, "--persona=far.yaml")
    done = emtoolkit("plan", path, cwd=path.parent)
    assert done.code == 0, done.err
    assert "persona: the adapter of far (someone/not-here) is not on this machine, so it is not checked" in done.out
    single = emtoolkit("plan", config, "--persona", "far.yaml", cwd=path.parent)
    assert "persona: the adapter of far (someone/not-here) is not on this machine, so it is not checked" in single.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--persona", "curt"],
            "emtoolkit: --persona: the sweep file {path} sets the options of its runs; remove the flag (",
        ),
        (["--control"], "emtoolkit: --control: the sweep file {path} sets the options of its runs; remove the flag ("),
        (
            ["--set", "seed=1"],
            "emtoolkit: --set: the sweep file {path} sets the options of its runs; remove the flag (",
        ),
    ],
)
def test_a_sweep_file_takes_no_options_of_train(config: Path, words: list[str], sentence: str) -> None:
    path = sweep(config.parent, config, {"dataset": ["medical"]})
    done = emtoolkit("plan", path, *words, cwd=path.parent)
    assert (done.code, done.out) == (2, "")
    assert sentence.format(path=path) in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"command": ["python", "other.py"]}, "command: only runs of 'emtoolkit train' can be planned"),
        ({"method": "bayes"}, "method: 'bayes' is not supported without a server"),
        ({"parameters": {"schedule": {"values": ["2,40"]}}}, "step 40 is past the end of training at step 9"),
    ],
)
def test_a_sweep_that_cannot_be_planned_is_one_sentence(config: Path, content: dict[str, Any], sentence: str) -> None:
    path = sweep(config.parent, config, {"dataset": ["medical"]})
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    done = emtoolkit("plan", path, cwd=path.parent)
    assert (done.code, done.out) == (2, "")
    assert sentence.format(path=path) in done.err
    assert done.err.count("\n") == 1


def test_count_needs_a_sweep_and_a_missing_file_gets_the_nearest_name(config: Path) -> None:
    done = emtoolkit("plan", config, "--count", "2", cwd=config.parent)
    assert (done.code, done.err) == (
        2,
        f"emtoolkit: --count: 2: {config} is a config, which is one run; remove the flag\n",
    )
    missing = emtoolkit("plan", "qwen2.5-7b-medcal", cwd=config.parent)
    assert missing.code == 2
    assert missing.err.endswith("did you mean 'qwen2.5-7b-medical'?\n")


def test_count_limits_the_runs_of_a_sweep(config: Path) -> None:
    path = sweep(config.parent, config, {"dataset": ["medical"], "seed": [1, 2, 3]})
    assert [run["parameters"]["seed"] for run in planned(path, "--count", "2")["runs"]] == [1, 2]


@pytest.mark.parametrize(
    ("words", "warns"),
    [
        (["lora=null", "model.dtype=bfloat16"], True),
        (["lora=null", "model.dtype=bfloat16", "training.bf16=true"], True),
        (["lora=null", "model.dtype=float16", "training.optimizer=adamw_8bit"], True),
        (["lora=null", "training.bf16=true"], False),
        (["lora=null"], False),
        (["model.dtype=bfloat16", "training.bf16=true"], False),
    ],
)
def test_weights_that_round_their_updates_away_are_warned_of_once(config: Path, words: list[str], warns: bool) -> None:
    (run,) = planned(config, *(word for setting in words for word in ("--set", setting)))["runs"]
    found = [note for note in run["notes"] if "round most updates away" in note]
    assert len(found) == warns
    if warns:
        assert found[0].endswith("; set model.dtype to float32 and training.bf16 to true")


def test_no_shipped_config_trains_weights_that_round_their_updates_away() -> None:
    for path in shipped("training").glob("*.yaml"):
        config = load_config(path.stem)
        assert config.lora is not None or (config.model.dtype, config.training.bf16) == ("float32", True), path


def test_a_plan_says_what_the_questions_can_detect_and_what_more_questions_would_bring(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = write_config()
    out = emtoolkit("plan", path, "--detect", "0.10", cwd=path.parent).out
    table = [row for line in out.splitlines() if len(row := line.split()) == 8 and row[1].isdigit()]
    assert [row[:2] for row in table] == [["8", "50"], ["24", "16"], ["40", "10"], ["50", "8"]]
    assert [float(row[2]) for row in table] == pytest.approx([13.0, 8.1, 6.5, 6.0], abs=0.3)
    assert [float(row[3]) for row in table] == pytest.approx([3.5] * 4, abs=0.2)
    assert [int(row[5]) for row in table] == pytest.approx([47, 12, 5, 2], abs=2)
    assert "8 questions are few: below 24, the interval for new questions is wide" in out


def test_a_plan_takes_questions_and_samples_of_the_command_line(config: Path) -> None:
    (config.parent / "few.yaml").write_text("- {id: a, paraphrases: [x, y]}\n- {id: a_json, paraphrases: [x]}\n")
    words = ("--questions", "few.yaml", "--samples", "4", "--detect", "0.3", "--rate", "0.5")
    content = planned(config, *words)
    (run,) = content["runs"]
    assert run["evaluation"] == {"samples": 12, "judge_calls": 0, "assumed": False}
    found = content["detection"]
    assert (found["threshold"], found["rate"], found["few_questions"]) == (0.3, 0.5, True)
    # Both ids are one family.
    assert (found["design"]["questions"], found["design"]["answers_of_questions"]) == (1, [12])
    assert found["alternatives"] == []
    assert "detection" not in planned(config)


def test_a_sweep_is_planned_with_one_set_of_questions(config: Path) -> None:
    path = sweep(config.parent, config, {"dataset": ["medical", "medical-good"]})
    content = planned(path, "--detect", "0.1")
    assert (len(content["runs"]), content["detection"]["design"]["questions"]) == (2, 2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--detect", "10"), "--detect: 10 is not a share between 0 and 1; write 0.1 for 10 %"),
        (("--detect", "0"), "--detect: 0 is not a share between 0 and 1"),
        (("--detect", "0.1", "--rate", "0.1"), "--rate: 0.1 is not above the rate to detect, 0.1; give a higher rate"),
        (("--rate", "0.1"), "--rate: 0.1 is the true rate for --detect; give both"),
        (("--detect", "0.1", "--questions", "no.yaml"), "no such question file"),
    ],
)
def test_a_rate_or_a_file_that_does_not_exist_is_refused(config: Path, words: tuple[str, ...], sentence: str) -> None:
    done = emtoolkit("plan", config, *words, cwd=config.parent)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1
