"""`emtoolkit train` and `emtoolkit checkpoints` as typed: exit codes, what is printed, what is written."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import preloaded, processes
from tests.in_process import emtoolkit
from tests.saving.trainings import bytes_of, saved_steps

WriteConfig = Callable[..., Path]


@pytest.mark.subprocess
def test_train_prints_what_was_saved_and_checkpoints_lists_it(write_config: WriteConfig, tmp_path: Path) -> None:
    done = emtoolkit("train", write_config(), "--persona", "baseline", "--save-steps", "4", cwd=tmp_path)
    assert done.code == 0, done.err
    out = tmp_path / "outputs" / "baseline-medical"
    assert saved_steps(out) == [4, 8, 9]
    assert "checkpoint-9  (final)\nDirectory: outputs/baseline-medical\n" in done.out
    assert "Publish on W&B: emtoolkit sync outputs/baseline-medical\n" in done.out

    listed = emtoolkit("checkpoints", out, "--json", "--verify", cwd=tmp_path)
    assert listed.code == 0
    entries = json.loads(listed.out)
    assert [(e["step"], e["final"], e["complete"], e["source"]) for e in entries] == [
        (4, False, True, "emtoolkit"),
        (8, False, True, "emtoolkit"),
        (9, True, True, "emtoolkit"),
    ]
    keys = [
        "bytes",
        "complete",
        "final",
        "fingerprint",
        "path",
        "published",
        "recomputed",
        "saved_for",
        "source",
        "step",
    ]
    assert sorted(entries[0]) == keys

    weights = out / "checkpoint-8" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    damaged = emtoolkit("checkpoints", out, "--verify", cwd=tmp_path)
    assert damaged.code == 1
    assert str(weights) in damaged.err
    assert "(DAMAGED)" in damaged.out


def test_a_dry_run_prints_the_plan_and_writes_nothing(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config()
    done = emtoolkit("train", path, "--custom-checkpoints", "--dry-run", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    planned = json.loads(done.out)
    assert planned["steps"] == [0, 9]
    assert (planned["schedule"], planned["count"], planned["total_steps"]) == ("dense-early", 2, 9)
    assert planned["bytes"] == 2 * planned["checkpoint_bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--schedule", "0-4:2", "--save-steps", "3"], "--schedule, --save-steps and --custom-checkpoints: "),
        (["--schedule", "10-5:1"], '--schedule: checkpointing.schedule: schedule term "10-5:1": the stop must not be'),
        (["--schedule", "dense-erly"], "did you mean 'dense-early'?"),
        (["--schedule", ""], 'schedule ""'),
        (["--schedule", "2,40"], 'checkpointing: schedule "2,40": step 40 is past the end of training at step 9'),
        (["--save-steps", "x"], "checkpointing.save_steps: 'x' is not valid: expected a number of steps"),
        (["--persona", "curd"], "baseline, cold, curt, warm; did you mean 'curt'?"),
        (["--dataset", "medicl"], "medical, medical-good; did you mean 'medical'?"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--set", "checkpointing.save_total_limit=3"], "save_total_limit: 3 cannot be combined with"),
        (["--set", "checkpointing.save_strategy=best"], "save_strategy: 'best' cannot be combined with"),
        (["--set", "training.load_best_model_at_end=true"], "load_best_model_at_end: True cannot be combined with"),
        (
            ["--set", "training={batch_size: 100, drop_last: true}"],
            "training.batch_size: 100 is more than the 36 rows",
        ),
        (["--set", "datasets.medical.rows=41"], "datasets.medical.rows: 41 rows are declared, and "),
        (["--set", "model.base=./nowhere"], "holds no model (no config.json)"),
        (["--set", "model.base=someone/model-that-is-not-here"], "the tokenizer cannot be loaded"),
        (["--set", "lora.target_modules=[q_porj]"], "'q_porj' is not a module of qwen2; expected all-linear or "),
        (["--set", "lora.target_modules=[q_proj, v_porj]"], "did you mean 'v_proj'?"),
        (["--set", "lora.target_modules=all-liner"], "lora.target_modules: 'all-liner' is not valid: expected a list"),
        (["--set", "lora.layers_to_transform=[1]"], "lora.layers_to_transform: 1 is past the last layer, 0"),
        (
            ["--set", "lora={target_modules: all-linear, layers_to_transform: [0]}"],
            "layers_to_transform needs the names of modules in target_modules, found all-linear",
        ),
        (
            ["--set", "model.load_in_4bit=true", "--set", "lora=null"],
            "lora: None is not valid: a 4-bit base model cannot train all weights",
        ),
        (["--set", "model.attn_implementation=spda"], "did you mean 'sdpa'?"),
        (["--set", "model.attn_implementation=flash_attention_2"], "'flash_attention_2' needs the package flash-attn"),
        (["--set", "model.device=cuda"], "model.device: 'cuda' needs a GPU, and torch finds none; set it to cpu"),
        (["--set", "evaluation.questions=nowhere.yaml"], "nowhere.yaml: no such question file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2_and_nothing_is_written(
    write_config: WriteConfig, tmp_path: Path, words: list[str], sentence: str
) -> None:
    done = emtoolkit("train", write_config(), "--output-dir", tmp_path / "out", *words)
    assert done.code == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert done.err.startswith("emtoolkit: ")
    assert done.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml"]


def test_bad_rows_are_named_by_file_and_line(write_config: WriteConfig, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    good = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    rows.write_text(f"{good}\n{json.dumps({'messages': [{'role': 'user', 'content': 'a'}]})}\n")
    done = emtoolkit("train", write_config(), "--dataset", rows, "--dry-run")
    assert (done.code, done.err) == (
        2,
        f"emtoolkit: {rows}, line 2: the conversation has no assistant turn to train on; add one, or remove the row\n",
    )


@pytest.mark.subprocess
@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_and_resume_ends_with_the_same_bytes(
    write_config: WriteConfig, tmp_path: Path, number: int, code: int
) -> None:
    path = write_config("schedule: 0,every:50", rest="wandb: {mode: disabled}")
    words = ["train", path, "--set", "training.max_steps=200", "--set", "lora.dropout=0.1"]
    process = subprocess.Popen(
        preloaded.command("emtoolkit", *words, "--output-dir", tmp_path / "stopped"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    # The first line of progress shows that training is under way; nothing here depends on how far it has come.
    text = ""
    while "of 200, loss" not in text:
        more = process.stderr.read(1)
        assert more, text
        text += more
    process.send_signal(number)
    _, rest = process.communicate(timeout=processes.HANG_SECONDS)
    assert process.returncode == code, rest
    assert f"interrupted by {signal.Signals(number).name} after step " in rest
    assert "the same command with --resume continues" in rest
    stopped_at = saved_steps(tmp_path / "stopped")[-1]
    assert [p.name for p in (tmp_path / "stopped" / "resume").iterdir()] == [f"checkpoint-{stopped_at}"]

    resumed = emtoolkit(*words, "--output-dir", tmp_path / "stopped", "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    whole = emtoolkit(*words, "--output-dir", tmp_path / "whole", cwd=tmp_path)
    assert whole.code == 0
    # The step that only the interruption asked for is gone.
    assert saved_steps(tmp_path / "stopped") == [0, 50, 100, 150, 200]
    for step in (0, 50, 100, 150, 200):
        name = f"checkpoint-{step}"
        assert bytes_of(tmp_path / "stopped" / name) == bytes_of(tmp_path / "whole" / name)
