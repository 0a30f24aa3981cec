"""The `emtoolkit` command without the cost of another Python: what it prints, and the code it exits with."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.cli.app import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def emtoolkit(*words: str | Path, cwd: Path) -> Done:
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["emtoolkit", *map(str, words)]
    code = 0
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())
