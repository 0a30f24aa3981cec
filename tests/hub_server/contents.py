"""The contents of files: a small one from the hub itself, one in LFS from another origin."""

from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.hub_server.reading import find_commit
from tests.hub_server.refused import Refused
from tests.hub_server.store import Commit, File

if TYPE_CHECKING:
    from tests.hub_server.handler import Handler


def resolve(handler: "Handler") -> None:
    """Redirect: a file in LFS to the other origin, any other one to its address by commit."""
    commit, file = _find(handler)
    headers = {"X-Repo-Commit": commit.oid}
    if file.sha256 is not None:
        headers |= {
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.sha256}"',
            "Location": f"{handler.hub.content_url}/content/{file.sha256}",
        }
        handler.answer(302, b"", headers)
    else:
        path = f"{handler.groups['repository']}/{commit.oid}/{quote(handler.groups['path'])}"
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.oid}"'}
        handler.answer(307, b"", headers | {"Location": f"/api/resolve-cache/models/{path}"})


def resolve_cache(handler: "Handler") -> None:
    commit, file = _find(handler)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"', "Content-Type": "text/plain; charset=utf-8"}
    handler.send_file(handler.hub.store.path(file.content), file.size, headers)


def content(handler: "Handler") -> None:
    """A content in LFS, from an origin that refuses tokens, as a signed address of a bucket does."""
    if "Authorization" in handler.headers:
        raise Refused(400, "Only one auth mechanism allowed")
    path = handler.hub.store.path(handler.groups["sha256"])
    if not path.is_file():
        raise Refused(404, "NoSuchKey")
    headers = {"ETag": f'"{handler.groups["sha256"]}"', "Content-Type": "application/octet-stream"}
    handler.send_file(path, path.stat().st_size, headers)


def _find(handler: "Handler") -> tuple[Commit, File]:
    repository = handler.repository()
    commit = find_commit(handler, repository, handler.groups["revision"])
    handler.check_gate(repository)
    file = commit.files.get(handler.groups["path"])
    if file is None:
        raise Refused(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
    return commit, file
