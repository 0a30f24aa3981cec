"""A collection of checkpoints on W&B: which steps it holds, and which files each of them."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from emtoolkit.artifacts.server import why_not_logged_in, why_unreachable
from emtoolkit.errors import CheckpointError, first_line, nearest
from emtoolkit.storage.safe_paths import why_unsafe

# W&B's own pages are 50; a larger one is answered, and 300 checkpoints are three of them.
_PER_PAGE = 100
_STEP_ALIAS = re.compile(r"step-(0|[1-9][0-9]{0,18})")
_FORM = "a collection on W&B is written entity/project/collection"


class RefusedError(CheckpointError):
    """What an artifact holds cannot be trusted or loaded; told by the artifact and the file."""


class NotAskedError(CheckpointError):
    """Nobody is logged in to W&B, or it does not answer."""


class NoSuchCollectionError(CheckpointError):
    """W&B answers, and holds no collection of this name."""


class _UnreachableError(Exception):
    """There is no key for the W&B server, or no server."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`entity/project/collection`; without an entity it is the default one of whoever is logged in."""

    entity: str | None
    project: str
    collection: str

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """The collection that `text` names.

        Raises:
            CheckpointError: it names none, as a path on this machine or an artifact's version.
        """
        parts = text.split("/")
        if len(parts) not in (2, 3) or any(part.strip() in ("", ".", "..", "~") for part in parts):
            raise CheckpointError(f"{text}: there is no such directory, and {_FORM}")
        if ":" in parts[-1]:
            raise CheckpointError(f"{text}: {_FORM}, without a version; a trajectory is all of its steps")
        if any(why_unsafe(part) for part in parts):
            raise CheckpointError(f"{text}: there is no such directory, and {_FORM} without backslashes and colons")
        return cls(parts[0] if len(parts) == 3 else None, parts[-2], parts[-1])


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of an artifact, as W&B declares it; `md5` in hex, None where W&B tells another digest.

    `url` needs no key. `own_url` is at the W&B server itself, with the key, for where `url` is refused.
    """

    artifact: str
    name: str
    size: int
    md5: str | None
    url: str | None = field(repr=False)
    own_url: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"{self.artifact}/{self.name}"


@dataclass(frozen=True, slots=True)
class RemoteCheckpoint:
    """The version that holds the alias `step-N`; `final` if it also holds that alias."""

    step: int
    final: bool
    artifact: str
    digest: str
    bytes: int
    metadata: Mapping[str, Any] = field(repr=False)
    handle: Any = field(repr=False, compare=False)


class Collection:
    """The checkpoints of one collection in the order of their steps, and whom to ask for their files."""

    def __init__(self, name: str, checkpoints: Sequence[RemoteCheckpoint], base_url: str, api_key: str | None) -> None:
        self.name = name
        self.checkpoints = tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.step))
        self.api_key = api_key
        self._base_url = base_url

    @classmethod
    def read(cls, reference: Reference, *, timeout: int | None = None) -> "Collection":
        """List `reference` in pages; each request takes at most `timeout` seconds, W&B's own 20 if None.

        Raises:
            NotAskedError: nobody is logged in, or the server does not answer.
            NoSuchCollectionError: there is no such collection.
        """
        asked = "/".join(filter(None, (reference.entity, reference.project, reference.collection)))
        with _explained(f"W&B could not be asked for {asked}", NotAskedError):
            import wandb

            overrides = {"entity": reference.entity} if reference.entity else None
            if why := why_not_logged_in() or why_unreachable():
                raise _UnreachableError(why)
            api = wandb.Api(overrides=overrides, timeout=timeout)
            entity = reference.entity or api.default_entity
        project = f"{entity}/{reference.project}"
        name = f"{project}/{reference.collection}"
        with _explained(f"{name}: it could not be listed"):
            try:
                versions = list(api.artifacts(type_name="model", name=name, per_page=_PER_PAGE))
            except ValueError as error:
                if type(error) is not ValueError:
                    raise
                # W&B says no more than that its answer was null: the project, the type or the collection is not there.
                raise NoSuchCollectionError(
                    f"{name}: there is no collection of models of this name on {api.settings['base_url']}"
                    f"{_nearest_collection(api, project, reference.collection)}"
                ) from None
            found = [checkpoint for version in versions for checkpoint in _checkpoints_of(version)]
        return cls(name, found, api.settings["base_url"], api.api_key)

    @property
    def final_step(self) -> int | None:
        """The step with the alias `final`."""
        return max((checkpoint.step for checkpoint in self.checkpoints if checkpoint.final), default=None)

    def files(self, checkpoint: RemoteCheckpoint) -> list[RemoteFile]:
        """The files of `checkpoint`, asked for with one request.

        Raises:
            RefusedError: a name, a size or an address is not one of a file to be downloaded.
            CheckpointError: W&B does not tell.
        """
        with _explained(f"{checkpoint.artifact}: its files could not be listed"):
            nodes = list(checkpoint.handle.files(per_page=_PER_PAGE))
            # An XXH128 is as long as an MD5 and tells nothing of it; then the manifest's SHA-256 has to do alone.
            has_md5 = "XXH" not in str(getattr(checkpoint.handle, "digest_algorithm", "MANIFEST_MD5"))
            files = [self._file(checkpoint.artifact, node, has_md5=has_md5) for node in nodes]
        _check_names(files)
        return files

    def _file(self, artifact: str, node: Any, *, has_md5: bool) -> RemoteFile:
        attributes = node._attrs
        return RemoteFile(
            artifact=artifact,
            name=str(attributes["name"]),
            size=int(attributes.get("sizeBytes") or 0),
            md5=_md5_in_hex(attributes.get("md5") or attributes.get("digest")) if has_md5 else None,
            url=attributes.get("directUrl") or None,
            own_url=url if (url := attributes.get("url")) and self._is_own(url) else None,
        )

    def _is_own(self, url: str) -> bool:
        """Whether `url` is at the very server whose key we have: no other may see it."""
        return urlsplit(url)[:2] == urlsplit(self._base_url)[:2]


def _checkpoints_of(version: Any) -> Iterator[RemoteCheckpoint]:
    for alias in version.aliases:
        if match := _STEP_ALIAS.fullmatch(alias):
            yield RemoteCheckpoint(
                step=int(match[1]),
                final="final" in version.aliases,
                artifact=f"{version.entity}/{version.project}/{version.name}",
                digest=version.digest,
                bytes=version.size,
                metadata=dict(version.metadata),
                handle=version,
            )


def _check_names(files: Sequence[RemoteFile]) -> None:
    """Check, before anything is written, that all of `files` can be put below one directory."""
    seen: set[str] = set()
    for file in files:
        if problem := why_unsafe(file.name):
            raise RefusedError(f"{file.artifact}: the name of its file {file.name!r} is refused, because {problem}")
        # Two that differ in upper and lower case are one file on some disks.
        if (folded := file.name.casefold()) in seen:
            raise RefusedError(f"{file.artifact}: it names the file {file.name!r} twice")
        seen.add(folded)
        if file.size < 0:
            raise RefusedError(f"{file}: a size of {file.size} bytes is refused")
        for url in filter(None, (file.url, file.own_url)):
            if urlsplit(url).scheme not in ("http", "https"):
                raise RefusedError(f"{file}: it is only a reference to {url}, and W&B does not hold the file")
    for file in files:
        parts = file.name.casefold().split("/")
        if any("/".join(parts[:length]) in seen for length in range(1, len(parts))):
            raise RefusedError(f"{file.artifact}: the name of its file {file.name!r} goes through another file")


def _md5_in_hex(digest: str | None) -> str | None:
    """W&B tells an MD5 in base64; other digests are of another length."""
    if digest is None or re.fullmatch(r"[0-9a-f]{32}", digest):
        return digest
    try:
        raw = base64.b64decode(digest, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw.hex() if len(raw) == 16 else None


def _nearest_collection(api: Any, project: str, collection: str) -> str:
    """`; did you mean ...?`, or nothing where W&B does not tell what it holds either."""
    import wandb

    try:
        there = api.artifact_type("model", project).collections(per_page=_PER_PAGE)
        return nearest(collection, [one.name for one in there])
    except (wandb.errors.Error, TimeoutError, ValueError):
        # The project may not be there either; the sentence that this would complete is told without it.
        return ""


@contextmanager
def _explained(what: str, kind: type[CheckpointError] = CheckpointError) -> Iterator[None]:
    """Turn whatever W&B's client raises into a sentence that begins with `what`."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # W&B's client documents no set of exceptions, and raises private ones
        raise kind(f"{what} ({first_line(error)}); 'wandb login' logs in, WANDB_BASE_URL chooses the server") from error
