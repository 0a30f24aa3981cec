"""The job script of a sweep, and the options of sbatch in it."""

from pathlib import Path
from typing import Any

import pytest

from emtoolkit.cli.sweep_on_slurm import SlurmRequest
from emtoolkit.errors import ConfigError, UserError
from emtoolkit.sweeps.slurm_script import Task, array_script, repeated_script, slurm_options


def script(**options: Any) -> str:
    return array_script(
        [Task(("0a1b",), "persona=goodness"), Task(("2c3d", "4e5f"), "persona=humor it's")],
        ["python", "-m", "emtoolkit", "sweep", "my sweep.yaml", "--only"],
        name="emtoolkit-my",
        directory=Path("/data/it's here"),
        logs=Path("/data/logs"),
        options=options,
        parallel=4,
    )


def test_a_script_names_its_runs_and_requeues_those_that_a_time_limit_stopped() -> None:
    assert script(partition="gpu") == (
        "#!/usr/bin/env bash\n"
        "#SBATCH --job-name=emtoolkit-my\n"
        "#SBATCH --array=0-1%4\n"
        "#SBATCH --output=/data/logs/%A_%a.log\n"
        "#SBATCH --requeue\n"
        "#SBATCH --open-mode=append\n"
        "#SBATCH --signal=TERM@120\n"
        "#SBATCH --partition=gpu\n"
        "\n"
        "directory='/data/it'\"'\"'s here'\n"
        'if ! cd "$directory"; then\n'
        '  echo "emtoolkit: node ${SLURMD_NODENAME:-$(hostname)} does not see $directory; put the directory on a file '
        'system that every node sees" >&2\n'
        "  exit 2\n"
        "fi\n"
        "\n"
        "runs=(\n"
        "  0a1b  # persona=goodness\n"
        "  2c3d,4e5f  # persona=humor it's\n"
        ")\n"
        'if [[ -n "$SLURM_CPUS_PER_TASK" ]]; then\n'
        '  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" '
        'OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"\n'
        "fi\n"
        "srun --ntasks=1 --unbuffered python -m emtoolkit sweep 'my sweep.yaml' --only "
        '"${runs[$SLURM_ARRAY_TASK_ID]}"\n'
        "code=$?\n"
        "\n"
        "# A run that saved and stopped before its time limit continues later. Slurm itself requeues a preempted job, "
        "and\n"
        "# a cancelled job is not RUNNING any more.\n"
        "state=$(scontrol show job \"$SLURM_JOB_ID\" -o | grep -o 'JobState=[A-Z]*')\n"
        "if [[ $code =~ ^(129|130|138|140|143|152)$ && $state = JobState=RUNNING ]]; then\n"
        '  scontrol requeue "$SLURM_JOB_ID"\n'
        "  sleep 60\n"
        "fi\n"
        "exit $code\n"
    )


def test_agents_are_tasks_without_keys() -> None:
    words = ["python", "-m", "wandb", "agent", "-f", "-t", "120", "--count", "1", "me/proj/abc"]
    lines = repeated_script(3, words, name="a", directory=Path("/data"), logs=Path("/logs"), options={}).splitlines()
    assert "#SBATCH --array=0-2" in lines
    assert "srun --ntasks=1 --unbuffered python -m wandb agent -f -t 120 --count 1 me/proj/abc" in lines
    assert not any("runs" in line for line in lines)


def test_a_scratch_disk_is_a_variable_of_the_run_and_no_option_of_sbatch() -> None:
    lines = script(scratch="$TMPDIR/it's").splitlines()
    # The run expands the text: the variable has its value on the node.
    assert "export EMTOOLKIT_SCRATCH='$TMPDIR/it'\"'\"'s'" in lines
    assert [line for line in lines if line.startswith("#SBATCH") and "scratch" in line] == []


@pytest.mark.parametrize("options", [{"requeue": False}, {"no-requeue": True}])
def test_a_script_without_requeues_says_so_to_slurm(options: dict[str, bool]) -> None:
    lines = script(**options).splitlines()
    assert "#SBATCH --no-requeue" in lines
    assert "#SBATCH --requeue" not in lines
    assert lines[-1] == "exit $?"


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("partition=gpu gres=gpu:1 time=4:00:00", {"partition": "gpu", "gres": "gpu:1", "time": "4:00:00"}),
        ("--mem=8G exclusive comment='a b'", {"mem": "8G", "exclusive": True, "comment": "a b"}),
        ({"cpus_per_task": 4, "exclusive": True, "requeue": False}, None),
        ("", {}),
    ],
)
def test_any_option_of_sbatch_can_be_given(given: Any, options: dict[str, Any] | None) -> None:
    expected = {"cpus-per-task": "4", "exclusive": True, "requeue": False} if options is None else options
    assert slurm_options(given, "--slurm") == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("array=0-3", "--slurm.array: the tasks are the runs of the sweep, and --parallel limits how many"),
        ("ntasks=4", "--slurm.ntasks: each run is one task; --nproc-per-run starts several processes in it"),
        ("=3", "--slurm: '' is not an option of sbatch; give its long name, as in partition=gpu"),
        ("comment='a", '--slurm: "comment=\'a" is not a list of options (No closing quotation)'),
        ({"gres": ["gpu:1"]}, "--slurm.gres: ['gpu:1'] is not the value of an option; give one line of text"),
        ({"comment": "a\nb"}, "--slurm.comment: 'a\\nb' is not the value of an option; give one line of text"),
        ("scratch", "--slurm.scratch: True is not a directory of the nodes, such as $TMPDIR"),
        ("scratch=", "--slurm.scratch: '' is not a directory of the nodes, such as $TMPDIR"),
        ([1], "--slurm: [1] is not a mapping of options of sbatch, such as partition: gpu"),
    ],
)
def test_what_is_no_option_is_one_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        slurm_options(given, "--slurm")
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("on", "flags", "sentence"),
    [
        ("slrum", {}, "--on: 'slrum' is not an engine; expected slurm; did you mean 'slurm'?"),
        (None, {"status": True}, "--status: needs --on slurm"),
        (None, {"parallel": 2}, "--parallel: needs --on slurm"),
        ("slurm", {"status": True, "cancel": True}, "--status and --cancel: give only one"),
        ("slurm", {"agents": 2, "status": True}, "--agents: W&B knows the runs of agents; leave --status out"),
    ],
)
def test_flags_that_contradict_are_one_sentence(on: str | None, flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        SlurmRequest.of(on, "", **flags)
    assert str(raised.value) == sentence
