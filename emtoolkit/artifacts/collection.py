"""A collection of checkpoints on W&B: its steps, and the files of each step."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from emtoolkit.artifacts.retries import is_key_refused, retried
from emtoolkit.artifacts.server import why_not_logged_in, why_unreachable
from emtoolkit.artifacts.versions import PER_PAGE, all_of, all_versions
from emtoolkit.checkpoints.records import CheckpointMetadata
from emtoolkit.checkpoints.remote import RefusedError
from emtoolkit.errors import CheckpointError, UserError, first_line, nearest
from emtoolkit.storage.safe_paths import why_unsafe

_STEP_ALIAS = re.compile(r"step-(0|[1-9][0-9]{0,18})")
# The key in the metadata of a version whose run has published the checkpoint again, in a collection of its own.
PUBLISHED_AGAIN = "published_again_as"
# The keys of a version that 'emtoolkit prune' removes, and of a version that stays, for the steps that were removed.
PRUNED, PRUNED_STEPS = "pruned", "pruned_steps"
_FORM = "a collection on W&B is written entity/project/collection"


class WandbUnavailableError(CheckpointError):
    """Nobody is logged in to W&B, or the server does not answer."""


class NoSuchCollectionError(CheckpointError):
    """The server answered that there is no collection of this name."""


class _UnreachableError(Exception):
    """The server does not answer."""


class _NoKeyError(Exception):
    """There is no API key for the server."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`entity/project/collection`; None as entity means the default entity of the user who is logged in."""

    entity: str | None
    project: str
    collection: str

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Parse `project/collection` or `entity/project/collection`.

        Raises:
            CheckpointError: `text` is something else, such as a path or the version of an artifact.
        """
        parts = text.split("/")
        if len(parts) not in (2, 3) or any(part.strip() in ("", ".", "..", "~") for part in parts):
            raise CheckpointError(f"{text}: there is no such directory, and {_FORM}")
        if ":" in parts[-1]:
            raise CheckpointError(f"{text}: {_FORM}, without a version; remove ':{parts[-1].partition(':')[2]}'")
        if any(why_unsafe(part) for part in parts):
            raise CheckpointError(f"{text}: there is no such directory, and {_FORM} without backslashes and colons")
        return cls(parts[0] if len(parts) == 3 else None, parts[-2], parts[-1])


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of an artifact, as declared by W&B.

    `digest` is an MD5 or an XXH128 in hexadecimal, None if W&B declares neither. `url` needs no API key. `own_url` is
    on the W&B server itself, needs the API key, and is used if the server refuses `url`.
    """

    artifact: str
    name: str
    size: int
    digest: str | None
    url: str | None = field(repr=False)
    own_url: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"{self.artifact}/{self.name}"


@dataclass(frozen=True, slots=True)
class RemoteCheckpoint:
    """The artifact version with the alias `step-N`; `final` if the version has the alias `final`, too."""

    step: int
    final: bool
    artifact: str
    digest: str
    bytes: int
    metadata: Mapping[str, Any] = field(repr=False)
    handle: Any = field(repr=False, compare=False)

    @property
    def record(self) -> CheckpointMetadata:
        """The metadata as a record.

        Raises:
            RefusedError: a key holds a value of another type than emtoolkit writes.
        """
        try:
            return CheckpointMetadata.from_json(self.metadata)
        except ValueError as error:
            raise RefusedError(f"{self.artifact}: metadata: {error}") from None


class Collection:
    """The checkpoints of one collection in step order, and the server that holds their files."""

    def __init__(
        self,
        name: str,
        checkpoints: Sequence[RemoteCheckpoint],
        base_url: str,
        api_key: str | None,
        replaced: Sequence[RemoteCheckpoint] = (),
    ) -> None:
        self.name = name
        self.checkpoints = tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.step))
        # The versions that were saved as a step and do not have its alias (any more).
        self.replaced = tuple(replaced)
        self.api_key = api_key
        self._base_url = base_url

    @classmethod
    def read(cls, reference: Reference, *, timeout: int | None = None) -> "Collection":
        """List the collection; each request takes at most `timeout` seconds (None: W&B's default, 20).

        Raises:
            WandbUnavailableError: nobody is logged in, or the server does not answer.
            NoSuchCollectionError: there is no such collection.
        """
        requested = "/".join(filter(None, (reference.entity, reference.project, reference.collection)))
        with _explained(f"W&B could not be queried for {requested}", WandbUnavailableError):
            import wandb

            overrides = {"entity": reference.entity} if reference.entity else None
            if why := why_not_logged_in():
                raise _NoKeyError(why)
            if why := why_unreachable():
                raise _UnreachableError(why)
            api = retried(lambda: wandb.Api(overrides=overrides, timeout=timeout))
            entity = reference.entity or retried(lambda: api.default_entity)
        project = f"{entity}/{reference.project}"
        name = f"{project}/{reference.collection}"
        with _explained(f"{name}: it could not be listed"):
            try:
                versions = all_versions(api, name)
            except ValueError as error:
                if type(error) is not ValueError:
                    raise
                # The client reports only that the answer was null: project, type or collection does not exist.
                raise NoSuchCollectionError(
                    f"{name}: there is no collection of models of this name on {api.settings['base_url']}"
                    f"{_nearest_collection(api, project, reference.collection)}"
                ) from None
            found = [checkpoint for version in versions for checkpoint in _checkpoints_of(version)]
            replaced = [checkpoint for version in versions for checkpoint in _replaced(version)]
        return cls(name, found, api.settings["base_url"], api.api_key, replaced)

    @property
    def final_step(self) -> int | None:
        """The step with the alias `final`; None if no version has the alias."""
        return max((checkpoint.step for checkpoint in self.checkpoints if checkpoint.final), default=None)

    def files(self, checkpoint: RemoteCheckpoint) -> list[RemoteFile]:
        """List the files of `checkpoint`, with one request for up to 100 files.

        Raises:
            RefusedError: a name, a size or a URL is not safe to download.
            CheckpointError: W&B could not list the files.
        """
        with _explained(f"{checkpoint.artifact}: its files could not be listed"):
            nodes = retried(lambda: all_of(checkpoint.handle.files(per_page=PER_PAGE)))
            files = [self._file(checkpoint.artifact, node) for node in nodes]
        _check_names(files)
        return files

    def _file(self, artifact: str, node: Any) -> RemoteFile:
        attributes = node._attrs
        return RemoteFile(
            artifact=artifact,
            name=str(attributes["name"]),
            size=int(attributes.get("sizeBytes") or 0),
            digest=_in_hex(attributes.get("md5") or attributes.get("digest")),
            url=attributes.get("directUrl") or None,
            own_url=url if (url := attributes.get("url")) and self._is_own(url) else None,
        )

    def _is_own(self, url: str) -> bool:
        """Whether `url` is on the server that the API key belongs to; no other server may see the key."""
        return urlsplit(url)[:2] == urlsplit(self._base_url)[:2]


def file_digests(version: Any) -> dict[str, str | None]:
    """The digest of each file of a version as W&B declares it: an MD5 or an XXH128 in hexadecimal, else None."""
    attributes = [node._attrs for node in retried(lambda: all_of(version.files(per_page=PER_PAGE)))]
    return {str(file["name"]): _in_hex(file.get("md5") or file.get("digest")) for file in attributes}


def step_of_version(version: Any) -> int | None:
    """The step in the alias `step-N`, the largest of several; None without one."""
    steps = [int(match[1]) for alias in version.aliases if (match := _STEP_ALIAS.fullmatch(alias))]
    return max(steps, default=None)


def _checkpoints_of(version: Any) -> Iterator[RemoteCheckpoint]:
    for alias in version.aliases:
        if match := _STEP_ALIAS.fullmatch(alias):
            yield _remote_checkpoint(version, int(match[1]))


def _replaced(version: Any) -> Iterator[RemoteCheckpoint]:
    try:
        step = CheckpointMetadata.from_json(version.metadata).step
    except ValueError:
        return  # not a checkpoint of emtoolkit
    is_gone = (
        bool({PUBLISHED_AGAIN, PRUNED} & {*version.metadata}) or version.metadata.get("saved_for") == "interruption"
    )
    if step is not None and step_of_version(version) is None and not is_gone:
        yield _remote_checkpoint(version, step)


def _remote_checkpoint(version: Any, step: int) -> RemoteCheckpoint:
    return RemoteCheckpoint(
        step=step,
        final="final" in version.aliases,
        artifact=f"{version.entity}/{version.project}/{version.name}",
        digest=version.digest,
        bytes=version.size,
        metadata=dict(version.metadata),
        handle=version,
    )


def _check_names(files: Sequence[RemoteFile]) -> None:
    """Check, before anything is written, that all `files` can be stored safely below one directory."""
    seen: set[str] = set()
    for file in files:
        if problem := why_unsafe(file.name):
            raise RefusedError(f"{file.artifact}: the file name {file.name!r} is refused, because {problem}")
        # Some file systems ignore upper and lower case.
        if (folded := file.name.casefold()) in seen:
            raise RefusedError(f"{file.artifact}: the file name {file.name!r} is listed twice")
        seen.add(folded)
        if file.size < 0:
            raise RefusedError(f"{file}: a size of {file.size} bytes is refused")
        for url in filter(None, (file.url, file.own_url)):
            if urlsplit(url).scheme not in ("http", "https"):
                raise RefusedError(f"{file}: W&B holds only a reference to {url}, not the file")
    for file in files:
        parts = file.name.casefold().split("/")
        if any("/".join(parts[:length]) in seen for length in range(1, len(parts))):
            raise RefusedError(f"{file.artifact}: the file name {file.name!r} uses another file as a directory")


def _in_hex(digest: str | None) -> str | None:
    """Convert W&B's base64 of 128 bits; None for a digest of another length, which is another kind of digest."""
    if digest is None or re.fullmatch(r"[0-9a-f]{32}", digest):
        return digest
    try:
        raw = base64.b64decode(digest, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw.hex() if len(raw) == 16 else None


def _nearest_collection(api: Any, project: str, collection: str) -> str:
    """`; did you mean ...?`, or nothing if W&B cannot list the project."""
    import wandb

    try:
        collections = api.artifact_type("model", project).collections(per_page=PER_PAGE)
        return nearest(collection, [found.name for found in all_of(collections)])
    except (wandb.errors.Error, TimeoutError, ValueError):
        # The project may not exist either; the error message is complete without a suggestion.
        return ""


@contextmanager
def _explained(what: str, kind: type[CheckpointError] = CheckpointError) -> Iterator[None]:
    """Convert every exception of W&B's client into a `kind` with a message that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # W&B's client documents no set of exceptions, and raises private ones
        raise kind(f"{what} ({first_line(error)}); {_advice_on(error)}") from error


def _advice_on(error: Exception) -> str:
    if isinstance(error, _NoKeyError):
        return "run 'wandb login' to log in, or set WANDB_BASE_URL to choose the server"
    if isinstance(error, _UnreachableError):
        return "check the connection, or set WANDB_BASE_URL to choose the server"
    if is_key_refused(error):
        return "run 'wandb login' with a valid key, or set WANDB_BASE_URL to choose the server"
    return "run the same command again"
