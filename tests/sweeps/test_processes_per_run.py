"""Several processes for each run of a sweep: the command that starts them."""

import sys

import pytest

from emtoolkit.errors import ConfigError
from emtoolkit.sweeps.processes_per_run import launched

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("${env}", "emtoolkit", "train", "${args}"), ("${env}", *TORCHRUN, "-m", "emtoolkit", "train", "${args}")),
        (("/opt/bin/emtoolkit", "train", "sandbox"), (*TORCHRUN, "-m", "emtoolkit", "train", "sandbox")),
        (("${env}", "${interpreter}", "${program}", "${args}"), ("${env}", *TORCHRUN, "${program}", "${args}")),
        (("python3.11", "-m", "emtoolkit", "train"), (*TORCHRUN, "-m", "emtoolkit", "train")),
        (("env", "A=b", "python", "train.py"), ("env", "A=b", *TORCHRUN, "train.py")),
    ],
)
def test_torchrun_takes_the_place_of_the_interpreter(command: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert launched(command, 2, "sweep.yaml") == expected


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("torchrun", "train.py"), "sweep.yaml: command: it calls torchrun already; leave --nproc-per-run out"),
        (("python", "-u", "train.py"), "sweep.yaml: command: --nproc-per-run starts 'emtoolkit …', 'python SCRIPT …'"),
        (("bash", "train.sh"), "sweep.yaml: command: --nproc-per-run starts 'emtoolkit …'"),
        (("python",), "sweep.yaml: command: --nproc-per-run starts"),
    ],
)
def test_another_command_is_one_sentence(command: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        launched(command, 2, "sweep.yaml")
    assert str(raised.value).startswith(sentence)
