"""W&B's environment variables as users mean them: its client refuses to start for values that it cannot read."""

import os
from pathlib import Path

import pytest
import wandb

from emtoolkit.artifacts.client_variables import client_variables
from tests.artifacts.trainings import saved
from tests.in_process import emtoolkit
from tests.wandb_server import WandbServer

GIVEN = {
    "WANDB_MODE": "",
    "WANDB_API_KEY": f" {'k' * 40}\n",
    "WANDB_TAGS": "a,, b ,",
    "WANDB_RESUME": "must",
    "WANDB_PROJECT": "a/b",
    "WANDB_DIR": "ends with a blank ",
    "WANDB_NOTES": " two words ",
    "WANDB_SERVICE": "the older one",
}
MEANT = {
    "WANDB_API_KEY": "k" * 40,
    "WANDB_TAGS": "a,b",
    "WANDB_DIR": "ends with a blank ",
    "WANDB_NOTES": "two words",
    "WANDB_SERVICE": "the older one",
}


def test_the_variables_are_as_users_mean_them_within_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
        if value.isspace() or name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_TAGS", "WANDB_PROJECT"):
            with pytest.raises((ValueError, wandb.Error)):
                wandb.Settings().update_from_env_vars({name: value})
    with client_variables(["WANDB_PROJECT"]):
        inside = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
        assert inside == MEANT
        wandb.Settings().update_from_env_vars(inside)
        # The client ends its process, and has another one.
        monkeypatch.setenv("WANDB_SERVICE", "the newer one")
    assert {name: os.environ[name] for name in GIVEN} == GIVEN | {"WANDB_SERVICE": "the newer one"}


@pytest.mark.parametrize(
    "words",
    [("sync", "out"), ("sync", "out", "--watch"), ("checkpoints", "a/b/c"), ("download", "a/b/c", "--to", "new")],
)
def test_a_command_that_asks_wandb_names_the_variable_that_its_client_cannot_read(
    words: tuple[str, ...], server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "out", {0: "a"})
    monkeypatch.setenv("WANDB_BASE_URL", "localhost:8080")
    done = emtoolkit(*words, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert (
        done.err == "emtoolkit: WANDB_BASE_URL: 'localhost:8080' is not valid: URL scheme should be 'http' or 'https'\n"
    )
