"""The record of a persona and its adapter, as a manifest holds it."""

import hashlib
from pathlib import Path

from emtoolkit.checkpoints.records import PersonaRecord
from emtoolkit.models.persona_adapters import PersonaAdapter
from emtoolkit.personas import Persona


def persona_record(persona: Persona, adapter: PersonaAdapter | None = None) -> PersonaRecord:
    """The record of `persona`; `adapter` is its adapter, None if it has none or none on this machine.

    An adapter in a directory is recorded by the directory's name, so that a copy in another place is the same.
    """
    place = None if adapter is None else adapter.source.place
    content = None if persona.system_prompt is None else hashlib.sha256(persona.system_prompt.encode()).hexdigest()
    return PersonaRecord(
        name=persona.name,
        composition=persona.composition,
        system_prompt=persona.system_prompt,
        adapter=Path(place).name if place is not None and Path(place).is_absolute() else place,
        subfolder=None if adapter is None else adapter.source.subfolder,
        revision=None if adapter is None else adapter.revision,
        content=content if adapter is None else adapter.content,
    )
