"""The viewer, the server's features, and the projects."""

from typing import Any

from tests.wandb_server.context import XXHASH_ENABLED, Answer, Info, features_of, store_of
from tests.wandb_server.execution import resolves
from tests.wandb_server.paging import edges, page
from tests.wandb_server.store import ENTITY, Project


def user() -> Answer:
    return {
        "id": "VXNlcjox",
        "name": ENTITY,
        "username": ENTITY,
        "email": f"{ENTITY}@localhost",
        "entity": ENTITY,
        "admin": False,
        "flags": "{}",
        "apiKeys": edges([]),
        "teams": edges([]),
        "organizations": [],
    }


def entity(name: str) -> Answer:
    return {"id": "RW50aXR5OjE=", "name": name, "entityType": "user", "isTeam": False, "readOnly": False}


@resolves("Query.viewer", "Project.user", "Run.user", "Sweep.user", "Entity.user")
def viewer(_source: Any, _info: Info) -> Answer:
    return user()


@resolves("Query.users")
def users(_source: Any, _info: Info, query: str | None = None) -> Answer:
    return edges([user()] if query in (ENTITY, user()["email"]) else [])


@resolves("Entity.xxhashDigestsEnabled")
def xxhash_digests_enabled(_entity: Any, info: Info) -> bool:
    return XXHASH_ENABLED in features_of(info)


@resolves("Query.entity")
def find_entity(_source: Any, _info: Info, name: str | None = None) -> Answer:
    return entity(name or ENTITY)


@resolves("Query.serverInfo")
def server_info(_source: Any, info: Info) -> Answer:
    return {
        "features": [{"name": name, "isEnabled": True} for name in features_of(info)],
        "cliVersionInfo": {"min_cli_version": "0.0.1", "max_cli_version": "999.0.0"},
    }


@resolves("Query.project", "Query.model")
def find_project(_source: Any, info: Info, name: str | None = None, entity_name: str | None = None) -> Project | None:
    return store_of(info).find_project(entity_name, name)


@resolves("Query.models")
def projects(
    _source: Any, info: Info, entity_name: str | None = None, after: str | None = None, first: int | None = None
) -> Answer:
    known = store_of(info).projects.values()
    return page([project for project in known if project.entity == (entity_name or ENTITY)], after, first)


@resolves("Mutation.upsertModel")
def upsert_project(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    inserted = store.find_project(input.get("entity_name"), input.get("name")) is None
    project = store.open_project(input.get("entity_name"), input.get("name"))
    return {"project": project, "model": project, "inserted": inserted}


@resolves("Project.entity")
def entity_of(project: Project, _info: Info) -> Answer:
    return entity(project.entity)


@resolves("Project.entityName")
def entity_name_of(project: Project, _info: Info) -> str:
    return project.entity


@resolves("Project.readOnly", "Project.isBenchmark")
def is_read_only(_project: Project, _info: Info) -> bool:
    return False
