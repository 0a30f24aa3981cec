"""The digest of everything that a run of `emtoolkit train` reads, to tell whether a finished run is still up to date.

Only contents count: a comment in a persona file or another format of the same rows changes nothing.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import UserError
from emtoolkit.paths import expand
from emtoolkit.storage.digests import canonical_json
from emtoolkit.yaml_files import parse_yaml, read_text

# What changes neither the weights nor the steps nor the results. The contents of what the rest names are added.
_NOT_INPUTS: dict[str, Any] = {
    **dict.fromkeys(
        ("wandb", "hub", "preflight", "output_dir", "personas", "persona", "dataset", "datasets", "trajectory"), True
    ),
    "model": {"base", "architecture", "device"},
    "training": {"logging_steps"},
    "checkpointing": True,
}


class InputDigests:
    """The digests of runs that share files, each file read once."""

    def __init__(self) -> None:
        self._read: dict[str, Any] = {}

    def of(self, config: RunConfig) -> str | None:
        """The digest of what the run reads, 64 hex digits; None where a part of it is not on this machine."""
        try:
            content = canonical_json(self._facts(config))
        except UserError:
            # The run itself says what is wrong.
            return None
        return hashlib.sha256(content).hexdigest()

    def _facts(self, config: RunConfig) -> dict[str, Any]:
        from emtoolkit.data.rows import read_rows
        from emtoolkit.data.sources import File, source_of
        from emtoolkit.models.base_record import base_identity
        from emtoolkit.models.persona_adapters import locate
        from emtoolkit.models.persona_record import persona_record
        from emtoolkit.personas import load_persona

        def base() -> dict[str, Any]:
            record = base_identity(model).to_json()
            return record | {"name": None} if "content" in record else record

        def questions(path: str) -> Any:
            return parse_yaml(read_text(expand(path)), path)

        source, model = source_of(config.dataset, config.datasets), config.model
        persona = load_persona(config.persona, config.personas, config.compose)
        source_of_adapter = persona.adapter
        adapter = None
        if source_of_adapter is not None:
            adapter = self._once(f"adapter {source_of_adapter}", lambda: locate(source_of_adapter, download=False))
        probe = config.evaluation.probe
        return {
            # Without defaults, so that a key of a later version changes no digest.
            "config": config.model_dump(mode="json", exclude=_NOT_INPUTS, exclude_defaults=True),
            "schedule": str(config.checkpointing.to_schedule()),
            "base": self._once(f"base {model.model_dump_json()}", base),
            "persona": persona_record(persona, adapter).to_json() | {"name": None},
            "data": self._once(
                f"data {source}", lambda: read_rows(source).digest if isinstance(source, File) else repr(source)
            ),
            "questions": None
            if probe is None
            else self._once(f"questions {probe.questions}", lambda: questions(probe.questions)),
        }

    def _once(self, name: str, read: Callable[[], Any]) -> Any:
        if name not in self._read:
            self._read[name] = read()
        return self._read[name]
