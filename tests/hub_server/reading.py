"""The requests that read: the account, a repository, its refs, commits and trees."""

import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.hub_server.refused import Refused
from tests.hub_server.store import POINTER, Commit, File, Repository

if TYPE_CHECKING:
    from tests.hub_server.handler import Handler

Json = dict[str, Any]


def agent_harnesses(handler: "Handler") -> None:
    handler.answer_json(200, {"standardEnvVars": [], "harnesses": {}})


def whoami(handler: "Handler") -> None:
    account = handler.account
    if account is None:
        raise Refused(401, "Invalid username or password.")
    organizations = [
        {"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in account.organizations
    ]
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}}
    handler.answer_json(
        200, {"type": "user", "name": account.user, "fullname": account.user, "orgs": organizations, "auth": token}
    )


def info(handler: "Handler") -> None:
    repository = handler.repository()
    commit = find_commit(handler, repository, handler.groups.get("revision", "main"))
    handler.answer_json(
        200,
        {
            "_id": hashlib.sha1(repository.id.encode()).hexdigest()[:24],
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.owner,
            "private": repository.private,
            "gated": "auto" if repository.gated else False,
            "disabled": False,
            "sha": commit.oid,
            "lastModified": date_text(commit),
            "createdAt": date_text(repository.history(commit)[-1]),
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        },
    )


def auth_check(handler: "Handler") -> None:
    repository = handler.repository(write="write" in handler.groups)
    handler.check_gate(repository)
    handler.answer(200, b"OK")


def refs(handler: "Handler") -> None:
    repository = handler.repository()

    def listed(kind: str, names: dict[str, str]) -> list[Json]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

    handler.answer_json(
        200,
        {
            "branches": listed("heads", repository.branches),
            "converts": [],
            "tags": listed("tags", repository.tags),
        },
    )


def commits(handler: "Handler") -> None:
    repository = handler.repository()
    commit = find_commit(handler, repository, handler.groups["revision"])
    entries = [
        {"id": each.oid, "title": each.title, "message": "", "authors": [{"user": "tester"}], "date": date_text(each)}
        for each in repository.history(commit)
    ]
    send_page(handler, entries)


def tree(handler: "Handler") -> None:
    repository = handler.repository()
    commit = find_commit(handler, repository, handler.groups["revision"])
    query = parse_qs(urlsplit(handler.path).query)
    under = handler.groups.get("path", "").strip("/")
    prefix = f"{under}/" if under else ""
    entries: dict[str, Json] = {}
    for path, file in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            folder = prefix + "/".join(parts[:depth])
            if depth == 1 or query.get("recursive", [""])[0].lower() == "true":
                entries.setdefault(folder, folder_entry(commit, folder))
        if len(parts) == 1 or query.get("recursive", [""])[0].lower() == "true":
            entries[path] = file_entry(path, file)
    if under and not entries:
        raise Refused(404, f"{under} does not exist on {handler.groups['revision']!r}", "EntryNotFound")
    send_page(handler, [entries[path] for path in sorted(entries)])


def paths(handler: "Handler") -> None:
    repository = handler.repository()
    commit = find_commit(handler, repository, handler.groups["revision"])
    asked = parse_qs(handler.read_body().decode())["paths"]
    folders = [path for path in asked if any(name.startswith(f"{path}/") for name in commit.files)]
    handler.answer_json(
        200,
        [file_entry(path, commit.files[path]) for path in asked if path in commit.files]
        + [folder_entry(commit, path) for path in folders],
    )


def find_commit(handler: "Handler", repository: Repository, revision: str) -> Commit:
    commit = repository.find(revision)
    if commit is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def file_entry(path: str, file: File) -> Json:
    entry: Json = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.sha256 is not None:
        pointer = len(POINTER.format(file.sha256, file.size))
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer}
    return entry


def folder_entry(commit: Commit, path: str) -> Json:
    held = sorted((name, file.oid) for name, file in commit.files.items() if name.startswith(f"{path}/"))
    return {"type": "directory", "oid": hashlib.sha1(repr(held).encode()).hexdigest(), "size": 0, "path": path}


def send_page(handler: "Handler", entries: list[Json]) -> None:
    """One page of the entries, with a link to the next one."""
    address = urlsplit(handler.path)
    query = {name: values[0] for name, values in parse_qs(address.query).items()}
    start, size = int(query.get("cursor", 0)), handler.hub.page_size
    headers = {}
    if start + size < len(entries):
        following = urlencode(query | {"cursor": str(start + size)})
        headers["Link"] = f'<{handler.hub.url}{address.path}?{following}>; rel="next"'
    handler.answer_json(200, entries[start : start + size], headers)


def date_text(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
