"""Weights spread over processes: real FSDP over two processes on the CPU, and DeepSpeed if it is installed."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications
from tests.launched import launched
from tests.saving.trainings import bytes_of, saved_steps

pytestmark = pytest.mark.subprocess
KINDS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}

Training = tuple[str, str, dict[str, Any]]


def torchrun(engine: str, *trainings: Training) -> subprocess.CompletedProcess[str]:
    """Run `trainings`, each of 16 rows over two processes at batch 2, which are 4 steps."""
    return launched("tests.saving.sharded_training", engine, json.dumps(trainings))


def train(engine: str, *trainings: Training) -> subprocess.CompletedProcess[str]:
    done = torchrun(engine, *trainings)
    assert done.returncode == 0, done.stderr[-3000:]
    # The trained parameters are sharded: no process holds a complete tensor.
    stage_3 = any(options.get("stage") == 3 for _, _, options in trainings)
    sharded = "trained: DTensor False" if engine == "fsdp" else f"trained: Parameter {stage_3}"
    assert done.stdout.count(sharded) == len(trainings)
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings by emtoolkit and by the stock Trainer, LoRA and full, with both kinds of state dict.

    In two of them `save-now` comes at step 2 and `stop-now` at step 3, and two more continue these.
    """
    home = tmp_path_factory.mktemp("sharded")
    stock = {"stock": True, "save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    full_state, shards = ({"kind": kind} for kind in KINDS)
    requests = {"requests": {"2": "save-now", "3": "stop-now"}}
    done = train(
        "fsdp",
        (str(home / "lora"), "0,2", full_state),
        (str(home / "full"), "0,2", full_state | {"full": True}),
        (str(home / "stock-lora"), "2", full_state | stock),
        (str(home / "stock-full"), "2", full_state | stock | {"full": True}),
        (str(home / "lora-shards"), "0,2", shards),
        (str(home / "full-shards"), "0,2", shards | {"full": True}),
        (str(home / "stopped"), "0,1", full_state | {"stop_at": 3}),
        (str(home / "every-step"), "0,every:1", full_state),
        (str(home / "asked-lora"), "0", full_state | requests),
        (str(home / "asked-shards"), "0", shards | requests),
        *(
            (str(home / name), "0", kind | {"resume_from": str(home / name / "resume" / "checkpoint-3")})
            for name, kind in (("asked-lora", full_state), ("asked-shards", shards))
        ),
    )
    # In each of the two processes.
    log = done.stderr
    assert log.count("the weights are sharded; scheduled steps are saved by the Trainer\n") == 2 * 6
    assert log.count("the weights are sharded; scheduled steps are gathered by process 0, and written in the") == 2 * 4
    assert done.stdout.count("stopped: 3 ") == 2 * 2
    return home


@pytest.mark.parametrize("name", ["asked-lora", "asked-shards"])
def test_all_processes_save_and_stop_at_the_step_at_which_process_0_was_asked(trained: Path, name: str) -> None:
    directory = trained / name
    # Step 3, at which the training stopped, is no step of the schedule.
    assert saved_steps(directory) == [0, 2, 4]
    assert all(info.complete for info in list_checkpoints(directory, rehash=True))
    for step in (0, 2, 4):
        asked, whole = (bytes_of(home / f"checkpoint-{step}") for home in (directory, trained / "every-step"))
        assert asked == whole, step
    found = Publications.read(directory)
    assert (found.asked, [(step, saved) for step, _, saved in found.answers]) == ({2}, [(2, True), (3, True)])
    assert not [*directory.glob("*-now"), *directory.glob(".tmp-*")]


@pytest.mark.parametrize("model", ["lora", "full"])
def test_the_trainer_saves_at_the_scheduled_steps_and_its_files_become_checkpoints(trained: Path, model: str) -> None:
    assert saved_steps(trained / model) == [0, 2, 4]
    assert all(info.complete for info in list_checkpoints(trained / model, rehash=True))
    config = ["adapter_config.json"] if model == "lora" else ["config.json", "generation_config.json"]
    for step in (0, 2, 4):
        files = bytes_of(trained / model / f"checkpoint-{step}")
        assert sorted(files) == sorted([*config, "manifest.json", WEIGHTS[model]]), step
        if step > 0:
            stock = bytes_of(trained / f"stock-{model}" / f"checkpoint-{step}")
            assert files[WEIGHTS[model]] == stock[WEIGHTS[model]], step
    assert not list((trained / model).glob(".tmp-*"))


@pytest.mark.parametrize("model", ["lora", "full"])
def test_weights_are_gathered_where_the_trainer_would_write_shards(trained: Path, model: str) -> None:
    for step in (0, 2, 4):
        gathered, saved = (bytes_of(trained / which / f"checkpoint-{step}") for which in (f"{model}-shards", model))
        assert gathered == saved, step
    assert load_file(trained / f"{model}-shards" / "checkpoint-2" / WEIGHTS[model])


def test_a_training_that_another_callback_stops_has_its_last_step(trained: Path) -> None:
    assert saved_steps(trained / "stopped") == [0, 1, 3]
    assert [info.step for info in list_checkpoints(trained / "stopped", rehash=True) if info.final] == [3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_training_resumes_exactly(trained: Path, tmp_path: Path, kind: str) -> None:
    died = torchrun("fsdp", (str(tmp_path), "0,2", {"kind": kind, "resume_every": "2 steps", "die_at": 3}))
    assert died.returncode != 0
    (resume,) = (tmp_path / "resume").iterdir()
    assert resume.name == "checkpoint-2"

    train("fsdp", (str(tmp_path), "0,2,3", {"kind": kind, "resume_from": str(resume)}))
    assert saved_steps(tmp_path) == [0, 2, 3, 4]
    for step in (0, 2, 3, 4):
        resumed, whole = (bytes_of(home / f"checkpoint-{step}") for home in (tmp_path, trained / "every-step"))
        assert resumed == whole, step
    assert not (tmp_path / "resume").exists()


def test_the_first_version_of_fsdp_is_refused_in_both_processes_before_the_first_step(tmp_path: Path) -> None:
    done = torchrun("fsdp", (str(tmp_path / "out"), "0,2", {"kind": "FULL_STATE_DICT", "version": 1}))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("refused: fsdp: version 1 does not give process 0 the weights of a step between") == 2
    assert saved_steps(tmp_path / "out") == []


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(trained: Path, tmp_path: Path, stage: int) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    options: dict[str, Any] = {"stage": stage}
    train(
        "deepspeed",
        (str(tmp_path / "lora"), "0,2", options),
        (str(tmp_path / "full"), "0,2", options | {"full": True}),
        (str(tmp_path / "every-step"), "0,every:1", options),
    )
    for model, weights in WEIGHTS.items():
        assert saved_steps(tmp_path / model) == [0, 2, 4]
        assert all(info.complete for info in list_checkpoints(tmp_path / model, rehash=True))
        for step in (0, 2, 4):
            ours, fsdp = (load_file(home / model / f"checkpoint-{step}" / weights) for home in (tmp_path, trained))
            assert fsdp.keys() - ours.keys() <= {
                "lm_head.weight"
            }  # tied weights, which a stock save under FSDP does not merge
            for name in ours:
                # The two engines add in different orders.
                assert (ours[name] - fsdp[name]).abs().max() < 2e-3, (step, name)

    resumed = tmp_path / "resumed"
    died = torchrun("deepspeed", (str(resumed), "0", options | {"resume_every": "2 steps", "die_at": 3}))
    assert died.returncode != 0
    train("deepspeed", (str(resumed), "0,3", options | {"resume_from": str(resumed / "resume" / "checkpoint-2")}))
    for step in (0, 3, 4):
        ours, whole = (bytes_of(home / f"checkpoint-{step}") for home in (resumed, tmp_path / "every-step"))
        assert ours == whole, step
