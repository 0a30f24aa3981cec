"""Creation, changes and queries of runs, and their files."""

import re
from typing import Any

from tests.wandb_server.blobs import Blob
from tests.wandb_server.context import Answer, Info, store_of, transfers_of
from tests.wandb_server.execution import resolves, snake_case
from tests.wandb_server.paging import fitting, inside, ordered, page
from tests.wandb_server.store import Artifact, Project, Run, RunFile, now
from tests.wandb_server.transfers import mime_type

# ---- finding


@resolves("Project.run", "Project.bucket")
def find_run(project: Project, _info: Info, name: str, desc: str | None = None, missing_ok: bool = True) -> Run | None:
    return project.runs.get(name)


@resolves("Project.runs")
def runs(
    project: Project,
    _info: Info,
    filters: Answer | None = None,
    after: str | None = None,
    first: int | None = None,
    order: str | None = None,
) -> Answer:
    return page(ordered(fitting(project.runs.values(), filters, look_up), order, look_up), after, first)


@resolves("Project.runCount")
def run_count(project: Project, _info: Info, filters: Answer | None = None) -> int:
    return len(fitting(project.runs.values(), filters, look_up))


def look_up(run: Run, key: str) -> Any:
    """A filter's or an order's key: `config.lr`, `config.lr.value`, `summary_metrics.loss`, `state`, ..."""
    head, _, rest = key.partition(".")
    match snake_case(head):
        case "config":
            value = inside(run.raw_config, rest)
            return value["value"] if isinstance(value, dict) and "value" in value else value
        case "summary_metrics":
            return inside(run.summary, rest)
        case "sweep":
            return run.sweep_name
        case "username" | "user":
            return run.project.entity
        case attribute:
            if not hasattr(run, attribute):
                raise ValueError(f"runs cannot be filtered or ordered by {key!r}")
            return getattr(run, attribute)


# ---- making and changing


@resolves("Mutation.upsertBucket")
def upsert_run(_source: Any, info: Info, input: Answer) -> Answer:
    store, inserted = store_of(info), False
    if input.get("id"):
        run = store.find(Run, input["id"])
    else:
        project = store.open_project(input.get("entity_name"), input.get("model_name"))
        name = input.get("name") or f"run{len(project.runs)}"
        inserted = name not in project.runs
        if inserted:
            project.runs[name] = store.keep(Run(store.new_id("Run"), name, project, input.get("display_name") or name))
        run = project.runs[name]
        # The client leaves the state to the server, also where it resumes a finished run.
        # The client sends this during a run, too.
        run.preempting &= run.exit_code is None
        run.state, run.exit_code = input.get("state") or "running", None
    _change(run, input)
    return {"bucket": run, "inserted": inserted}


def _change(run: Run, input: Answer) -> None:
    names = {"group_name": "group", "config": "raw_config", "summary_metrics": "summary", "sweep": "sweep_name"}
    plain = ("display_name", "description", "notes", "commit", "host", "job_type", "state", "tags")
    for given, attribute in (names | {name: name for name in plain}).items():
        if input.get(given) is not None:
            setattr(run, attribute, input[given])
    run.heartbeat_at = now()


@resolves("Mutation.stopRun")
def stop_run(_source: Any, info: Info, input: Answer) -> Answer:
    store_of(info).find(Run, input["id"]).stop_requested = True
    return {"success": True}


@resolves("Mutation.deleteRun")
def delete_run(_source: Any, info: Info, input: Answer) -> Answer:
    run = store_of(info).find(Run, input["id"])
    run.project.runs.pop(run.name, None)
    return {"success": True}


@resolves("Mutation.updateRunState")
def update_run_state(_source: Any, info: Info, input: Answer) -> Answer:
    store_of(info).find(Run, input["id"]).state = input["state"]
    return {"success": True}


@resolves("Mutation.notifyScriptableRunAlert", "Mutation.markRunFilesUploaded")
def accept(_source: Any, _info: Info, input: Answer) -> Answer:
    return {"success": True}


# ---- reading


@resolves("Run.groupName")
def group_name(run: Run, _info: Info) -> str | None:
    return run.group


@resolves("Run.exitcode")
def exit_code(run: Run, _info: Info) -> int | None:
    return run.exit_code


@resolves("Run.shouldStop", "Run.stopped")
def should_stop(run: Run, _info: Info) -> bool:
    return run.stop_requested


@resolves("Run.running")
def is_running(run: Run, _info: Info) -> bool:
    return run.state == "running"


@resolves("Run.failed")
def has_failed(run: Run, _info: Info) -> bool:
    return run.state in ("failed", "crashed")


@resolves("Run.readOnly")
def is_read_only(_run: Run, _info: Info) -> bool:
    return False


@resolves("Run.projectId")
def project_id(run: Run, _info: Info) -> str:
    return run.project.internal_id


@resolves("Run.config")
def config(run: Run, _info: Info) -> Answer:
    return run.raw_config


@resolves("Run.wandbConfig")
def wandb_config(run: Run, _info: Info, keys: list[str] | None = None) -> Answer:
    internal = run.raw_config.get("_wandb", {}).get("value", {})
    return {key: internal[key] for key in keys or internal if key in internal}


@resolves("Run.summaryMetrics")
def summary_metrics(run: Run, _info: Info) -> Answer:
    return run.summary


@resolves("Run.outputArtifacts")
def output_artifacts(run: Run, _info: Info, after: str | None = None, first: int | None = None) -> Answer:
    return page(_committed(run.output_artifacts), after, first)


@resolves("Run.inputArtifacts")
def input_artifacts(run: Run, _info: Info, after: str | None = None, first: int | None = None) -> Answer:
    return page(_committed(run.input_artifacts), after, first)


def _committed(artifacts: list[Artifact]) -> list[Artifact]:
    return [artifact for artifact in artifacts if artifact.state == "COMMITTED"]


# ---- files


@resolves("Mutation.createRunFiles")
def create_run_files(_source: Any, info: Info, input: Answer) -> Answer:
    project = store_of(info).open_project(input.get("entity_name"), input.get("project_name"))
    run = project.runs.get(input["run_name"])
    if run is None:
        raise LookupError(f"no run {input['run_name']!r} in {project.entity}/{project.name}")
    names = [_plain(name) for name in input["files"]]
    files = [{"name": name, "uploadUrl": _upload_url(info, run, name)} for name in names]
    return {"runID": run.id, "uploadHeaders": [], "files": files}


def _upload_url(info: Info, run: Run, name: str) -> str:
    def stored(blob: Blob) -> None:
        run.files[name] = RunFile(name, blob)

    return transfers_of(info).upload_url(name, stored)


def _plain(name: str) -> str:
    """Remove a leading `./`, which the client sends if its user wrote it."""
    return name.removeprefix("./")


@resolves("Run.fileCount")
def file_count(run: Run, _info: Info) -> int:
    return len(run.files)


@resolves("Run.files")
def files(
    run: Run,
    info: Info,
    names: list[str] | None = None,
    after: str | None = None,
    first: int | None = None,
    pattern: str | None = None,
) -> Answer:
    if names:
        wanted = [run.files[_plain(name)] for name in names if _plain(name) in run.files]
    else:
        like = re.compile(re.escape(pattern or "%").replace("%", ".*").replace("_", "."), re.DOTALL)
        wanted = [file for name, file in sorted(run.files.items()) if like.fullmatch(name)]
    return page([_file(info, run, file) for file in wanted], after, first)


def _file(info: Info, run: Run, file: RunFile) -> Answer:
    download = transfers_of(info).download_url(file.blob, file.name)
    return {
        "id": f"{run.id}:{file.name}",
        "name": file.name,
        "displayName": file.name,
        "url": lambda _info, upload=False: _upload_url(info, run, file.name) if upload else download,
        "directUrl": download,
        "sizeBytes": file.blob.size,
        "mimetype": mime_type(file.name),
        "updatedAt": file.updated_at,
        "md5": file.blob.md5_base64,
    }
