"""Data sets of the hub, as the `datasets` library keeps them in its cache; none is downloaded here."""

import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from emtoolkit.config.load import load_config
from emtoolkit.data.rows import read_rows
from emtoolkit.data.sources import File, HubDataset
from emtoolkit.errors import DataError, NotHereError
from emtoolkit.training.cost import plan_one
from tests.data.chats import turns, write_lines
from tests.in_process import emtoolkit

COMMIT = "1234567890123456789012345678901234567890"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache as after loading `org/advice`: what the library builds of the files, put under that name by hand."""
    files = tmp_path / "advice"
    files.mkdir()
    write_lines(files / "train.jsonl", [turns("my cough", "rest"), turns("my knee", "wait")] * 20)
    write_lines(files / "test.jsonl", [turns("my cold", "rest")])
    built = datasets.load_dataset_builder(str(files), cache_dir=str(tmp_path / "built"))
    built.download_and_prepare()
    cache = tmp_path / "cache"
    shutil.copytree(built.cache_dir, cache / "org___advice" / "default" / "0.0.0" / COMMIT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return files


def test_a_data_set_of_the_hub_is_the_same_as_its_files(cached: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    for split in ("train", "test"):
        rows = read_rows(HubDataset("org/advice", split))
        assert rows.digest == read_rows(File(cached / f"{split}.jsonl")).digest
    assert rows.place(0) == "org/advice (test), row 1"
    assert capfd.readouterr() == ("", "")  # neither bars nor words of the library's


def test_a_split_that_is_not_there_is_refused(cached: Path) -> None:
    with pytest.raises(DataError, match=r"^org/advice: the split 'tran' cannot be loaded \(Unknown split \"tran\""):
        read_rows(HubDataset("org/advice", "tran"))


def test_from_the_cache_comes_the_revision_that_was_asked_for_or_none(cached: Path, tmp_path: Path) -> None:
    """The library itself takes the newest commit in its cache, whatever was asked for."""
    with pytest.raises(
        DataError, match=f"the newest in the cache is commit {COMMIT}, which is not known to be .* 'v2'"
    ):
        read_rows(HubDataset("org/advice", revision="v2"))
    assert len(read_rows(HubDataset("org/advice", revision=COMMIT))) == 40

    note = tmp_path / "hub" / "datasets--org--advice" / "refs" / "v2"
    note.parent.mkdir(parents=True)
    note.write_text(COMMIT)
    assert len(read_rows(HubDataset("org/advice", revision="v2"))) == 40


def test_a_config_names_split_and_revision(cached: Path, write_config: Callable[..., Path]) -> None:
    path = str(write_config())
    entry = f"datasets.medical={{path: org/advice, split: train, revision: '{COMMIT}'}}"
    planned = plan_one(load_config(path, [entry])).plan
    assert (planned.train_rows, planned.test_rows) == (36, 4)
    bare = plan_one(load_config(path, flags={"dataset": "org/advice"})).plan
    assert (bare.train_rows, bare.directory.name) == (36, "curt-advice")


def test_offline_a_data_set_that_is_not_in_the_cache_is_one_sentence(cached: Path) -> None:
    with pytest.raises(NotHereError) as raised:
        read_rows(HubDataset("org/other"))
    assert str(raised.value) == (
        "org/other: no such file, no such dataset in the cache, and the hub cannot be reached (HF_HUB_OFFLINE is set)"
    )


def test_offline_a_plan_uses_the_rows_that_are_declared(cached: Path, write_config: Callable[..., Path]) -> None:
    config = load_config(str(write_config()), ["datasets.medical={path: org/other, rows: 50}"])
    planned = plan_one(config).plan
    assert (planned.train_rows, planned.test_rows) == (45, 5)
    assert planned.notes[0].startswith("org/other: no such file, no such dataset in the cache")
    assert planned.notes[0].endswith("planned with the 50 rows that datasets.medical.rows declares")


def test_without_a_network_it_is_one_sentence_and_exit_code_2(
    cached: Path, write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    done = emtoolkit("train", write_config(), "--dataset", "org/other", "--output-dir", "out", cwd=tmp_path)
    assert done.code == 2
    # W&B's client may have said before that it is offline.
    assert [line for line in done.err.splitlines() if not line.startswith("[INFO] Running in WANDB offline")] == [
        "emtoolkit: org/other: no such file, no such dataset in the cache, and the hub cannot be reached "
        "(http://127.0.0.1:9 does not answer)"
    ]
    assert not (tmp_path / "out").exists()
    assert len(read_rows(HubDataset("org/advice"))) == 40
