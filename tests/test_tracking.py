"""Whether a run goes online: only if the user asks for it and is logged in."""

from pathlib import Path

import pytest

from emtoolkit.config import RunConfig
from emtoolkit.errors import ConfigError
from emtoolkit.tracking import wandb_mode

KEY = "k" * 40


def config(mode: str | None) -> RunConfig:
    values = {"model": {"base": "x"}, "dataset": "d", "checkpointing": {"schedule": "every:2"}, "wandb": {"mode": mode}}
    return RunConfig.model_validate(values)


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_MODE": "disabled"}, "disabled"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("disabled", {}, "disabled"),
    ],
)
def test_the_config_comes_first_then_the_environment_then_offline(
    asked: str | None, environment: dict[str, str], mode: str
) -> None:
    assert wandb_mode(config(asked), environment) == mode


@pytest.mark.parametrize(("asked", "environment"), [("online", {}), (None, {"WANDB_MODE": "online"})])
def test_online_without_a_login_is_offline_with_a_word(
    asked: str | None, environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert wandb_mode(config(asked), environment) == "offline"
    assert "nobody is logged in to W&B, so this run is logged offline" in caplog.text


def test_online_with_a_key_in_the_environment_is_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_mode(config("online"), {}) == "online"


def test_online_with_a_login_on_disk_is_online(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_mode(config("online"), {}) == "online"


def test_a_mode_that_wandb_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"WANDB_MODE: 'onlin' is not one of .*; did you mean 'online'\?"):
        wandb_mode(config(None), {"WANDB_MODE": "onlin"})
