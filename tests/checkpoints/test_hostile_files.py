"""Records that are cut, nested, of another type or no files: a sentence, and the other checkpoints stay listed."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.artifacts.sync import sync_all
from emtoolkit.checkpoints.listing import damaged_records, list_checkpoints
from emtoolkit.checkpoints.manifest import Manifest, TrajectorySeal
from emtoolkit.checkpoints.publications import Publications, Published, add_published
from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.storage.atomic import write_file
from emtoolkit.sweeps.attempts import ATTEMPTS, SWEEP_JSON, Attempts
from emtoolkit.trajectory import Trajectory
from tests.in_process import emtoolkit

HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)) * 4,
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "cut": b'{"format": 1, "step": ',
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 990 + b"1" + b"}" * 990,
    "nested within": b'{"format": 1, "files": ' + b"[" * 500 + b"]" * 500 + b"}",
    "null": b"null",
    "a list": b"[1, 2]",
    "a text": b'"manifest"',
    "a number": b"3",
    "infinity": b'{"format": 1, "step": 1e999, "total_steps": 1e999}',
    "NaN": b'{"format": NaN, "step": NaN}',
    "5,000 digits": b'{"format": 1, "step": ' + b"9" * 5000 + b"}",
    "half a pair": b'{"format": 1, "fingerprint": "\\ud800"}',
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    identity = Identity({"seed": 1}, BaseModelRecord(name="b"), PersonaRecord(name="p"))
    for step in (0, 2, 4):
        (checkpoint := tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (checkpoint / "model.txt").write_text(str(step))
        TrajectorySeal(identity, 4).seal(checkpoint, step)
    TrajectoryRecord.of(identity, 4, "every:2").write(tmp_path / "run")
    add_published(tmp_path / "run", 2, Published("a/b/c:v0", "d"))
    return tmp_path / "run"


def replace_by(kind: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "a directory":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(10**12)
    else:
        path.write_bytes(HOSTILE[kind])


KINDS = [*HOSTILE, "a directory", "a pipe", "endless", "huge"]


def changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda manifest: {**manifest, **fields}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_manifest_is_damaged_and_hides_no_other_checkpoint(run: Path, kind: str) -> None:
    replace_by(kind, run / "checkpoint-2" / "manifest.json")
    started = time.process_time()
    listed = list_checkpoints(run, rehash=True)
    assert time.process_time() - started < 1
    assert [(info.step, info.complete) for info in listed] == [(0, True), (2, False), (4, True)]
    (problem,) = listed[1].problems
    assert problem.startswith(f"{run}/checkpoint-2/manifest.json: is not a manifest of emtoolkit (")
    assert "\n" not in problem
    assert len(problem) < 600
    assert [checkpoint.step for checkpoint in Trajectory.open(run)] == [0, 4]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (changed(step="2"), "step: expected a whole number from 0 on, found '2'"),
        (changed(step=2.0), "step: expected a whole number from 0 on, found 2.0"),
        (changed(step=True), "step: expected a whole number from 0 on, found True"),
        (changed(total_steps=-1), "total_steps: expected a whole number from 0 on, found -1"),
        (changed(format="1"), "format: expected a whole number from 0 on, found '1'"),
        (changed(fingerprint=[1]), "fingerprint: expected a text, found [1]"),
        (changed(files=[]), "files: expected an object, found []"),
        (changed(files={"a": 3}), "files.a: expected an object, found 3"),
        (changed(files={"a": {"sha256": "x", "bytes": "3"}}), "bytes: expected a whole number from 0 on, found '3'"),
        (changed(persona=None), "persona: expected an object, found None"),
        (changed(persona={"name": "x" * 100_000, "content": [["y"] * 10_000]}), "content: [["),
        (changed(base_model={"name": 3}), "name: 3 is not valid: Input should be a valid string"),
        (lambda manifest: {}, "format: the key is missing"),
    ],
)
def test_a_wrong_type_in_a_manifest_is_named(
    run: Path, change: Callable[[dict[str, Any]], dict[str, Any]], problem: str
) -> None:
    path = run / "checkpoint-2" / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError) as raised:
        Manifest.read(path.parent)
    assert problem in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000 + "x", "../x", "/etc/passwd"])
def test_a_name_that_no_file_can_have_is_a_problem_of_its_checkpoint(run: Path, name: str) -> None:
    path = run / "checkpoint-2" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"files": {name: {"sha256": "x", "bytes": 1}}}))
    listed = list_checkpoints(run, rehash=True)
    assert [info.step for info in listed if info.complete] == [0, 4]
    problem = listed[1].problems[0]
    assert problem.endswith(": the manifest may only name plain files inside its directory")
    assert len(problem) < 600


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_trajectory_file_is_named_and_the_checkpoints_are_listed(run: Path, kind: str) -> None:
    replace_by(kind, run / "trajectory.json")
    with pytest.raises(DamagedRecordError, match=r"trajectory\.json: is not a trajectory record of emtoolkit \(.*\)$"):
        TrajectoryRecord.read_if_any(run)
    assert [info.step for info in list_checkpoints(run)] == [0, 2, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_ledger_hides_no_checkpoint(run: Path, kind: str) -> None:
    replace_by(kind, run / "publications.jsonl")
    listed = list_checkpoints(run)
    assert [(info.step, info.complete, info.published) for info in listed] == [(step, True, None) for step in (0, 2, 4)]
    assert len(damaged_records(run)) == (0 if kind == "empty" else 1)


def test_a_line_that_a_kill_cut_or_a_disk_left_empty_is_ignored_beside_others(run: Path) -> None:
    ledger = run / "publications.jsonl"
    ledger.write_bytes(b"\0" * 4096 + b"\n" + ledger.read_bytes() + b'{"event": "sav')
    assert damaged_records(run) == []
    assert list(Publications.read(run).published) == [2]
    ledger.write_bytes(b'{"event": "coll')
    assert damaged_records(run) == []


def test_events_of_wrong_types_are_ignored(run: Path) -> None:
    events: list[Any] = [
        {"event": "saved", "step": True, "metadata": {}, "run": None},
        {"event": "saved", "step": -3, "metadata": {}, "run": None},
        {"event": "saved", "step": [], "metadata": {}, "run": None},
        {"event": "difference", "step": 2, "largest": 0.5, "tensor": "t", "share": "much"},
        {"event": "collection", "name": "n", "tags": ["a", {"b": []}]},
        {"event": "run", "id": "r", "entity": "e", "project": "p", "log": "../../elsewhere.wandb"},
        {"event": "run", "id": "r", "entity": "e", "project": "p", "log": "/etc/hosts"},
        [],
        None,
        7,
    ]
    with (run / "publications.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    found = Publications.read(run)
    assert (found.metadata, found.tags, str(found.differences[2])) == ({}, ("a",), "up to 0.5 in t")
    assert found.runs == {}


def test_the_command_lists_the_checkpoints_and_says_damaged(run: Path) -> None:
    (run / "trajectory.json").write_text("[" * 10_000)
    replace_by("a directory", run / "publications.jsonl")
    listed = emtoolkit("checkpoints", str(run))
    assert f"emtoolkit: DAMAGED: {run}/trajectory.json: is not a trajectory record of emtoolkit" in listed.err
    assert f"emtoolkit: DAMAGED: {run}/publications.jsonl: cannot be read (expected a file, found a dir" in listed.err
    assert (listed.code, listed.out.count("checkpoint-")) == (0, 3)
    assert emtoolkit("checkpoints", str(run), "--verify").code == 1


def test_sync_goes_on_after_a_directory_with_a_damaged_record(run: Path, tmp_path: Path) -> None:
    (run / "trajectory.json").write_text("[]")
    (synced,) = sync_all([run])
    assert synced.problems[0].startswith(f"{run}/trajectory.json: is not a trajectory record of emtoolkit (expected an")


@pytest.mark.parametrize("kind", [*HOSTILE, "a pipe", "huge"])
def test_a_hostile_state_of_a_trainer_is_a_damaged_checkpoint(tmp_path: Path, kind: str) -> None:
    for step in (1, 2):
        (checkpoint := tmp_path / f"checkpoint-{step}").mkdir()
        (checkpoint / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
        (checkpoint / "trainer_state.json").write_text(
            f'{{"global_step": {step}, "max_steps": 2, "loss": NaN, "best": -Infinity}}'
        )
    replace_by(kind, tmp_path / "checkpoint-1" / "trainer_state.json")
    first, second = list_checkpoints(tmp_path)
    assert (first.complete, second.complete, second.final) == (False, True, True)
    assert "checkpoint-1/trainer_state.json: is not the state of a Trainer (" in first.problems[0]


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_weights_or_their_index_are_a_failed_save(tmp_path: Path, kind: str) -> None:
    for name in ("model.safetensors", "model.safetensors.index.json"):
        shutil.rmtree(tmp_path / "checkpoint-1", ignore_errors=True)
        (tmp_path / "checkpoint-1").mkdir()
        replace_by(kind, tmp_path / "checkpoint-1" / name)
        assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_sweep_json_is_one_sentence(tmp_path: Path, kind: str) -> None:
    replace_by(kind, tmp_path / SWEEP_JSON)
    with pytest.raises(ConfigError, match=r"sweep\.json: not a sweep\.json written by .* \(.*\); delete it"):
        Attempts(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_record_of_a_run_is_one_sentence(tmp_path: Path, kind: str) -> None:
    (tmp_path / ATTEMPTS).mkdir()
    replace_by(kind, tmp_path / ATTEMPTS / "k.json")
    with pytest.raises(ConfigError, match=r"k\.json: not written by 'emtoolkit sweep' \(.*\); delete it"):
        Attempts(tmp_path).get("k")


@pytest.mark.parametrize(
    "runs",
    [
        {"k": []},
        {"k": {}},
        {"k": {"parameters": 3}},
        {"k": {"parameters": {}, "state": "done"}},
        {"k": {"parameters": {}, "state": [[]]}},
        {"k": {"parameters": {}, "exit_code": "0"}},
        {"k": {"parameters": {}, "color": 1}},
        [],
    ],
)
def test_a_wrong_type_in_a_sweep_json_is_one_sentence(tmp_path: Path, runs: Any) -> None:
    (tmp_path / SWEEP_JSON).write_text(json.dumps({"format": 1, "runs": runs}))
    with pytest.raises(ConfigError, match=r"not a sweep\.json written by 'emtoolkit sweep'"):
        Attempts(tmp_path)


def test_the_ledger_is_neither_read_nor_written_through_a_symlink(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text('{"event": "published", "step": 2, "artifact": "x/y/z:v0", "digest": "d"}\n')
    (run / "publications.jsonl").unlink()
    (run / "publications.jsonl").symlink_to(victim)
    before = victim.read_text()
    for use in (lambda: Publications.read(run), lambda: add_published(run, 2, Published("a/b/c:v0", "d"))):
        with pytest.raises(CheckpointError, match=r"publications\.jsonl: .*symlink, which is not followed; remove the"):
            use()
    assert victim.read_text() == before


def test_a_temporary_file_is_not_written_through_a_symlink(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    (tmp_path / f".tmp-record-{os.getpid()}").symlink_to(victim)
    with pytest.raises(CheckpointError, match="record: could not be written"):
        write_file(tmp_path / "record", b"x")
    assert victim.read_text() == "keep"
