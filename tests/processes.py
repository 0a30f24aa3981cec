"""Programs that a test runs as processes of their own; such a test has the mark `subprocess`."""

import os
import subprocess
import sys
from pathlib import Path

from tests import preloaded

# A limit for what hangs, never for what is slow: a busy machine takes ten times as long as an idle one.
HANG_SECONDS = 300


def run(*argv: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end, with `environment` on top of that of the tests."""
    return subprocess.run(
        [*map(str, argv)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


def python(code: str, *argv: str | Path, cwd: Path | None = None) -> str:
    """What Python prints for `code`, which must succeed."""
    done = run(sys.executable, "-c", code, *argv, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def emtoolkit(*argv: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the `emtoolkit` command; `tests.in_process` has the same without a process."""
    return run(*preloaded.command("emtoolkit", *argv), cwd=cwd, **environment)
