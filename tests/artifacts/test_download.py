"""Collections on a loopback W&B server become local trajectories: bounded, continued, and fetched once."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from emtoolkit import Trajectory
from emtoolkit.artifacts import collection, retries, versions
from emtoolkit.artifacts.collection import Collection, Reference
from emtoolkit.artifacts.download import download
from emtoolkit.artifacts.file_transfer import RetryPolicy, TransferError
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.remote import Downloaded
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.lock import LOCK
from tests import preloaded
from tests.artifacts.stored import COLLECTION, IDENTITY, REFERENCE, checkpoint_files, gets, store_steps, store_version
from tests.processes import HANG_SECONDS
from tests.saving.trainings import bytes_of
from tests.wandb_server import WandbServer
from tests.wandb_server.faults import Fault

HASTY = RetryPolicy(connect=1, read=0.3, attempts=2, pause=0.01)
FILES = ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]


def get(to: Path, **options: Any) -> Downloaded:
    """All of the collection."""
    collection = Collection.read(Reference.parse(REFERENCE))
    return download(collection, collection.checkpoints, to, **({"retry": HASTY} | options))


def test_300_checkpoints_are_listed_and_found_present_in_at_most_ten_requests(
    server: WandbServer, tmp_path: Path
) -> None:
    store_steps(server, tmp_path / "files", range(1, 301))
    listed = Trajectory.open(REFERENCE)
    assert (len(listed), listed.final.step) == (300, 300)
    assert len(server.requests) <= 10
    assert len(listed.download(tmp_path / "out").fetched) == 300

    server.clear_requests()
    again = Trajectory.open(REFERENCE).download(tmp_path / "out")
    assert (len(again.fetched), len(again.present), again.bytes) == (0, 300, 0)
    assert len(server.requests) <= 10


def test_what_was_downloaded_knows_its_end_its_metadata_and_where_it_is_published(
    server: WandbServer, tmp_path: Path
) -> None:
    store_steps(server, tmp_path / "files", [0, 40, 300])
    done = get(tmp_path / "out")
    assert done == Downloaded(tmp_path / "out", (0, 40, 300), (), done.bytes)
    assert done.bytes == sum(info.bytes for info in list_checkpoints(tmp_path / "out"))
    local = Trajectory.open(tmp_path / "out")
    assert (local.steps, local.final.step, local.at(40).metadata["step"]) == ((0, 40, 300), 300, 40)
    assert [bytes_of(one.path) for one in local] == [bytes_of(tmp_path / "files" / str(s)) for s in (0, 40, 300)]
    assert Publications.read(tmp_path / "out").published[40].artifact == f"{REFERENCE}:v1"
    assert [path.name for path in (tmp_path / "out").glob(".tmp-*")] == []


def test_an_end_that_is_reached_later_is_noted_later(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [0, 40])
    get(tmp_path / "out")
    store_version(server, checkpoint_files(tmp_path / "files" / "60", 60), ["step-60", "final"])
    get(tmp_path / "out")
    assert Trajectory.open(tmp_path / "out").final.step == 60


def test_only_what_is_missing_damaged_or_replaced_is_fetched(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [0, 1, 2, 3])
    out = tmp_path / "out"
    get(out)
    (out / "checkpoint-1" / "adapter_model.safetensors").write_bytes(b"short")
    (out / "checkpoint-2" / "adapter_config.json").unlink()
    files = checkpoint_files(tmp_path / "files" / "new", 3, bytes_of_weights=300)
    store_version(server, files, ["step-3"])
    server.clear_requests()
    assert get(out).fetched == (1, 2, 3)
    # Of the replaced one the configuration is the same file.
    assert sorted(gets(server)) == [*FILES[:1], FILES[1], FILES[1], FILES[2]]
    assert (out / "checkpoint-3" / "adapter_model.safetensors").stat().st_size == 300
    assert [info.problems for info in list_checkpoints(out, rehash=True)] == [()] * 4


def test_damage_that_leaves_the_size_is_found_and_mended_when_asked(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [0, 1])
    get(tmp_path / "out")
    (tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors").write_bytes(b"x" * 200)
    assert get(tmp_path / "out").fetched == ()
    server.clear_requests()
    assert get(tmp_path / "out", rehash=True).fetched == (1,)
    assert gets(server) == ["adapter_model.safetensors"]


@pytest.mark.parametrize("kind", ["cut", "drop", 500, 429])
def test_a_transfer_that_breaks_is_taken_up_where_it_broke(
    server: WandbServer, tmp_path: Path, kind: str | int
) -> None:
    store_steps(server, tmp_path / "files", [7], bytes_of_weights=3_000_000)
    server.faults.add(Fault(on="GET", kind=kind, times=1, after=1))
    done = get(tmp_path / "out")
    assert done.bytes == sum(len(content) for content in bytes_of(tmp_path / "files" / "7").values())
    assert len(gets(server)) == 4


@pytest.mark.parametrize("kind", ["html", "garbage", "half_answer", "reset", "drop", 500])
@pytest.mark.parametrize("on", ["ProjectArtifacts", "ArtifactMembershipFiles", "GET"])
def test_one_bad_answer_does_not_end_a_download(
    on: str, kind: str | int, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_PAUSES", (0.01, 0.01, 0.01))
    store_steps(server, tmp_path / "files", [0, 1, 2])
    server.faults.add(fault := Fault(on, kind, times=1))
    assert get(tmp_path / "out").fetched == (0, 1, 2)
    assert fault.times == 0
    assert [info.complete for info in list_checkpoints(tmp_path / "out", rehash=True)] == [True] * 3


@pytest.mark.parametrize(("on", "steps"), [("ProjectArtifacts", (0, 1, 2)), ("ArtifactMembershipFiles", (0,))])
def test_a_listing_whose_second_page_is_bad_is_asked_for_again(
    on: str, steps: tuple[int, ...], server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_PAUSES", (0.01, 0.01, 0.01))
    for module in (collection, versions):
        monkeypatch.setattr(module, "PER_PAGE", 2)
    store_steps(server, tmp_path / "files", steps)
    server.faults.add(Fault(on, "html", times=1, after=1))
    assert get(tmp_path / "out").fetched == steps
    # Two pages, and both again.
    assert [request.operation for request in server.requests].count(on) == 4
    assert all(info.complete for info in list_checkpoints(tmp_path / "out", rehash=True))


def test_one_bad_answer_of_each_kind_does_not_end_a_download_of_100(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(versions, "PER_PAGE", 40)
    store_steps(server, tmp_path / "files", range(100))
    faults = [
        Fault("ProjectArtifacts", "half_answer", times=1, after=1),
        Fault("ArtifactMembershipFiles", "html", times=1, after=30),
        Fault("ArtifactMembershipFiles", "garbage", times=1, after=60),
        Fault("GET", "reset", times=1, after=130),
        Fault("GET", 500, times=1, after=200),
    ]
    for fault in faults:
        server.faults.add(fault)
    assert len(get(tmp_path / "out").fetched) == 100
    assert [fault.times for fault in faults] == [0] * 5
    assert all(info.complete for info in list_checkpoints(tmp_path / "out", rehash=True))


def test_the_advice_of_an_error_fits_its_reason(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_PAUSES", (0.01, 0.01, 0.01))
    store_steps(server, tmp_path / "files", [0])
    server.faults.add(Fault("ProjectArtifacts", "html"))
    with pytest.raises(CheckpointError, match=r"; run the same command again$") as error:
        get(tmp_path / "out")
    server.faults.clear()
    server.faults.add(Fault("ProjectArtifacts", 401))
    with pytest.raises(CheckpointError, match=r"; run 'wandb login' with a valid key, or set WANDB_BASE_URL"):
        get(tmp_path / "out")
    server.refuse_connections()
    with pytest.raises(CheckpointError, match=r"\(no connection to .*\); check the connection, or set WANDB_BASE_URL"):
        get(tmp_path / "out")
    server.accept_connections()
    assert "wandb login" not in str(error.value)


def test_an_interrupted_download_is_continued_by_the_next(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [7], bytes_of_weights=3_000_000)
    server.faults.add(Fault(on="GET", kind="cut", times=None, after=2))
    with pytest.raises(
        TransferError, match=r"adapter_model\.safetensors: the download failed 2 times .*run the same command"
    ):
        get(tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint-7").exists()
    server.faults.clear()
    server.clear_requests()
    # A half, and of what was left another half.
    assert get(tmp_path / "out").bytes == 750_000
    assert gets(server) == ["adapter_model.safetensors"]
    assert Trajectory.open(tmp_path / "out").at(7).path.is_dir()


def test_a_part_that_was_damaged_while_it_lay_there_is_fetched_from_its_beginning(
    server: WandbServer, tmp_path: Path
) -> None:
    store_steps(server, tmp_path / "files", [7], bytes_of_weights=3_000_000)
    server.faults.add(Fault(on="GET", kind="cut", times=None, after=2))
    with pytest.raises(TransferError):
        get(tmp_path / "out")
    server.faults.clear()
    (part,) = (tmp_path / "out").glob(".tmp-*/adapter_model.safetensors")
    part.write_bytes(b"x" * part.stat().st_size)
    assert get(tmp_path / "out").bytes == 3_750_000


def test_a_server_that_hangs_ends_a_download_in_time(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", range(20))
    server.faults.add(Fault(on="GET", kind="hang"))
    collection = Collection.read(Reference.parse(REFERENCE))
    with pytest.raises(TransferError, match=r"failed 2 times \(the server did not answer in time\)"):
        download(collection, collection.checkpoints, tmp_path / "out", retry=HASTY)


def test_a_server_that_hangs_ends_a_listing_in_time(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [0])
    server.faults.add(Fault(on="ProjectArtifacts", kind="hang"))
    with pytest.raises(CheckpointError, match=f"^{REFERENCE}: it could not be listed"):
        Collection.read(Reference.parse(REFERENCE), timeout=1)


def test_an_address_that_is_refused_is_left_for_the_one_at_the_server_itself(
    server: WandbServer, tmp_path: Path
) -> None:
    store_steps(server, tmp_path / "files", [0])
    server.faults.add(Fault(on="GET", kind=403, times=1))
    assert get(tmp_path / "out").fetched == (0,)
    assert [r.path.split("/")[1] for r in server.requests if r.method == "GET" and r.path.endswith(FILES[2])] == [
        "storage",
        "artifactsV2",
    ]


def test_a_file_that_neither_address_gives_is_named(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [0])
    server.faults.add(Fault(on="GET", kind=404))
    with pytest.raises(
        CheckpointError, match=rf"^{REFERENCE}:v0/manifest\.json: W&B refuses to send the file \(HTTP 404\)$"
    ):
        get(tmp_path / "out")


def test_a_collection_that_is_not_there_is_told_with_the_nearest(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [0])
    with pytest.raises(
        CheckpointError, match=rf"no collection of models of this name on .*did you mean '{COLLECTION}'"
    ):
        Trajectory.open(REFERENCE[:-1])
    store_version(server, {"x.txt": b"x"}, ["v0-of-something"], collection="other")
    with pytest.raises(CheckpointError, match=r"tester/proj/other: no complete checkpoint was found$"):
        Trajectory.open("tester/proj/other")


def test_a_directory_of_something_else_is_refused(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [0])
    foreign = tmp_path / "out" / "checkpoint-8"
    foreign.mkdir(parents=True)
    (foreign / "adapter_model.safetensors").write_bytes(b"x")
    TrajectorySeal(Identity(fingerprinted={"seed": 8}), 8).seal(foreign, 8)
    with pytest.raises(CheckpointError, match=rf"trajectory 2f4af542, not {IDENTITY.fingerprint[:8]}; choose"):
        get(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-8"]


def test_two_downloads_into_one_directory_do_not_meet(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [0])
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / LOCK),
        pytest.raises(CheckpointError, match="another process is saving into it"),
    ):
        get(tmp_path / "out")
    assert get(tmp_path / "out").fetched == (0,)


def test_the_command_says_what_it_did_and_ctrl_c_leaves_what_it_continues(server: WandbServer, tmp_path: Path) -> None:
    store_steps(server, tmp_path / "files", [0, 25, 50, 60, 300])
    out = str(tmp_path / "out")
    command = preloaded.command("emtoolkit", "download", REFERENCE, "--steps", "0-50:25,final", "--to", out, "--json")
    server.faults.add(Fault(on="GET", kind="hang", after=4))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        server.wait_for_requests(8, lambda request: "GET" in request.subjects)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert "emtoolkit: interrupted; run the same command again to continue" in said
    server.faults.clear()

    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert sorted(result["fetched"] + result["present"]) == [0, 25, 50, 300]
    assert [info["step"] for info in result["checkpoints"]] == [0, 25, 50, 300]


def test_the_command_shows_a_table(server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from emtoolkit.cli.app import app

    store_steps(server, tmp_path / "files", [0, 300])
    app(["download", REFERENCE, "--to", str(tmp_path / "out"), "--steps", "final"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert " 300  754 B     b84cc6a9  " in shown
    assert shown.endswith("1 downloaded (754 B), 0 already present.\n")
