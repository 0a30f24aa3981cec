"""The alias `best-<metric>` on W&B: exactly one version of a collection has the alias, the best one.

The version's metadata say by which metric and in which direction, so that the alias can move by itself when another
step becomes the best.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emtoolkit.artifacts.collection import Collection, RemoteCheckpoint
from emtoolkit.artifacts.names import ALIAS
from emtoolkit.errors import CheckpointError, first_line

_PREFIX = "best-"
# The key in the metadata of a version: a record for each of its aliases.
_BEST = "best"


@dataclass(frozen=True, slots=True)
class Best:
    """The meaning of `alias`: the lowest or the highest value of `metric`; `step` is where the alias is now."""

    metric: str
    lowest: bool
    step: int | None = None

    @property
    def alias(self) -> str:
        """The name on W&B."""
        return ALIAS.fit(f"{_PREFIX}{self.metric}")


def best_aliases(collection: Collection) -> list[Best]:
    """The meanings of the aliases of the collection."""
    return [
        Best(str(entry.get("metric")), entry.get("mode") == "min", version.step)
        for version in collection.checkpoints
        for alias, entry in _entries(version)
        if alias in version.handle.aliases
    ]


def _entries(version: RemoteCheckpoint) -> Iterator[tuple[str, Mapping[str, Any]]]:
    recorded = version.handle.metadata.get(_BEST)
    for alias, entry in recorded.items() if isinstance(recorded, Mapping) else ():
        if isinstance(entry, Mapping):
            yield str(alias), entry


def set_best(collection: Collection, best: Best, step: int, value: float) -> str:
    """Give the alias of `best` to the version of `step`, whose value is `value`; return the version.

    Raises:
        CheckpointError: W&B lacks the step, the alias stands for another metric, or W&B failed.
    """
    alias = best.alias
    target = next((version for version in collection.checkpoints if version.step == step), None)
    if target is None:
        raise CheckpointError(
            f"{collection.name}: step {step} has the best {best.metric} and is not on W&B; run 'emtoolkit sync' first"
        )
    others = [each for each in (*collection.checkpoints, *collection.replaced) if each.artifact != target.artifact]
    for each in (target, *others):
        known = {entry.get("metric") for name, entry in _entries(each) if name == alias}
        if known - {best.metric}:
            raise CheckpointError(
                f"{collection.name}: the alias {alias} stands for the metric {known.pop()!r}, not {best.metric!r}; "
                "remove the alias on W&B"
            )
    try:
        handle = target.handle
        entry = {"metric": best.metric, "mode": "min" if best.lowest else "max", "value": value}
        if alias not in handle.aliases or dict(_entries(target)).get(alias) != entry:
            handle.metadata[_BEST] = {**dict(_entries(target)), alias: entry}
            handle.aliases = [*handle.aliases, *([] if alias in handle.aliases else [alias])]
            handle.save()
        for each in others:
            _forget(each, alias)
    except Exception as error:  # the client documents no set of exceptions
        raise CheckpointError(
            f"{collection.name}: W&B failed while the alias {alias} moved to step {step} ({first_line(error)}); run "
            "the same command again"
        ) from error
    return target.artifact


def _forget(version: RemoteCheckpoint, alias: str) -> None:
    """Remove what `version` says of an alias that another version has."""
    kept = {name: entry for name, entry in _entries(version) if name != alias}
    if alias in version.handle.aliases or len(kept) < len(dict(_entries(version))):
        version.handle.metadata[_BEST] = kept
        version.handle.aliases = [name for name in version.handle.aliases if name != alias]
        version.handle.save()
