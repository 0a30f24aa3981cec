"""Which directories are listed as checkpoints, and with which properties."""

import json
from pathlib import Path

import pytest

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Published, add_published
from emtoolkit.cli.render import checkpoints_table
from emtoolkit.cli.terminal import show
from emtoolkit.errors import CheckpointError
from tests.saving.trainings import make_trainer


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    make_trainer(tmp_path, [ScheduledCheckpointCallback("0,2", resume_every="never")]).train()
    return tmp_path


def test_a_listing_gives_step_path_size_fingerprint_and_source(trained: Path) -> None:
    fingerprint = json.loads((trained / "trajectory.json").read_text())["fingerprint"]
    listed = [info.as_json() for info in list_checkpoints(trained)]
    assert [(entry["step"], entry["final"]) for entry in listed] == [(0, False), (2, False), (8, True)]
    for entry in listed:
        path = trained / f"checkpoint-{entry['step']}"
        size = sum(file.stat().st_size for file in path.iterdir())
        assert entry == {
            "step": entry["step"],
            "path": str(path),
            "final": entry["final"],
            "bytes": size,
            "fingerprint": fingerprint,
            "complete": True,
            "source": "emtoolkit",
            "published": None,
            "recomputed": None,
            "saved_for": "schedule",
        }


def test_a_stock_checkpoint_is_listed_as_another_tools(tmp_path: Path) -> None:
    make_trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    listed = list_checkpoints(tmp_path)
    assert [(info.step, info.source, info.complete, info.final, info.fingerprint) for info in listed] == [
        (4, "other", True, False, None),
        (8, "other", True, True, None),
    ]


def test_an_empty_directory_with_the_name_of_a_checkpoint_is_a_failed_save_and_not_listed(trained: Path) -> None:
    (trained / "checkpoint-4").mkdir()
    assert [info.step for info in list_checkpoints(trained)] == [0, 2, 8]


def test_torn_weights_without_a_manifest_are_a_failed_save_and_not_listed(tmp_path: Path) -> None:
    make_trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    weights = tmp_path / "checkpoint-4" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert [info.step for info in list_checkpoints(tmp_path)] == [8]


def test_a_stock_save_that_did_not_reach_its_last_file_is_not_complete(tmp_path: Path) -> None:
    make_trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    assert [(info.step, info.complete) for info in list_checkpoints(tmp_path)] == [(4, False), (8, True)]


def test_a_torn_file_is_named(trained: Path) -> None:
    weights = trained / "checkpoint-2" / "adapter_model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1])
    damaged = {info.step: info.problems for info in list_checkpoints(trained) if not info.complete}
    assert damaged == {2: (f"{weights}: {size - 1} bytes where the manifest says {size}",)}


def test_a_changed_byte_is_found_by_hashing_again(trained: Path) -> None:
    weights = trained / "checkpoint-2" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert all(info.complete for info in list_checkpoints(trained))
    damaged = {info.step: info.problems for info in list_checkpoints(trained, rehash=True) if not info.complete}
    assert damaged == {2: (f"{weights}: its content does not match the digest in the manifest",)}


def test_a_manifest_that_points_outside_its_directory_is_refused_by_name(trained: Path) -> None:
    manifest = trained / "checkpoint-2" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"] = {"../checkpoint-0/adapter_model.safetensors": {"sha256": "", "bytes": 1}}
    manifest.write_text(json.dumps(content))
    (damaged,) = [info for info in list_checkpoints(trained) if not info.complete]
    assert damaged.step == 2
    assert "the manifest may only name plain files inside its directory" in damaged.problems[0]


def test_a_checkpoint_under_another_steps_name_is_damaged(trained: Path) -> None:
    (trained / "checkpoint-2").rename(trained / "checkpoint-3")
    assert [(info.step, info.complete) for info in list_checkpoints(trained)] == [(0, True), (3, False), (8, True)]


def test_a_directory_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: there is no such directory"):
        list_checkpoints(tmp_path / "nowhere")


def test_a_listing_has_the_version_on_wandb(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_published(trained, 2, Published("me/tests/goodness-12345678:v1", "digest"))
    listed = list_checkpoints(trained)
    assert [(info.step, info.published) for info in listed] == [
        (0, None),
        (2, "me/tests/goodness-12345678:v1"),
        (8, None),
    ]
    show(checkpoints_table(listed))
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in table[1:4]] == ["—", "v1", "—"]
    assert table[4:] == [f"Directory: {trained}", "On W&B: me/tests/goodness-12345678"]
