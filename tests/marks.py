"""The marks of tests by their cost, for fixtures; `make test-fast` leaves out every marked test.

`slow` is a second of work or more, or one of many tests that train models. `subprocess` starts a process, as W&B's
client does. `server` opens a port.
"""

import pytest

# `@pytest.fixture(params=STARTS_PROCESSES)` gives the marks to every test that uses the fixture.
STARTS_PROCESSES = [pytest.param(None, marks=[pytest.mark.subprocess], id=pytest.HIDDEN_PARAM)]
OPENS_PORTS = [pytest.param(None, marks=[pytest.mark.subprocess, pytest.mark.server], id=pytest.HIDDEN_PARAM)]
