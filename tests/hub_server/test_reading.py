"""What the hub's own client reads from the test server."""

import hashlib
from itertools import count
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import Fault, HubServer, Repository

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def repository(hub_server: HubServer) -> Repository:
    repository = hub_server.store.create("lab/run", private=True)
    hub_server.store.publish(
        repository,
        "step-2",
        {
            "config.json": b"{}\n",
            "checkpoints/checkpoint-2/adapter_model.safetensors": WEIGHTS,
            "checkpoints/checkpoint-2/adapter_config.json": b"{}",
        },
    )
    repository.tags["v1"] = repository.branches["main"]
    return repository


def test_refs_name_branches_and_tags_with_their_commits(hub_server: HubServer, repository: Repository) -> None:
    refs = HfApi().list_repo_refs("lab/run")
    assert {ref.name: ref.target_commit for ref in refs.branches} == repository.branches
    assert [(ref.name, ref.ref) for ref in refs.tags] == [("v1", "refs/tags/v1")]
    assert hub_server.asked() == ["refs /api/models/lab/run/refs"]


@pytest.mark.parametrize("page_size", [1000, 2])
def test_a_tree_is_listed_in_pages_with_sizes_and_digests(
    hub_server: HubServer, repository: Repository, page_size: int
) -> None:
    hub_server.page_size = page_size
    api = HfApi()
    assert [entry.path for entry in api.list_repo_tree("lab/run", revision="step-2")] == [
        ".gitattributes",
        "checkpoints",
        "config.json",
    ]
    under = list(api.list_repo_tree("lab/run", "checkpoints", revision="step-2", recursive=True))
    assert [entry.path for entry in under] == [
        "checkpoints/checkpoint-2",
        "checkpoints/checkpoint-2/adapter_config.json",
        "checkpoints/checkpoint-2/adapter_model.safetensors",
    ]
    lfs = under[-1].lfs  # type: ignore[union-attr]
    assert lfs is not None
    assert (lfs.size, lfs.sha256, lfs.pointer_size) == (10240, hashlib.sha256(WEIGHTS).hexdigest(), 130)
    assert under[1].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # type: ignore[union-attr]


def test_a_snapshot_has_the_files_of_its_revision(
    hub_server: HubServer, repository: Repository, tmp_path: Path
) -> None:
    folder = Path(snapshot_download("lab/run", revision="step-2", allow_patterns="checkpoints/*"))
    assert folder.is_relative_to(tmp_path)
    assert folder.name == repository.branches["step-2"]
    assert (folder / "checkpoints/checkpoint-2/adapter_model.safetensors").read_bytes() == WEIGHTS
    before = len(hub_server.requests)
    hf_hub_download("lab/run", "config.json", revision=repository.branches["step-2"])
    hf_hub_download("lab/run", "config.json", revision=repository.branches["step-2"])
    assert [name.split()[0] for name in hub_server.asked()[before:]] == [
        "resolve",  # HEAD, redirected
        "resolve_cache",
        "resolve_cache",  # GET; the second call finds the commit in the cache
    ]


def test_metadata_says_commit_etag_and_size(hub_server: HubServer, repository: Repository) -> None:
    path = "checkpoints/checkpoint-2/adapter_model.safetensors"
    found = get_hf_file_metadata(hf_hub_url("lab/run", path, revision="step-2"))
    assert found.commit_hash == repository.branches["step-2"]
    assert (found.etag, found.size) == (hashlib.sha256(WEIGHTS).hexdigest(), 10240)
    small = get_hf_file_metadata(hf_hub_url("lab/run", "config.json", revision="step-2"))
    assert (small.etag, small.size) == ("0967ef424bce6791893e9a57bb952f80fd536e93", 3)


def test_a_cut_download_goes_on_where_it_was_cut(
    hub_server: HubServer, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub_server.faults.add(Fault("content", "cut", times=1))
    path = "checkpoints/checkpoint-2/adapter_model.safetensors"
    assert Path(hf_hub_download("lab/run", path, revision="step-2")).read_bytes() == WEIGHTS
    assert [request.status for request in hub_server.requests if request.subject == "content"] == [200, 206]


@pytest.mark.parametrize("method", ["refs", "tree", "file"])
def test_what_is_missing_or_hidden_is_told_as_by_the_hub(
    hub_server: HubServer, repository: Repository, method: str, tmp_path: Path
) -> None:
    caches = (tmp_path / f"cache-{index}" for index in count())  # the client falls back to what a cache holds

    def ask(id: str, token: str | bool, revision: str = "step-2", path: str = "config.json") -> None:
        if method == "refs":
            HfApi().list_repo_refs(id, token=token)
        elif method == "tree":
            list(HfApi().list_repo_tree(id, revision=revision, token=token))
        else:
            hf_hub_download(id, path, revision=revision, token=token, cache_dir=next(caches))

    ask("lab/run", hub_server.read_token)
    for id, token in (
        ("lab/other", hub_server.token),
        ("lab/other", False),
        ("lab/run", hub_server.stranger_token),
        ("lab/run", False),
    ):
        with pytest.raises(RepositoryNotFoundError):
            ask(id, token)
    if method != "refs":
        with pytest.raises(RevisionNotFoundError):
            ask("lab/run", hub_server.token, "step-3")
    if method == "file":
        with pytest.raises(RemoteEntryNotFoundError):
            ask("lab/run", hub_server.token, path="other.json")
        repository.private, repository.gated = False, True
        for token in (hub_server.stranger_token, False):
            with pytest.raises(GatedRepoError):
                ask("lab/run", token)


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_the_hub_answers_with_the_status_that_it_was_told(
    hub_server: HubServer, repository: Repository, status: int
) -> None:
    hub_server.faults.add(Fault("refs", status))
    with pytest.raises(HfHubHTTPError) as raised:
        HfApi().list_repo_refs("lab/run")
    assert raised.value.response.status_code == status
