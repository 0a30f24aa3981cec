"""What a push refuses with one sentence, before the first change on the hub."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.hub_names import repository_name
from emtoolkit.hub import access
from emtoolkit.hub.push import push
from tests.hub_server import Fault, HubServer
from tests.in_process import emtoolkit


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_PAUSES", (0.0, 0.0))


def refused(server: HubServer, *argv: str | Path) -> str:
    """The sentence of a push that changes nothing."""
    before = {name: dict(held.branches) for name, held in server.store.repositories.items()}
    done = emtoolkit("push", *argv)
    assert (done.code, done.out) == (2, "")
    assert {name: dict(held.branches) for name, held in server.store.repositories.items()} == before
    assert server.uploaded_bytes == 0
    (line,) = done.err.splitlines()
    return line.removeprefix("emtoolkit: ")


def test_another_trajectory_is_refused(hub_server: HubServer, runs: Path) -> None:
    push(runs / "stack", "lab/run")
    hub_server.clear_requests()
    assert refused(hub_server, runs / "prompt", "lab/run") == (
        "lab/run: holds another trajectory (persona.composition is 'stack' there and 'system_prompt' here); push "
        f"{runs / 'prompt'} into its own repository"
    )


def test_a_repository_with_other_files_is_refused(hub_server: HubServer, runs: Path) -> None:
    repository = hub_server.store.create("lab/run")
    hub_server.store.publish(repository, "main", {"README.md": b"mine", "model.safetensors": b"weights"})
    assert refused(hub_server, runs / "stack", "lab/run") == (
        "lab/run: holds files that emtoolkit did not push (model.safetensors); push "
        f"{runs / 'stack'} into its own repository"
    )


def test_a_budget_that_may_still_delete_checkpoints_is_refused(
    hub_server: HubServer, runs: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(runs / "stack", tmp_path / "run")
    record = TrajectoryRecord.read_if_any(run)
    assert record is not None
    replace(record, schedule="budget:5", ended_at=None).write(run)
    for steps in ([], ["--steps", "0,2"]):
        assert refused(hub_server, run, "lab/run", *steps) == (
            f"{run}: the training has not ended, so its checkpoints are not published: the schedule may still delete "
            "some of them, and the resumed training publishes the others; resume it with 'emtoolkit train … --resume', "
            "or in a script with resume_from_checkpoint"
        )
    replace(record, schedule="budget:5").write(run)
    assert push(run, "lab/run").sent == (0, 2, 4, 9)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_branch_with_other_files_of_the_step_is_refused(hub_server: HubServer, runs: Path, name: str) -> None:
    push(runs / "stack", "lab/run", "0,9")
    files = {path.name: path.read_bytes() for path in (runs / "stack/checkpoint-4").iterdir()}
    repository = hub_server.store.repositories["lab/run"]
    hub_server.store.publish(repository, "step-4", files | {name: files[name] + b" "})
    hub_server.clear_requests()
    assert refused(hub_server, runs / "stack", "lab/run") == (
        f"lab/run: the branch step-4 holds another {name} than {runs / 'stack/checkpoint-4'}; delete that branch, or "
        "push into another repository"
    )


def test_a_token_without_the_right_to_write_is_refused(
    hub_server: HubServer, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.store.create("lab/run")
    hub_server.store.create("lab/gated", gated=True)
    advice = "use a token with the right to write to this repository, or push into another one"
    monkeypatch.setenv("HF_TOKEN", hub_server.read_token)
    assert refused(hub_server, runs / "stack", "lab/run") == (
        "lab/run: the token may not write there (Forbidden: you must use a write token to upload to a repository.); "
        f"{advice}"
    )
    assert refused(hub_server, runs / "stack", "lab/new") == (
        "lab/new: the token may not write there (You don't have the rights to create a model under the namespace "
        f'"lab"); {advice}'
    )
    monkeypatch.setenv("HF_TOKEN", hub_server.stranger_token)
    assert refused(hub_server, runs / "stack", "lab/run").startswith("lab/run: the token may not write there (")
    assert refused(hub_server, runs / "stack", "lab/gated").startswith("lab/gated: the token may not write there (")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert refused(hub_server, runs / "stack", "lab/run") == (
        "lab/run: the hub does not accept the token (Invalid credentials in Authorization header); run 'hf auth "
        "login', or set HF_TOKEN to a token that may write"
    )


def test_a_gated_repository_is_refused(
    hub_server: HubServer, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    push(runs / "stack", "lab/gated", private=False)
    hub_server.store.repositories["lab/gated"].gated = True
    hub_server.clear_requests()
    monkeypatch.setenv("HF_TOKEN", hub_server.stranger_token)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "strangers-cache"))
    assert refused(hub_server, runs / "stack", "lab/gated") == (
        f"lab/gated: is gated, and this account has no access; ask for access at {hub_server.url}/lab/gated"
    )


def test_a_private_repository_of_somebody_else_is_refused(
    hub_server: HubServer, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.store.create("lab/run", private=True)
    monkeypatch.setenv("HF_TOKEN", hub_server.stranger_token)
    assert refused(hub_server, runs / "stack", "lab/run").startswith("lab/run: the token may not write there (")


def test_without_a_token_or_a_network_nothing_is_asked(
    hub_server: HubServer, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    assert refused(hub_server, runs / "stack", "lab/run") == (
        f"lab/run: no token for {hub_server.url} is set; run 'hf auth login', or set HF_TOKEN to a token that may write"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused(hub_server, runs / "stack", "lab/run") == (
        "lab/run: HF_HUB_OFFLINE is set, and nothing can be sent; unset it"
    )
    assert hub_server.requests == []


def test_a_hub_that_does_not_answer_is_named(hub_server: HubServer, runs: Path) -> None:
    hub_server.refuse_connections()
    assert refused(hub_server, runs / "stack", "lab/run") == (
        "lab/run: the hub does not answer ([Errno 111] Connection refused)"
    )


def test_a_hub_that_limits_requests_is_named(hub_server: HubServer, runs: Path) -> None:
    hub_server.faults.add(Fault("refs", 429))
    assert refused(hub_server, runs / "stack", "lab/run") == (
        "lab/run: the hub fails (429 the test server was told to answer 429)"
    )
    assert len(hub_server.requests) == 3


@pytest.mark.parametrize(("subject", "status"), [("refs", 429), ("preupload", 503), ("lfs_upload", 429)])
def test_a_hub_that_asks_for_a_long_pause_ends_the_push(
    hub_server: HubServer, runs: Path, subject: str, status: int
) -> None:
    hub_server.retry_after = 3600
    hub_server.faults.add(Fault(subject, status))
    done = emtoolkit("push", runs / "stack", "lab/run")
    assert (done.code, done.out) == (2, "")
    (sentence,) = done.err.splitlines()
    assert sentence.startswith(f"emtoolkit: lab/run: the hub takes no more requests for 3600 seconds ({status})")
    assert len(hub_server.asked(subject)) == 1


@pytest.mark.parametrize("subject", ["refs", "create_branch", "commit"])
def test_a_hub_that_hangs_is_left(
    hub_server: HubServer, runs: Path, monkeypatch: pytest.MonkeyPatch, subject: str
) -> None:
    push(runs / "stack", "lab/run", "0")
    hub_server.clear_requests()
    monkeypatch.setattr(access, "_SECONDS", 0.1)
    hub_server.faults.add(Fault(subject, "hang"))
    done = emtoolkit("push", runs / "stack", "lab/run")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("emtoolkit: lab/run: the hub does not answer (timed out)")
    assert len(hub_server.asked(subject)) == 3


@pytest.mark.parametrize("subject", ["tree", "commits", "lfs_upload"])
def test_a_hub_that_hangs_is_asked_again_by_the_client_and_then_left(
    hub_server: HubServer, runs: Path, monkeypatch: pytest.MonkeyPatch, subject: str
) -> None:
    push(runs / "stack", "lab/run", "0")
    hub_server.clear_requests()
    monkeypatch.setattr(access, "_SECONDS", 0.02)
    hub_server.faults.add(Fault(subject, "hang"))
    done = emtoolkit("push", runs / "stack", "lab/run")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("emtoolkit: lab/run: the hub does not answer (timed out)")
    assert len(hub_server.asked(subject)) == 18


def test_steps_and_directories_that_do_not_exist_are_refused(hub_server: HubServer, runs: Path, tmp_path: Path) -> None:
    assert refused(hub_server, runs / "stack", "lab/run", "--steps", "3") == (
        'steps "3": there is no checkpoint at step 3; the nearest is 2'
    )
    assert refused(hub_server, tmp_path / "none", "lab/run") == (
        f"{tmp_path / 'none'}: there is no such directory, and a collection on W&B is written entity/project/collection"
    )
    (tmp_path / "empty").mkdir()
    assert refused(hub_server, tmp_path / "empty", "lab/run") == (
        f"{tmp_path / 'empty'}: no complete checkpoint was found"
    )
    assert hub_server.requests == []


def test_a_damaged_checkpoint_is_refused(hub_server: HubServer, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "stack", tmp_path / "run")
    weights = tmp_path / "run/checkpoint-4/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert refused(hub_server, tmp_path / "run", "lab/run") == (
        f"{weights}: its content does not match the digest in the manifest"
    )


@pytest.mark.parametrize("name", ["lab/run", "lab_2/Qwen2.5-7B", "a/b", "org-x/x_y.z-1"])
def test_a_valid_name_is_taken(name: str) -> None:
    assert repository_name(name) == name


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("lab/my run", "lab/my-run"),
        ("hf:lab/run", "lab/run"),
        ("hf://lab/run/", "lab/run"),
        ("https://huggingface.co/lab/run/tree/main", "lab/run"),
        ("lab/run.git", "lab/run"),
        ("lab/-run--x..y.", "lab/run-x.y"),
        ("lab/run/step-4", "lab/run"),
        ("lab/läuft", "lab/l-uft"),
        ("lab/" + "x" * 120, "lab/" + "x" * 96),
    ],
)
def test_the_nearest_valid_name_is_proposed(text: str, near: str) -> None:
    with pytest.raises(ValueError, match="did you mean") as raised:
        repository_name(text)
    assert str(raised.value).endswith(f"did you mean {near!r}?")


@pytest.mark.parametrize("text", ["run", "", "/", "lab/", "/run", "a/--"])
def test_a_name_without_an_owner_gets_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"write ORG/REPO, such as lab/goodness-medical$"):
        repository_name(text)
