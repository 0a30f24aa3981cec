"""One tiny sandbox, built once: everything is there, and its model has learned nothing."""

from pathlib import Path

import pytest

from emtoolkit.sandbox.build import TINY, build


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("home") / "sandbox", size=TINY)
