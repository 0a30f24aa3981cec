"""Checkpoints that go from a directory: which, in which order, and what is left after a crash."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from emtoolkit import Trajectory
from emtoolkit.analysis.onset_results import Event, onsets
from emtoolkit.checkpoints.pruned import how_to_make_again
from emtoolkit.checkpoints.publications import PUBLICATIONS, Publications
from emtoolkit.checkpoints.report_uses import record_report
from emtoolkit.pruning.keep import Request
from emtoolkit.pruning.plan import plan_prune
from emtoolkit.pruning.prune import prune
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.storage.lock import LOCK
from emtoolkit.training.resume_point import find_resume_point
from tests.analysis.evaluations import write_evaluation
from tests.analysis.lora_paths import vector_path
from tests.artifacts.stored import IDENTITY
from tests.artifacts.trainings import saved
from tests.in_process import emtoolkit
from tests.saving.trainings import bytes_of

STEPS = [0, 10, 20, 30, 40]
ZERO, HIGH = [0] * 4, [10, 25, 30, 15]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return saved(tmp_path / "run", dict.fromkeys(STEPS, "a"), ended_at=40)


def everything(directory: Path) -> dict[str, bytes]:
    """The content of every file but the lock."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_without_yes_nothing_changes_and_the_room_is_said(run: Path) -> None:
    before = everything(run)
    done = emtoolkit("prune", run, "--keep", "20,final")
    size = sum(
        len(content) for name, content in before.items() if name.split("/")[0] in ("checkpoint-10", "checkpoint-30")
    )
    assert (done.code, done.err) == (0, "")
    assert f"2 checkpoints would be removed here, freeing {size / 1000:.2f} KB." in done.out
    assert "the same command with --yes removes them" in done.out
    assert done.out.split()[:4] == ["step", "here", "because", "of"]
    assert [line.split()[:2] for line in done.out.splitlines()[1:6]] == [
        ["0", "stays"],
        ["10", "goes"],
        ["20", "stays"],
        ["30", "goes"],
        ["40", "stays"],
    ]
    assert everything(run) == before
    listed = json.loads(emtoolkit("prune", run, "--keep", "20,final", "--json").out)
    assert (listed["here"], listed["bytes_freed_here"], listed["done"]) == ([10, 30], size, False)
    assert listed["kept"] == {"0": "step 0", "20": "20,final", "40": "20,final"}


def test_with_yes_the_steps_go_and_the_rest_keeps_its_bytes(run: Path) -> None:
    kept = {step: bytes_of(run / f"checkpoint-{step}") for step in (0, 20, 40)}
    done = emtoolkit("prune", run, "--keep", "20", "--yes")
    assert done.code == 0
    # Of the store, or of a script: no config says how the steps are made.
    assert f"emtoolkit refine {run} --steps 10,30 --config FILE" in done.out
    (run / "config.yaml").touch()
    assert how_to_make_again(str(run), [10, 30]) == f"emtoolkit refine {run} --steps 10,30"
    trajectory = Trajectory.open(run)
    assert (trajectory.steps, trajectory.pruned) == ((0, 20, 40), (10, 30))
    assert {step: bytes_of(run / f"checkpoint-{step}") for step in kept} == kept
    assert sorted(path.name for path in run.iterdir() if "tmp" in path.name) == []
    again = emtoolkit("prune", run, "--keep", "20", "--yes")
    assert (again.code, again.out) == (0, "Nothing goes: all 3 checkpoints stay.\n")


def test_a_budget_in_steps_and_the_best_of_an_evaluation(run: Path) -> None:
    write_evaluation(
        run / "evaluations" / "abc",
        {0: ZERO, 10: ZERO, 20: ZERO, 30: HIGH, 40: ZERO},
        fingerprint=IDENTITY.fingerprint,
    )
    assert plan_prune(str(run), Request(budget=3)).going == (10, 30)
    plan = plan_prune(str(run), Request(keep="best:betley"))
    assert plan.kept == {0: "step 0", 30: "best:betley", 40: "final"}
    told = emtoolkit("prune", run, "--budget", "3")
    # These files are no tensors, so that no path can be measured.
    assert (told.code, "--along steps" in told.err or "cannot be read" in told.err) == (2, True)
    assert emtoolkit("prune", run, "--budget", "3", "--along", "steps").code == 0


def test_a_hard_link_from_elsewhere_frees_nothing_and_links_inside_count_once(run: Path, tmp_path: Path) -> None:
    weights = run / "checkpoint-10" / "adapter_model.safetensors"
    os.link(weights, tmp_path / "another-run")
    twin = run / "checkpoint-30" / "adapter_config.json"
    twin.unlink()
    os.link(run / "checkpoint-10" / "adapter_config.json", twin)
    whole = sum(path.stat().st_size for step in (10, 30) for path in (run / f"checkpoint-{step}").iterdir())
    plan = plan_prune(str(run), Request(keep="20"))
    assert plan.freed == whole - weights.stat().st_size - twin.stat().st_size
    prune(str(run), Request(keep="20"))
    assert (tmp_path / "another-run").stat().st_size == 200


def test_a_checkpoint_that_is_a_symlink_goes_and_its_target_stays(run: Path, tmp_path: Path) -> None:
    (run / "checkpoint-10").rename(tmp_path / "elsewhere")
    (run / "checkpoint-10").symlink_to(tmp_path / "elsewhere")
    plan = prune(str(run), Request(drop="10")).plan
    assert plan.freed == 0
    assert not (run / "checkpoint-10").is_symlink()
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()


def test_a_step_that_a_report_rests_on_stays(run: Path) -> None:
    write_evaluation(
        run / "evaluations" / "abc",
        {0: ZERO, 10: ZERO, 20: ZERO, 30: HIGH, 40: HIGH},
        fingerprint=IDENTITY.fingerprint,
        trajectory=str(run),
    )
    assert emtoolkit("report", run, "--no-weights", "--out", run / "r.html").code == 0
    plan = plan_prune(str(run), Request(drop="10-40:10"))
    (seed,) = onsets([run / "evaluations" / "abc"], Event()).seeds
    bracket = seed.these_questions.bracket
    assert (bracket.lower, bracket.upper) == (20, 30)
    assert {20, 30} <= plan.kept.keys()
    assert plan.kept[30] == f"report {run / 'r.html'}"
    assert 10 in plan.going


def test_evaluations_of_pruned_steps_are_used_by_the_analyses(run: Path) -> None:
    evaluation = write_evaluation(
        run / "evaluations" / "abc",
        {0: ZERO, 10: ZERO, 20: ZERO, 30: HIGH, 40: HIGH},
        fingerprint=IDENTITY.fingerprint,
        trajectory=str(run),
    )
    before = onsets([evaluation], Event())._rows()
    compared = emtoolkit("compare", run, "--schedules", "every:20").out
    prune(str(run), Request(drop="20,30"))
    assert onsets([evaluation], Event())._rows() == before
    assert len(compared) > 100
    assert emtoolkit("compare", run, "--schedules", "every:20").code == 0
    assert emtoolkit("report", run, "--no-weights", "--out", run / "r.html").code == 0
    assert Trajectory.open(run).best("betley", missing="skip").step == 40


def test_a_resumed_training_does_not_compute_pruned_steps_again(run: Path) -> None:
    prune(str(run), Request(keep="20"))
    directory = OutputDirectory.open(run)
    assert directory.first_missing(STEPS) is None
    assert find_resume_point(directory, STEPS, resume=True).complete
    assert directory.first_missing([0, 5, 10]) == 5
    damaged = run / "checkpoint-20" / "adapter_model.safetensors"
    damaged.write_bytes(b"")
    assert OutputDirectory.open(run).first_missing(STEPS) == 20


def test_an_unfinished_training_keeps_its_newest_step_and_that_of_its_resume_state(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", dict.fromkeys(STEPS, "a"))
    (run / "resume" / "checkpoint-30").mkdir(parents=True)
    plan = plan_prune(str(run), Request(drop="10-40:10"))
    assert plan.kept == {0: "step 0", 30: "the resume state is at this step"}
    assert plan_prune(str(run), Request(keep="0")).kept == {
        0: "0",
        30: "the resume state is at this step",
        40: "the last step so far",
    }


def test_nothing_goes_while_a_training_saves_there(run: Path) -> None:
    before = everything(run)
    with FileLock(run / LOCK):
        done = emtoolkit("prune", run, "--keep", "20", "--yes")
    assert done.code == 2
    assert "another process is saving into it" in done.err
    assert everything(run) == before


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "nothing says what stays; give --keep"),
        (["--keep", "1000-:1"], "no checkpoint is selected"),
        (["--drop", "0-:10"], "nothing would be left of 5 checkpoints"),
        (["--budget", "1"], "at least 2"),
        (["--keep", "0", "--only", "her"], "--only: 'her' is not one of here, wandb; did you mean 'here'?"),
        (["--budget", "3", "--along", "time"], "--along: 'time' is not one of path, steps"),
        (["--keep", "0", "--only", "wandb"], "no run of the directory published its checkpoints"),
        (["--keep", "0", "--ttl", "inf"], "--ttl: 'inf' is not valid: input should be less than or equal to 3650"),
        (["--keep", "best:harm"], "there is no metric 'harm'"),
        (["--keep", "budget:3"], '--keep "budget:3": a budget is an option of its own; give --budget 3'),
    ],
)
def test_a_bad_request_is_one_sentence_and_changes_nothing(run: Path, argv: list[str], told: str) -> None:
    before = everything(run)
    done = emtoolkit("prune", run, *argv, "--yes")
    assert (done.code, told in done.err, len(done.err.splitlines())) == (2, True, 1), done.err
    assert everything(run) == before


@pytest.mark.subprocess
def test_a_place_that_is_no_run_is_named_with_what_is_there(run: Path, tmp_path: Path) -> None:
    for place, told in (
        ("run/checkpoint-10", "run/checkpoint-10: there is no complete checkpoint, so nothing can be pruned; give the"),
        (".", "so nothing can be pruned; there are checkpoints in run\n"),
        ("run/trajectory.json", "run/trajectory.json: is a file; give the directory of a run, or a collection on W&B"),
        ("a/rnu", "a/rnu: there is no such directory, and W&B could not be queried"),
    ):
        done = emtoolkit("prune", place, "--keep", "final", cwd=tmp_path)
        assert (done.code, told in done.err) == (2, True), done.err
    for command in ("checkpoints", "dynamics"):
        done = emtoolkit(command, "run/trajectory.json", cwd=tmp_path)
        assert (done.code, "is a file" in done.err) == (2, True), done.err


def test_a_step_that_was_pruned_before_is_named_among_others(run: Path) -> None:
    prune(str(run), Request(drop="10"))
    done = emtoolkit("prune", run, "--keep", "10,20")
    assert done.err == (
        'emtoolkit: --keep "10,20": step 10 was pruned already; leave it out, or make it again with '
        "'emtoolkit refine' first\n"
    )


def test_a_budget_that_the_named_steps_exceed_adds_none_and_says_so(run: Path) -> None:
    done = emtoolkit("prune", run, "--keep", "10-40:10", "--drop", "0", "--budget", "2")
    assert "--budget 2: 4 checkpoints stay, because each of them has another reason to stay" in done.err
    assert plan_prune(str(run), Request(keep="10-40:10", drop="0", budget=2)).going == (0,)
    assert emtoolkit("prune", run, "--budget", "2", "--along", "steps").err == ""


def test_checkpoints_of_another_tool_are_left_alone(tmp_path: Path) -> None:
    stock = vector_path(tmp_path / "stock", {0: torch.zeros(3), 10: torch.ones(3)})
    done = emtoolkit("prune", stock, "--keep", "0", "--yes")
    assert (done.code, "was saved by another tool" in done.err) == (2, True)
    assert (stock / "checkpoint-10").is_dir()


def test_a_damaged_checkpoint_is_neither_kept_for_another_nor_removed(run: Path) -> None:
    (run / "checkpoint-10" / "adapter_model.safetensors").write_bytes(b"")
    done = emtoolkit("prune", run, "--keep", "20", "--yes")
    assert "step 10 is damaged and left alone" in done.err
    assert (run / "checkpoint-10").is_dir()
    assert not (run / "checkpoint-30").exists()


class Killed(BaseException):
    pass


def _killing(calls: int, original: Callable[..., object]) -> Callable[..., object]:
    left = [calls]

    def call(*args: object, **kwargs: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return original(*args, **kwargs)

    return call


@pytest.mark.parametrize("deletions", range(7))
@pytest.mark.parametrize("at", ["rename", "rmtree"])
def test_a_crash_between_two_deletions_leaves_a_whole_trajectory_and_the_same_call_finishes(
    run: Path, monkeypatch: pytest.MonkeyPatch, deletions: int, at: str
) -> None:
    kept = {step: bytes_of(run / f"checkpoint-{step}") for step in (0, 40)}
    with monkeypatch.context() as patched:
        if at == "rename":
            patched.setattr(Path, "rename", _killing(deletions, Path.rename))
        else:
            patched.setattr(shutil, "rmtree", _killing(deletions, shutil.rmtree))
        try:
            prune(str(run), Request(keep="final"))
        except Killed:
            assert deletions < 3
    trajectory = Trajectory.open(run)
    assert {0, 40} <= {*trajectory.steps}
    assert sorted([*trajectory.steps, *trajectory.pruned]) == STEPS
    for checkpoint in trajectory:
        assert checkpoint.manifest is not None
        assert checkpoint.manifest.problems(checkpoint.path, rehash=True) == []
    assert OutputDirectory.open(run).first_missing(STEPS) is None
    done = prune(str(run), Request(keep="final"))
    assert Trajectory.open(run).pruned == (10, 20, 30)
    assert {step: bytes_of(run / f"checkpoint-{step}") for step in kept} == kept
    assert [path.name for path in run.iterdir() if path.name.startswith(".tmp")] == []
    assert {*done.plan.going} <= {10, 20, 30}


def test_a_crash_before_the_first_deletion_has_removed_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", _killing(0, Path.rename))
        with pytest.raises(Killed):
            prune(str(run), Request(keep="final"))
    assert Publications.read(run).pruned.keys() == {10, 20, 30}
    assert (Trajectory.open(run).steps, Trajectory.open(run).pruned) == (tuple(STEPS), ())


def test_a_directory_that_cannot_be_deleted_is_one_sentence_that_says_what_is_done(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == "checkpoint-30":
            raise PermissionError(13, "Permission denied")
        return original(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refused)
        done = emtoolkit("prune", run, "--keep", "final", "--yes")
    assert done.code == 2
    assert "steps removed here: 10, 20, not removed: 30; run the same command again" in done.err
    assert emtoolkit("prune", run, "--keep", "final", "--yes").code == 0
    assert Trajectory.open(run).steps == (0, 40)


def test_a_torn_record_costs_no_checkpoint(run: Path) -> None:
    prune(str(run), Request(keep="20"))
    file = run / PUBLICATIONS
    file.write_bytes(file.read_bytes()[:-4])
    # The last line told of step 30, which is gone: the step is missing now, and nothing else changed.
    assert (Trajectory.open(run).steps, Trajectory.open(run).pruned) == ((0, 20, 40), (10,))


def test_hostile_reports_are_one_sentence(run: Path) -> None:
    (run / "evaluations").mkdir()
    (run / "evaluations" / "reports.json").write_text('{"r.html": 3}')
    done = emtoolkit("prune", run, "--keep", "20")
    assert (done.code, "not a record of reports" in done.err) == (2, True)
    (run / "evaluations" / "reports.json").unlink()
    record_report(str(run), "r.html", [30])
    assert 30 in plan_prune(str(run), Request(keep="20")).kept
