"""Queries of artifacts: types, collections, versions, memberships, files."""

from typing import Any

from tests.wandb_server.blobs import Blob, hex_of
from tests.wandb_server.context import Answer, Info, store_of, transfers_of
from tests.wandb_server.execution import resolves, snake_case
from tests.wandb_server.paging import edges, fitting, inside, ordered, page
from tests.wandb_server.store import COMMITTED, Artifact, Collection, Manifest, Membership, Project
from tests.wandb_server.transfers import mime_type

MOST_FILES_PER_PAGE = 5000

# ---- types and collections


@resolves("Query.artifact")
def find_artifact(_source: Any, info: Info, id: str) -> Artifact:
    return store_of(info).find(Artifact, id)


@resolves("Query.artifactCollection")
def find_collection(_source: Any, info: Info, id: str) -> Collection:
    return store_of(info).find(Collection, id)


@resolves("Query.clientIDMapping")
def client_id_mapping(_source: Any, info: Info, client_id: str) -> Answer | None:
    artifact = store_of(info).client_ids.get(client_id)
    return {"serverID": artifact.id} if artifact else None


@resolves("Project.artifactTypes")
def types(project: Project, _info: Info, after: str | None = None, first: int | None = None) -> Answer:
    names = dict.fromkeys(collection.type for collection in project.collections.values())
    return page([_type(project, name) for name in names], after, first)


@resolves("Project.artifactType")
def find_type(project: Project, _info: Info, name: str) -> Answer | None:
    known = any(collection.type == name for collection in project.collections.values())
    return _type(project, name) if known else None


def _type(project: Project, name: str) -> Answer:
    return {"id": f"{project.id}:{name}", "name": name, "createdAt": project.created_at, "project": project}


@resolves("ArtifactType.artifactCollection")
def collection_of_type(type_: Answer, _info: Info, name: str) -> Collection | None:
    collection = type_["project"].collections.get(name)
    return collection if collection and collection.type == type_["name"] else None


@resolves("ArtifactType.artifactCollections")
def collections_of_type(type_: Answer, _info: Info, **asked: Any) -> Answer:
    project: Project = type_["project"]
    return _collections([c for c in project.collections.values() if c.type == type_["name"]], **asked)


@resolves("Project.artifactCollection")
def collection_of_project(project: Project, _info: Info, name: str) -> Collection | None:
    return project.collections.get(name)


@resolves("Project.artifactCollections")
def collections_of_project(project: Project, _info: Info, **asked: Any) -> Answer:
    return _collections(list(project.collections.values()), **asked)


def _collections(
    collections: list[Collection],
    after: str | None = None,
    first: int | None = None,
    filters: Answer | None = None,
    order: str | None = None,
) -> Answer:
    def look_up(collection: Collection, key: str) -> Any:
        return collection.tags if key in ("tag", "tags") else getattr(collection, snake_case(key))

    return page(ordered(fitting(collections, filters, look_up), order, look_up), after, first)


@resolves("ArtifactSequence.defaultArtifactType", "ArtifactPortfolio.defaultArtifactType")
def type_of_collection(collection: Collection, _info: Info) -> Answer:
    return _type(collection.project, collection.type)


@resolves("ArtifactSequence.tags", "ArtifactPortfolio.tags")
def tags_of_collection(collection: Collection, _info: Info) -> Answer:
    return edges(_tags(collection.tags))


@resolves("ArtifactSequence.latestArtifact", "ArtifactPortfolio.latestArtifact")
def latest(collection: Collection, _info: Info) -> Artifact | None:
    return collection.latest


@resolves("ArtifactSequence.digestAlgorithm", "ArtifactPortfolio.digestAlgorithm")
def digest_algorithm(collection: Collection, _info: Info) -> str | None:
    return collection.members[0].artifact.digest_algorithm if collection.members else None


@resolves("ArtifactSequence.aliases", "ArtifactPortfolio.aliases")
def aliases_of_collection(
    collection: Collection, _info: Info, after: str | None = None, first: int | None = None
) -> Answer:
    return page([_alias(collection, alias) for alias in collection.aliases], after, first)


def _alias(collection: Collection, alias: str) -> Answer:
    return {"id": f"{collection.id}:{alias}", "alias": alias, "artifactCollection": collection}


def _tags(names: list[str]) -> list[Answer]:
    return [{"id": f"Tag:{name}", "name": name} for name in names]


@resolves("ArtifactSequence.artifacts", "ArtifactPortfolio.artifacts")
def versions(
    collection: Collection,
    _info: Info,
    after: str | None = None,
    first: int | None = None,
    order: str | None = None,
    filters: Answer | None = None,
) -> Answer:
    """The versions, newest first, in W&B's order."""
    members = fitting(collection.members[::-1], filters, _look_up)
    result = page(ordered(members, order, _look_up), after, first)
    for edge in result["edges"]:
        edge["version"], edge["node"] = f"v{edge['node'].index}", edge["node"].artifact
    return result


def _look_up(member: Membership, key: str) -> Any:
    """The key of a filter over versions: `state`, `tag`, `alias`, `metadata.step`, `createdAt`, ..."""
    head, _, rest = key.partition(".")
    match snake_case(head):
        case "metadata":
            return inside(member.artifact.metadata, rest)
        case "alias" | "aliases":
            return member.aliases
        case "tag" | "tags":
            return member.artifact.tags
        case "version_index":
            return member.index
        case attribute:
            if not hasattr(member.artifact, attribute):
                raise ValueError(f"artifacts cannot be filtered or ordered by {key!r}")
            return getattr(member.artifact, attribute)


# ---- memberships


def find_membership(project: Project, name: str) -> Membership | None:
    """The version named by `collection:alias`, `collection:v3`, or `collection` (the latest)."""
    collection_name, _, alias = name.partition(":")
    collection = project.collections.get(collection_name)
    return collection.member(alias or "latest") if collection else None


@resolves("Project.artifact")
def artifact_of_project(project: Project, _info: Info, name: str) -> Artifact | None:
    member = find_membership(project, name)
    return member.artifact if member else None


@resolves("Project.artifactCollectionMembership")
def membership_of_project(project: Project, _info: Info, name: str) -> Membership | None:
    return find_membership(project, name)


@resolves("ArtifactSequence.artifactMembership", "ArtifactPortfolio.artifactMembership")
def membership_of_collection(collection: Collection, _info: Info, alias_name: str) -> Membership | None:
    return collection.member(alias_name)


@resolves("ArtifactCollectionMembership.versionIndex")
def index_of_membership(member: Membership, _info: Info) -> int:
    return member.index


@resolves("ArtifactCollectionMembership.artifactCollection")
def collection_of_membership(member: Membership, _info: Info) -> Collection:
    return member.collection


@resolves("ArtifactCollectionMembership.aliases")
def aliases_of_membership(member: Membership, _info: Info) -> list[Answer]:
    return [_alias(member.collection, alias) for alias in member.aliases]


@resolves("ArtifactCollectionMembership.files")
def files_of_membership(
    member: Membership,
    info: Info,
    names: list[str] | None = None,
    after: str | None = None,
    first: int | None = None,
) -> Answer:
    contents = member.artifact.contents
    wanted = [name for name in sorted(contents) if not names or name in names]
    return page([_file(info, member.artifact, name) for name in wanted], after, first, MOST_FILES_PER_PAGE)


def _file(info: Info, artifact: Artifact, name: str) -> Answer:
    """A file of the artifact; of a reference only its name and target."""
    entry = artifact.contents[name]
    file: Answer = {
        "id": f"{artifact.id}:{name}",
        "name": name,
        "displayName": name,
        "sizeBytes": entry.get("size") or 0,
        "mimetype": mime_type(name),
        "updatedAt": artifact.updated_at,
        "digest": entry["digest"],
    }
    if "ref" in entry:
        return file | {"url": entry["ref"], "directUrl": entry["ref"]}
    transfers, collection, digest = transfers_of(info), artifact.collection, hex_of(entry["digest"])
    blob = transfers.blobs.get(digest)
    own = f"artifactsV2/default/{collection.project.entity}/{collection.project.name}/{collection.name}/{artifact.id}"
    return file | {
        "url": f"{transfers.base_url}/{own}/{digest}/{name}",
        "directUrl": transfers.download_url(blob, name) if blob else None,
        "storagePath": f"wandb_artifacts/{digest}",
        "md5": entry["digest"] if artifact.digest_algorithm == "MANIFEST_MD5" else None,
    }


# ---- one version


@resolves("Artifact.artifactType", "Artifact.type")
def type_of_artifact(artifact: Artifact, _info: Info) -> Answer:
    return _type(artifact.collection.project, artifact.collection.type)


@resolves("Artifact.artifactSequence")
def sequence(artifact: Artifact, _info: Info) -> Collection:
    return artifact.collection


@resolves("Artifact.versionIndex")
def version_index(artifact: Artifact, _info: Info) -> int | None:
    return artifact.index


@resolves("Artifact.tags")
def tags_of_artifact(artifact: Artifact, _info: Info) -> list[Answer]:
    return _tags(artifact.tags)


@resolves("Artifact.aliases")
def aliases_of_artifact(artifact: Artifact, _info: Info) -> list[Answer]:
    return [_alias(member.collection, alias) for member in artifact.memberships for alias in member.aliases]


@resolves("Artifact.fileCount")
def file_count(artifact: Artifact, _info: Info) -> int:
    return len(artifact.contents)


@resolves("Artifact.commitHash")
def commit_hash(artifact: Artifact, _info: Info) -> str | None:
    return artifact.digest[:20] if artifact.state == COMMITTED else None


@resolves("Artifact.ttlDurationSeconds")
def ttl(artifact: Artifact, _info: Info) -> int:
    """-2 means that the artifact has none."""
    return -2 if artifact.ttl_seconds is None else artifact.ttl_seconds


@resolves("Artifact.ttlIsInherited")
def ttl_is_inherited(artifact: Artifact, _info: Info) -> bool:
    return artifact.ttl_seconds is None


@resolves("Artifact.usedBy")
def used_by(artifact: Artifact, _info: Info) -> Answer:
    return page(artifact.used_by)


@resolves("Artifact.artifactMemberships")
def memberships(artifact: Artifact, _info: Info) -> Answer:
    return edges(artifact.memberships)


@resolves("ArtifactManifest.file")
def manifest_file(manifest: Manifest, info: Info) -> Answer:
    transfers, name = transfers_of(info), "wandb_manifest.json"

    def stored(blob: Blob) -> None:
        manifest.blob = blob

    blob = manifest.blob
    return {
        "id": f"{manifest.id}:file",
        "name": name,
        "directUrl": transfers.download_url(blob, name) if blob else None,
        "uploadUrl": lambda _info: transfers.upload_url(name, stored, hex_of(manifest.digest)),
        "uploadHeaders": [],
    }
