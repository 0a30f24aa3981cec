"""The manifest of a checkpoint that is being downloaded, compared with what its server declares."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.remote import RefusedError
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.safe_paths import why_unsafe

# Files that a checkpoint is loaded from and that cannot run code. Other files are not downloaded.
LOADABLE = frozenset({".safetensors", ".json", ".txt", ".jinja", ".model", ".md"})


def read_arriving(
    directory: Path, place: str, step: int, sizes: Mapping[str, int], step_there: str, server: str
) -> Manifest:
    """The manifest in `directory`, before larger files are downloaded; `sizes` are those that `server` declares.

    `place` names the checkpoint on the server, and `step_there` says which step it is there.

    Raises:
        RefusedError: the manifest is damaged, of another step, or lists a file that is unsafe, absent or of another
            size.
    """
    try:
        manifest = Manifest.read(directory)
    except CheckpointError as error:
        raise RefusedError(str(error).replace(str(directory), place, 1)) from None
    if manifest.step != step:
        raise RefusedError(f"{place}: the manifest is that of step {manifest.step}, {step_there}")
    for name, expected in manifest.files.items():
        listed = f"{place}: the manifest lists the file {name!r}"
        if problem := why_unsafe(name):
            raise RefusedError(f"{listed}; the name is refused, because {problem}")
        if PurePosixPath(name).suffix.lower() not in LOADABLE:
            raise RefusedError(f"{listed}, which is refused, because loading the file could execute code")
        if name not in sizes:
            raise RefusedError(f"{listed}, which is not in the {'artifact' if server == 'W&B' else 'repository'}")
        if sizes[name] != expected.bytes:
            raise RefusedError(
                f"{listed} with {expected.bytes} bytes, but {server} declares a size of {sizes[name]} bytes"
            )
    return manifest
