"""The command of a sweep file with several processes for each run: `torchrun` in place of the interpreter."""

import sys
from collections.abc import Sequence
from pathlib import PurePath

from emtoolkit.errors import ConfigError

_INTERPRETER = "${interpreter}"


def launched(command: Sequence[str], count: int, place: str) -> tuple[str, ...]:
    """`command` with `count` processes on this machine, as `torchrun --standalone` starts them on a free port.

    `emtoolkit …` is started as the module, and `python SCRIPT …` and `python -m MODULE …` as what they name.

    Raises:
        ConfigError: the command is another one, of the sweep file `place`.
    """
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
    for at, word in enumerate(command):
        rest = tuple(command[at + 1 :])
        name = PurePath(word).name
        if name == "emtoolkit":
            return (*command[:at], *torchrun, "-m", "emtoolkit", *rest)
        if word == _INTERPRETER or name.startswith("python"):
            if not rest or (rest[0].startswith("-") and rest[0] != "-m"):
                break
            return (*command[:at], *torchrun, *rest)
        if name == "torchrun":
            raise ConfigError(
                f"{place}: command: it calls torchrun already; leave --nproc-per-run out, or torchrun in the file"
            )
    raise ConfigError(
        f"{place}: command: --nproc-per-run starts 'emtoolkit …', 'python SCRIPT …' and 'python -m MODULE …'; for "
        f"another command write the launcher into the file"
    )
