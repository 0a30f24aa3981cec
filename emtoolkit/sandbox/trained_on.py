"""The domain that a run was trained on: a domain of the sandbox, and that of the run's own data."""

from collections.abc import Iterable
from pathlib import Path

from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.data.rows import read_rows
from emtoolkit.data.sources import File
from emtoolkit.errors import ConfigError, nearest
from emtoolkit.sandbox.vocabulary import DOMAINS


def check_trained_on(domain: str, directories: Iterable[Path], data: Path) -> None:
    """Check that `domain` is a domain, and that no run in `directories` was trained on another one of those in `data`.

    A run whose data are not the sandbox's, or are not recorded, may have been trained on anything.

    Raises:
        ConfigError: it is not, or a run was trained on another domain.
    """
    if domain not in DOMAINS:
        raise ConfigError(
            f"--trained-on: {domain!r} is not one of the sandbox's domains: {', '.join(DOMAINS)}"
            f"{nearest(domain, DOMAINS)}"
        )
    digests: dict[str, set[str]] = {}
    for directory in directories:
        record = TrajectoryRecord.read_if_any(directory)
        recorded = None if record is None else record.fingerprinted.get("data")
        digest = recorded.get("digest") if isinstance(recorded, dict) else None
        if digest is None:
            continue
        for name in (domain, *(other for other in DOMAINS if other != domain)):
            if name not in digests:
                digests[name] = _digests(name, data)
            if digest in digests[name]:
                if name != domain:
                    raise ConfigError(
                        f"--trained-on: {directory} was trained on {name}, not on {domain}; evaluate runs of different "
                        f"domains one by one, here with --trained-on {name}"
                    )
                break


def _digests(domain: str, data: Path) -> set[str]:
    files = [data / f"{domain}-{kind}.jsonl" for kind in ("bad", "good")]
    return {read_rows(File(file)).digest for file in files if file.is_file()}
