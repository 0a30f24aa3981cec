"""Checkpoints that go from W&B: versions and aliases, what people marked, and a server that fails."""

import json
import shutil
from pathlib import Path

import pytest

from emtoolkit import Trajectory
from emtoolkit.artifacts.sync import sync
from emtoolkit.checkpoints.metric_values import home_of
from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.best import move_best_aliases
from emtoolkit.pruning.keep import Request
from emtoolkit.pruning.plan import plan_prune
from emtoolkit.pruning.prune import prune
from tests.analysis.evaluations import write_evaluation
from tests.artifacts.stored import IDENTITY
from tests.artifacts.trainings import SHARED, on_wandb, publish, saved
from tests.in_process import emtoolkit
from tests.wandb_server import Fault, WandbServer
from tests.wandb_server.store import Artifact

STEPS = [0, 10, 20, 30]
NAME = f"tester/proj/{SHARED}"
DAY = 24 * 3600


@pytest.fixture
def run(server: WandbServer, tmp_path: Path) -> Path:
    """A finished training whose checkpoints are on W&B."""
    directory = saved(tmp_path / "run", dict.fromkeys(STEPS, "a"), ended_at=30)
    assert publish(directory, "run-a") == {}
    return directory


def versions(server: WandbServer) -> dict[int, Artifact]:
    """The versions by the step that they were saved as."""
    collection = server.store.project("tester", "proj").collections[SHARED]
    return {version.metadata["step"]: version for version in collection.versions}


def step_aliases(server: WandbServer) -> dict[int, list[str]]:
    return {step: sorted({*version.aliases} - {"latest"}) for step, version in versions(server).items()}


def test_versions_lose_their_aliases_and_get_a_time_to_live(server: WandbServer, run: Path) -> None:
    done = emtoolkit("prune", run, "--keep", "20")
    assert done.code == 0, done.err
    assert "1 checkpoint would be removed on W&B" in done.out
    assert [line.split()[:3] for line in done.out.splitlines()[:3]] == [
        ["step", "here", "on"],
        ["0", "stays", "stays"],
        ["10", "goes", "goes"],
    ]
    assert on_wandb(server) == {SHARED: STEPS}

    done = emtoolkit("prune", run, "--keep", "20", "--yes")
    assert done.code == 0, done.err
    assert "W&B deletes the versions in 7 days" in done.out
    assert step_aliases(server) == {0: ["step-0"], 10: [], 20: ["step-20"], 30: ["final", "step-30"]}
    assert {step: version.ttl_seconds for step, version in versions(server).items()} == {
        0: None,
        10: 7 * DAY,
        20: None,
        30: None,
    }
    there = Trajectory.open(NAME)
    assert (there.steps, there.pruned) == ((0, 20, 30), (10,))
    assert "pruned=1 (steps 10)" in repr(there)
    assert (Trajectory.open(run).steps, Trajectory.open(run).pruned) == ((0, 20, 30), (10,))
    listed = json.loads(emtoolkit("checkpoints", NAME, "--sort", "-step", "--json").out)
    assert [(entry["step"], entry["state"]) for entry in listed] == [
        (30, "complete"),
        (20, "complete"),
        (10, "pruned"),
        (0, "complete"),
    ]
    assert "(pruned)" in emtoolkit("checkpoints", NAME).out
    assert sync(run).problems == ()
    assert on_wandb(server) == {SHARED: [0, 20, 30]}


def test_the_listing_of_a_collection_selects_by_metrics_and_by_steps(server: WandbServer, run: Path) -> None:
    write_evaluation(
        run.parent / home_of(NAME) / "abc",
        {0: [0, 0], 10: [9, 9], 20: [3, 3], 30: [1, 1]},
        fingerprint=IDENTITY.fingerprint,
    )

    def listed(*where: str) -> list[int]:
        words = [word for each in where for word in ("--where", each)]
        done = emtoolkit("checkpoints", NAME, *words, "--json", cwd=run.parent)
        assert done.code == 0, done.err
        return [entry["step"] for entry in json.loads(done.out)]

    assert listed("step>=10 and step<30") == [10, 20]
    assert listed("betley>0.05") == [10, 20]
    assert listed("betley<0.1", "step!=0") == [20, 30]
    unknown = emtoolkit("checkpoints", NAME, "--where", "betly>0", cwd=run.parent)
    assert (unknown.code, "did you mean 'betley'?" in unknown.err) == (2, True)


@pytest.mark.parametrize("argv", [["--ttl", "0"], []], ids=["at once", "a server that keeps no ttl"])
def test_without_a_time_to_live_versions_are_deleted(server: WandbServer, run: Path, argv: list[str]) -> None:
    server.store.keeps_ttl = bool(argv)
    try:
        done = emtoolkit("prune", run, "--keep", "20", "--yes", *argv)
    finally:
        server.store.keeps_ttl = True
    assert done.code == 0, done.err
    assert ("keeps no time to live" in done.out) is (not argv)
    assert sorted(versions(server)) == [0, 20, 30]
    assert Trajectory.open(NAME).pruned == (10,)


def test_one_place_alone_is_pruned(server: WandbServer, run: Path) -> None:
    prune(str(run), Request(drop="10"), "here")
    assert (Trajectory.open(run).pruned, on_wandb(server)) == ((10,), {SHARED: STEPS})
    prune(str(run), Request(drop="20"), "wandb")
    assert (run / "checkpoint-20").is_dir()
    assert on_wandb(server) == {SHARED: [0, 10, 30]}
    # What was pruned on W&B alone is not sent again, and is no problem.
    done = sync(run)
    assert (done.published, done.problems) == ((), ())
    assert on_wandb(server) == {SHARED: [0, 10, 30]}
    # Step 10 is on W&B alone: a range that selects the step keeps it there.
    assert plan_prune(str(run), Request(keep="10")).kept.keys() >= {0, 10, 30}


def test_a_step_that_was_made_again_is_published_again_and_does_not_expire(server: WandbServer, run: Path) -> None:
    shutil.copytree(run / "checkpoint-10", run / "made-again")
    prune(str(run), Request(drop="10"))
    assert versions(server)[10].ttl_seconds == 7 * DAY
    (run / "made-again").rename(run / "checkpoint-10")
    assert sync(run).published == (10,)
    assert on_wandb(server) == {SHARED: STEPS}
    assert versions(server)[10].ttl_seconds is None
    assert (Trajectory.open(NAME).pruned, Trajectory.open(run).pruned) == ((), ())


def test_a_checkpoint_of_a_version_that_would_expire_is_kept_by_sync(server: WandbServer, run: Path) -> None:
    """As after the log of an offline run, which gave a pruned version its name again."""
    version = versions(server)[10]
    version.metadata["pruned"], version.ttl_seconds = True, DAY
    assert sync(run).problems == ()
    assert (versions(server)[10].ttl_seconds, "pruned" in versions(server)[10].metadata) == (None, False)


def test_what_people_marked_stays(server: WandbServer, run: Path) -> None:
    there = versions(server)
    member = there[10].memberships[0]
    member.collection.move_aliases(["my-favourite"], member)
    there[20].tags.append("paper")
    plan = plan_prune(str(run), Request(drop="10,20"))
    assert (plan.going, plan.kept[10], plan.kept[20]) == ((), "alias my-favourite on W&B", "tag 'paper' on W&B")
    plan = plan_prune(NAME, Request(drop="10,20"))
    assert (plan.going, plan.kept[10], plan.kept[20]) == ((), "alias my-favourite on W&B", "tag 'paper' on W&B")


def test_the_best_checkpoint_has_an_alias_that_moves_and_keeps_the_step(server: WandbServer, run: Path) -> None:
    evaluation = run / "evaluations" / "abc"
    counts = {0: [0, 0], 10: [9, 9], 20: [3, 3], 30: [1, 1]}
    write_evaluation(evaluation, counts, fingerprint=IDENTITY.fingerprint)
    done = emtoolkit("best", run, "betley", "--alias", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["alias"] == "best-betley"
    assert step_aliases(server)[10] == ["best-betley", "step-10"]
    assert plan_prune(str(run), Request(keep="final")).kept[10] == "alias best-betley on W&B"
    # The same again changes nothing; another result moves the alias.
    assert emtoolkit("best", run, "betley", "--alias").code == 0
    write_evaluation(evaluation, {20: [30, 30]}, fingerprint=IDENTITY.fingerprint)
    assert emtoolkit("best", run, "betley", "--alias").code == 0
    assert step_aliases(server) == {
        0: ["step-0"],
        10: ["step-10"],
        20: ["best-betley", "step-20"],
        30: ["final", "step-30"],
    }
    assert plan_prune(str(run), Request(drop="10,20")).going == (10,)


def test_an_evaluation_moves_the_alias_by_itself(server: WandbServer, run: Path) -> None:
    evaluation = run / "evaluations" / "abc"
    write_evaluation(evaluation, {step: [step, step] for step in STEPS}, fingerprint=IDENTITY.fingerprint)
    assert emtoolkit("best", run, "betley", "--lowest", "--alias").code == 0
    assert move_best_aliases(str(run)) == []
    write_evaluation(evaluation, {0: [50, 50]}, fingerprint=IDENTITY.fingerprint)
    assert move_best_aliases(str(run)) == ["the alias best-betley moved from step 0 to step 10"]
    assert step_aliases(server)[10] == ["best-betley", "step-10"]
    assert step_aliases(server)[0] == ["step-0"]


def test_a_collection_is_pruned_by_its_name(server: WandbServer, run: Path) -> None:
    write_evaluation(
        run.parent / home_of(NAME) / "abc",
        {0: [0, 0], 10: [9, 9], 20: [3, 3], 30: [1, 1]},
        fingerprint=IDENTITY.fingerprint,
    )
    told = emtoolkit("prune", NAME, "--budget", "3", cwd=run.parent)
    assert (told.code, "--along steps" in told.err) == (2, True)
    done = emtoolkit("prune", NAME, "--keep", "best:betley", "--yes", cwd=run.parent)
    assert done.code == 0, done.err
    assert on_wandb(server) == {SHARED: [0, 10, 30]}
    assert Trajectory.open(NAME).pruned == (20,)
    # The directory still has its copy, which nothing asked to remove.
    assert Trajectory.open(run).steps == tuple(STEPS)
    with pytest.raises(CheckpointError, match="nothing would be left"):
        prune(NAME, Request(drop="0-30:10"))
    refused = emtoolkit("prune", NAME, "--keep", "0", "--only", "here")
    assert (refused.code, "is a collection on W&B" in refused.err) == (2, True)


@pytest.mark.parametrize("place", [home_of(NAME) / "abc", home_of(f"proj/{SHARED}") / "abc", Path("elsewhere")])
def test_a_step_that_a_report_on_the_collection_rests_on_stays_in_both_places(
    server: WandbServer, run: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.chdir(run.parent)
    counts = {0: [0] * 4, 10: [0] * 4, 20: [10, 25, 30, 15], 30: [10, 25, 30, 15]}
    write_evaluation(place, counts, fingerprint=IDENTITY.fingerprint, trajectory=NAME)
    done = emtoolkit("report", place, "--no-weights", "--out", "r.html")
    assert done.code == 0, done.err
    report = f"report {run.parent / 'r.html'}"
    for reference in (str(run), NAME):
        plan = plan_prune(reference, Request(drop="10,20"))
        assert (plan.going, plan.kept[10], plan.kept[20]) == ((), report, report)
    assert plan_prune(str(run), Request(drop="10,20"), "here").going == ()
    Path("outputs/evaluations", NAME.replace("/", "-"), "reports.json").unlink()
    assert plan_prune(str(run), Request(drop="10,20")).going == (10, 20)


def test_nothing_goes_while_a_run_publishes(server: WandbServer, run: Path) -> None:
    server.store.project("tester", "proj").runs["run-a"].state = "running"
    done = emtoolkit("prune", NAME, "--keep", "final", "--yes")
    assert (done.code, "run run-a is still running" in done.err) == (2, True)
    assert on_wandb(server) == {SHARED: STEPS}


def test_a_download_does_not_prune_the_collection_of_somebody_else(
    server: WandbServer, run: Path, tmp_path: Path
) -> None:
    assert emtoolkit("download", NAME, "--to", tmp_path / "theirs").code == 0
    done = emtoolkit("prune", tmp_path / "theirs", "--keep", "final", "--yes")
    assert done.code == 0, done.err
    assert Trajectory.open(tmp_path / "theirs").steps == (0, 30)
    assert on_wandb(server) == {SHARED: STEPS}


@pytest.mark.parametrize("operation", ["UpdateArtifact", "DeleteAliases"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_server_that_fails_in_the_middle_is_one_sentence_and_nothing_is_lost(
    server: WandbServer, run: Path, operation: str, after: int
) -> None:
    server.faults.add(Fault(operation, 403, after=after))
    done = emtoolkit("prune", run, "--keep", "final", "--yes")
    server.faults.clear()
    assert done.code == (2 if (operation, after) != ("DeleteAliases", 2) else 0)
    if done.code:
        (told,) = done.err.splitlines()
        assert "are still there; run the same command again to finish" in told
        assert "steps 10 are removed" in told or "nothing is removed" in told
        # Nothing is lost here, and W&B has every step still, under its name or without.
        assert Trajectory.open(run).steps == tuple(STEPS)
        assert sorted(versions(server)) == STEPS
        assert {0, 30} <= {*on_wandb(server)[SHARED]}
    done = emtoolkit("prune", run, "--keep", "final", "--yes")
    assert done.code == 0, done.err
    assert on_wandb(server) == {SHARED: [0, 30]}
    assert {step for step, version in versions(server).items() if version.ttl_seconds} == {10, 20}
    assert Trajectory.open(run).pruned == (10, 20)
    assert Trajectory.open(NAME).pruned == (10, 20)


def test_a_server_that_does_not_answer_changes_nothing_here(server: WandbServer, run: Path) -> None:
    server.faults.add(Fault("ProjectArtifacts", 403))
    done = emtoolkit("prune", run, "--keep", "final", "--yes")
    assert (done.code, "prune the directory alone with --only here" in done.err) == (2, True)
    assert Trajectory.open(run).steps == tuple(STEPS)
    assert emtoolkit("prune", run, "--keep", "final", "--yes", "--only", "here").code == 0
    server.faults.clear()
    assert Trajectory.open(run).steps == (0, 30)
    assert on_wandb(server) == {SHARED: STEPS}
