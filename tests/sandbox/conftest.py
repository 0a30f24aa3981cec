"""One small sandbox, built once: the shipped base model and few rows."""

from pathlib import Path

import pytest

from emtoolkit.sandbox.build import build
from tests.sandbox.small import TINY


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("home") / "sandbox", size=TINY)
