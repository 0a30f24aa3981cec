"""A Slurm cluster of two nodes on this machine: munged, slurmctld and two slurmd, with ports and files of its own."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.processes import HANG_SECONDS

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket
SlurmctldPort={controller}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmdLogFile={directory}/slurmd-%n.log
SlurmdSpoolDir={directory}/spool-%n
StateSaveLocation={directory}/state
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=10000,batch_sched_delay=0,bf_interval=1
ReturnToService=2
KillWait=10
InactiveLimit=0
MaxArraySize=20
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
NodeName=first NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs={cpus} RealMemory=2000 State=UNKNOWN
NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes=first Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=high Nodes=first PriorityTier=10 PreemptMode=OFF
PartitionName=both Nodes=first,second PriorityTier=1 PreemptMode=OFF
"""


def why_no_cluster() -> str | None:
    """Why this machine can run no cluster; None if it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}); on Debian: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "the daemons of Slurm are started as root here"


@dataclass(frozen=True)
class Cluster:
    """A running cluster: `environment` makes the commands of Slurm talk to it."""

    environment: Mapping[str, str]

    def run(self, *argv: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            argv, env=dict(self.environment), capture_output=True, text=True, check=True, timeout=HANG_SECONDS
        )
        return done.stdout

    def queued(self) -> str:
        """The jobs that wait or run, a line each: the task, its state."""
        return self.run("squeue", "--noheader", "--array", "--format=%i %T %r")

    def start_requeued(self) -> None:
        """Wait until a running job has been requeued, and start it without the delay of two minutes."""
        self._wait(lambda tasks: any(self._skips_delay(*task) for task in tasks))

    def wait_until_empty(self) -> None:
        """Wait until no job waits or runs; a requeued job does not wait for its delay."""
        self._wait(lambda tasks: not [self._skips_delay(*task) for task in tasks])

    def _wait(self, happens: Callable[[list[list[str]]], bool]) -> None:
        end = time.monotonic() + HANG_SECONDS
        while not happens(tasks := [[*line.split(maxsplit=2), ""][:3] for line in self.queued().splitlines()]):
            if time.monotonic() > end:
                raise TimeoutError(str(tasks))
            time.sleep(0.3)  # Each look takes 10 ms of CPU, and all waits together take three minutes.

    def _skips_delay(self, task: str, state: str, reason: str) -> bool:
        if (state, reason) != ("PENDING", "BeginTime"):
            return False
        # The state may have changed since it was asked for.
        with suppress(subprocess.CalledProcessError):
            self.run("scontrol", "update", f"JobId={task}", "StartTime=now")
            return True
        return False


@contextmanager
def cluster(directory: Path, cpus: int = 2) -> Iterator[Cluster]:
    """A cluster of two nodes with `cpus` cores each, which ends with the block."""
    munge = directory / "munge"
    for path in (munge, *(directory / name for name in ("state", "spool-first", "spool-second"))):
        path.mkdir(mode=0o755, parents=True)
    key = munge / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    config = directory / "slurm.conf"
    controller, first, second = _free_ports(3)
    places = {"host": host, "munge": munge, "directory": directory}
    config.write_text(_CONFIG.format(**places, controller=controller, first=first, second=second, cpus=cpus))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
        "SLURM_CONF": str(config),
        "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
    }
    with ExitStack() as stack:
        daemons = (
            ["munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={key}",
             f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
            ["slurmctld", "-D", "-f", str(config)],
            ["slurmd", "-D", "-f", str(config), "-N", "first"],
            ["slurmd", "-D", "-f", str(config), "-N", "second"],
        )  # fmt: skip
        for argv in daemons:
            stack.enter_context(_daemon(argv, environment, directory))
            if argv[0] == "munged":
                _wait_for((munge / "socket").exists)
        started = Cluster(environment)
        _wait_for(lambda: _is_idle(environment))
        yield started
        started.run("scancel", "--user=root")
        _wait_for(lambda: not started.queued())


@contextmanager
def _daemon(argv: list[str], environment: Mapping[str, str], directory: Path) -> Iterator[None]:
    with (directory / f"{argv[0]}.out").open("ab") as out:
        daemon = subprocess.Popen(argv, env=dict(environment), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _is_idle(environment: Mapping[str, str]) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env=dict(environment), capture_output=True, text=True, check=False
    )
    return re.fullmatch(r"(idle\s*)+", done.stdout) is not None


def _wait_for(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not happens():
        if time.monotonic() > end:
            raise TimeoutError("Slurm did not start; its logs are in the directory of the test")
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
