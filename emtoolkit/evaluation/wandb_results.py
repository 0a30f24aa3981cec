"""Results of evaluations on W&B: the versions of an artifact of type `evaluation`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.server import why_not_logged_in, why_unreachable
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.evaluation.decided import RECORDS
from emtoolkit.evaluation.result_files import ACTIVATIONS, MEASURES, ROWS, SETTINGS
from emtoolkit.progress import Progress

# W&B's client asks for 50.
_PER_PAGE = 100
_ACTIVATIONS_FILE = re.compile(r"step-[0-9]+\.safetensors")
_FORM = "a place is a directory with evaluations, or results on W&B: entity/project/collection"


def download_results(name: str, scratch: Path, progress: Progress) -> Iterator[tuple[str, Path]]:
    """Download the results `name`, every version without `:version`; yield each version's name and its directory.

    Activations are those that the run of the version logged.

    Only the files of an evaluation are downloaded, whatever else the version holds.

    Raises:
        CheckpointError: `name` is no such place, nobody is logged in, or W&B does not answer.
    """
    if name.count("/") not in (1, 2) or name.startswith(("/", ".", "~")):
        raise CheckpointError(f"{name}: there is no such directory; {_FORM}")
    if why := why_not_logged_in() or why_unreachable():
        raise CheckpointError(f"{name}: there is no such directory, and W&B could not be asked ({why}); {_FORM}")
    try:
        versions = _versions(name)
        for done, version in enumerate(versions):
            progress("results from W&B", done, len(versions))
            directory = scratch / name.replace("/", "-").replace(":", "-") / str(version.version)
            held = set(version.manifest.entries)
            for file in (ROWS, MEASURES, SETTINGS, RECORDS):
                if file in held:
                    version.get_entry(file).download(str(directory))
            _download_activations(version, directory / ACTIVATIONS)
            yield f"{version.entity}/{version.project}/{version.name}", directory
    except CheckpointError:
        raise
    except Exception as error:  # the client documents no set of exceptions
        raise CheckpointError(
            f"{name}: there is no such directory, and no results of an evaluation on W&B ({first_line(error)}); {_FORM}"
        ) from error


def _download_activations(version: Any, directory: Path) -> None:
    """The activations that the run of the results `version` logged beside them."""
    run = version.logged_by()
    for artifact in () if run is None else run.logged_artifacts(per_page=_PER_PAGE):
        if artifact.type != "activations":
            continue
        for file in filter(_ACTIVATIONS_FILE.fullmatch, artifact.manifest.entries):
            artifact.get_entry(file).download(str(directory))


def _versions(name: str) -> Sequence[Any]:
    import wandb

    api = wandb.Api()
    if ":" in name.rpartition("/")[2]:
        return [api.artifact(name, type="evaluation")]
    # `list` would ask for the length, which not every server tells.
    return [version for version in api.artifacts("evaluation", name, per_page=_PER_PAGE)]  # noqa: C416 - see above
