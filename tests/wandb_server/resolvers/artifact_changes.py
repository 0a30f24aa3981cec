"""Changes of artifacts: creation, upload, commit, aliases, links, deletion."""

import json
from typing import Any

from tests.wandb_server.blobs import hex_of
from tests.wandb_server.context import Answer, Info, store_of, transfers_of
from tests.wandb_server.execution import resolves
from tests.wandb_server.store import COMMITTED, Artifact, Collection, Manifest, Membership, Project, Store, now

# ---- a new version


@resolves("Mutation.createArtifact")
def create_artifact(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    project = store.open_project(input.get("entity_name"), input.get("project_name"))
    run = project.runs.get(input.get("run_name") or "")
    collection = _open_collection(store, project, _collection_name(input), input["artifact_type_name"])
    aliases = [alias["alias"] for alias in input.get("aliases") or []]
    member = next((m for m in collection.members[::-1] if m.artifact.digest == input["digest"]), None)
    if member and input.get("enable_digest_deduplication"):
        collection.move_aliases(aliases, member)
        artifact = member.artifact
    else:
        artifact = store.keep(
            Artifact(
                store.new_id("Artifact"),
                collection,
                input["digest"],
                input.get("digest_algorithm") or "MANIFEST_MD5",
                description=input.get("description"),
                metadata=input.get("metadata") or {},
                tags=_tag_names(input.get("tags")),
                wanted_aliases=aliases,
                created_by=run,
                history_step=input.get("history_step"),
            )
        )
    if input.get("client_id"):
        store.client_ids[input["client_id"]] = artifact
    if run and artifact not in run.output_artifacts:
        run.output_artifacts.append(artifact)
    return {"artifact": artifact}


def _collection_name(input: Answer) -> str:
    names = [input.get("artifact_collection_name"), *(input.get("artifact_collection_names") or [])]
    return str(next(name for name in names if name))


def _open_collection(
    store: Store, project: Project, name: str, type_: str, graphql_type: str = "ArtifactSequence"
) -> Collection:
    """The collection, created on first use."""
    if name not in project.collections:
        collection = Collection(store.new_id("ArtifactCollection"), project, name, type_, graphql_type)
        project.collections[name] = store.keep(collection)
    collection = project.collections[name]
    if collection.type != type_:
        raise ValueError(f"artifact collection {name!r} already exists with type {collection.type!r}, not {type_!r}")
    return collection


def _tag_names(tags: list[Answer] | None) -> list[str]:
    return [tag["tag_name"] for tag in tags or []]


@resolves("Mutation.createArtifactManifest")
def create_manifest(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    artifact = store.find(Artifact, input["artifact_id"])
    base = None
    if input.get("type") in ("INCREMENTAL", "PATCH") and input.get("base_artifact_id"):
        base = store.find(Artifact, input["base_artifact_id"])
    manifest = store.keep(Manifest(store.new_id("ArtifactManifest"), artifact, input.get("digest") or "", base))
    artifact.current_manifest = manifest
    return {"artifactManifest": manifest}


@resolves("Mutation.updateArtifactManifest")
def update_manifest(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    manifest = store.find(Manifest, input["artifact_manifest_id"])
    manifest.digest = input.get("digest") or manifest.digest
    if input.get("base_artifact_id"):
        manifest.incremental_on = store.find(Artifact, input["base_artifact_id"])
    return {"artifactManifest": manifest}


@resolves("Mutation.createArtifactFiles")
def create_files(_source: Any, info: Info, input: Answer) -> Answer:
    nodes = [_file_to_upload(info, file) for file in input["artifact_files"]]
    return {"files": {"edges": [{"node": node} for node in nodes], "pageInfo": {"hasNextPage": False}}}


def _file_to_upload(info: Info, file: Answer) -> Answer:
    """The upload URL of the file, or URLs of its parts; none if the server has the content already."""
    transfers, digest = transfers_of(info), hex_of(file.get("digest") or file["md5"])
    node: Answer = {
        "id": f"{file['artifact_id']}:{file['name']}",
        "name": file["name"],
        "storagePath": f"wandb_artifacts/{digest}",
        "uploadHeaders": [],
        "artifact": store_of(info).find(Artifact, file["artifact_id"]),
    }
    if transfers.blobs.get(digest):
        return node
    if parts := file.get("upload_parts_input"):
        node["uploadMultipartUrls"] = transfers.start_parts(
            file["name"], [(p["part_number"], p["hex_md5"]) for p in parts]
        )
    else:
        node["uploadUrl"] = transfers.upload_url(file["name"], lambda _blob: None, digest)
    return node


@resolves("Mutation.completeMultipartUploadArtifact")
def complete_multipart(_source: Any, info: Info, input: Answer) -> Answer:
    if input["complete_multipart_action"] == "Abort":
        transfers_of(info).drop_parts(input["upload_id"])
        return {"digest": None}
    blob = transfers_of(info).join_parts(input["upload_id"])
    if input["storage_path"] != f"wandb_artifacts/{blob.md5}":
        raise ValueError(f"{input['storage_path']}: the parts joined have another MD5, {blob.md5}")
    return {"digest": blob.md5_base64}


@resolves("Mutation.commitArtifact")
def commit(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    artifact = store.find(Artifact, input["artifact_id"])
    if artifact.state != COMMITTED:
        artifact.manifest = _finished_manifest(info, artifact)
        artifact.size = sum(entry.get("size") or 0 for entry in artifact.contents.values())
        artifact.state = COMMITTED
        member = _join(store, artifact.collection, artifact)
        artifact.index = member.index
        artifact.collection.move_aliases(artifact.wanted_aliases, member)
    return {"artifact": artifact}


def _join(store: Store, collection: Collection, artifact: Artifact) -> Membership:
    member = store.keep(
        Membership(store.new_id("ArtifactCollectionMembership"), collection, artifact, collection.next_index)
    )
    collection.next_index += 1
    collection.members.append(member)
    artifact.memberships.append(member)
    return member


def _finished_manifest(info: Info, artifact: Artifact) -> Answer:
    """Check that the server has every file in the manifest, and return the manifest."""
    manifest, blobs = artifact.current_manifest, transfers_of(info).blobs
    if manifest is None or manifest.blob is None:
        raise ValueError(f"artifact {artifact.collection.name!r} cannot be committed: its manifest was not uploaded")
    content: Answer = json.loads(manifest.blob.path.read_bytes())
    if manifest.incremental_on:
        content["contents"] = manifest.incremental_on.contents | content["contents"]
        manifest.blob = blobs.put([json.dumps(content).encode()])
    for name, entry in content["contents"].items():
        if "ref" not in entry and blobs.get(hex_of(entry["digest"])) is None:
            raise ValueError(f"artifact {artifact.collection.name!r} cannot be committed: {name} was not uploaded")
    return content


# ---- what can change later


@resolves("Mutation.updateArtifact")
def update_artifact(_source: Any, info: Info, input: Answer) -> Answer:
    artifact = store_of(info).find(Artifact, input["artifact_id"])
    if input.get("description") is not None:
        artifact.description = input["description"]
    if input.get("metadata") is not None:
        artifact.metadata = input["metadata"]
    if store_of(info).keeps_ttl and (seconds := input.get("ttl_duration_seconds")) is not None:
        # -1 inherits the team's time to live, -2 is none.
        artifact.ttl_seconds = None if seconds < 0 else seconds
    gone = _tag_names(input.get("tags_to_delete"))
    kept = [tag for tag in artifact.tags if tag not in gone]
    artifact.tags = list(dict.fromkeys(kept + _tag_names(input.get("tags_to_add"))))
    artifact.updated_at = now()
    return {"artifact": artifact}


@resolves("Mutation.addAliases")
def add_aliases(_source: Any, info: Info, input: Answer) -> Answer:
    artifact = store_of(info).find(Artifact, input["artifact_id"])
    for alias in input["aliases"]:
        member = _membership(info, artifact, alias)
        member.collection.move_aliases([alias["alias"]], member)
    return {"success": True}


@resolves("Mutation.deleteAliases")
def delete_aliases(_source: Any, info: Info, input: Answer) -> Answer:
    artifact = store_of(info).find(Artifact, input["artifact_id"])
    for alias in input["aliases"]:
        member = _membership(info, artifact, alias)
        if alias["alias"] in member.aliases:
            del member.collection.aliases[alias["alias"]]
    return {"success": True}


def _membership(info: Info, artifact: Artifact, alias: Answer) -> Membership:
    name = alias["artifact_collection_name"]
    project = store_of(info).find_project(alias.get("entity_name"), alias.get("project_name"))
    for member in artifact.memberships:
        if member.collection.name == name and member.collection.project is project:
            return member
    raise LookupError(f"artifact {artifact.id} is not in the collection {name!r}")


@resolves("Mutation.deleteArtifact")
def delete_artifact(_source: Any, info: Info, input: Answer) -> Answer:
    artifact = store_of(info).find(Artifact, input["artifact_id"])
    if artifact.aliases and not input.get("delete_aliases"):
        raise ValueError(f"cannot delete an artifact that has aliases: {', '.join(artifact.aliases)}")
    for member in list(artifact.memberships):
        member.collection.remove(member)
    artifact.state = "DELETED"
    return {"artifact": artifact}


@resolves("Mutation.useArtifact")
def use_artifact(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    artifact = store.find(Artifact, input["artifact_id"])
    project = store.open_project(input.get("entity_name"), input.get("project_name"))
    run = project.runs.get(input.get("run_name") or "")
    if run and artifact not in run.input_artifacts:
        run.input_artifacts.append(artifact)
        artifact.used_by.append(run)
    return {"artifact": artifact}


@resolves("Mutation.linkArtifact")
def link_artifact(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    artifact = store.client_ids.get(input.get("client_id") or "") or store.find(Artifact, input.get("artifact_id"))
    if input.get("artifact_portfolio_id"):
        portfolio = store.find(Collection, input["artifact_portfolio_id"])
    else:
        project = store.open_project(input.get("entity_name"), input.get("project_name"))
        portfolio = _open_collection(
            store, project, input["artifact_portfolio_name"], artifact.collection.type, "ArtifactPortfolio"
        )
    member = portfolio.holding(artifact) or _join(store, portfolio, artifact)
    portfolio.move_aliases(["latest", *(alias["alias"] for alias in input.get("aliases") or [])], member)
    return {"versionIndex": member.index, "artifactMembership": member}


@resolves("Mutation.unlinkArtifact")
def unlink_artifact(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    portfolio = store.find(Collection, input["artifact_portfolio_id"])
    member = portfolio.holding(store.find(Artifact, input["artifact_id"]))
    if member:
        portfolio.remove(member)
    return {"success": member is not None}


# ---- collections


def _collection(info: Info, input: Answer) -> Collection:
    return store_of(info).find(Collection, input.get("artifact_sequence_id") or input.get("artifact_portfolio_id"))


@resolves("Mutation.updateArtifactSequence", "Mutation.updateArtifactPortfolio")
def update_collection(_source: Any, info: Info, input: Answer) -> Answer:
    collection = _collection(info, input)
    if input.get("name"):
        del collection.project.collections[collection.name]
        collection.name = input["name"]
        collection.project.collections[collection.name] = collection
    if input.get("description") is not None:
        collection.description = input["description"]
    return {"artifactCollection": collection}


@resolves("Mutation.moveArtifactSequence")
def change_type(_source: Any, info: Info, input: Answer) -> Answer:
    collection = _collection(info, input)
    collection.type = input["destination_artifact_type_name"]
    return {"artifactCollection": collection}


@resolves("Mutation.deleteArtifactSequence", "Mutation.deleteArtifactPortfolio")
def delete_collection(_source: Any, info: Info, input: Answer) -> Answer:
    collection = _collection(info, input)
    for member in list(collection.members):
        collection.remove(member)
        if member.artifact.collection is collection:
            member.artifact.state = "DELETED"
    del collection.project.collections[collection.name]
    collection.state = "DELETED"
    return {"artifactCollection": collection}


@resolves("Mutation.createArtifactCollectionTagAssignments")
def add_collection_tags(_source: Any, info: Info, input: Answer) -> Answer:
    collection = _collection_named(info, input)
    collection.tags = list(dict.fromkeys(collection.tags + _tag_names(input["tags"])))
    return {"tags": [{"id": f"Tag:{name}", "name": name} for name in collection.tags]}


@resolves("Mutation.deleteArtifactCollectionTagAssignments")
def delete_collection_tags(_source: Any, info: Info, input: Answer) -> Answer:
    collection = _collection_named(info, input)
    collection.tags = [tag for tag in collection.tags if tag not in _tag_names(input["tags"])]
    return {"success": True}


def _collection_named(info: Info, input: Answer) -> Collection:
    project = store_of(info).open_project(input.get("entity_name"), input.get("project_name"))
    if input["artifact_collection_name"] not in project.collections:
        raise LookupError(f"no artifact collection {input['artifact_collection_name']!r}")
    return project.collections[input["artifact_collection_name"]]
