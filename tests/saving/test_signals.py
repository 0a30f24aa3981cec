"""A signal stops a training between two steps, whatever the program was doing."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests import preloaded
from tests.processes import HANG_SECONDS

LETTERS = 1_000_000
PROGRAM = f"""
import sys
from emtoolkit.saving.signals import DeferredSignals

signals = DeferredSignals()
signals.defer()
sys.stderr.write("x" * {LETTERS})
sys.stderr.flush()
print(signals.received)
"""


@pytest.mark.subprocess
def test_a_signal_that_comes_while_the_program_writes_is_stored_and_said(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        preloaded.command("program"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    # The rest does not fit into the pipe, so the program is writing until the pipe is read.
    written = process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    written += process.stderr.read()
    assert process.stdout.read() == "2\n", written[-2000:]
    assert process.wait(timeout=HANG_SECONDS) == 0
    said = "\nSaving the state after this training step; a second signal stops at once.\n"
    assert written.count(said) == 1
    assert written.replace(said, "") == "x" * LETTERS
