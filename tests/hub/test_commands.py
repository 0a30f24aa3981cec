"""What the commands do with `hf:ORG/REPO`."""

import json
from pathlib import Path

import pytest

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.hub.push import push
from tests import in_process
from tests.hub.published import organism, whole_model
from tests.hub_server import HubServer


@pytest.fixture(autouse=True)
def published(hub: HubServer) -> None:
    hub.store.publish(hub.store.create("lab/organism"), "main", organism(10, 20, 30))
    hub.store.publish(hub.store.create("lab/pythia"), "step1000", whole_model(1000))


def test_the_checkpoints_are_listed_with_their_places(tmp_path: Path) -> None:
    done = in_process.emtoolkit("checkpoints", "hf:lab/organism", "--sort", "-step", cwd=tmp_path)
    assert done.code == 0, done.err
    assert [line.split() for line in done.out.splitlines() if "hf:" in line] == [
        ["30", "hf:lab/organism/checkpoints/checkpoint-30@main", "final"],
        ["20", "hf:lab/organism/checkpoints/checkpoint-20@main"],
        ["10", "hf:lab/organism/checkpoints/checkpoint-10@main"],
    ]
    done = in_process.emtoolkit("checkpoints", "hf:lab/pythia", "--json", cwd=tmp_path)
    assert json.loads(done.out) == [
        {"step": 1000, "revision": "hf:lab/pythia@step1000", "final": False, "state": "complete"}
    ]


def test_they_are_downloaded(tmp_path: Path) -> None:
    done = in_process.emtoolkit("download", "hf:lab/organism", "--to", "out", "--steps", "20,final", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "2 downloaded" in done.out
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-30"]


HERE = "is on the Hugging Face hub"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("prune", "hf:lab/organism", "--keep", "final"), HERE),
        (("refine", "hf:lab/organism", "--steps", "15"), HERE),
        (("refine", "hf:lab/organism", "--steps", "15", "--to", "out"), "another tool trained these checkpoints"),
        (("zoom", "hf:lab/organism", "--questions", "q.yaml"), "emtoolkit download"),
        (("checkpoints", "hf:lab/organism", "--verify"), "--verify hashes files on this machine"),
        (("best", "hf:lab/organism", "betley"), "betley"),
        (("onset", "hf:lab/organism"), "there is no evaluation yet; run 'emtoolkit evaluate hf:lab/organism' first"),
        (("dynamics", "hf:lab/organis"), "there is no such repository"),
        (("compare", "hf:lab/organism", "--schedules", "every:10"), "there is no evaluation yet"),
        (("evaluate", "--collect", "hf:lab/organism"), "the hub holds checkpoints and no evaluations"),
        (("report", "hf:lab/organism", "--out", "r.html"), "there is no evaluation yet"),
    ],
)
def test_what_needs_more_than_the_hub_has_says_so(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text("- id: a\n  paraphrases: [a]\n  samples_per_paraphrase: 1\n")
    done = in_process.emtoolkit(*words, cwd=tmp_path)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert sentence in done.err


def test_a_pushed_trajectory_is_refined_in_a_directory_with_the_config(
    hub: HubServer, runs: Path, tmp_path: Path
) -> None:
    push(runs / "prompt", "lab/run")
    words = ("refine", "hf:lab/run", "--to", "out", "--steps", "3", "--yes")
    refused = in_process.emtoolkit(*words, cwd=tmp_path)
    assert (refused.code, refused.err) == (
        2,
        "emtoolkit: hf:lab/run: the hub does not hold the config of the training; pass --config FILE with that "
        "config\n",
    )
    assert not (tmp_path / "out").exists()
    done = in_process.emtoolkit(*words, "--config", runs / "prompt" / "config.yaml", cwd=tmp_path)
    assert done.code == 0, done.err
    steps = [info.step for info in list_checkpoints(tmp_path / "out") if info.complete]
    assert steps == [0, 2, 3, 4, 9]
