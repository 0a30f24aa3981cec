"""W&B Reports: the spec is kept as the client sent it."""

from typing import Any

from tests.wandb_server.context import Answer, Info, store_of
from tests.wandb_server.execution import resolves
from tests.wandb_server.store import View, now


@resolves("Mutation.upsertView")
def upsert_view(_source: Any, info: Info, input: Answer) -> Answer:
    store, given = store_of(info), input.get("id")
    project = store.open_project(input.get("entity_name"), input.get("project_name"))
    view = store.find(View, given) if given else store.keep(View(store.new_id("View"), project))
    for name in ("name", "display_name", "description", "type", "spec"):
        setattr(view, name, input.get(name))
    view.updated_at = now()
    project.reports[view.id] = view
    return {"view": view, "inserted": not given}
