"""A preloaded program is to its caller what a program of its own is."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests import preloaded
from tests.processes import HANG_SECONDS, run

pytestmark = pytest.mark.subprocess
PROGRAM = """
import os, signal, sys, time
print(__name__, sys.argv[1:], os.getcwd(), os.environ.get("GIVEN"), sys.stdin.readline().strip())
print("an error", file=sys.stderr)
if "wait" in sys.argv:
    # signal.pause() would wait for ever if the signal came just before: its handler runs only after the call.
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    try:
        print(os.getpid(), flush=True)
        os.read(woken, 1)
    except KeyboardInterrupt:
        sys.exit(7)
sys.exit(3)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def started(home: Path) -> "subprocess.Popen[str]":
    argv = preloaded.command("program", "wait")
    process = subprocess.Popen(argv, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Without a buffer the first line comes before the program waits.
    process.stdout.readline()
    process.stdout.readline()
    return process


def test_it_has_the_arguments_the_directory_the_environment_the_streams_and_the_exit_code(home: Path) -> None:
    argv = preloaded.command("program", "a b", "c")
    environment = os.environ | {"GIVEN": "äö"}
    done = subprocess.run(
        argv,
        cwd=home,
        env=environment,
        input="line\n",
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "an error\n")
    assert done.stdout == f"__main__ ['a b', 'c'] {home} äö line\n"


def test_a_signal_reaches_it(home: Path) -> None:
    with started(home) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=HANG_SECONDS) == 7


def test_it_ends_by_the_signal_that_ends_it(home: Path) -> None:
    with started(home) as process:
        process.terminate()
        assert process.wait(timeout=HANG_SECONDS) == -signal.SIGTERM


def test_it_is_killed_with_its_process(home: Path) -> None:
    with started(home) as process:
        assert process.stdout is not None
        process.kill()
        # The pipe has an end once nobody can write into it.
        assert process.stdout.read() == ""


def test_a_traceback_is_an_exit_code_of_1(home: Path) -> None:
    (home / "program.py").write_text("1 / 0")
    done = run(*preloaded.command("program"), cwd=home)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_its_end_leaves_the_temporary_directories_that_were_there_before_it(home: Path) -> None:
    (home / "program.py").write_text("from wandb.sdk.data_types._private import MEDIA_TMP as t; print(t.name)")
    names = {run(*preloaded.command("program"), cwd=home).stdout.strip() for _ in range(2)}
    assert [Path(name).is_dir() for name in names] == [True]


@pytest.mark.parametrize("options", [["-m"], ["-u", "-m"]])
def test_what_it_starts_with_its_own_interpreter_is_preloaded_too(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "outer.py").write_text(f"import subprocess, sys; subprocess.run([sys.executable, *{options}, 'inner'])")
    (tmp_path / "inner.py").write_text(
        "import sys; print(sys.executable, 'transformers' in sys.modules, sys.stdout.line_buffering)"
    )
    done = run(*preloaded.command("outer"), cwd=tmp_path, PYTHONUNBUFFERED="")
    assert done.stdout == f"{preloaded.interpreter()} True {options[0] == '-u'}\n"
