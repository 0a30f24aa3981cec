"""A hub whose checkpoints are kept in a cache of the test's own, and that is asked again without a pause."""

from pathlib import Path

import pytest

from emtoolkit.hub import client
from tests.hub_server import HubServer


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "emtoolkit"))
    monkeypatch.setattr(client, "_PAUSES", (0.0, 0.0, 0.0))
    return hub_server
