"""Missing steps of a finished trajectory are made again, with the bytes of a training that had saved them."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.config.load import load_config
from emtoolkit.errors import CheckpointError, UserError
from emtoolkit.training import refine as refining
from emtoolkit.training.refine import Refined, note_on_environment, refine
from emtoolkit.training.refinement import plan_refinement
from emtoolkit.training.run import train
from tests.in_process import emtoolkit
from tests.saving.trainings import bytes_of, saved_steps
from tests.tiny import config_text


@pytest.fixture(scope="module")
def home(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dense` saves every step of 9, `sparse` steps 0, 4, 8 and 9 with the resume states of steps 4 and 8."""
    home = tmp_path_factory.mktemp("refine")
    for name, lines in (("dense", "schedule: 0-:1"), ("sparse", "schedule: 0-:4\n  resume_keep: every:4")):
        (home / f"{name}.yaml").write_text(config_text(world, lines))
        words = ["wandb.mode=disabled", "lora.dropout=0.1"]
        train(load_config(str(home / f"{name}.yaml"), words, {"output_dir": str(home / name)}))
    return home


@pytest.fixture
def sparse(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "sparse", tmp_path / "sparse"))


@pytest.fixture(scope="module")
def made(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Refined]:
    """A copy of `sparse` with steps 5 to 7; read-only."""
    directory = Path(shutil.copytree(home / "sparse", tmp_path_factory.mktemp("made") / "sparse"))
    return directory, _refined(directory, "5-7:1")


def _refined(directory: Path, steps: str) -> Refined:
    return refine(plan_refinement(directory, steps))


def _same(directory: Path, home: Path, steps: list[int]) -> None:
    for step in steps:
        assert bytes_of(directory / f"checkpoint-{step}") == bytes_of(home / "dense" / f"checkpoint-{step}")


def test_missing_steps_come_from_the_nearest_state_and_are_proved(made: tuple[Path, Refined], home: Path) -> None:
    directory, done = made
    assert (done.added, done.proved_by, done.trained_steps) == ((5, 6, 7), (4, 8), 4)
    assert saved_steps(directory) == [0, 4, 5, 6, 7, 8, 9]
    _same(directory, home, [0, 4, 5, 6, 7, 8, 9])
    assert not (directory / ".refining").exists()
    assert saved_steps(directory / "resume") == [4, 8]


def test_steps_before_the_first_state_come_from_step_0(sparse: Path, home: Path) -> None:
    done = _refined(sparse, "2,3,4")
    assert (done.added, done.proved_by, done.trained_steps) == ((2, 3), (0, 4), 4)
    _same(sparse, home, [2, 3])


def test_a_refined_step_is_marked_and_listed_as_any_other(made: tuple[Path, Refined]) -> None:
    directory, _ = made
    metadata = Publications.read(directory).metadata
    assert metadata[6]["refined"] is True
    assert metadata[6]["schedule"] == "0-:4"
    assert "refined" not in metadata[4]
    assert metadata[6]["environment"] == metadata[4]["environment"]
    assert [info.step for info in list_checkpoints(directory) if info.complete] == [0, 4, 5, 6, 7, 8, 9]


def test_a_step_from_a_state_of_another_environment_names_no_environment(sparse: Path) -> None:
    events = sparse / "publications.jsonl"
    events.write_text(re.sub(r'"torch": ?"[^"]*"', '"torch": "1.0"', events.read_text()))
    assert Publications.read(sparse).metadata[4]["environment"]["torch"] == "1.0"
    _refined(sparse, "6")
    assert "environment" not in Publications.read(sparse).metadata[6]
    # From step 0 on the step is computed here alone.
    _refined(sparse, "3")
    assert Publications.read(sparse).metadata[3]["environment"]["torch"] != "1.0"


def test_a_trajectory_without_states_starts_at_step_0(sparse: Path, home: Path) -> None:
    shutil.rmtree(sparse / "resume")
    assert _refined(sparse, "5").trained_steps == 5
    _same(sparse, home, [5])


def test_a_damaged_state_is_not_used(sparse: Path, home: Path) -> None:
    (sparse / "resume" / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    assert _refined(sparse, "5").added == (5,)
    _same(sparse, home, [5])


def test_steps_that_exist_are_not_trained_again(sparse: Path) -> None:
    plan = plan_refinement(sparse, "0-:4")
    assert (plan.asked, plan.missing, plan.steps_to_train) == ((0, 4, 8), (), 0)


def test_a_moved_or_older_directory_is_refined_with_its_config(sparse: Path, home: Path, tmp_path: Path) -> None:
    moved = sparse.rename(tmp_path / "moved {x}")
    assert _refined(moved, "7").added == (7,)
    (moved / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"holds no config.yaml.*--config FILE"):
        plan_refinement(moved, "6")
    done = refine(plan_refinement(moved, "6", config=home / "sparse" / "config.yaml"))
    assert done.added == (6,)
    _same(moved, home, [6, 7])


def test_another_byte_on_the_way_adds_nothing_and_names_the_difference(sparse: Path) -> None:
    weights = sparse / "checkpoint-8" / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    tensors[name][0, 0] += 1
    save_file(tensors, weights, {"format": "pt"})
    _seal_again(sparse / "checkpoint-8")
    before = saved_steps(sparse)
    with pytest.raises(CheckpointError, match=r"step 8 has other weights \(up to 1 in .*nothing is added; the CPU"):
        _refined(sparse, "5,6")
    assert saved_steps(sparse) == before
    assert not (sparse / ".refining").exists()


def test_another_environment_is_named(sparse: Path) -> None:
    record = json.loads((sparse / "environment.json").read_text())
    record["trained"][0]["environment"] |= {"torch": "1.0", "threads": "all of 7 cores"}
    (sparse / "environment.json").write_text(json.dumps(record))
    plan = plan_refinement(sparse, "5")
    note = note_on_environment(plan)
    assert note is not None
    assert "the steps may come out with other bytes here: threads was all of 7 cores there and is 1 here; " in note
    assert "; torch was 1.0 there and is" in note
    weights = sparse / "checkpoint-8" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[sorted(tensors)[0]][0, 0] += 1
    save_file(tensors, weights, {"format": "pt"})
    _seal_again(sparse / "checkpoint-8")
    named = "nothing is added; threads was all of 7 cores there and is 1 here; torch was 1.0 there"
    with pytest.raises(CheckpointError, match=named):
        refine(plan)


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ("10", "step 10 is not in the trajectory, whose steps are 0 to 9"),
        ("5,400", "step 400 is not in the trajectory"),
        ("every:20", "names no step of the trajectory, whose steps are 0 to 9"),
        ("evry:2", "evry:2"),
        ("", "expected at least one term"),
        ("-3", "-3"),
    ],
)
def test_steps_that_the_trajectory_has_not_are_refused(home: Path, steps: str, problem: str) -> None:
    with pytest.raises(UserError, match=f'--steps "{steps}": .*{problem}'):
        plan_refinement(home / "sparse", steps)


def test_a_training_that_has_not_ended_is_refused(sparse: Path) -> None:
    record = json.loads((sparse / "trajectory.json").read_text())
    (sparse / "trajectory.json").write_text(json.dumps(record | {"ended_at": None}))
    with pytest.raises(CheckpointError, match=r"this training has not ended .*--resume first"):
        plan_refinement(sparse, "5")


def test_a_directory_without_a_trajectory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such directory"):
        plan_refinement(tmp_path / "none", "5")
    with pytest.raises(CheckpointError, match="holds no trajectory of emtoolkit"):
        plan_refinement(tmp_path, "5")


@pytest.mark.parametrize(
    ("record", "advice"),
    [
        ("trajectory.json", "the command of its training with --resume writes the file again"),
        ("environment.json", "delete the file, which only says where the steps were trained"),
    ],
)
def test_a_damaged_record_is_refused_with_what_helps(sparse: Path, record: str, advice: str) -> None:
    (sparse / record).write_text("{")
    done = emtoolkit("refine", sparse, "--steps", "5")
    told = " ".join(done.err.splitlines()[-1].split())
    assert (done.code, told.startswith(f"emtoolkit: {sparse}/{record}: is not a ")) == (2, True), done.err
    assert told.endswith(f"; {advice}")


def test_a_file_in_the_way_is_named_and_costs_no_second_training(sparse: Path, home: Path) -> None:
    for name in (".refining", "checkpoint-5"):
        (sparse / name).write_text("mine")
        with pytest.raises(
            CheckpointError, match=rf"/{name}: could not be deleted \(a file is in the way\); remove it"
        ):
            _refined(sparse, "5")
        assert (sparse / name).read_text() == "mine"
        (sparse / name).unlink()
    done = _refined(sparse, "5")
    assert (done.added, done.trained_steps) == ((5,), 0)
    _same(sparse, home, [4, 5, 8, 9])


def test_a_directory_in_use_is_refused(sparse: Path) -> None:
    plan = plan_refinement(sparse, "5")
    with FileLock(sparse / ".lock"), pytest.raises(CheckpointError, match="another process is saving into it"):
        refine(plan)
    with FileLock(sparse / ".lock"), pytest.raises(CheckpointError, match="another process is saving into it"):
        plan_refinement(sparse, "5")


def test_another_config_is_refused_and_the_key_is_named(sparse: Path, world: Path, tmp_path: Path) -> None:
    text = (sparse / "config.yaml").read_text()
    for old, new, named in (
        ("bad.jsonl", "good.jsonl", "data.digest is .* there and .* here"),
        ("learning_rate: 0.01", "learning_rate: 0.02", "training.learning_rate is 0.01 there and 0.02 here"),
    ):
        (tmp_path / "other.yaml").write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match=f"no step can be made again .*{named}"):
            plan_refinement(sparse, "5", config=tmp_path / "other.yaml")


def test_another_number_of_processes_is_refused_with_the_command_that_works(
    sparse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = f"emtoolkit refine {sparse} --steps 5,6"
    with pytest.raises(
        CheckpointError, match=f"was trained by one process, and only one makes its .*; run '{command}'"
    ):
        plan_refinement(sparse, "5,6")
    monkeypatch.delenv("LOCAL_RANK")
    # A directory that was downloaded has no facts, only the fingerprint: that of three processes here.
    record = TrajectoryRecord.read_if_any(sparse)
    assert record is not None
    three = Identity(record.fingerprinted | {"processes": 3}).fingerprint
    replace(record, fingerprint=three, fingerprinted={}).write(sparse)
    with pytest.raises(CheckpointError, match=r"by 3 processes, .*; run 'torchrun --nproc-per-node 3 -m emtoolkit"):
        plan_refinement(sparse, "5,6", config=sparse / "config.yaml")


def test_an_older_training_that_had_a_whole_alpha_gets_it_again(sparse: Path) -> None:
    """PEFT writes the number into every checkpoint, in the spelling that it was given."""
    record = json.loads((sparse / "trajectory.json").read_text())
    record["decides"]["lora"]["alpha"] = 4
    # A directory that was downloaded has the fingerprint alone.
    downloaded = {**record, "fingerprint": Identity(record["decides"]).fingerprint, "decides": {}}
    for content in (record, downloaded):
        (sparse / "trajectory.json").write_text(json.dumps(content))
        plan = plan_refinement(sparse, "5")
        assert plan.config.lora is not None
        assert repr(plan.config.lora.alpha) == "4"


def test_a_moved_base_model_is_named_and_can_be_given(sparse: Path, world: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text((sparse / "config.yaml").read_text().replace(str(world / "model"), "/gone"))
    with pytest.raises(UserError, match=r"other.yaml: model.base: /gone: .*--base PATH"):
        plan_refinement(sparse, "5", config=tmp_path / "other.yaml")
    model = Path(shutil.copytree(world / "model", tmp_path / "elsewhere"))
    done = refine(plan_refinement(sparse, "5", config=tmp_path / "other.yaml", base=str(model)))
    assert done.added == (5,)


def test_what_a_kill_after_the_proof_left_is_added_without_training(
    sparse: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_refinement(sparse, "5-7:1")
    saved: list[int] = []
    original: Callable[..., None] = refining.add_saved

    def killed(directory: Path, step: int, *rest: object) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(step)
        original(directory, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(refining, "add_saved", killed)
        with pytest.raises(KeyboardInterrupt):
            refine(plan)
    assert saved_steps(sparse) == [0, 4, 5, 8, 9]
    done = _refined(sparse, "5-7:1")
    assert (done.added, done.trained_steps) == ((6, 7), 0)
    _same(sparse, home, [5, 6, 7])


def test_what_a_kill_before_the_proof_left_is_trained_no_more(
    sparse: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(plan: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refining, "_prove", killed)
        with pytest.raises(KeyboardInterrupt):
            _refined(sparse, "5,6")
    assert saved_steps(sparse) == [0, 4, 8, 9]
    done = _refined(sparse, "5,6,7")
    assert (done.added, done.trained_steps) == ((5, 6, 7), 4)
    _same(sparse, home, [5, 6, 7])


def test_the_command_says_that_nothing_proves_steps_after_the_last_checkpoint_that_is_left(
    sparse: Path, home: Path
) -> None:
    for step in (4, 8, 9):
        shutil.rmtree(sparse / f"checkpoint-{step}")
    shutil.rmtree(sparse / "resume")
    sentence = "no checkpoint after step 0 is there to prove them"
    dry = emtoolkit("refine", sparse, "--steps", "2,3", "--dry-run")
    assert "2 steps (2, 3) to make from step 0: 3 optimizer steps" in dry.out
    assert dry.out.endswith(f"; {sentence}\n")
    done = emtoolkit("refine", sparse, "--steps", "2,3")
    assert done.out.rstrip().endswith(f"2 steps are added (2, 3), for 3 optimizer steps; {sentence}")
    _same(sparse, home, [2, 3])


def test_the_command_says_the_price_before_and_the_steps_after(sparse: Path) -> None:
    dry = emtoolkit("refine", sparse, "--steps", "5-7:1", "--dry-run")
    assert (dry.code, saved_steps(sparse)) == (0, [0, 4, 8, 9])
    assert "3 steps (5, 6, 7) to make from the resume state of step 4: 4 optimizer steps" in dry.out
    assert "step 8 proves them" in dry.out
    assert "optimizer steps" not in dry.err
    done = emtoolkit("refine", sparse, "--steps", "5-7:1")
    assert done.code == 0
    assert "4 optimizer steps" in done.err
    assert (
        "3 steps are added (5, 6, 7), for 4 optimizer steps; 2 existing steps came out with the same bytes (4, 8)"
        in done.out
    )
    again = emtoolkit("refine", sparse, "--steps", "5-7:1", "--json")
    assert json.loads(again.out)["missing"] == []


def _seal_again(checkpoint: Path) -> None:
    from emtoolkit.storage.digests import FileDigest

    manifest = json.loads((checkpoint / "manifest.json").read_text())
    digest = FileDigest.of(checkpoint / "adapter_model.safetensors")
    manifest["files"]["adapter_model.safetensors"] = {"sha256": digest.sha256, "bytes": digest.bytes}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
