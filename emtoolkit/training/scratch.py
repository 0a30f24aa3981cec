"""`$EMTOOLKIT_SCRATCH`: a run writes to a disk of its node, and its output is copied to the output directory.

Below the scratch disk each process has a directory of its own, in which paths are those of the output, so that
`/project/outputs/run` is `<scratch>/emtoolkit-<id>/project/outputs/run` there. When a run begins, what its output
directory holds is copied to the scratch disk; a thread copies what is finished while the run trains; the rest is copied
when the run ends, after a signal too. The output directory stays locked, so that nobody else writes there meanwhile.
"""

import logging
import os
import platform
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from emtoolkit.checkpoints.layout import RESUME_DIRECTORY, step_of
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.trajectory_file import RECORD
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.paths import SCRATCH, SCRATCH_PREFIX, expand, out_of_scratch
from emtoolkit.reuse.store import INPUTS
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.requests import forget_requests, forward_requests, request_files
from emtoolkit.stop_signals import ENDING, NOTICES
from emtoolkit.storage.atomic import remove_temporaries
from emtoolkit.storage.copies import CopiedDirectory, Links, make_directory
from emtoolkit.storage.lock import inherited_lock, lock_directory
from emtoolkit.storage.thread_priority import DISK, give_way
from emtoolkit.training.resolved_config import in_directory
from emtoolkit.training.result import RunResult

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_NOT_COPIED = "not-copied"
# How often finished checkpoints are copied while a run trains, in seconds.
_SECONDS_BETWEEN_COPIES = 5.0


class Scratch:
    """Where a run writes: `config` names directories on the scratch disk, or is the config as it was without one.

    Process 0 copies; the other processes of a run only write.
    """

    def __init__(self, config: RunConfig, root: Path | None, *, copies: bool) -> None:
        self.config = config
        self._root = root
        self._copies = copies and root is not None
        self._links: Links = {}
        self._copied: list[CopiedDirectory] = []
        self._busy = threading.Lock()
        self._end = threading.Event()
        self._warned = False
        if root is not None:
            store = expand(config.trajectory.store).absolute()
            inside = in_directory(config, _inside(root, config.directory()))
            trajectory = config.trajectory.model_copy(update={"store": str(_inside(root, store))})
            self.config = inside.model_copy(update={"trajectory": trajectory})

    def bring(self, directory: Path, locks: ExitStack) -> None:
        """Fill `directory` on the scratch disk with its copy, and copy it again and again until `locks` are released.

        Nothing happens without a scratch disk.

        Raises:
            InUseError: another process writes into the copy.
            CheckpointError: one of the two disks is full, or cannot be written to.
        """
        copy = out_of_scratch(directory)
        if not self._copies or copy == directory:
            return
        if not copy.exists():
            locks.callback(_remove_unless_filled, copy)
        make_directory(copy)
        locks.callback(lock_directory(copy).release)
        remove_temporaries([copy, copy / RESUME_DIRECTORY])
        forget_requests(copy, warn=True)
        copied = CopiedDirectory(
            directory, copy, is_unit=_is_checkpoint, record=RECORD, links=self._links, without=request_files()
        )
        copied.bring()
        self._keep_copied(copied, locks)

    def bring_inputs(self, locks: ExitStack) -> None:
        """Copy what the store remembers of runs; each file of it is written once, so that nothing is locked."""
        inputs = Path(self.config.trajectory.store, INPUTS)
        if self._copies:
            self._keep_copied(
                CopiedDirectory(inputs, out_of_scratch(inputs), is_unit=_is_checkpoint, record=RECORD, links={}), locks
            )

    def _keep_copied(self, copied: CopiedDirectory, locks: ExitStack) -> None:
        with self._busy:
            self._copied.append(copied)
        # Runs before the locks of the copy are released.
        locks.callback(self._leave, copied)

    def copied(self, result: RunResult) -> RunResult:
        """`result`, after everything is copied, with the places of the copies."""
        if self._root is None:
            return result
        directory, log = out_of_scratch(result.directory), result.wandb_directory
        return replace(
            result,
            directory=directory,
            checkpoints=tuple(list_checkpoints(directory)),
            wandb_directory=None if log is None else out_of_scratch(log),
        )

    def copy_until_the_end(self) -> None:
        """Copy finished checkpoints, in the thread; a failed copy is a warning, and is tried again."""
        give_way(DISK)
        while not self._end.wait(_SECONDS_BETWEEN_COPIES):
            with self._busy:
                for copied in self._copied:
                    try:
                        forward_requests(copied.copy, copied.original)
                        copied.update()
                    except (CheckpointError, OSError) as error:
                        if not self._warned:
                            logger.warning("%s; training goes on, and the copy is tried again", error)
                        self._warned = True

    def end(self) -> None:
        """Stop the thread, after the copy that it makes."""
        self._end.set()

    def _leave(self, copied: CopiedDirectory) -> None:
        with self._busy:
            self._copied.remove(copied)
            try:
                with _later_signals_ignored():
                    copied.update()
            except CheckpointError as error:
                if self._root is not None:
                    (self._root / _NOT_COPIED).touch()
                raise CheckpointError(
                    f"{error}; what was not copied stays in {copied.original} on {platform.node()}"
                ) from None


@contextmanager
def on_scratch(config: RunConfig, ranks: Ranks, environment: Mapping[str, str] = os.environ) -> Iterator[Scratch]:
    """The place where the run of `config` writes, until the block ends and everything is copied.

    Raises:
        ConfigError: `$EMTOOLKIT_SCRATCH` is no directory that can be written to.
        InUseError: another process writes into the output directory.
        CheckpointError: a disk is full; what was not copied stays on the scratch disk, and the message says where.
    """
    if not environment.get(SCRATCH):
        yield Scratch(config, None, copies=True)
        return
    with ExitStack() as stack:
        root = None
        with ranks.raise_on_all():
            if ranks.index == 0:
                root = stack.enter_context(_own_root(expand(environment[SCRATCH], environment).absolute()))
        root = ranks.broadcast(root)
        scratch = Scratch(config, root, copies=ranks.index == 0)
        with ranks.raise_on_all():
            scratch.bring(scratch.config.directory(), stack)
            scratch.bring_inputs(stack)
        if ranks.index == 0:
            copier = threading.Thread(target=scratch.copy_until_the_end, name="scratch", daemon=True)
            copier.start()
            stack.callback(copier.join)
            stack.callback(scratch.end)
            logger.info("%s: is written on the scratch disk %s, and copied", config.directory(), root)
        yield scratch


@contextmanager
def _own_root(base: Path) -> Iterator[Path]:
    """A new directory of this process on the scratch disk `base`; what ended processes left there is deleted."""
    try:
        for left_over in base.glob(f"{SCRATCH_PREFIX}*"):
            _remove_unused(left_over)
        root = base / f"{SCRATCH_PREFIX}{os.environ.get('SLURM_JOB_ID', 'run')}-{secrets.token_hex(4)}"
        root.mkdir(mode=0o700)
        lock = inherited_lock(root / _LOCK)
    except OSError as error:
        raise ConfigError(
            f"${SCRATCH}: {base} cannot be written to on {platform.node()} ({error.strerror or error}); name a "
            "directory on a disk of the node"
        ) from error
    try:
        yield root
    finally:
        if not (root / _NOT_COPIED).exists():
            shutil.rmtree(root, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_unused(root: Path) -> None:
    """Delete `root` if the process that made it has ended, unless it holds what was not copied."""
    if (root / _NOT_COPIED).exists() or root.stat().st_uid != os.getuid():
        return
    lock = inherited_lock(root / _LOCK)
    if lock is not None:
        shutil.rmtree(root, ignore_errors=True)
        os.close(lock)


def _remove_unless_filled(directory: Path) -> None:
    """Delete `directory` if the run has failed before it wrote anything."""
    if {path.name for path in directory.iterdir()} <= {_LOCK}:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _later_signals_ignored() -> Iterator[None]:
    """Copy to the end: a scheduler may repeat its signal, and only Ctrl-C and SIGKILL end the copy."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (*ENDING, *NOTICES) if number != signal.SIGINT
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _is_checkpoint(name: str) -> bool:
    return step_of(name) is not None
