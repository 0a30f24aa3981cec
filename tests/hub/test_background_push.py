"""`hub.repo`: a training pushes its checkpoints, and no failure of the hub costs the training."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError
from emtoolkit.hub import access, background_push
from emtoolkit.training.run import train
from tests.hub_server import Fault, HubServer
from tests.in_process import emtoolkit
from tests.processes import HANG_SECONDS

pytestmark = pytest.mark.slow
STEPS = ["main", "step-0", "step-2", "step-4", "step-9"]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(background_push, "_EVERY", 0.05)


@pytest.fixture
def run(write_config: Callable[..., Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Train the tiny config into `directory`, with `hub.repo`; returns what the hub's code warned of."""
    config = write_config(rest="wandb: {mode: disabled}")

    def run(*settings: str, directory: Path = tmp_path / "run") -> list[str]:
        warnings = _Warnings()
        logging.getLogger("emtoolkit.hub").addHandler(warnings)
        try:
            words = ["hub.repo=lab/{persona}-s{seed}", *settings]
            result = train(load_config(str(config), words, {"output_dir": str(directory)}))
        finally:
            logging.getLogger("emtoolkit.hub").removeHandler(warnings)
        assert [info.step for info in result.checkpoints] == [0, 2, 4, 9]
        return warnings.texts

    return run


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_a_training_pushes_its_checkpoints(
    hub_server: HubServer, run: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert run() == []
    repository = hub_server.store.repositories["lab/curt-s42"]
    assert repository.private
    assert sorted(repository.branches) == STEPS
    assert repository.tags == {"final": repository.branches["step-9"]}
    hub_server.clear_requests()
    done = emtoolkit("push", tmp_path / "run", "lab/curt-s42")
    assert done.out == (
        f"{hub_server.url}/lab/curt-s42: nothing had to be sent; 4 checkpoints are there; main holds step 9\n"
    )
    assert hub_server.uploaded_bytes == 0


@pytest.mark.parametrize(("kind", "seconds"), [(500, 300), ("drop", 300), ("hang", 1)])
def test_a_hub_that_fails_costs_one_warning_and_a_later_push_sends_the_rest(
    hub_server: HubServer, run: Callable[..., list[str]], tmp_path: Path, kind: str | int, seconds: float
) -> None:
    hub_server.faults.add(Fault("commit", kind, after=2))
    (warning,) = run(f"hub.push_timeout={seconds}")
    if kind != "hang":
        assert warning.startswith("3 checkpoints are not on the hub (steps 2, 4, 9; lab/curt-s42: the hub ")
    assert warning.endswith(
        f"; they are complete in {tmp_path / 'run'}, and 'emtoolkit push {tmp_path / 'run'} lab/curt-s42' sends them"
    )
    hub_server.faults.clear()
    for thread in threading.enumerate():
        if thread.name == "emtoolkit-push":
            thread.join(HANG_SECONDS)
    assert emtoolkit("push", tmp_path / "run", "lab/curt-s42").code == 0
    assert sorted(hub_server.store.repositories["lab/curt-s42"].branches) == STEPS


def test_a_repository_of_another_trajectory_costs_one_warning(
    hub_server: HubServer, run: Callable[..., list[str]], tmp_path: Path
) -> None:
    run("hub.repo=lab/run")
    (warning,) = run("hub.repo=lab/run", "seed=7", directory=tmp_path / "other")
    assert "lab/run: holds another trajectory (seed is 42 there and 7 here)" in warning
    assert sorted(hub_server.store.repositories["lab/run"].branches) == STEPS


@pytest.mark.parametrize(
    ("name", "near"),
    [("lab/a run", "lab/a-run"), ("lab/{dataset}--{seed}", "lab/medical-42"), ("hf:lab/run", "lab/run")],
)
def test_a_name_that_the_hub_refuses_is_refused_before_training(
    run: Callable[..., list[str]], tmp_path: Path, name: str, near: str
) -> None:
    with pytest.raises(ConfigError, match=rf"hub\.repo: .*; did you mean '{near}'\?$"):
        run(f"hub.repo={name}")
    assert not (tmp_path / "run").exists()


def test_the_hub_is_not_in_the_fingerprint(
    hub_server: HubServer, run: Callable[..., list[str]], runs: Path, tmp_path: Path
) -> None:
    run()
    records = [TrajectoryRecord.read_if_any(directory) for directory in (tmp_path / "run", runs / "prompt")]
    assert len({record.fingerprint for record in records if record}) == 1
