"""Values that the real client logs reach the server, and the public API reads them."""

from pathlib import Path
from typing import Any

import pytest
import wandb

from tests.processes import HANG_SECONDS
from tests.wandb_server import WandbServer
from tests.wandb_server.processes import run_script

LOG = """
import json, wandb
with wandb.init(project="proj", id="one", name="first", group="g", job_type="train", tags=["t"],
                config={"lr": 0.1, "model": {"r": 8}}) as run:
    for step in range(5):
        run.log({"loss": 1 / (step + 1), "grad": {"norm": step}})
    run.summary["best"] = 0.2
    with open("notes.txt", "w") as file:
        file.write("a note")
    run.save("notes.txt")
with wandb.init(project="proj", id="two", config={"lr": 0.5}) as run:
    run.log({"loss": 3.0})
with wandb.init(project="proj", id="one", resume="must") as run:
    starting_step = run.starting_step
    run.log({"loss": 0.01})
run = wandb.init(project="proj", id="three", config={"lr": 0.5})
run.log({"loss": 2.0})
run.finish(exit_code=3)
print(json.dumps(starting_step))
"""


def test_a_run_is_read_back_as_it_was_logged(wandb_server: WandbServer, tmp_path: Path) -> None:
    starting_step = run_script(LOG, tmp_path / "work")

    run = wandb.Api().run("tester/proj/one")
    assert (run.state, run.name, run.group, run.job_type, run.tags) == ("finished", "first", "g", "train", ["t"])
    assert run.config == {"lr": 0.1, "model": {"r": 8}}
    assert (run.summary["loss"], run.summary["best"]) == (0.01, 0.2)
    losses = [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 0.01]
    assert [row["loss"] for row in run.scan_history()] == losses
    assert [row["loss"] for row in run.scan_history(keys=["loss"])] == losses
    assert [row["loss"] for row in run.history(pandas=False)] == losses
    assert run.history(keys=["grad.norm"], pandas=False) == [{"_step": i, "grad.norm": i} for i in range(5)]
    assert (run.lastHistoryStep, run.history_keys["keys"]["grad.norm"]["previousValue"]) == (5, 4)
    assert run.file("notes.txt").download(str(tmp_path / "down")).read() == "a note"

    assert starting_step == 5, "a resumed run goes on after its last step"
    stored = wandb_server.store.project("tester", "proj").runs
    assert (stored["one"].exit_code, stored["three"].exit_code, stored["three"].state) == (0, 3, "failed")

    def names(**query: Any) -> list[str]:
        return [found.id for found in wandb.Api().runs("tester/proj", **query)]

    assert names() == ["one", "two", "three"]
    assert names(filters={"config.lr": 0.5}) == ["two", "three"]
    assert names(filters={"$or": [{"state": "failed"}, {"tags": "t"}]}, per_page=1) == ["one", "three"]
    assert names(filters={"summary_metrics.loss": {"$gt": 1}}, order="+summary_metrics.loss") == ["three", "two"]


def test_a_line_streamed_twice_counts_once(wandb_server: WandbServer) -> None:
    from tests.wandb_server import file_stream
    from tests.wandb_server.store import Run

    store = wandb_server.store
    run = Run(store.new_id("Run"), "r", store.open_project("tester", "p"), "r")
    lines = ['{"_step": 0, "loss": 2}', '{"_step": 1, "loss": 1}']
    for offset in (0, 0, 2):  # sent again after a lost answer; then synced once more, after what is there
        file_stream.take(run, {"files": {"wandb-history.jsonl": {"offset": offset, "content": lines}}})

    assert run.history == [{"_step": 0, "loss": 2}, {"_step": 1, "loss": 1}]
    assert len(run.streams["wandb-history.jsonl"]) == 4


@pytest.mark.parametrize("key", ["", "wrong" * 10])
def test_a_wrong_key_is_refused(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    import requests

    url, query = f"{wandb_server.url}/graphql", {"query": "{viewer{id}}"}
    answer = requests.post(url, json=query, auth=("api", key), timeout=HANG_SECONDS)

    assert answer.status_code == 401
    assert "API key" in answer.json()["errors"][0]["message"]
