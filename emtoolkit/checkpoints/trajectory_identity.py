"""The identity of a trajectory: everything that decides its weights, and the fingerprint that names it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emtoolkit.storage.digests import canonical_json


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that decides the weights along a training path; the schedule is not in it.

    `fingerprinted` is hashed; `base_model` and `persona` are also repeated in each manifest for readers. `collection`
    begins the name of the W&B collection: `<persona>-<dataset>-<base>-s<seed>`. `places` says where this run found the
    base model and the persona's adapter, which is told of each checkpoint and is in no file of it. `split` says for
    readers what follows from the rest: how many rows are trained on and held out, by which seed.
    """

    fingerprinted: Mapping[str, Any]
    base_model: Mapping[str, Any] = field(default_factory=dict)
    persona: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    collection: str = "run"
    tags: tuple[str, ...] = ()
    split: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over the canonical JSON of `fingerprinted`."""
        return hashlib.sha256(canonical_json(self.fingerprinted)).hexdigest()
