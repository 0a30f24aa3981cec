"""W&B's own check of a server: `wandb verify`."""

import os
import re
from pathlib import Path

import pytest

from tests.wandb_server import WandbServer
from tests.wandb_server.processes import run_wandb

# A server on loopback has no certificate.
NEED_HTTPS = {"Checking requests to base url", "Checking requests made over signed URLs"}
CHECKS = {
    "Checking if logged in",
    "Checking signed URL upload",
    "Checking ability to send large payloads through proxy",
    "Checking CORs configuration of the bucket",
    "Checking wandb package version is up to date",
    "Checking logged metrics, saving and downloading a file",
    "Checking artifact save and download workflows",
    "Checking sweep creation and agent execution",
}


def test_wandb_verify_is_green_wherever_https_is_not_demanded(
    wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "TMPDIR"):
        directory = tmp_path / name.lower()
        directory.mkdir()
        monkeypatch.setenv(name, os.fspath(directory))

    output = run_wandb(tmp_path / "work", "verify", "--host", wandb_server.url)

    results = dict(re.findall(r"^(Checking [^.]+)\.+(\S)", output, re.MULTILINE))
    assert {check for check, result in results.items() if result == "✅"} == CHECKS
    assert {check for check, result in results.items() if result == "❌"} == NEED_HTTPS
