"""The identity of a trajectory: everything that decides its weights, and the fingerprint that names it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.storage.digests import canonical_json


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that decides the weights along a training path; the schedule is not in it.

    `fingerprinted` is hashed; `base_model` and `persona` are also repeated in each manifest for readers. `collection`
    begins the name of the W&B collection: `<persona>-<dataset>-<base>-s<seed>`. `base_place` and `persona_place` are
    the directories or hub ids from which this run loads the base model and the persona's adapter; they go into the
    metadata of each checkpoint and into none of its files. `split` is for readers and follows from the rest: how many
    rows are trained on and held out, and the seed of the split.
    """

    fingerprinted: Mapping[str, Any]
    base_model: BaseModelRecord = field(default_factory=BaseModelRecord)
    persona: PersonaRecord = field(default_factory=PersonaRecord)
    base_place: str | None = None
    persona_place: str | None = None
    collection: str = "run"
    tags: tuple[str, ...] = ()
    split: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over the canonical JSON of `fingerprinted`."""
        return hashlib.sha256(canonical_json(self.fingerprinted)).hexdigest()
