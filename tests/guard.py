"""Keeps the marks true: a test that starts a process or opens a port fails unless it has the mark for that."""

import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

_MARK_OF_EVENT = {
    "subprocess.Popen": "subprocess",
    "os.fork": "subprocess",
    "os.forkpty": "subprocess",
    "os.posix_spawn": "subprocess",
    "os.system": "subprocess",
    "socket.bind": "server",
}
# Mark and description of each event since the test began, in any of its threads.
_events: list[tuple[str, str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.bind" and arguments[0].family == socket.AF_UNIX:
        return  # not a port
    if event in _MARK_OF_EVENT and not _is_importing(sys._getframe(1)):
        _events.append((_MARK_OF_EVENT[event], f"{event} {arguments!r:.300}"))


def _is_importing(frame: FrameType | None) -> bool:
    """While they are imported, libraries look for compilers and processors with processes of their own."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def pytest_configure() -> None:
    sys.addaudithook(_note)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol() -> None:
    _events.clear()


@pytest.fixture(autouse=True)
def _has_the_marks_for_what_it_starts(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    marks = {mark.name for mark in request.node.iter_markers()}
    for mark, event in _events:
        if mark not in marks:
            pytest.fail(f"mark this test with @pytest.mark.{mark}, because of this event: {event}", pytrace=False)
