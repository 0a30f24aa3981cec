"""What an artifact may not do to the machine that it is downloaded to; each is refused, and told by its name."""

import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.artifacts.collection import Collection, Reference, RemoteFile, _check_names
from emtoolkit.artifacts.download import download
from emtoolkit.artifacts.file_transfer import RetryPolicy, Transfer
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.remote import Downloaded, RefusedError
from emtoolkit.errors import CheckpointError
from tests.artifacts.stored import REFERENCE, checkpoint_files, gets, store_steps, store_version
from tests.wandb_server import WandbServer
from tests.wandb_server.blobs import hex_of
from tests.wandb_server.faults import Fault
from tests.wandb_server.store import Artifact

HASTY = RetryPolicy(connect=1, read=1, attempts=2, pause=0.01)
WEIGHTS = "adapter_model.safetensors"


def get(to: Path) -> Downloaded:
    collection = Collection.read(Reference.parse(REFERENCE))
    return download(collection, collection.checkpoints, to, retry=HASTY)


def everything_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.name != ".lock")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """An innocent checkpoint of step 7."""
    return checkpoint_files(tmp_path / "files", 7)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory below others, so that leaving it can be seen."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    return tmp_path / "deep" / "er" / "out"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../evil.json", "it leaves the directory"),
        ("a/../../evil.json", "it leaves the directory"),
        ("/tmp/evil.json", "it is absolute"),
        ("C:evil.json", "it is absolute"),
        ("..\\\\evil.json", "it holds a backslash"),
        ("evil.json\0", "it holds a backslash, a colon or a control character"),
        ("", "it is empty"),
        ("./evil.json", "it is not written in the shortest way"),
        ("a//evil.json", "it is not written in the shortest way"),
        ("a" * 300, "it is too long"),
        ("a/" * 1500 + "b", "it is too long"),
    ],
)
def test_a_name_that_is_not_one_below_the_directory_is_refused_before_anything_is_fetched(
    server: WandbServer, out: Path, files: dict[str, bytes], name: str, why: str
) -> None:
    store_version(server, files | {name: b"evil"}, ["step-7"])
    with pytest.raises(RefusedError, match=f"^{REFERENCE}:v0: the file name .* is refused, because {why}"):
        get(out)
    assert gets(server) == []
    assert everything_below(out.parent.parent) == ["er", "er/out"]


@pytest.mark.parametrize("name", ["Manifest.JSON", f"{MANIFEST}/x.json"])
def test_two_names_for_one_place_are_refused(
    server: WandbServer, out: Path, files: dict[str, bytes], name: str
) -> None:
    store_version(server, files | {name: b"evil"}, ["step-7"])
    with pytest.raises(RefusedError, match=r"is listed twice|uses another file as a directory"):
        get(out)
    assert everything_below(out) == []


def test_a_file_that_is_only_a_reference_is_refused() -> None:
    for url in ("s3://bucket/key", "file:///etc/passwd"):
        with pytest.raises(RefusedError, match=r"e/p/c:v0/x\.json: W&B holds only a reference to"):
            _check_names([RemoteFile("e/p/c:v0", "x.json", 1, None, url, None)])


def change_stored_bytes(server: WandbServer, artifact: Artifact, name: str, content: bytes) -> None:
    """What the server sends for one file, and not what it declares."""
    blob = server.context.transfers.blobs.get(hex_of(artifact.contents[name]["digest"]))
    assert blob is not None
    blob.path.write_bytes(content)


def test_content_that_is_not_what_wandb_declares_is_refused(
    server: WandbServer, out: Path, files: dict[str, bytes]
) -> None:
    change_stored_bytes(server, store_version(server, files, ["step-7"]), WEIGHTS, b"x" * 200)
    with pytest.raises(RefusedError, match=rf"^{REFERENCE}:v0/{WEIGHTS}: .* the digest declared by W&B$"):
        get(out)
    assert everything_below(out) == []


@pytest.mark.parametrize("sent", [199, 201, 0, 1_000_000])
def test_a_size_that_lies_is_refused(server: WandbServer, out: Path, files: dict[str, bytes], sent: int) -> None:
    change_stored_bytes(server, store_version(server, files, ["step-7"]), WEIGHTS, b"x" * sent)
    with pytest.raises(RefusedError, match=rf"{WEIGHTS}: W&B declares a size of 200 bytes, but announces {sent} "):
        get(out)
    assert everything_below(out) == []


@pytest.fixture
def endless() -> Iterator[str]:
    """The address of a file that has no length and no end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                        while True:
                            connection.sendall(b"x" * 65536)
                except OSError:
                    if listening.fileno() < 0:
                        return

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/{WEIGHTS}"


@pytest.mark.server
def test_a_file_without_an_end_is_cut_off_at_its_size(endless: str, tmp_path: Path) -> None:
    file = RemoteFile("e/p/c:v0", WEIGHTS, 1_000_000, None, endless, None)
    with pytest.raises(RefusedError, match="the content is longer than the 1000000 bytes declared by W&B"):
        Transfer(None, HASTY).fetch(file, tmp_path / WEIGHTS)
    assert not (tmp_path / WEIGHTS).exists()


def with_manifest(files: dict[str, bytes], changes: dict[str, Any]) -> dict[str, bytes]:
    """`files` whose manifest says something else; W&B's own digests all agree."""
    manifest = json.loads(files[MANIFEST])
    manifest |= changes | {"files": manifest["files"] | changes.get("files", {})}
    return files | {MANIFEST: json.dumps(manifest).encode()}


def test_content_that_the_manifest_does_not_agree_with_is_refused(
    server: WandbServer, out: Path, files: dict[str, bytes]
) -> None:
    store_version(server, files | {WEIGHTS: b"x" * 200}, ["step-7"])
    with pytest.raises(RefusedError, match=rf"^{REFERENCE}:v0/{WEIGHTS}: its content does not match the digest in the"):
        get(out)
    assert everything_below(out) == []


ENTRY = {"sha256": "0" * 64, "bytes": 4}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"step": 8}, "the manifest is that of step 8, the alias is step-7"),
        ({"files": {"../evil": ENTRY}}, "the manifest lists the file '../evil'; the name is refused, because it le"),
        ({"files": {"/etc/passwd": ENTRY}}, "lists the file '/etc/passwd'; the name is refused, because it is abs"),
        (
            {"files": {"x.bin": ENTRY}},
            "the manifest lists the file 'x.bin', which is refused, because loading the file could",
        ),
        ({"files": {"x.json": ENTRY}}, "the manifest lists the file 'x.json', which is not in the artifact"),
        ({"files": {WEIGHTS: ENTRY}}, "with 4 bytes, but W&B declares a size of 200 bytes"),
        ({"format": 99}, "manifest.json: format 99 cannot be read; this version reads 1"),
    ],
)
def test_a_manifest_that_lies_is_refused_before_the_weights_are_fetched(
    server: WandbServer, out: Path, files: dict[str, bytes], changes: dict[str, Any], sentence: str
) -> None:
    store_version(server, with_manifest(files, changes), ["step-7"])
    with pytest.raises(RefusedError) as error:
        get(out)
    assert str(error.value).startswith(f"{REFERENCE}:v0")
    assert sentence in str(error.value)
    assert gets(server) == [MANIFEST]
    assert everything_below(out) == []


def test_an_artifact_without_a_manifest_is_no_checkpoint(server: WandbServer, out: Path) -> None:
    store_version(server, {WEIGHTS: b"x"}, ["step-7"])
    with pytest.raises(RefusedError, match=rf"has no manifest\.json, .*'wandb artifact get {REFERENCE}:v0'"):
        get(out)


def test_what_could_run_code_or_no_manifest_lists_stays_on_wandb_with_a_warning(
    server: WandbServer, out: Path, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    more = {"optimizer.pt": b"\x80", "pytorch_model.bin": b"\x80", "x.pkl": b"\x80", "modeling.py": b"1/0"}
    store_version(server, files | more | {"model.safetensors": b"unlisted"}, ["step-7"])
    with caplog.at_level(logging.WARNING, logger="emtoolkit"):
        assert get(out).fetched == (7,)
    assert sorted(path.name for path in (out / "checkpoint-7").iterdir()) == sorted(files)
    assert sorted(gets(server)) == sorted(files)
    (warning,) = (record.getMessage() for record in caplog.records if record.name.startswith("emtoolkit"))
    assert warning.endswith("manifest): model.safetensors, modeling.py, optimizer.pt, pytorch_model.bin, x.pkl")
    assert "step 7: not downloaded (may execute code, or not listed in the manifest)" in warning


def test_one_that_is_refused_keeps_no_other_from_arriving(server: WandbServer, out: Path, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "many", [0, 1, 2])
    store_version(server, {"../evil": b"x"}, ["step-3"])
    with pytest.raises(RefusedError, match=rf"'\.\./evil' is refused.*; the other 3 checkpoints are in {out}$"):
        get(out)
    assert [info.step for info in list_checkpoints(out)] == [0, 1, 2]


def test_a_download_goes_through_no_symlink(
    server: WandbServer, out: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    store_version(server, files, ["step-7"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "checkpoint-7").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="checkpoint-7: the path is a symlink, which downloads do not follow"):
        get(out)
    assert everything_below(elsewhere) == []


def test_a_part_that_became_a_symlink_is_not_written_through(
    server: WandbServer, out: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    store_version(server, files, ["step-7"])
    server.faults.add(Fault(on="GET", kind="cut", after=2))
    with pytest.raises(CheckpointError, match="again to continue"):
        get(out)
    server.faults.clear()
    (part,) = out.glob(f".tmp-*/{WEIGHTS}")
    part.unlink()
    part.symlink_to(tmp_path / "outside")
    with pytest.raises(
        CheckpointError, match="the path is a symlink, which downloads do not follow; remove the symlink"
    ):
        get(out)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "linked/x.json"])
def test_a_local_manifest_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-7"
    files = checkpoint_files(checkpoint, 7)
    (tmp_path / "run" / "outside.json").write_text("evil")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.json").write_text("evil")
    (checkpoint / "linked").symlink_to(tmp_path / "elsewhere")
    (checkpoint / MANIFEST).write_bytes(with_manifest(files, {"files": {name: ENTRY}})[MANIFEST])
    (problem,) = Manifest.read(checkpoint).problems(checkpoint, rehash=True)
    assert problem.endswith("the manifest may only name plain files inside its directory")
    assert [info.complete for info in list_checkpoints(tmp_path / "run")] == [False]


def test_the_key_is_shown_to_no_other_host() -> None:
    collection = Collection("e/p/c", [], "https://api.wandb.ai", "key")
    assert collection._is_own("https://api.wandb.ai/artifactsV2/x")
    assert not collection._is_own("http://api.wandb.ai/artifactsV2/x")
    assert not collection._is_own("https://api.wandb.ai.evil.example/artifactsV2/x")
    assert not collection._is_own("https://api.wandb.ai:8443/x")
