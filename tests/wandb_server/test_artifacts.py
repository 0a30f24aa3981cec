"""Artifacts have versions, aliases and files as on W&B."""

from pathlib import Path

import pytest
import requests
import wandb

from tests.processes import HANG_SECONDS
from tests.wandb_server import WandbServer
from tests.wandb_server.processes import run_script
from tests.wandb_server.publishing import COMMIT, ask, create, md5, publish, upload
from tests.wandb_server.store import Collection

LOG = """
import json, pathlib, wandb
versions = []
with wandb.init(project="proj", id="maker") as run:
    for step, weights in enumerate([b"one", b"two", b"one"]):
        here = pathlib.Path(f"checkpoint-{step}")
        here.mkdir()
        (here / "weights.bin").write_bytes(weights)
        (here / "sub").mkdir()
        (here / "sub" / "empty.txt").touch()
        artifact = wandb.Artifact("traj", type="model", metadata={"step": step})
        artifact.add_dir(str(here), policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=[f"step-{step}"], tags=[f"step-{step}"]).wait()
        versions.append(artifact.version)
with wandb.init(project="proj", id="user") as run:
    run.use_artifact("traj:step-1")
with wandb.init(project="proj", id="changer") as run:
    draft = run.use_artifact("traj:v1").new_draft()
    pathlib.Path("more.txt").write_text("more")
    draft.add_file("more.txt")
    run.log_artifact(draft).wait()
print(json.dumps(versions))
"""


def collection(server: WandbServer, name: str = "traj") -> Collection:
    return server.store.project("tester", "proj").collections[name]


def test_the_real_client_logs_uses_changes_links_and_downloads(wandb_server: WandbServer, tmp_path: Path) -> None:
    versions = run_script(LOG, tmp_path / "work")

    assert versions == ["v0", "v1", "v0"], "the content of v0 again is v0"
    assert [v.aliases for v in collection(wandb_server).versions] == [["step-0", "step-2"], ["step-1"], ["latest"]]
    assert [v.tags for v in collection(wandb_server).versions] == [["step-0"], ["step-1"], []]
    uploads = [r.path.rsplit("/", 1)[-1] for r in wandb_server.requests if r.method == "PUT"]
    assert uploads.count("weights.bin") == 2
    assert uploads.count("empty.txt") == 1

    api = wandb.Api()
    assert [(a.version, a.metadata) for a in api.artifacts("model", "tester/proj/traj")][1:] == [
        ("v1", {"step": 1}),
        ("v0", {"step": 0}),
    ]
    artifact = api.artifact("tester/proj/traj:step-1")
    root = Path(artifact.download(str(tmp_path / "down")))
    assert (root / "weights.bin").read_bytes() == b"two"
    assert (root / "sub" / "empty.txt").read_bytes() == b""
    assert sorted(file.name for file in artifact.files()) == ["sub/empty.txt", "weights.bin"]
    assert (artifact.logged_by().id, [run.id for run in artifact.used_by()]) == ("maker", ["user", "changer"])

    changed = Path(api.artifact("tester/proj/traj:latest").download(str(tmp_path / "changed")))
    assert (changed / "weights.bin").read_bytes() == b"two", "a draft keeps what its base has"
    assert (changed / "more.txt").read_text() == "more"

    artifact.aliases.append("best")
    artifact.tags.append("kept")
    artifact.save()
    artifact.link("tester/proj/shelf", aliases=["prod"])
    assert api.artifact("tester/proj/traj:best").tags == ["step-1", "kept"]
    assert api.artifact("tester/proj/shelf:prod").digest == artifact.digest
    assert [c.name for c in api.artifact_type("model", "tester/proj").collections()] == ["traj", "shelf"]
    artifact.aliases.remove("best")
    artifact.save()
    assert "best" not in collection(wandb_server).aliases
    artifact.delete(delete_aliases=True)
    assert [v.index for v in collection(wandb_server).versions] == [0, 2]


def test_an_alias_moves_to_the_newest_version_that_claims_it(wandb_server: WandbServer) -> None:
    for number in range(3):
        publish(wandb_server, "proj", "traj", {"w": b"%d" % number}, aliases=(f"step-{number}", "best"))
    publish(wandb_server, "proj", "traj", {"w": b"1"}, aliases=("again",))

    aliases = [version.aliases for version in collection(wandb_server).versions]
    assert [sorted(held) for held in aliases] == [["step-0"], ["again", "latest", "step-1"], ["best", "step-2"]]


def test_a_commit_repeated_after_a_lost_answer_makes_no_second_version(wandb_server: WandbServer) -> None:
    artifact_id = publish(wandb_server, "proj", "traj", {"w": b"1"})

    ask(wandb_server, COMMIT, artifactID=artifact_id)

    assert [version.index for version in collection(wandb_server).versions] == [0]


def test_two_pending_artifacts_of_one_content_become_two_versions(wandb_server: WandbServer) -> None:
    files = {"w": b"1"}
    pending = [create(wandb_server, "proj", "traj", files) for _ in range(2)]
    for artifact in pending:
        upload(wandb_server, artifact["id"], files)
        ask(wandb_server, COMMIT, artifactID=artifact["id"])

    assert [version.index for version in collection(wandb_server).versions] == [0, 1]


def test_an_artifact_whose_file_did_not_arrive_is_not_committed(wandb_server: WandbServer) -> None:
    from tests.wandb_server.publishing import upload_manifest

    artifact = create(wandb_server, "proj", "traj", {"w": b"1"})
    upload_manifest(wandb_server, artifact["id"], {"w": b"1"})

    with pytest.raises(ValueError, match="w was not uploaded"):
        ask(wandb_server, COMMIT, artifactID=artifact["id"])
    assert collection(wandb_server).versions == []


def test_other_content_than_was_announced_is_refused(wandb_server: WandbServer) -> None:
    url = wandb_server.context.transfers.upload_url("w", lambda _blob: None, "00" * 16)

    assert requests.put(url, data=b"something else", timeout=HANG_SECONDS).status_code == 400


def test_versions_come_in_pages_newest_first(wandb_server: WandbServer) -> None:
    for step in range(25):
        publish(wandb_server, "proj", "traj", {"w": b"%d" % step}, tags=("late",) if step > 20 else ())
    api = wandb.Api()
    wandb_server.clear_requests()

    steps = [artifact.version for artifact in api.artifacts("model", "tester/proj/traj", per_page=10)]

    assert steps == [f"v{step}" for step in range(24, -1, -1)]
    assert [r.operation for r in wandb_server.requests] == ["ServerFeaturesQuery"] + ["ProjectArtifacts"] * 3
    assert len(list(api.artifacts("model", "tester/proj/traj", tags=["late"]))) == 4


def test_a_file_is_sent_in_parts_when_the_client_asks_for_parts(wandb_server: WandbServer) -> None:
    content, half = b"first second", 6
    artifact = create(wandb_server, "proj", "traj", {"w": content})
    parts = [
        {"partNumber": number, "hexMD5": wandb_server.context.transfers.blobs.put([piece]).md5}
        for number, piece in ((1, content[:half]), (2, content[half:]))
    ]
    query = """
    mutation CreateArtifactFiles($input: CreateArtifactFilesInput!) {
      createArtifactFiles(input: $input) { files { edges { node {
        storagePath uploadUrl uploadMultipartUrls { uploadID uploadUrlParts { partNumber uploadUrl } }
      } } } }
    }"""
    spec = {"artifactID": artifact["id"], "name": "w", "md5": md5(content), "uploadPartsInput": parts}
    answer = ask(wandb_server, query, input={"artifactFiles": [spec], "storageLayout": "V2"})
    node = answer["createArtifactFiles"]["files"]["edges"][0]["node"]
    assert node["uploadUrl"] is None
    for part in reversed(node["uploadMultipartUrls"]["uploadUrlParts"]):
        piece = content[:half] if part["partNumber"] == 1 else content[half:]
        assert requests.put(part["uploadUrl"], data=piece, timeout=HANG_SECONDS).headers["ETag"]
    complete = """
    mutation CompleteMultipartUploadArtifact($parts: [UploadPartsInput!]!, $id: ID!, $path: String!, $upload: String!) {
      completeMultipartUploadArtifact(input: {completeMultipartAction: Complete, completedParts: $parts,
        artifactID: $id, storagePath: $path, uploadID: $upload}) { digest }
    }"""
    upload_id = node["uploadMultipartUrls"]["uploadID"]
    done = ask(wandb_server, complete, parts=parts, id=artifact["id"], path=node["storagePath"], upload=upload_id)
    assert done == {"completeMultipartUploadArtifact": {"digest": md5(content)}}
    assert upload(wandb_server, artifact["id"], {"w": content}) == [], "the server has it now"


def test_a_download_can_be_continued_from_any_byte(wandb_server: WandbServer) -> None:
    transfers = wandb_server.context.transfers
    url = transfers.download_url(transfers.blobs.put([b"0123456789"]), "digits.txt")

    assert requests.get(url, timeout=HANG_SECONDS).content == b"0123456789"
    middle = requests.get(url, headers={"Range": "bytes=3-5"}, timeout=HANG_SECONDS)
    assert (middle.status_code, middle.content, middle.headers["Content-Range"]) == (206, b"345", "bytes 3-5/10")
    rest = requests.get(url, headers={"Range": "bytes=8-"}, timeout=HANG_SECONDS)
    assert (rest.status_code, rest.content) == (206, b"89")
    assert requests.get(url, headers={"Range": "bytes=10-"}, timeout=HANG_SECONDS).status_code == 416


def test_what_the_server_lacks_is_named(wandb_server: WandbServer) -> None:
    for query, gap in {
        "query Q { viewer { shoeSize } }": "shoeSize",
        "mutation M { createLaunchQueue(input: {}) { id } }": "createLaunchQueue",
        "query Q($x: Nonsense!) { viewer(of: $x) { id } }": "Nonsense",
    }.items():
        with pytest.raises(ValueError, match=gap):
            ask(wandb_server, query)


# Registries, teams and users are not what the tests are about.
ELSEWHERE = ("REGISTR", "TEAM", "USER", "INVITE", "ACCOUNT", "API_KEY", "LEGACY")


def test_every_document_that_the_client_holds_is_understood(wandb_server: WandbServer) -> None:
    from wandb.apis._generated import operations as general
    from wandb.sdk.artifacts._generated import operations as artifacts

    from tests.wandb_server.execution import gaps

    documents = {name: getattr(module, name) for module in (general, artifacts) for name in module.__all__}
    asked = {name: text for name, text in documents.items() if not any(word in name for word in ELSEWHERE)}
    assert len(asked) > 35
    assert {name: gaps(text) for name, text in asked.items() if gaps(text)} == {}
