"""What cannot be read from the hub is one sentence, and what fails for a moment is asked for again."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from emtoolkit import Trajectory
from emtoolkit.errors import UserError
from tests import in_process
from tests.hub.published import adapter, in_folder, organism, weights, whole_model
from tests.hub_server import Fault, HubServer, Repository


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        act()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def run(hub: HubServer) -> Repository:
    repository = hub.store.create("lab/run")
    for step in (100, 200):
        hub.store.publish(repository, f"step-{step}", whole_model(step))
    return repository


def test_a_repository_that_is_missing_or_private_is_named_with_the_hint_at_a_token(
    hub: HubServer, run: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = (
        f"there is no such repository on {hub.url}, or it is private; check the name, and for a private repository log "
        "in with 'hf auth login', or set HF_TOKEN"
    )
    assert refusal(lambda: Trajectory.open("hf:lab/nowhere")) == f"hf:lab/nowhere: {sentence}"
    run.private = True
    monkeypatch.setenv("HF_TOKEN", hub.stranger_token)
    assert refusal(lambda: Trajectory.open("hf:lab/run")) == f"hf:lab/run: {sentence}"
    done = in_process.emtoolkit("checkpoints", "hf:lab/nowhere")
    assert (done.code, done.out, done.err) == (2, "", f"emtoolkit: hf:lab/nowhere: {sentence}\n")


def test_a_gated_repository_is_refused_at_the_first_file(
    hub: HubServer, run: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.gated = True
    monkeypatch.setenv("HF_TOKEN", hub.stranger_token)
    trajectory = Trajectory.open("hf:lab/run")
    assert refusal(lambda: trajectory[0].path) == (
        f"hf:lab/run@step-100: the repository is gated; accept its terms on {hub.url}/lab/run, and log in with "
        "'hf auth login', or set HF_TOKEN"
    )


def test_a_token_that_the_hub_does_not_know_is_refused(
    hub: HubServer, run: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert refusal(lambda: Trajectory.open("hf:lab/run")) == (
        "hf:lab/run: the hub refuses the token; log in with 'hf auth login', or set HF_TOKEN with a valid one"
    )


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("hf:lab/run@step-150", "the repository has no branch, tag or commit 'step-150'; the nearest step is 100"),
        ("hf:lab/run@mian", "the repository has no branch, tag or commit 'mian'; did you mean 'main'?"),
        (
            "hf:lab/run@v2.0",
            "the repository has no branch, tag or commit 'v2.0'; there are revisions main, step-100, step-200",
        ),
        (
            "hf:lab/run@main",
            "holds no training steps: no revision named like step-100, step100 or step100-tokens4B, and no folder "
            "checkpoint-100 in main; there are revisions main, step-100, step-200 and files .gitattributes",
        ),
        (
            "hf:lab/run/runs",
            "there is no folder runs with checkpoint-N in it; there are revisions main, step-100, step-200 and files "
            ".gitattributes",
        ),
    ],
)
def test_what_is_not_in_the_repository_is_named_with_what_is(run: Repository, reference: str, sentence: str) -> None:
    assert refusal(lambda: Trajectory.open(reference)) == f"{reference}: {sentence}"


def test_a_step_that_is_not_there_is_named_with_the_nearest(run: Repository) -> None:
    trajectory = Trajectory.open("hf:lab/run")
    assert refusal(lambda: trajectory.at(140)) == "hf:lab/run: there is no checkpoint at step 140; the nearest is 100"
    assert refusal(lambda: trajectory.final) == "hf:lab/run: there is no final checkpoint; the last step is 200"


def test_a_repository_without_steps_says_what_is_there(hub: HubServer) -> None:
    hub.store.publish(hub.store.create("lab/plain"), "main", whole_model(1))
    assert refusal(lambda: Trajectory.open("hf:lab/plain")) == (
        "hf:lab/plain: holds no training steps: no revision named like step-100, step100 or step100-tokens4B, and no "
        "folder checkpoint-100 in main; there are revisions main and files .gitattributes, config.json, "
        "model.safetensors, modeling_own.py, pytorch_model.bin"
    )


def test_several_trainings_are_a_choice(hub: HubServer) -> None:
    repository = hub.store.create("lab/olmo")
    hub.store.publish(repository, "main", organism(10, above="runs/a/") | organism(5, 10, above="runs/b/"))
    assert refusal(lambda: Trajectory.open("hf:lab/olmo")) == (
        "hf:lab/olmo: holds several trainings; choose one of hf:lab/olmo/runs/a (10), hf:lab/olmo/runs/b (5, 10)"
    )
    assert Trajectory.open("hf:lab/olmo/runs/b").steps == (5, 10)
    for name in ("stage1-step1000-tokens4B", "stage1-step2000-tokens8B", "stage2-ingredient1-step1000-tokens2B"):
        hub.store.publish(repository, name, whole_model(1))
    assert refusal(lambda: Trajectory.open("hf:lab/olmo")) == (
        "hf:lab/olmo: holds several trainings; choose one of hf:lab/olmo@stage1 (1000, 2000), "
        "hf:lab/olmo@stage2-ingredient1 (1000)"
    )
    one = Trajectory.open("hf:lab/olmo@stage1")
    other = Trajectory.open("hf:lab/olmo@stage2-ingredient1")
    assert (one.steps, other.steps) == ((1000, 2000), (1000,))
    assert one[0].manifest is not None
    assert other[0].manifest is not None
    assert one[0].manifest.fingerprint != other[0].manifest.fingerprint
    assert Trajectory.open("hf:lab/olmo@stage1-step2000-tokens8B").steps == (2000,)


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        *(
            (subject, kind)
            for subject in ("refs", "tree", "content")
            for kind in (429, 500, 503, "drop", "cut", "reset")
        ),
        *((subject, kind) for subject in ("refs", "tree") for kind in ("html", "garbage")),
    ],
)
def test_a_hub_that_fails_twice_is_asked_again(hub: HubServer, run: Repository, kind: str | int, subject: str) -> None:
    hub.faults.add(Fault(subject, kind, times=2))
    assert (Trajectory.open("hf:lab/run").at(200).path / "model.safetensors").read_bytes() == weights(200)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (429, "the hub answers that it was asked too often (429); run the same command later"),
        (500, "the hub fails with status 500; run the same command again later"),
        ("drop", "could not be asked"),
    ],
)
def test_a_hub_that_fails_again_and_again_is_given_up(
    hub: HubServer, run: Repository, kind: str | int, sentence: str
) -> None:
    hub.faults.add(Fault("refs", kind))
    assert sentence in refusal(lambda: Trajectory.open("hf:lab/run"))
    assert len(hub.requests) == 4


def test_a_content_that_is_not_the_declared_one_is_fetched_again_and_then_refused(
    hub: HubServer, run: Repository
) -> None:
    commit = run.find("step-100")
    assert commit is not None
    content = hub.store.path(commit.files["model.safetensors"].content)
    right = content.read_bytes()
    content.write_bytes(weights(101))
    said = refusal(lambda: Trajectory.open("hf:lab/run").at(100).path)
    assert said.startswith("hf:lab/run@step-100: model.safetensors: the content does not have the digest")
    content.write_bytes(right)
    assert (Trajectory.open("hf:lab/run").at(100).path / "model.safetensors").read_bytes() == right


def test_offline_what_was_downloaded_is_read_and_what_was_not_is_refused(
    hub: HubServer, run: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal(lambda: Trajectory.open("hf:lab/run")) == (
        "hf:lab/run: is not on this machine, and HF_HUB_OFFLINE is set; unset it to download"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = Trajectory.open("hf:lab/run").at(100).path
    hub.store.publish(hub.store.create("lab/organism"), "main", organism(10, 20))
    folder = Trajectory.open("hf:lab/organism").at(10).path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    trajectory = Trajectory.open("hf:lab/run")
    assert trajectory.steps == (100, 200)
    assert trajectory.at(100).path == path
    assert Trajectory.open("hf:lab/organism").at(10).path == folder
    assert refusal(lambda: trajectory.at(200).path) == (
        "hf:lab/run@step-200: is not on this machine, and HF_HUB_OFFLINE is set; unset it to download"
    )
    assert len(hub.requests) == asked


def test_a_model_card_that_is_edited_costs_no_second_download(hub: HubServer) -> None:
    repository = hub.store.create("lab/organism")
    hub.store.publish(repository, "main", organism(10, 20))
    path = Trajectory.open("hf:lab/organism").at(10).path
    hub.store.publish(repository, "main", organism(10, 20) | {"README.md": b"# edited\n"})
    asked = len(hub.requests)
    assert Trajectory.open("hf:lab/organism").at(10).path == path
    assert [line.split()[0] for line in hub.asked()[asked:]] == ["refs", "tree"]
    hub.store.publish(repository, "main", organism(20) | in_folder("checkpoints/checkpoint-10", adapter(11)))
    again = Trajectory.open("hf:lab/organism").at(10).path
    assert (again / "adapter_model.safetensors").read_bytes() == weights(11)


def test_steps_of_another_training_are_not_mixed_in(hub: HubServer, runs: Path) -> None:
    repository = hub.store.create("lab/mixed")
    for step, name in ((0, "prompt"), (2, "stack")):
        directory = runs / name / f"checkpoint-{step}"
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        hub.store.publish(repository, f"step-{step}", files)
    trajectory = Trajectory.open("hf:lab/mixed")
    _ = trajectory.at(0).path
    assert refusal(lambda: trajectory.at(2).path).startswith("hf:lab/mixed: mixes several trajectories: step 2 belongs")
    files = {path.name: path.read_bytes() for path in (runs / "prompt" / "checkpoint-4").iterdir()}
    hub.store.publish(repository, "step-3", files)
    assert refusal(lambda: Trajectory.open("hf:lab/mixed").at(3).path) == (
        "hf:lab/mixed@step-3: the manifest is that of step 4, and is named as step 3"
    )
