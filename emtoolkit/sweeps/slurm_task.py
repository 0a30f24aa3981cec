"""The facts that a task of Slurm can read about its own job."""

import re
import subprocess
from collections.abc import Mapping

_SECONDS = 60.0
_FIELD = re.compile(r"\b(JobState|PreemptTime)=(\S+)")


def is_at_time_limit(environment: Mapping[str, str]) -> bool:
    """Whether this process runs in a job that nobody cancels or preempts, so that a signal told of its time limit.

    False outside of Slurm, and where Slurm does not answer.
    """
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return False
    try:
        done = subprocess.run(
            ["scontrol", "show", "job", job, "--oneliner"],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    fields = dict(_FIELD.findall(done.stdout))
    return fields.get("JobState") == "RUNNING" and fields.get("PreemptTime", "None") == "None"
