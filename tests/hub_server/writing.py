"""The requests that write: repositories, branches, tags, uploads and commits."""

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import yaml

from tests.hub_server.reading import find_commit
from tests.hub_server.refused import Refused
from tests.hub_server.store import File, Repository, is_lfs

if TYPE_CHECKING:
    from tests.hub_server.handler import Handler

Json = dict[str, Any]


def create(handler: "Handler") -> None:
    asked = json.loads(handler.read_body())
    account = handler.account
    if account is None:
        raise Refused(401, "Invalid username or password.")
    namespace = asked.get("organization") or account.user
    id = f"{namespace}/{asked['name']}"
    if account.role == "read" or namespace not in account.namespaces:
        raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    url = f"{handler.hub.url}/{id}"
    if id in handler.hub.store.repositories:
        handler.answer_json(
            409, {"error": "You already created this model repo", "url": url}, {"X-Error-Message": "exists"}
        )
        return
    private = asked.get("visibility") == "private" or asked.get("private") is True
    handler.hub.store.create(id, private=private)
    handler.answer_json(200, {"url": url, "name": id, "id": id})


def validate_yaml(handler: "Handler") -> None:
    asked = json.loads(handler.read_body())
    _, opening, rest = asked["content"].partition("---\n")
    front = rest.partition("\n---")[0] if opening else ""
    try:
        data = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        handler.answer_json(400, {"errors": [{"message": str(error)}], "warnings": []})
        return
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    errors = [
        {"message": f'"{key}" must be a string'} for key in ("library_name",) if not isinstance(data.get(key, ""), str)
    ]
    handler.answer_json(400 if errors else 200, {"errors": errors, "warnings": warnings})


def create_branch(handler: "Handler") -> None:
    repository = handler.repository(write=True)
    asked = json.loads(handler.read_body() or b"{}")
    name = handler.groups["name"]
    if name in repository.branches:
        raise Refused(409, f"Reference already exists: refs/heads/{name}")
    repository.branches[name] = find_commit(handler, repository, asked.get("startingPoint", "main")).oid
    handler.answer(201, b"")


def delete_branch(handler: "Handler") -> None:
    repository = handler.repository(write=True)
    if repository.branches.pop(handler.groups["name"], None) is None:
        raise Refused(404, "Reference does not exist", "RevisionNotFound")
    handler.answer(204, b"")


def create_tag(handler: "Handler") -> None:
    repository = handler.repository(write=True)
    tag = json.loads(handler.read_body())["tag"]
    if tag in repository.tags:
        raise Refused(409, f"Tag reference exists already: refs/tags/{tag}")
    repository.tags[tag] = find_commit(handler, repository, handler.groups["revision"]).oid
    handler.answer(201, b"")


def delete_tag(handler: "Handler") -> None:
    repository = handler.repository(write=True)
    if repository.tags.pop(handler.groups["name"], None) is None:
        raise Refused(404, "Reference does not exist", "RevisionNotFound")
    handler.answer(204, b"")


def preupload(handler: "Handler") -> None:
    """For each file whether it goes to LFS, and the oid that the revision has for its path."""
    repository = handler.repository(write=True)
    commit = find_commit(handler, repository, handler.groups["revision"])
    answers: list[Json] = []
    for asked in json.loads(handler.read_body())["files"]:
        mode = "lfs" if is_lfs(asked["path"], asked["size"]) else "regular"
        answer = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
        if held := commit.files.get(asked["path"]):
            answer["oid"] = held.etag
        answers.append(answer)
    handler.answer_json(200, {"files": answers, "commitOid": commit.oid})


def lfs_batch(handler: "Handler") -> None:
    repository = handler.repository(write=True)
    asked = json.loads(handler.read_body())
    objects: list[Json] = []
    for each in asked["objects"]:
        answer: Json = {"oid": each["oid"], "size": each["size"]}
        if each["oid"] not in repository.lfs:
            upload = f"{handler.hub.content_url}/upload/{repository.id}/{each['oid']}"
            verify = f"{handler.hub.url}/{repository.id}.git/info/lfs/verify"
            answer |= {"authenticated": True, "actions": {"upload": {"href": upload}, "verify": {"href": verify}}}
        objects.append(answer)
    handler.answer_json(200, {"transfer": "basic", "objects": objects})


def lfs_upload(handler: "Handler") -> None:
    repository = handler.hub.store.repositories[handler.groups["repository"]]
    body = handler.read_body()
    handler.request_record.uploaded = len(body)
    if hashlib.sha256(body).hexdigest() != handler.groups["sha256"]:
        raise Refused(400, "The Content-SHA256 you specified did not match what we received")
    repository.lfs.add(handler.hub.store.keep(body))
    handler.answer(200, b"", {"ETag": '"uploaded"'})


def lfs_verify(handler: "Handler") -> None:
    repository = handler.repository(write=True)
    asked = json.loads(handler.read_body())
    if asked["oid"] not in repository.lfs or handler.hub.store.path(asked["oid"]).stat().st_size != asked["size"]:
        raise Refused(404, "LFS object not found")
    handler.answer(200, b"")


def commit(handler: "Handler") -> None:
    repository = handler.repository(write=True)
    branch = handler.groups["revision"]
    if branch not in repository.branches:
        raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    header, *changes = [json.loads(line) for line in handler.read_body().splitlines()]
    if (expected := header["value"].get("parentCommit")) and expected != repository.branches[branch]:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(find_commit(handler, repository, branch).files)
    for change in changes:
        _apply(handler, repository, files, change["key"], change["value"])
    made = repository.commit(branch, header["value"]["summary"], files)
    url = f"{handler.hub.url}/{repository.id}/commit/{made.oid}"
    handler.answer_json(200, {"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def _apply(handler: "Handler", repository: Repository, files: dict[str, File], key: str, value: Json) -> None:
    store, path = handler.hub.store, value["path"]
    if key == "file":
        content = base64.b64decode(value["content"])
        handler.request_record.uploaded += len(content)
        if is_lfs(path, len(content)):
            raise Refused(400, f"Your push was rejected: {path} belongs into LFS")
        files[path] = store.regular(content)
    elif key == "lfsFile":
        if value["oid"] not in repository.lfs:
            raise Refused(400, f"Your push was rejected because an LFS pointer pointed to a missing file: {path}")
        files[path] = store.in_lfs(repository, value["oid"])
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refused(400, f"{path} does not exist")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
            del files[name]
    else:
        raise Refused(400, f"the test hub does not know the change {key!r}")
