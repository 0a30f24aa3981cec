"""The server's data: projects with their runs, artifact collections and sweeps."""

import base64
import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

from tests.wandb_server.blobs import Blob

ENTITY = "tester"
COMMITTED = "COMMITTED"
Thing = TypeVar("Thing")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class RunFile:
    name: str
    blob: Blob
    updated_at: str = field(default_factory=now)


@dataclass(eq=False)
class Run:
    graphql_type: ClassVar[str] = "Run"

    id: str
    name: str
    project: "Project"
    display_name: str
    state: str = "running"
    raw_config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    description: str | None = None
    commit: str | None = None
    host: str | None = None
    sweep_name: str | None = None
    exit_code: int | None = None
    stop_requested: bool = False
    preempting: bool = False
    """Whether the program has said that somebody else will continue the run."""
    streams: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, RunFile] = field(default_factory=dict)
    output_artifacts: list["Artifact"] = field(default_factory=list)
    input_artifacts: list["Artifact"] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per `_step`, in step order; a repeated step replaces the earlier row."""
    created_at: str = field(default_factory=now)
    heartbeat_at: str = field(default_factory=now)

    @property
    def config(self) -> dict[str, Any]:
        """The config values without W&B's wrapping."""
        return {key: entry["value"] for key, entry in self.raw_config.items() if key != "_wandb"}

    @property
    def sweep(self) -> "Sweep | None":
        return self.project.sweeps.get(self.sweep_name) if self.sweep_name else None


@dataclass(eq=False)
class Manifest:
    id: str
    artifact: "Artifact"
    digest: str
    incremental_on: "Artifact | None"
    blob: Blob | None = None


@dataclass(eq=False)
class Artifact:
    """One version of a collection; the index is set by the commit."""

    id: str
    collection: "Collection"
    digest: str
    digest_algorithm: str = "MANIFEST_MD5"
    state: str = "PENDING"
    index: int | None = None
    description: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    wanted_aliases: list[str] = field(default_factory=list)
    """The aliases that the version gets at its commit."""
    current_manifest: Manifest | None = None
    manifest: dict[str, Any] | None = None
    size: int = 0
    created_by: Run | None = None
    used_by: list[Run] = field(default_factory=list)
    memberships: list["Membership"] = field(default_factory=list)
    history_step: int | None = None
    ttl_seconds: int | None = None
    """The time to live; None if the version inherits that of the team, which is none."""
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)

    @property
    def aliases(self) -> list[str]:
        return next((m.aliases for m in self.memberships if m.collection is self.collection), [])

    @property
    def contents(self) -> dict[str, dict[str, Any]]:
        return self.manifest["contents"] if self.manifest else {}


@dataclass(eq=False)
class Membership:
    """The membership of an artifact in its own collection, or in a portfolio that it is linked to."""

    id: str
    collection: "Collection"
    artifact: Artifact
    index: int
    created_at: str = field(default_factory=now)

    @property
    def aliases(self) -> list[str]:
        return [alias for alias, holder in self.collection.aliases.items() if holder is self]


@dataclass(eq=False)
class Collection:
    id: str
    project: "Project"
    name: str
    type: str
    graphql_type: str = "ArtifactSequence"
    description: str | None = None
    state: str = "READY"
    tags: list[str] = field(default_factory=list)
    members: list[Membership] = field(default_factory=list)
    aliases: dict[str, Membership] = field(default_factory=dict)
    next_index: int = 0
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)

    @property
    def versions(self) -> list[Artifact]:
        return [member.artifact for member in self.members]

    @property
    def latest(self) -> Artifact | None:
        return self.members[-1].artifact if self.members else None

    def member(self, alias_or_version: str) -> Membership | None:
        named = self.aliases.get(alias_or_version)
        return named or next((m for m in self.members if f"v{m.index}" == alias_or_version), None)

    def holding(self, artifact: Artifact) -> Membership | None:
        return next((m for m in self.members if m.artifact is artifact), None)

    def move_aliases(self, aliases: Iterable[str], to: Membership) -> None:
        self.aliases |= dict.fromkeys(aliases, to)
        self.updated_at = to.artifact.updated_at = now()

    def remove(self, member: Membership) -> None:
        self.members.remove(member)
        member.artifact.memberships.remove(member)
        self.aliases = {alias: holder for alias, holder in self.aliases.items() if holder is not member}


@dataclass(eq=False)
class Agent:
    id: str
    name: str
    host: str
    sweep: "Sweep"
    runs: list[str] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    state: str = "RUNNING"
    created_at: str = field(default_factory=now)
    heartbeat_at: str = field(default_factory=now)


@dataclass(eq=False)
class Sweep:
    id: str
    name: str
    project: "Project"
    config: dict[str, Any]
    config_text: str
    combinations: list[dict[tuple[str, ...], Any]]
    state: str = "PENDING"
    display_name: str | None = None
    description: str | None = None
    agents: dict[str, Agent] = field(default_factory=dict)
    given: int = 0
    """The number of combinations that agents have been given."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """The arguments of each run that an agent was given."""
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)

    @property
    def runs(self) -> list[Run]:
        return [run for run in self.project.runs.values() if run.sweep_name == self.name]

    def end_if_done(self) -> None:
        """Finish the sweep when all runs have ended: an agent with a limited number of runs sends no last request."""
        ended = [run for run in self.runs if run.exit_code is not None and run.state != "preempted"]
        if self.state == "RUNNING" and len(ended) == len(self.combinations):
            self.state = "FINISHED"


@dataclass(eq=False)
class View:
    """A W&B Report; `spec` is the text that the client sent."""

    id: str
    project: "Project"
    name: str | None = None
    display_name: str | None = None
    description: str | None = None
    type: str | None = None
    spec: str = "{}"
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)


@dataclass(eq=False)
class Project:
    id: str
    internal_id: str
    entity: str
    name: str
    runs: dict[str, Run] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    reports: dict[str, View] = field(default_factory=dict)
    created_at: str = field(default_factory=now)


class Store:
    """All data; hold `lock` to read or write while requests are served."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.projects: dict[tuple[str, str], Project] = {}
        self.client_ids: dict[str, Artifact] = {}
        # Whether the server keeps a time to live of artifacts; an own server without that licence does not.
        self.keeps_ttl = True
        self._by_id: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    def project(self, entity: str, name: str) -> Project:
        return self.projects[entity, name]

    def find_project(self, entity: str | None, name: str | None) -> Project | None:
        return self.projects.get((entity or ENTITY, name or "uncategorized"))

    def open_project(self, entity: str | None, name: str | None) -> Project:
        """The project, created on first use."""
        key = (entity or ENTITY, name or "uncategorized")
        if key not in self.projects:
            number = next(self._numbers)
            self.projects[key] = self.keep(Project(_id("Project", number), str(number), *key))
        return self.projects[key]

    def new_id(self, kind: str) -> str:
        """A base64 id, as on W&B, because the client decodes ids."""
        return _id(kind, next(self._numbers))

    def keep(self, thing: Thing) -> Thing:
        """Register an object by its id."""
        self._by_id[thing.id] = thing  # type: ignore[attr-defined]
        return thing

    def find(self, kind: type[Thing], id: str | None) -> Thing:
        found = self._by_id.get(id or "")
        if not isinstance(found, kind):
            raise LookupError(f"no {kind.__name__.lower()} has the id {id!r}")
        return found


def _id(kind: str, number: int) -> str:
    return base64.b64encode(f"{kind}:{number}".encode()).decode()
