"""Whole runs from a config: training, checkpoints, logs, and a second run into the same directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import TrainingArguments

from emtoolkit.config.load import load_config
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.models.persona_record import persona_record
from emtoolkit.personas import Persona
from emtoolkit.training.cost import plan_one
from emtoolkit.training.result import RunResult
from emtoolkit.training.run import train
from emtoolkit.training.trainer import _use_one_gpu
from tests.saving.trainings import bytes_of, saved_steps
from tests.wandb_log import artifacts, records

WriteConfig = Callable[..., Path]


@pytest.fixture
def run(write_config: WriteConfig, tmp_path: Path) -> Callable[..., RunResult]:
    """Train the tiny config into `tmp_path/<name>`, with W&B disabled by default."""

    def run(name: str, *settings: str, resume: bool = False, **config: str) -> RunResult:
        path = write_config(**config)
        given = any(setting.startswith("wandb.mode=") for setting in settings)
        words = [*settings] if given else ["wandb.mode=disabled", *settings]
        return train(load_config(str(path), words, {"output_dir": str(tmp_path / name)}), resume=resume)

    return run


Run = Callable[..., RunResult]


def test_a_run_saves_the_schedule_and_says_so(run: Run, tmp_path: Path) -> None:
    result = run("out")
    assert [info.step for info in result.checkpoints] == [0, 2, 4, 9]
    assert [info.step for info in result.checkpoints if info.final] == [9]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "checkpoint-0",
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-9",
        "config.yaml",
        "environment.json",
        "publications.jsonl",
        "tokenizer",
        "trainer_state.json",
        "trajectory.json",
    ]


def test_a_manifest_holds_persona_base_and_trajectory(run: Run, tmp_path: Path) -> None:
    run("out")
    manifest = json.loads((tmp_path / "out" / "checkpoint-2" / "manifest.json").read_text())
    assert manifest["persona"] == persona_record(Persona("curt", system_prompt="you are curt")).to_json()
    assert (manifest["step"], manifest["total_steps"], manifest["base_model"]["name"]) == (2, 9, "model")
    assert list(manifest["files"]) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.slow
def test_personas_start_from_the_same_adapter_and_end_with_different_weights(run: Run, tmp_path: Path) -> None:
    run("curt")
    run("baseline", "persona=baseline")
    curt, baseline = (
        [load_file(tmp_path / name / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (0, 9)]
        for name in ("curt", "baseline")
    )
    assert all(torch.equal(curt[0][name], baseline[0][name]) for name in curt[0])
    assert any(not torch.equal(curt[1][name], baseline[1][name]) for name in curt[1])
    assert (tmp_path / "curt" / "checkpoint-0" / "manifest.json").read_text() != (
        tmp_path / "baseline" / "checkpoint-0" / "manifest.json"
    ).read_text()


@pytest.mark.slow
def test_an_evaluation_does_not_change_the_weights_even_with_dropout(run: Run, tmp_path: Path) -> None:
    run("plain", "lora.dropout=0.2")
    run("evaluated", "lora.dropout=0.2", "evaluation.eval_schedule=0,every:1")
    assert bytes_of(tmp_path / "plain" / "checkpoint-9") == bytes_of(tmp_path / "evaluated" / "checkpoint-9")


@pytest.mark.subprocess
def test_evaluations_happen_exactly_at_the_scheduled_steps(run: Run, tmp_path: Path) -> None:
    result = run("out", "wandb.mode=offline", "evaluation.eval_at_steps=[0, 3, 5]")
    logged = [int(json.loads(values["train/global_step"])) for values in history(result) if "eval/loss" in values]
    assert logged == [0, 3, 5, 9]


@pytest.mark.subprocess
def test_the_offline_log_holds_metrics_by_step_and_an_artifact_per_checkpoint(run: Run) -> None:
    result = run("out", "wandb.mode=offline")

    steps = [int(json.loads(v["train/global_step"])) for v in history(result) if "train/loss" in v]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert result.wandb_directory is not None
    logged = artifacts(result.wandb_directory)
    assert [sorted(artifact.aliases) for artifact in logged] == [
        ["latest", "step-0"],
        ["latest", "step-2"],
        ["latest", "step-4"],
        ["final", "latest", "step-9"],
    ]
    fingerprint = result.checkpoints[0].fingerprint
    assert fingerprint is not None
    assert {artifact.name for artifact in logged} == {f"curt-medical-model-s42-{fingerprint[:8]}"}
    assert list(logged[1].tags) == ["step-2", "persona-curt", "dataset-medical"]


@pytest.mark.subprocess
def test_the_effect_of_the_persona_is_logged(run: Run) -> None:
    import wandb

    result = run("out", "wandb.mode=offline")
    wandb.teardown()
    assert result.wandb_directory is not None
    told = {
        item.key or "/".join(item.nested_key): item.value_json
        for record in records(result.wandb_directory)
        if record.HasField("summary")
        for item in record.summary.update
    }
    before, end = (difference.largest for difference in result.persona_effects)
    assert (float(told["preflight/before_step_1"]), float(told["preflight/at_the_end"])) == (before, end)
    assert min(before, end) > 0.001


def history(result: RunResult) -> list[dict[str, str]]:
    """The rows of the W&B history, each metric as JSON text."""
    import wandb

    wandb.teardown()
    assert result.wandb_directory is not None
    rows = [record.history for record in records(result.wandb_directory) if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): item.value_json for item in row.item} for row in rows]


def test_a_second_run_into_the_same_directory_is_refused_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    run("out")
    before = bytes_of(tmp_path / "out")
    with pytest.raises(CheckpointError, match="4 checkpoints of this run; pass --resume to continue it"):
        run("out")
    assert bytes_of(tmp_path / "out") == before


def test_another_trajectory_is_refused_before_anything_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("out")
    monkeypatch.setattr(
        "emtoolkit.training.composed_model.load_base", lambda config: pytest.fail("the model was loaded")
    )
    with pytest.raises(CheckpointError, match=r"\(training.learning_rate is 0.01 there and 0.5 here\)"):
        run("out", "training.learning_rate=0.5")


def test_a_directory_that_another_run_is_saving_into_is_refused_before_anything_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("out")
    monkeypatch.setattr(
        "emtoolkit.training.composed_model.load_base", lambda config: pytest.fail("the model was loaded")
    )
    with (
        FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(CheckpointError, match="another process is saving into it"),
    ):
        run("out", "checkpointing.schedule=every:1", resume=True)


def test_a_dry_run_refuses_a_directory_of_another_trajectory(
    run: Run, write_config: WriteConfig, tmp_path: Path
) -> None:
    run("out")
    config = load_config(str(write_config()), ["seed=43"], {"output_dir": str(tmp_path / "out")})
    with pytest.raises(CheckpointError, match=r"another trajectory \(seed is 42 there and 43 here\)"):
        plan_one(config)


def test_resuming_a_finished_run_does_nothing(run: Run, tmp_path: Path) -> None:
    run("out")
    before = bytes_of(tmp_path / "out")
    assert not run("out", resume=True).trained
    assert bytes_of(tmp_path / "out") == before


@pytest.mark.slow
def test_resume_with_a_denser_schedule_adds_the_missing_steps_and_rewrites_none(run: Run, tmp_path: Path) -> None:
    run("out")
    before = {step: (tmp_path / "out" / f"checkpoint-{step}").stat().st_mtime_ns for step in (0, 2, 4, 9)}
    run("out", "checkpointing.schedule=0-8:1", resume=True)

    assert saved_steps(tmp_path / "out") == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert {step: (tmp_path / "out" / f"checkpoint-{step}").stat().st_mtime_ns for step in before} == before


def test_resume_without_checkpoints_starts_at_the_beginning(run: Run) -> None:
    assert [info.step for info in run("out", resume=True).checkpoints] == [0, 2, 4, 9]


@pytest.mark.slow
def test_save_steps_means_what_it_means_in_hugging_face(run: Run, tmp_path: Path) -> None:
    run("interval", checkpointing="save_steps: 4")
    run("fraction", checkpointing="save_steps: 0.3")
    run("list", checkpointing="save_at_steps: [0, 7]")
    found = {name: saved_steps(tmp_path / name) for name in ("interval", "fraction", "list")}
    assert found == {"interval": [4, 8, 9], "fraction": [3, 6, 9], "list": [0, 7, 9]}


def test_a_full_fine_tune_saves_a_model_that_loads(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run("out", "lora=null")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-4")
    assert model.config.hidden_size == 16


@pytest.mark.parametrize(
    ("batch", "drop_last", "rows", "steps"),
    [("2", "false", 6344, 397), ("2", "true", 6336, 396), ("16", "false", 6344, 397), ("16", "true", 6336, 396)],
)
def test_7049_rows_at_effective_batch_16_end_at_step_397(
    write_config: WriteConfig, batch: str, drop_last: str, rows: int, steps: int
) -> None:
    config = load_config(
        str(write_config(checkpointing="schedule: dense-early")),
        [
            "datasets.medical={path: nowhere.jsonl, rows: 7049}",
            f"training.batch_size={batch}",
            f"training.gradient_accumulation={16 // int(batch)}",
            f"training.drop_last={drop_last}",
        ],
    )
    planned = plan_one(config).plan
    assert (planned.train_rows, planned.test_rows, planned.total_steps) == (rows, 705, steps)
    assert list(planned.steps) == [0, 25, 50, 75, 100, 125, 150, 200, 250, 300, steps]


@pytest.mark.slow
def test_the_plan_counts_steps_as_the_trainer_does(run: Run, write_config: WriteConfig) -> None:
    for settings in (
        ["training.batch_size=5", "training.gradient_accumulation=3"],
        ["training.epochs=1.5"],
        ["training.batch_size=5", "training.drop_last=true"],
        ["training.max_steps=3"],
    ):
        words = [*settings, "checkpointing.schedule=every:100"]
        planned = plan_one(load_config(str(write_config()), words)).plan
        result = run("-".join(settings), *words)
        assert result.checkpoints[-1].step == planned.total_steps, settings


def test_the_plan_knows_the_size_of_a_checkpoint(run: Run, write_config: WriteConfig, tmp_path: Path) -> None:
    run("out")
    planned = plan_one(load_config(str(write_config()))).plan
    on_disk = load_file(tmp_path / "out" / "checkpoint-9" / "adapter_model.safetensors")
    assert planned.checkpoint_bytes == sum(tensor.nbytes for tensor in on_disk.values())


def test_several_gpus_do_not_multiply_the_batch(tmp_path: Path) -> None:
    """The Trainer would put a batch on every GPU of the machine at once."""
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, use_cpu=True)
    arguments._n_gpu = 4  # what it finds on a machine with four
    assert arguments.train_batch_size == 8
    _use_one_gpu(arguments)
    assert arguments.train_batch_size == 2


def test_a_missing_package_is_an_error_of_a_run_before_loading_and_a_note_of_a_plan(
    run: Run, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "model.attn_implementation: 'flash_attention_2' needs the package flash-attn"
    monkeypatch.setattr(
        "emtoolkit.training.composed_model.load_base", lambda config: pytest.fail("the model was loaded")
    )
    with pytest.raises(ConfigError, match=sentence):
        run("out", "model.attn_implementation=flash_attention_2")
    planned = plan_one(load_config(str(write_config()), ["model.attn_implementation=flash_attention_2"])).plan
    assert planned.notes[-1].startswith(f"this machine cannot train the run: {sentence}")
