"""The server of `tests/artifacts`, for the checkpoints that go from W&B."""

from tests.artifacts.conftest import _running as _running
from tests.artifacts.conftest import server as server
