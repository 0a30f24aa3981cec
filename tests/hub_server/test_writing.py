"""What the hub's own client writes to the test server."""

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from tests.hub_server import Fault, HubServer

WEIGHTS = bytes(range(256)) * 40


def additions(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path.replace("__", "."), content) for path, content in files.items()]


def commit(revision: str = "main", **files: bytes) -> str:
    return HfApi().create_commit("lab/run", additions(**files), commit_message="add", revision=revision).oid


def test_a_commit_to_a_branch_holds_its_files(hub_server: HubServer) -> None:
    api = HfApi()
    assert api.create_repo("lab/run", private=True).repo_id == "lab/run"
    assert api.create_repo("lab/run", exist_ok=True).repo_id == "lab/run"
    api.create_branch("lab/run", branch="step-2")
    oid = commit("step-2", model__safetensors=WEIGHTS, README__md=b"---\ntags: [a]\n---\n")
    repository = hub_server.store.repositories["lab/run"]
    assert repository.private
    assert repository.branches["step-2"] == oid
    files = repository.commits[oid].files
    assert list(files) == [".gitattributes", "model.safetensors", "README.md"]
    assert hub_server.store.content(files["model.safetensors"]) == WEIGHTS
    assert hub_server.uploaded_bytes == 10240 + 18
    assert hub_server.asked("lfs_batch", "lfs_upload", "lfs_verify", "commit") == [
        "lfs_batch /lab/run.git/info/lfs/objects/batch",
        f"lfs_upload /upload/lab/run/{files['model.safetensors'].sha256}",
        "lfs_verify /lab/run.git/info/lfs/verify",
        "commit /api/models/lab/run/commit/step-2",
    ]


def test_a_content_that_the_repository_holds_is_not_sent_again(hub_server: HubServer) -> None:
    HfApi().create_repo("lab/run")
    commit(model__safetensors=WEIGHTS)
    sent = hub_server.uploaded_bytes
    commit(other__safetensors=WEIGHTS)
    assert commit(other__safetensors=WEIGHTS) == hub_server.store.repositories["lab/run"].branches["main"]
    assert hub_server.uploaded_bytes == sent
    assert len(hub_server.asked("commit")) == 2


def test_files_are_deleted_and_branches_and_tags_come_and_go(hub_server: HubServer) -> None:
    api = HfApi()
    api.create_repo("lab/run")
    first = commit(a__txt=b"a", b__txt=b"b")
    api.create_commit("lab/run", [CommitOperationDelete("a.txt")], commit_message="delete")
    assert api.list_repo_files("lab/run") == [".gitattributes", "b.txt"]
    api.create_branch("lab/run", branch="step-1", revision=first)
    assert api.list_repo_files("lab/run", revision="step-1") == [".gitattributes", "a.txt", "b.txt"]
    api.create_branch("lab/run", branch="step-1", exist_ok=True)
    api.create_tag("lab/run", tag="v1", revision=first)
    assert [each.title for each in api.list_repo_commits("lab/run")] == ["delete", "add", "initial commit"]
    api.delete_tag("lab/run", tag="v1")
    api.delete_branch("lab/run", branch="step-1")
    repository = hub_server.store.repositories["lab/run"]
    assert (list(repository.branches), repository.tags) == (["main"], {})


def test_only_a_token_with_the_right_may_write(hub_server: HubServer) -> None:
    HfApi().create_repo("lab/run")
    for token, status in ((hub_server.read_token, 403), (hub_server.stranger_token, 403), ("hf_wrong", 401)):
        api = HfApi(token=token)
        with pytest.raises(HfHubHTTPError) as raised:
            api.create_repo("lab/other")
        assert raised.value.response.status_code == status
        with pytest.raises(HfHubHTTPError) as raised:
            api.create_commit("lab/run", additions(a__txt=b"a"), commit_message="add")
        assert raised.value.response.status_code == status
    with pytest.raises(RepositoryNotFoundError):
        HfApi().create_commit("lab/other", additions(a__txt=b"a"), commit_message="add")
    assert hub_server.uploaded_bytes == 0


def test_a_commit_on_an_old_parent_is_refused(hub_server: HubServer) -> None:
    HfApi().create_repo("lab/run")
    old = hub_server.store.repositories["lab/run"].branches["main"]
    commit(a__txt=b"a")
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi().create_commit("lab/run", additions(b__txt=b"b"), commit_message="add", parent_commit=old)


@pytest.mark.parametrize("kind", ["cut", "drop", 429, 500])
def test_a_failed_upload_is_sent_again_by_the_client(hub_server: HubServer, kind: str | int) -> None:
    HfApi().create_repo("lab/run")
    hub_server.faults.add(Fault("lfs_upload", kind, times=1))
    commit(model__safetensors=WEIGHTS)
    assert len(hub_server.asked("lfs_upload")) == 2
    assert hub_server.uploaded_bytes == 10240
