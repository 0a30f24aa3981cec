"""`trajectory.json`: the trajectory that an output directory belongs to, and the step at which training ended.

The Trainer's own state cannot hold this record: a resume restores that state from JSON, and a changed schedule would
be ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.manifest import FORMAT
from emtoolkit.checkpoints.trajectory_identity import VERSION, Identity, deciding, is_one_trajectory
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.json_files import count_in, object_in, read_json, text_in
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json

RECORD = "trajectory.json"

# Why the checkpoints of a budget are not published before training has ended.
WITHHELD = "the schedule may still delete some of them, and the resumed training publishes the others"

# What to do where a command cannot go on without a record that is damaged.
WRITTEN_AGAIN = "the command of its training with --resume writes the file again"


class DamagedRecordError(CheckpointError):
    """`trajectory.json` exists and is no trajectory record."""


@dataclass(frozen=True, slots=True)
class TrajectoryRecord:
    """The content of `trajectory.json`.

    `fingerprinted` is the object that the fingerprint hashes, so two trajectories can be compared key by key.
    `ended_at` is the step at which training ended for good; None if it has not ended. `split` is for readers: how many
    rows were trained on and held out. `version` says which facts `fingerprinted` can hold.
    """

    fingerprint: str
    total_steps: int
    schedule: str
    fingerprinted: Mapping[str, Any] = field(default_factory=dict)
    ended_at: int | None = None
    split: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @classmethod
    def of(cls, identity: Identity, total_steps: int, schedule: str) -> "TrajectoryRecord":
        """The record of the trajectory of `identity`, which has not ended."""
        return cls(
            identity.fingerprint,
            total_steps,
            schedule,
            identity.fingerprinted,
            split=identity.split,
            version=identity.version,
        )

    @classmethod
    def read_if_any(cls, directory: Path) -> "TrajectoryRecord | None":
        """The record in `directory`; None if there is no file.

        Raises:
            DamagedRecordError: the file is not a trajectory record.
        """
        path = directory / RECORD
        try:
            raw = object_in(read_json(path, finite=False))
            return cls(
                fingerprint=text_in(raw, "fingerprint"),
                total_steps=count_in(raw, "total_steps"),
                schedule=text_in(raw, "schedule"),
                fingerprinted=object_in(raw.get("decides"), "decides"),
                ended_at=None if raw.get("ended_at") is None else count_in(raw, "ended_at"),
                split=object_in(raw.get("split", {}), "split"),
                version=count_in({"version": 1} | dict(raw), "version"),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DamagedRecordError(
                f"{path}: is not a trajectory record of emtoolkit ({first_line(error)})"
            ) from error

    @classmethod
    def needed(cls, directory: Path) -> "TrajectoryRecord | None":
        """As `read_if_any`, for a command that cannot go on without a record: the error says what to do."""
        try:
            return cls.read_if_any(directory)
        except DamagedRecordError as error:
            raise DamagedRecordError(f"{error}; {WRITTEN_AGAIN}") from error

    def to_json(self) -> bytes:
        """The content of the file."""
        return canonical_json(
            {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "total_steps": self.total_steps,
                "schedule": self.schedule,
                "decides": dict(self.fingerprinted),
                "ended_at": self.ended_at,
                "split": dict(self.split),
                "version": self.version,
            }
        )

    def write(self, directory: Path) -> None:
        """Replace `trajectory.json` in `directory` atomically."""
        write_file(directory / RECORD, self.to_json())

    @property
    def may_thin(self) -> bool:
        """Whether the training goes on and its schedule is a budget, which may still delete each of its checkpoints."""
        return self.ended_at is None and any(term.startswith("budget:") for term in self.schedule.split(","))

    def ended(self, step: int | None) -> "TrajectoryRecord":
        """The same record, of a training that ended at `step`."""
        return replace(self, ended_at=step)

    def is_of(self, fingerprint: str, fingerprinted: Mapping[str, Any]) -> bool:
        """Whether the record is of the trajectory with this fingerprint, or with facts that decide the same weights."""
        if self.fingerprint == fingerprint:
            return True
        known = bool(self.fingerprinted) and bool(fingerprinted)
        return known and is_one_trajectory(self.fingerprinted, self.version, fingerprinted)

    def differs_from(self, fingerprinted: Mapping[str, Any]) -> list[str]:
        """The differences between the record and `fingerprinted`: one phrase for each dotted key."""
        before, now = _flat(deciding(self.fingerprinted)), _flat(deciding(fingerprinted))
        return [
            f"{key} is {before.get(key)!r} there and {now.get(key)!r} here"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]


def withheld(directory: Path) -> str:
    """The sentence on the checkpoints in `directory` that are not published, because its record says `may_thin`."""
    return (
        f"{directory}: the training has not ended, so its checkpoints are not published: {WITHHELD}; resume it with "
        "'emtoolkit train … --resume', or in a script with resume_from_checkpoint"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
