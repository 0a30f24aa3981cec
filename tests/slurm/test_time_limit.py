"""A real time limit, whose signal Slurm sends by itself; it looks at the limits of its jobs every 30 seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_no_cluster
from tests.slurm.sweeps import checkpoints, log_of, of_whole_training, on_slurm, states, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.subprocess,
    pytest.mark.server,
    pytest.mark.skipif(why_no_cluster() is not None, reason=str(why_no_cluster())),
]


def test_a_time_limit_requeues_a_run_twice_until_it_has_finished(
    slurm: Cluster, directory: Path, training: Callable[..., None]
) -> None:
    training("2,5")
    # Of a limit of 60 s, the signal is due 30 s before, and at the look before that.
    assert on_slurm(directory, "--slurm", "time=1 signal=TERM@30").code == 0
    for step in (2, 5):
        wait_for(directory / f"held-{step}")
        slurm.start_requeued()
    slurm.wait_until_empty()

    ((_, state, starts),) = states(directory)
    # On a busy machine the last start may come near its limit, too.
    assert state == "finished"
    assert starts >= 3
    log = log_of(directory)
    assert log.index("after step 3") < log.index("after step 6")
    assert checkpoints(directory / "out") == of_whole_training(directory)
