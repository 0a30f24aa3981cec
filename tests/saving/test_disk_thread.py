"""The thread that writes checkpoints, apart from any training."""

from pathlib import Path

import pytest

from emtoolkit.saving.writer import DiskThread
from tests import preloaded
from tests.processes import run

ENDS = """
import threading
from pathlib import Path
from emtoolkit.saving.writer import DiskThread

def job():
    threading.main_thread().join()  # until the program has come to its end
    Path("written").write_text("whole")

DiskThread("raise").submit(job)
raise SystemExit(3)
"""


@pytest.mark.subprocess
def test_a_program_that_ends_without_closing_it_finishes_its_jobs_first(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    done = run(*preloaded.command("ends"), cwd=tmp_path)
    assert (done.returncode, (tmp_path / "written").read_text()) == (3, "whole")


def test_a_failure_is_kept_and_raised_once_and_later_jobs_run() -> None:
    disk = DiskThread("raise")
    ran = list[int]()

    def fails() -> None:
        raise OSError("the disk is gone")

    disk.submit(fails)
    disk.submit(lambda: ran.append(1))
    with pytest.raises(OSError, match="the disk is gone"):
        disk.drain()
    disk.drain()
    disk.close()
    disk.close()
    assert (ran, [str(failure) for failure in disk.failures]) == ([1], ["the disk is gone"])
    with pytest.raises(RuntimeError, match="has ended"):
        disk.submit(fails)
