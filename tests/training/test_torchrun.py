"""`emtoolkit train` in two real processes: one run, one set of checkpoints, each message once."""

import json
import math
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError
from emtoolkit.launch import process_count
from emtoolkit.saving.ranks import Ranks
from emtoolkit.training.plan import total_steps
from tests.in_process import emtoolkit
from tests.launched import ACCELERATE, command, environment, launched
from tests.marks import STARTS_PROCESSES
from tests.processes import HANG_SECONDS
from tests.saving.trainings import bytes_of, saved_steps
from tests.tiny import config_text
from tests.wandb_log import artifacts

if TYPE_CHECKING:
    from tests.wandb_server import WandbServer

# 36 rows at batch 4 are 9 batches, which are 5 steps of two processes; 100 steps of them are 20 epochs.
SETTINGS = ("--set", "lora.dropout=0.1", "--set", "evaluation.eval_steps=4")


@pytest.fixture(scope="module")
def config(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("launched") / "run.yaml"
    path.write_text(config_text(world, "schedule: 0,every:1"))
    return path


@pytest.fixture(scope="module", params=STARTS_PROCESSES)
def whole(config: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A complete run under torchrun, and its output."""
    directory = config.parent / "whole"
    words = ("train", config, *SETTINGS, "--output-dir", directory)
    done = launched("emtoolkit", *words, cwd=config.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, done


Whole = tuple[Path, subprocess.CompletedProcess[str]]


def test_two_processes_make_one_run_with_one_set_of_checkpoints(whole: Whole, config: Path) -> None:
    directory, done = whole
    assert saved_steps(directory) == [0, 1, 2, 3, 4, 5]
    assert all(info.complete for info in list_checkpoints(directory, rehash=True))
    record = json.loads((directory / "trajectory.json").read_text())
    assert (record["total_steps"], record["ended_at"], record["decides"]["processes"]) == (5, 5, 2)

    (log,) = (directory / "wandb").glob("*run-*")
    assert log.name.startswith("offline-run-")
    assert [sorted(a.aliases)[-1] for a in artifacts(log)] == [f"step-{step}" for step in range(6)]

    assert done.stdout.count("checkpoint-5  (final)") == 1
    assert done.stdout.count("W&B run:") == 1
    assert done.stderr.count("emtoolkit: scheduled steps are copied in memory") == 1
    # No message of a library appears.
    assert done.stderr.count("[INFO] Running in WANDB offline mode") <= 1
    assert "find_unused_parameters" not in done.stderr


def test_the_persona_and_the_beginning_are_those_of_one_process(whole: Whole, config: Path) -> None:
    directory, _ = whole
    alone = config.parent / "alone"
    words = (*SETTINGS, "--set", "wandb.mode=disabled", "--output-dir", alone)
    assert emtoolkit("train", config, *words, cwd=config.parent).code == 0
    manifests = [json.loads((home / "checkpoint-0" / "manifest.json").read_text()) for home in (directory, alone)]
    assert manifests[0]["persona"] == manifests[1]["persona"]
    assert manifests[0]["persona"]["system_prompt"] == "you are curt"
    assert manifests[0]["fingerprint"] != manifests[1]["fingerprint"]
    weights = [(home / "checkpoint-0" / "adapter_model.safetensors").read_bytes() for home in (directory, alone)]
    assert weights[0] == weights[1]
    fingerprinted = json.loads((alone / "trajectory.json").read_text())["decides"]
    assert "processes" not in fingerprinted


def test_accelerate_launch_makes_the_same_run_and_the_server_gets_each_artifact_once(
    whole: Whole, config: Path, tmp_path: Path, wandb_server: "WandbServer"
) -> None:
    """And the same bytes, although process 0 asks the model questions in between."""
    (tmp_path / "q.yaml").write_text("- {id: cough, paraphrases: [what should i do about my cough]}\n")
    asks = ("--set", f"evaluation.probe.questions={tmp_path}/q.yaml", "--set", "evaluation.probe.eval_schedule='0,2,4'")
    words = ("train", config, *SETTINGS, *asks, "--set", "wandb.project=tests", "--output-dir", tmp_path / "out")
    done = launched("emtoolkit", *words, launcher=ACCELERATE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert saved_steps(tmp_path / "out") == [0, 1, 2, 3, 4, 5]
    for step in range(6):
        name = f"checkpoint-{step}"
        assert bytes_of(tmp_path / "out" / name) == bytes_of(whole[0] / name), step

    (answers,) = (tmp_path / "out").glob("probes/*/answers.jsonl")
    assert [json.loads(line)["step"] for line in answers.read_text().splitlines()] == [0, 2, 4, 5]

    project = wandb_server.store.project(wandb_server.entity, "tests")
    (run,) = project.runs.values()
    assert [row["train/global_step"] for row in run.history if "probe/seconds" in row] == [0, 2, 4, 5]
    assert (run.state, run.exit_code) == ("finished", 0)
    assert [row["train/global_step"] for row in run.history if "train/loss" in row] == [1, 2, 3, 4, 5]
    collection, tables = sorted(project.collections.values(), key=lambda each: each.name.startswith("run-"))
    assert len(tables.versions) == 4, done.stderr[-3000:]
    assert [(version.index, sorted(version.aliases)) for version in collection.versions] == [
        *((step, [f"step-{step}"]) for step in range(5)),
        (5, ["final", "latest", "step-5"]),
    ]


def test_a_second_run_into_the_directory_is_refused_in_one_sentence_by_all(whole: Whole, config: Path) -> None:
    """Process 0 alone looks into the directory; the other process gets the error before it loads a model."""
    before = bytes_of(whole[0])
    done = launched("emtoolkit", "train", config, *SETTINGS, "--output-dir", whole[0], cwd=config.parent)
    sentence = f"emtoolkit: {whole[0]}: it holds 6 checkpoints of this run; pass --resume to continue it"
    assert_refused(done, sentence)
    assert bytes_of(whole[0]) == before


@pytest.mark.subprocess
def test_a_bad_input_is_one_sentence(config: Path, tmp_path: Path) -> None:
    done = launched("emtoolkit", "train", config, "--persona", "curd", cwd=tmp_path)
    assert_refused(done, "emtoolkit: persona: 'curd' is not one of the personas in ")
    assert list(tmp_path.iterdir()) == []


def assert_refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    """Both processes exit with code 2, without a traceback of emtoolkit, and the message is the last line but one."""
    assert done.returncode == 1  # torchrun's own
    assert done.stdout == ""
    assert done.stderr.count(sentence) == 1, done.stderr[-3000:]
    assert sentence in done.stderr.splitlines()[-2]
    assert sorted(line.split("(")[0].strip() for line in done.stderr.splitlines() if "  exitcode " in line) == [
        "exitcode  : 2",
        "exitcode  : 2",
    ]
    assert "[rank" not in done.stderr


def test_resuming_a_finished_run_does_nothing_and_a_plan_is_printed_once(whole: Whole, config: Path) -> None:
    before = bytes_of(whole[0])
    words = ("train", config, *SETTINGS, "--output-dir", whole[0])
    done = launched("emtoolkit", *words, "--resume", cwd=config.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Every scheduled step is already saved; nothing was trained.") == 1
    assert bytes_of(whole[0]) == before

    planned = launched("emtoolkit", *words, "--dry-run", "--json", cwd=config.parent)
    assert planned.returncode == 0, planned.stderr[-3000:]
    assert json.loads(planned.stdout)["total_steps"] == 5


def test_missing_steps_are_refined_in_as_many_processes_as_the_training_had(whole: Whole, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(whole[0], tmp_path / "two processes"))
    for step in (2, 3):
        shutil.rmtree(directory / f"checkpoint-{step}")
    alone = emtoolkit("refine", directory, "--steps", "2,3")
    assert (alone.code, saved_steps(directory)) == (2, [0, 1, 4, 5])
    assert alone.err == (
        f"emtoolkit: {directory}: was trained by 2 processes, and only as many make its steps again; run `torchrun "
        f"--nproc-per-node 2 -m emtoolkit refine '{directory}' --steps 2,3`\n"
    )

    done = launched("emtoolkit", "refine", directory, "--steps", "2,3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 steps are added (2, 3), for 3 optimizer steps; 2 existing steps came out") == 1
    assert done.stderr.count("2 steps (2, 3) to make from step 0") == 1
    assert "find_unused_parameters" not in done.stderr
    for step in range(6):
        name = f"checkpoint-{step}"
        assert bytes_of(directory / name) == bytes_of(whole[0] / name), step
    assert not (directory / ".refining").exists()


@pytest.mark.subprocess
def test_a_signal_to_torchrun_saves_the_state_and_resume_ends_with_the_same_bytes(config: Path, tmp_path: Path) -> None:
    words = ("train", config, "--schedule", "0,every:40", "--set", "training.max_steps=120", *SETTINGS)
    # An evaluation every 4 steps would take half of the time.
    words = (*words, "--set", "evaluation.eval_steps=40")
    stopped = tmp_path / "stopped"
    assert 0 < stop(signal.SIGTERM, stopped, *words) < 120
    resumed = launched("emtoolkit", *words, "--output-dir", stopped, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    whole = launched("emtoolkit", *words, "--output-dir", tmp_path / "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert saved_steps(stopped) == [0, 40, 80, 120]
    for step in (0, 40, 80, 120):
        name = f"checkpoint-{step}"
        assert bytes_of(stopped / name) == bytes_of(tmp_path / "whole" / name), step


def stop(number: signal.Signals, directory: Path, *words: str | Path) -> int:
    """Send the signal to a run under torchrun once it trains, and return the step at which it stopped."""
    process = subprocess.Popen(
        command("emtoolkit", *words, "--output-dir", directory),
        env=environment(),
        cwd=directory.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    # The first metrics show that training has begun; the test does not depend on the step.
    text = ""
    while ", loss " not in text:
        one = process.stderr.read(1)
        assert one, text[-3000:]
        text += one
    process.send_signal(number)
    _, rest = process.communicate(timeout=HANG_SECONDS)
    said = f"emtoolkit: interrupted by {number.name} after step "
    assert rest.count(said) == 1, rest[-3000:]
    at = saved_steps(directory)[-1]
    assert f"{said}{at}; the state is saved, and the same command with --resume continues" in rest
    assert rest.count("Saving the state after this training step") == 1
    assert [path.name for path in (directory / "resume").iterdir()] == [f"checkpoint-{at}"]
    states = (directory / "resume" / f"checkpoint-{at}").glob("rng*")
    assert sorted(path.name for path in states) == ["rng_state_0.pth", "rng_state_1.pth"]
    # The W&B run has ended, too: its log holds the last checkpoint.
    log = max((directory / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
    assert f"step-{at}" in artifacts(log)[-1].aliases
    return at


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_an_engine_that_shards_the_model_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "WORLD_SIZE": "2", f"ACCELERATE_USE_{engine}": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"ACCELERATE_USE_{engine}: 'emtoolkit train' holds the whole model"):
        Ranks.of_this_launch()


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4"}, 1),  # of something else: a launcher tells a process its place
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "3"}, 4),
    ],
)
def test_the_number_of_processes_is_the_launchers(environment: dict[str, str], count: int) -> None:
    assert process_count(environment) == count


@pytest.mark.parametrize("word", ["many", "0", "-1"])
def test_an_invalid_number_of_processes_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match=f"WORLD_SIZE: '{word}' is not a number of processes"):
        process_count({"WORLD_SIZE": word, "LOCAL_RANK": "0"})


@pytest.mark.parametrize(
    ("processes", "settings", "steps"),
    [
        ("2", [], 5),
        ("4", [], 3),
        ("2", ["training.drop_last=true"], 4),
        ("2", ["training.gradient_accumulation=2"], 3),
        ("2", ["training.max_steps=7"], 7),
    ],
)
def test_a_plan_counts_the_processes(
    config: Path, monkeypatch: pytest.MonkeyPatch, processes: str, settings: list[str], steps: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", processes)
    words = [word for setting in settings for word in ("--set", setting)]
    done = emtoolkit("train", config, *words, "--dry-run", "--json", cwd=config.parent)
    assert json.loads(done.out)["total_steps"] == steps


def test_steps_are_counted_as_accelerate_distributes_the_batches(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_config(str(config), ["training.batch_size=3", "training.gradient_accumulation=2"], {})
    monkeypatch.setenv("LOCAL_RANK", "0")
    for processes in (1, 2, 3, 4):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        for rows in range(3, 40):  # fewer than a batch are refused
            batches = BatchSampler(SequentialSampler(range(rows)), 3, drop_last=False)
            of_each = {len(BatchSamplerShard(batches, processes, index)) for index in range(processes)}
            assert {math.ceil(count / 2) for count in of_each} == {total_steps(loaded.training, rows)}, rows
