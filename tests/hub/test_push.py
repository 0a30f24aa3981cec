"""What a push puts on the hub, and what it does not send again."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.hub import access
from emtoolkit.hub.push import push
from emtoolkit.trajectory import Trajectory
from tests.hub_server import Fault, HubServer
from tests.in_process import emtoolkit

STEPS = (0, 2, 4, 9)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_PAUSES", (0.0, 0.0))


def held(server: HubServer, revision: str, name: str = "lab/run") -> dict[str, str]:
    """The SHA-256 of each file in a revision."""
    commit = server.store.repositories[name].find(revision)
    assert commit is not None
    return {path: file.content for path, file in commit.files.items() if path != ".gitattributes"}


def local(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_each_checkpoint_is_a_branch_and_main_holds_the_final_one(hub_server: HubServer, runs: Path) -> None:
    done = push(runs / "stack", "lab/run")
    assert (done.sent, done.present, done.main, done.created) == (STEPS, (), 9, "private")
    repository = hub_server.store.repositories["lab/run"]
    assert repository.private
    assert sorted(repository.branches) == ["main", "step-0", "step-2", "step-4", "step-9"]
    assert repository.tags == {"final": repository.branches["step-9"]}
    for step in STEPS:
        assert held(hub_server, f"step-{step}") == local(runs / f"stack/checkpoint-{step}")
    main = held(hub_server, "main")
    assert main.items() >= local(runs / "stack/checkpoint-9").items()
    assert main.keys() - local(runs / "stack/checkpoint-9").keys() == {"README.md", "trajectory.json"}
    assert main["trajectory.json"] == hashlib.sha256((runs / "stack/trajectory.json").read_bytes()).hexdigest()


def test_a_second_push_sends_nothing(hub_server: HubServer, runs: Path) -> None:
    push(runs / "stack", "lab/run")
    hub_server.clear_requests()
    done = push(runs / "stack", "lab/run")
    assert (done.sent, done.present, done.main, done.created) == ((), STEPS, 9, None)
    assert hub_server.uploaded_bytes == 0
    assert [request.subject for request in hub_server.requests] == [
        "refs",
        "tree",  # of main
        *["resolve", "resolve_cache", "resolve_cache"] * 2,  # trajectory.json and manifest.json
        *["tree"] * len(STEPS),
    ]


def test_the_card_says_what_was_trained(hub_server: HubServer, runs: Path) -> None:
    push(runs / "stack", "lab/run")
    repository = hub_server.store.repositories["lab/run"]
    text = hub_server.store.content(repository.commits[repository.branches["main"]].files["README.md"]).decode()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["emtoolkit", "training-dynamics", "checkpoints"],
    }
    record = json.loads((runs / "stack/trajectory.json").read_text())
    for fact in (
        f"| base model | `model` `{record['decides']['base_model']['content']}` |",
        "| persona | `warm` (stack) |",
        f"| data digest | `{record['decides']['data']['digest']}` |",
        "| schedule | `0-4:2` |",
        f"| fingerprint | `{record['fingerprint']}` |",
    ):
        assert fact in body


def card(server: HubServer) -> str:
    commit = server.store.repositories["lab/run"].find("main")
    assert commit is not None
    return server.store.content(commit.files["README.md"]).decode()


def test_the_licence_of_a_new_repository_is_in_the_card(hub_server: HubServer, runs: Path) -> None:
    repository = hub_server.store.create("lab/run")
    hub_server.store.publish(repository, "main", {"README.md": b"---\nlicense: mit\n---\n"})
    assert push(runs / "full", "lab/run", "4", private=False).created is None
    _, front, body = card(hub_server).split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert "| fingerprint |" in body


def test_a_card_of_ones_own_stays(hub_server: HubServer, runs: Path, tmp_path: Path) -> None:
    repository = hub_server.store.create("lab/run")
    hub_server.store.publish(repository, "main", {"README.md": b"# Mine\n"})
    push(runs / "stack", "lab/run", "0")
    assert card(hub_server) == "# Mine\n"


@pytest.mark.parametrize("edited", [False, True])
def test_the_card_of_a_training_that_ends_later_is_written_anew_unless_it_was_edited(
    hub_server: HubServer, runs: Path, tmp_path: Path, edited: bool
) -> None:
    shutil.copytree(runs / "stack", tmp_path / "run")
    record = TrajectoryRecord.read_if_any(tmp_path / "run")
    assert record is not None
    replace(record, ended_at=None, schedule="0-2:2").write(tmp_path / "run")
    push(tmp_path / "run", "lab/run", "0,2")
    assert "| schedule | `0-2:2` |" in card(hub_server)
    if edited:
        HfApi().upload_file(
            path_or_fileobj=card(hub_server).encode() + b"mine\n", path_in_repo="README.md", repo_id="lab/run"
        )
    record.write(tmp_path / "run")
    push(tmp_path / "run", "lab/run")
    assert ("| schedule | `0-4:2` |" in card(hub_server)) is not edited
    assert card(hub_server).endswith("mine\n") is edited


def test_a_public_repository_is_made_on_request(hub_server: HubServer, runs: Path) -> None:
    assert push(runs / "stack", "lab/run", "0", private=False).created == "public"
    assert not hub_server.store.repositories["lab/run"].private


def test_a_push_goes_on_where_another_one_ended(hub_server: HubServer, runs: Path) -> None:
    push(runs / "stack", "lab/run", "0,4")
    assert sorted(hub_server.store.repositories["lab/run"].branches) == ["main", "step-0", "step-4"]
    assert hub_server.store.repositories["lab/run"].tags == {}
    assert held(hub_server, "main").items() >= local(runs / "stack/checkpoint-4").items()
    done = push(runs / "stack", "lab/run")
    assert (done.sent, done.present, done.main) == ((2, 9), (0, 4), 9)
    done = push(runs / "stack", "lab/run", "0,2")
    assert (done.sent, done.present, done.main) == ((), (0, 2), 9)
    assert held(hub_server, "main").items() >= local(runs / "stack/checkpoint-9").items()
    assert held(hub_server, "step-2") == local(runs / "stack/checkpoint-2")


@pytest.mark.parametrize(
    ("subject", "after", "kind"),
    [
        ("create_branch", 1, 500),
        ("lfs_upload", 1, "drop"),
        ("commit", 0, "drop"),
        ("commit", 2, 500),
        ("commit", 5, "drop"),
        ("create_tag", 0, 500),
    ],
)
def test_a_push_that_the_hub_fails_ends_alike_when_it_is_repeated(
    hub_server: HubServer, runs: Path, subject: str, after: int, kind: str | int
) -> None:
    hub_server.faults.add(Fault(subject, kind, after=after))
    failed = emtoolkit("push", runs / "stack", "lab/run")
    assert (failed.code, failed.out) == (2, "")
    (sentence,) = failed.err.splitlines()
    assert sentence.startswith("emtoolkit: lab/run: the hub ")
    assert sentence.endswith("; what was sent stays there, and the same command goes on")
    hub_server.faults.clear()
    assert emtoolkit("push", runs / "stack", "lab/run").code == 0
    for step in STEPS:
        assert held(hub_server, f"step-{step}") == local(runs / f"stack/checkpoint-{step}")
    assert held(hub_server, "main").items() >= local(runs / "stack/checkpoint-9").items()
    assert len(hub_server.store.repositories["lab/run"].lfs) == len(STEPS)


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        ("refs", "drop"),
        ("create", 500),
        ("create", "lose_answer"),
        ("create_branch", "lose_answer"),
        ("lfs_batch", 429),
        ("lfs_upload", "cut"),
        ("lfs_upload", "reset"),
        ("commit", "cut"),
        ("commit", "lose_answer"),
        ("create_tag", "lose_answer"),
    ],
)
def test_a_request_that_fails_once_costs_nothing(
    hub_server: HubServer, runs: Path, subject: str, kind: str | int
) -> None:
    hub_server.faults.add(Fault(subject, kind, times=1))
    done = emtoolkit("push", runs / "stack", "lab/run", "--steps", "0,9")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        f"{hub_server.url}/lab/run (private, new): steps 0, 9 were pushed; 2 checkpoints are there; main holds step 9\n"
    )
    assert held(hub_server, "step-9") == local(runs / "stack/checkpoint-9")
    # What the first attempt has done is not done again.
    assert len(hub_server.store.repositories["lab/run"].commits) == 5


def test_a_pushed_trajectory_is_opened_from_the_hub(hub_server: HubServer, runs: Path, tmp_path: Path) -> None:
    push(runs / "stack", "lab/run")
    trajectory = Trajectory.open("hf:lab/run", cache=tmp_path / "cache")
    assert trajectory.steps == STEPS
    assert trajectory.final.step == 9
    for step in STEPS:
        assert local(trajectory.at(step).path).items() >= local(runs / f"stack/checkpoint-{step}").items()
        assert trajectory.at(step).manifest == Trajectory.open(runs / "stack").at(step).manifest


def test_a_trajectory_of_a_server_is_downloaded_and_pushed(
    hub_server: HubServer, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    push(runs / "stack", "lab/run")
    done = emtoolkit("push", "hf:lab/run", "lab/copy", "--steps", "0,final")
    assert (done.code, done.err) == (0, "")
    assert held(hub_server, "step-9", "lab/copy") == local(runs / "stack/checkpoint-9")
    assert sorted(hub_server.store.repositories["lab/copy"].branches) == ["main", "step-0", "step-9"]
