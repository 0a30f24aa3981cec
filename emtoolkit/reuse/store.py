"""The store of trajectories: each checkpoint of a trajectory once, whichever runs want it.

`<store>/<fingerprint>-<environment>/` is the output directory of the trainings of one trajectory in one environment:
checkpoints, resume state, `trajectory.json` and `publications.jsonl` as everywhere, and beside them `store.json` (the
environment) and `training.json`. Whoever holds the lock `.training` in the directory trains the trajectory.
`<store>/inputs/` holds a file for each digest of `RunInputs`, which says which trajectory that is.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import VERSION, Identity
from emtoolkit.config.sections import TrajectoryConfig
from emtoolkit.errors import CheckpointError, located
from emtoolkit.json_files import count_in, object_in, read_json, text_in
from emtoolkit.paths import expand, out_of_scratch
from emtoolkit.reuse.environment import Environment
from emtoolkit.storage.atomic import TEMPORARY, remove_temporaries, write_file
from emtoolkit.storage.copies import make_directory
from emtoolkit.storage.digests import canonical_json
from emtoolkit.storage.lock import InUseError, lock_file

logger = logging.getLogger(__name__)

ENVIRONMENT = "store.json"
TRAINING = "training.json"
INPUTS = "inputs"
_TRAINING_LOCK = ".training"
_FORMAT = 1
_SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A recognised run: its trajectory, its length, and the day given to its chat template, if any."""

    identity: Identity
    total_steps: int
    day: str | None = None

    def to_json(self) -> dict[str, Any]:
        identity = self.identity
        return {
            "format": _FORMAT,
            "fingerprint": identity.fingerprint,
            "fingerprinted": dict(identity.fingerprinted),
            "version": identity.version,
            "base_model": identity.base_model.to_json(),
            "persona": identity.persona.to_json(),
            "base_place": identity.base_place,
            "persona_place": identity.persona_place,
            "collection": identity.collection,
            "tags": list(identity.tags),
            "split": dict(identity.split),
            "total_steps": self.total_steps,
            "day": self.day,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "KnownRun":
        """The run in a JSON object.

        Raises:
            ValueError: this version wrote no such object, or its fingerprint is not that of its facts.
        """
        if count_in(values, "format") != _FORMAT or count_in(values, "version") != VERSION:
            raise ValueError("another format")
        identity = Identity(
            fingerprinted=object_in(values.get("fingerprinted"), "fingerprinted"),
            base_model=BaseModelRecord.from_json(object_in(values.get("base_model"), "base_model")),
            persona=PersonaRecord.from_json(object_in(values.get("persona"), "persona")),
            base_place=_text_or_none(values, "base_place"),
            persona_place=_text_or_none(values, "persona_place"),
            collection=text_in(values, "collection"),
            tags=tuple(map(str, values.get("tags", ()))),
            split=object_in(values.get("split"), "split"),
        )
        if identity.fingerprint != text_in(values, "fingerprint"):
            raise ValueError("the fingerprint is another one")
        return cls(identity, count_in(values, "total_steps"), _text_or_none(values, "day"))


@dataclass(frozen=True, slots=True)
class Training:
    """The latest training into a directory of the store: its run, and the steps at which it evaluated, None for never.

    `run` is the id of its W&B run, None without one.
    """

    directory: str
    run: str | None = None
    evaluated: tuple[int, ...] | None = None
    host: str = field(default_factory=platform.node)
    process: int = field(default_factory=os.getpid)

    @property
    def who(self) -> str:
        """The process, as a user finds it."""
        return f"process {self.process} on {self.host}, for {self.directory}"


class TrajectoryStore:
    """The store that `config` names, as a process in `environment` uses it.

    Raises:
        ConfigError: the path of the store names a variable that is not set.
    """

    def __init__(self, config: TrajectoryConfig, environment: Environment) -> None:
        with located("trajectory.store"):
            self.root = expand(config.store).absolute()
        self.environment = environment

    def directory(self, fingerprint: str) -> Path:
        """The directory of a trajectory; it may not exist."""
        return self.root / f"{fingerprint[:16]}-{self.environment.digest[:8]}"

    def known(self, key: str) -> KnownRun | None:
        """The run with the inputs `key`, None if no run with them has been here."""
        try:
            return KnownRun.from_json(object_in(read_json(self._file(key))))
        except (OSError, ValueError):
            return None

    def remember(self, key: str, run: KnownRun) -> None:
        """Keep which trajectory the inputs `key` give; a store that cannot be written keeps nothing."""
        content = canonical_json(run.to_json())
        file = self._file(key)
        try:
            if not file.is_file() or file.read_bytes() != content:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_file(file, content)
        except (OSError, CheckpointError) as error:
            logger.info("%s: was not written (%s)", file, error)

    def create(self, fingerprint: str) -> Path:
        """The directory of a trajectory, made with its `store.json` if it does not exist.

        Raises:
            CheckpointError: the store cannot be written.
        """
        directory = self.directory(fingerprint)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{directory}: cannot be written to ({error.strerror or error})") from error
        if not (directory / ENVIRONMENT).is_file():
            write_file(directory / ENVIRONMENT, canonical_json({"format": _FORMAT, **self.environment.facts}))
        return directory

    def other_environments(self, fingerprint: str) -> dict[Path, list[str]]:
        """The directories of the same trajectory from other environments, each with the differences to this one."""
        found = {}
        for directory in sorted(out_of_scratch(self.root).glob(f"{fingerprint[:16]}-*")):
            if directory == out_of_scratch(self.directory(fingerprint)):
                continue
            try:
                facts = dict(object_in(read_json(directory / ENVIRONMENT)))
            except (OSError, ValueError):
                continue
            facts.pop("format", None)
            found[directory] = self.environment.differs_from(facts)
        return found

    def _file(self, key: str) -> Path:
        return self.root / INPUTS / f"{key}.json"


def record_of(directory: Path) -> TrajectoryRecord | None:
    """The trajectory record of a directory of the store, None where there is none that can be read."""
    try:
        return TrajectoryRecord.read_if_any(directory)
    except DamagedRecordError:
        return None


def training_of(directory: Path) -> Training | None:
    """The latest training into a directory of the store, None where it is not known."""
    try:
        values = object_in(read_json(directory / TRAINING))
        evaluated = values.get("evaluated")
        return Training(
            directory=text_in(values, "directory"),
            run=_text_or_none(values, "run"),
            evaluated=None if evaluated is None else tuple(int(step) for step in evaluated),
            host=text_in(values, "host"),
            process=count_in(values, "process"),
        )
    except (OSError, ValueError, TypeError):
        return None


def note_training(directory: Path, training: Training) -> None:
    """Write who trains into a directory of the store, whose lock the caller holds."""
    content = {
        "format": _FORMAT,
        "directory": training.directory,
        "run": training.run,
        "evaluated": None if training.evaluated is None else list(training.evaluated),
        "host": training.host,
        "process": training.process,
    }
    write_file(directory / TRAINING, f"{json.dumps(content, indent=1)}\n".encode())


def wait_to_train(directory: Path) -> FileLock:
    """The lock of a directory of the store; a training of another process is waited for, with a line of progress.

    The operating system releases the lock of a process that ends in any way. Ctrl-C ends the wait.

    Raises:
        CheckpointError: the directory cannot be written, or its file system has no locks.
    """
    # The store itself is on every node, a scratch disk is not.
    directory = out_of_scratch(directory)
    make_directory(directory)
    next_line = time.monotonic()
    while True:
        try:
            return lock_file(directory / _TRAINING_LOCK)
        except InUseError:
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
                training = training_of(directory)
                who = "another process" if training is None else training.who
                logger.info("%s: waiting for the training of the same trajectory by %s", directory, who)
            time.sleep(_SECONDS_BETWEEN_TRIES)


def clear_interrupted(directory: Path) -> None:
    """Delete the half-written files of a killed training from a directory of the store, unless one trains there now."""
    if not any(directory.glob(f"{TEMPORARY}*")):
        return
    try:
        lock = lock_file(directory / _TRAINING_LOCK)
    except CheckpointError:
        return
    try:
        remove_temporaries([directory])
    finally:
        lock.release()


def may_train(directory: Path) -> bool:
    """Whether this process may train into a directory of the store now: no other one does, and it can be written."""
    try:
        lock_file(directory / _TRAINING_LOCK).release()
    except CheckpointError:
        return False
    return True


def _text_or_none(values: Mapping[str, Any], key: str) -> str | None:
    return None if values.get(key) is None else text_in(values, key)
