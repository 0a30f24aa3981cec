"""The property of every target, and how often it has been tried."""

import shutil
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded

from emtoolkit.errors import UserError
from tests.fuzz.targets import Target

_SECONDS = 1.5
_LONGEST_SENTENCE = 4000


def check(target: Target, content: bytes, directory: Path) -> None:
    """A value, or a `UserError` of one short line, within about a second."""
    started = time.process_time()
    try:
        target.parse(content, directory)
    except UserError as error:
        sentence = str(error)
    else:
        sentence = ""
    assert "\n" not in sentence, sentence
    assert len(sentence) < _LONGEST_SENTENCE, len(sentence)
    seconds = time.process_time() - started
    assert seconds < _SECONDS, f"{seconds:.1f} s"


def try_examples(target: Target, count: int, seed: int | None = None) -> int:
    """Try `count` inputs, the same each time without a `seed`; return how many were tried."""
    tried = 0

    def one(content: bytes) -> None:
        nonlocal tried
        tried += 1
        directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            check(target, content, directory)
        finally:
            shutil.rmtree(directory)

    checks = list(HealthCheck)
    limits = settings(
        max_examples=count, deadline=None, database=None, derandomize=seed is None, suppress_health_check=checks
    )
    test = limits(given(target.content)(one))
    (test if seed is None else seeded(seed)(test))()
    return tried
