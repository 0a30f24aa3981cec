"""The mode of the W&B run: online only if the user asks for it and is logged in."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from wandb.sdk.lib import wbauth

from emtoolkit.artifacts import server
from emtoolkit.artifacts.run_mode import wandb_mode
from emtoolkit.config.load import load_config
from emtoolkit.config.sections import WandbConfig
from emtoolkit.errors import ConfigError
from emtoolkit.training.wandb_run import _arguments, no_model_uploads
from tests.wandb_server import Fault, WandbServer

# W&B's client may start one wherever it begins again, after another test has ended it.
pytestmark = pytest.mark.subprocess


def wandb(mode: str | None) -> WandbConfig:
    return WandbConfig.model_validate({"mode": mode})


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wbauth.unauthenticate_session()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_MODE": "disabled"}, "disabled"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        (None, {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled"),
        (None, {"WANDB_DISABLED": "false"}, "offline"),
        ("offline", {"WANDB_DISABLED": "true"}, "offline"),
        ("disabled", {}, "disabled"),
    ],
)
def test_the_config_comes_first_then_the_environment_then_offline(
    asked: str | None, environment: dict[str, str], mode: str
) -> None:
    assert wandb_mode(wandb(asked), environment) == mode


@pytest.mark.subprocess
@pytest.mark.parametrize(("asked", "environment"), [("online", {}), (None, {"WANDB_MODE": "online"})])
def test_online_without_a_login_is_offline_with_a_warning(
    asked: str | None, environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert wandb_mode(wandb(asked), environment) == "offline"
    assert "W&B has no key (nobody is logged in), so this run is logged offline; 'wandb login'" in caplog.text


def test_online_with_a_key_in_the_environment_is_online(wandb_server: WandbServer) -> None:
    assert wandb_mode(wandb("online"), {}) == "online"


def test_online_with_a_login_on_disk_is_online(
    wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(
        f"machine 127.0.0.1:{wandb_server.port}\n  login user\n  password {wandb_server.api_key}\n"
    )
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_mode(wandb("online"), {}) == "online"


def test_a_run_of_an_agent_is_online_by_default(wandb_server: WandbServer) -> None:
    assert wandb_mode(wandb(None), {"WANDB_SWEEP_ID": "abc"}) == "online"
    assert wandb_mode(wandb(None), {"WANDB_SWEEP_ID": "abc", "WANDB_MODE": "offline"}) == "offline"


def test_an_unreachable_server_means_offline_with_a_warning(
    wandb_server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    wandb_server.refuse_connections()
    assert wandb_mode(wandb("online"), {}) == "offline"
    assert f"W&B does not answer (no connection to {wandb_server.url}), so this run is logged offline" in caplog.text


def test_a_silent_server_means_offline_with_a_warning(
    wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "_PROBE_SECONDS", 0.2)
    wandb_server.faults.add(Fault("*", "hang"))
    assert wandb_mode(wandb("online"), {}) == "offline"
    assert f"{wandb_server.url} sent no answer in 0.2 s" in caplog.text


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"WANDB_MODE: 'onlin' is not one of .*; did you mean 'online'\?"):
        wandb_mode(wandb(None), {"WANDB_MODE": "onlin"})


@pytest.mark.parametrize("before", ["checkpoint", None])
def test_the_trainers_own_uploads_are_off_during_the_run_only(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`WANDB_LOG_MODEL=checkpoint` would upload every checkpoint again, named by epoch."""
    monkeypatch.delenv("WANDB_LOG_MODEL", raising=False)
    if before is not None:
        monkeypatch.setenv("WANDB_LOG_MODEL", before)
    with no_model_uploads():
        assert os.environ["WANDB_LOG_MODEL"] == "false"
    assert os.environ.get("WANDB_LOG_MODEL") == before


VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": " my run ",
    "WANDB_RUN_GROUP": "group",
    "WANDB_TAGS": "a,b",
}


@pytest.mark.parametrize(
    ("settings", "environment", "expected"),
    [
        ([], {}, ("emtoolkit", None, "out", "collection", ["curt", "medical", "0-4:2"])),
        ([], VARIABLES, ("theirs", "team", "my run", "group", ["curt", "medical", "0-4:2", "a", "b"])),
        (
            ["wandb.project=emtoolkit", "wandb.entity=me", "wandb.group=mine", "wandb.tags=[c]"],
            VARIABLES,
            ("emtoolkit", "me", "my run", "mine", ["curt", "medical", "0-4:2", "c"]),
        ),
        (
            ["wandb.project=of-the-config"],
            {"EMTOOLKIT_SWEEP_PROJECT": "of-the-sweep"},
            ("of-the-sweep", None, "out", "collection", ["curt", "medical", "0-4:2"]),
        ),
    ],
)
def test_wandbs_variables_win_over_defaults_and_lose_against_the_config(
    settings: list[str],
    environment: dict[str, str],
    expected: tuple[object, ...],
    write_config: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load_config(str(write_config()), settings)
    arguments = _arguments(config, tmp_path / "out", "collection", "offline")
    assert tuple(arguments[key] for key in ("project", "entity", "name", "group", "tags")) == expected
