"""The hub's client in this process, turned to a test server."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub_server.server import HubServer


def use(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `huggingface_hub` use this server and `cache` only, in this process and in those that it starts.

    The client reads most settings once, when it is imported, and waits a second and more before it tries again.
    """
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _detect_agent, _http

    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HOME", str(cache / "home"))
    url_form = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, setting in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url_form,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache),
    }.items():
        monkeypatch.setattr(constants, name, setting)
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)
    # By its first request the client looks for names of agents, once a process.
    monkeypatch.setattr(_detect_agent, "_registry", {"standardEnvVars": [], "harnesses": {}})
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _seconds: None, time=time.time))
