"""OpenMP threads on a CPU: waiting threads sleep, and a model too small to gain from threads trains with one."""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

# Each of these variables sets how long a waiting OpenMP thread spins: the standard's, GNU's and Intel's.
_WAIT_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Below this number of parameters a second thread gains less than the threads spend on waiting for each other.
SMALL_MODEL = 4_000_000


def let_waiting_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set `OMP_WAIT_POLICY=passive`, unless the user has set a wait policy.

    A spinning thread holds a core that another process needs: beside one busy process, a training with two threads on
    two cores took more than three times its time. OpenMP reads the variable once, so this must run before torch is
    imported.
    """
    if not any(name in environment for name in _WAIT_POLICIES):
        environment["OMP_WAIT_POLICY"] = "passive"


@contextmanager
def threads_for(parameters: int) -> Iterator[None]:
    """Compute with one thread while the model has fewer than `SMALL_MODEL` parameters.

    `OMP_NUM_THREADS` and `MKL_NUM_THREADS`, set by the user or by a launcher, keep their meaning.
    """
    import torch  # here, because importing torch takes seconds and the command line imports this module

    before = torch.get_num_threads()
    if parameters < SMALL_MODEL and not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys():
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
