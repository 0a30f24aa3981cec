"""The HTTP handler: which request is meant, who asks, and the errors of the hub."""

import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tests.hub_server import contents, reading, writing
from tests.hub_server.refused import Refused
from tests.hub_server.store import Repository
from tests.loopback.faults import Request as LoopbackRequest
from tests.loopback.handler import LoopbackHandler

if TYPE_CHECKING:
    from tests.hub_server.server import Account, HubServer

REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"
# The subject of a request, by which faults select it, and the form of its method and path.
ROUTES = {
    subject: re.compile(form)
    for subject, form in {
        "agent_harnesses": r"GET /api/agent-harnesses",
        "whoami": r"GET /api/whoami-v2",
        "create": r"POST /api/repos/create",
        "validate_yaml": r"POST /api/validate-yaml",
        "refs": rf"GET /api/models/{REPOSITORY}/refs",
        "tree": rf"GET /api/models/{REPOSITORY}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?",
        "commits": rf"GET /api/models/{REPOSITORY}/commits/(?P<revision>[^/]+)",
        "paths": rf"POST /api/models/{REPOSITORY}/paths-info/(?P<revision>[^/]+)",
        "auth_check": rf"GET /api/models/{REPOSITORY}/auth-check(?P<write>/write)?",
        "preupload": rf"POST /api/models/{REPOSITORY}/preupload/(?P<revision>[^/]+)",
        "commit": rf"POST /api/models/{REPOSITORY}/commit/(?P<revision>[^/]+)",
        "create_branch": rf"POST /api/models/{REPOSITORY}/branch/(?P<name>[^/]+)",
        "delete_branch": rf"DELETE /api/models/{REPOSITORY}/branch/(?P<name>[^/]+)",
        "create_tag": rf"POST /api/models/{REPOSITORY}/tag/(?P<revision>[^/]+)",
        "delete_tag": rf"DELETE /api/models/{REPOSITORY}/tag/(?P<name>[^/]+)",
        "info": rf"GET /api/models/{REPOSITORY}(/revision/(?P<revision>[^/]+))?",
        "lfs_batch": rf"POST /{REPOSITORY}\.git/info/lfs/objects/batch",
        "lfs_verify": rf"POST /{REPOSITORY}\.git/info/lfs/verify",
        "lfs_upload": rf"PUT /upload/{REPOSITORY}/(?P<sha256>[0-9a-f]{{64}})",
        "content": r"(GET|HEAD) /content/(?P<sha256>[0-9a-f]{64})",
        "resolve_cache": rf"(GET|HEAD) /api/resolve-cache/models/{REPOSITORY}/(?P<revision>[^/]+)/(?P<path>.+)",
        "resolve": rf"(GET|HEAD) /{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
    }.items()
}
# These are signed addresses, and need no token.
SIGNED = ("lfs_upload", "content")
UNLOCKED = (*SIGNED, "resolve_cache")
WRITES = ("preupload", "commit", "create_branch", "delete_branch", "create_tag", "delete_tag", "lfs_batch")


@dataclass(eq=False)
class Request(LoopbackRequest):
    subject: str = "unknown"
    uploaded: int = 0
    """The bytes of contents in the request, as far as the server has taken them."""

    @property
    def subjects(self) -> set[str]:
        """A key of `ROUTES`, `write` for what needs the right to write, and `*`."""
        return {"*", self.subject} | ({"write"} if self.subject in WRITES else set())


class Handler(LoopbackHandler):
    request_record: Request

    @property
    def hub(self) -> "HubServer":
        return self.loopback  # type: ignore[return-value]

    def make_request(self) -> Request:
        path = urlsplit(self.path).path
        request = Request(self.command, path)
        for subject, form in ROUTES.items():
            if found := form.fullmatch(f"{self.command} {path}"):
                request.subject = subject
                self.groups = {name: unquote(value) for name, value in found.groupdict().items() if value}
                break
        return request

    def refuse(self, status: int, message: str) -> None:
        pause = {"Retry-After": str(self.hub.retry_after)} if status in (429, 503) and self.hub.retry_after else {}
        self.answer_json(status, {"error": message}, {"X-Error-Message": message} | pause)

    def route(self) -> None:
        try:
            subject = self.request_record.subject
            # What a slow client may hold up for long leaves the store as it is, or adds to it.
            with self.hub.store.lock if subject not in UNLOCKED else nullcontext():
                self._answer_subject(subject)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | refused.headers
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.answer_json(refused.status, {"error": refused.message}, headers)

    def _answer_subject(self, subject: str) -> None:
        if subject == "unknown":
            raise Refused(404, f"the test hub has no {self.command} {self.path}")
        for module in (reading, writing, contents):
            if (function := getattr(module, subject, None)) is not None:
                if subject not in SIGNED:
                    self.account = self._find_account()
                function(self)
                return
        raise Refused(501, f"the test hub lacks {subject}")

    # ---- who asks

    def _find_account(self) -> "Account | None":
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None
        account = self.hub.accounts.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return account

    def owns(self, namespace: str) -> bool:
        return self.account is not None and namespace in self.account.namespaces

    def repository(self, *, write: bool = False) -> Repository:
        """The repository that the path names, if the asker may see it and, for `write`, change it."""
        found = self.hub.store.repositories.get(self.groups["repository"])
        if found is None or (found.private and not self.owns(found.owner)):
            if self.account is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write:
            if self.account is None:
                raise Refused(401, "Invalid username or password.")
            if self.account.role == "read":
                raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
            if not self.owns(found.owner):
                raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return found

    def check_gate(self, repository: Repository) -> None:
        if repository.gated and not self.owns(repository.owner):
            message = (
                f"Access to model {repository.id} is restricted and you are not in the authorized list. "
                f"Visit {self.hub.url}/{repository.id} to ask for access."
            )
            raise Refused(401 if self.account is None else 403, message, "GatedRepo")
