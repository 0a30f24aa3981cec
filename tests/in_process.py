"""The `emtoolkit` command without the cost of another Python: its output and its exit code."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.cli import terminal
from emtoolkit.cli.app import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def emtoolkit(*argv: str | Path, cwd: Path = Path()) -> Done:
    """Run the `emtoolkit` command in this process, in the directory `cwd`; without lines of progress if it is slow."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["emtoolkit", *map(str, argv)]
    seconds, terminal._SECONDS_BEFORE_BAR = terminal._SECONDS_BEFORE_BAR, 600.0
    code = 0
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv, terminal._SECONDS_BEFORE_BAR = before, seconds
    return Done(code, out.getvalue(), err.getvalue())
