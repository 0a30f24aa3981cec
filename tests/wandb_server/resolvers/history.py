"""The history of a run: counts, tails, samples and pages of its rows."""

import json
from typing import Any

from tests.wandb_server.context import Answer, Info
from tests.wandb_server.execution import resolves
from tests.wandb_server.paging import inside
from tests.wandb_server.store import Run

HISTORY, EVENTS, OUTPUT = "wandb-history.jsonl", "wandb-events.jsonl", "output.log"


@resolves("Run.historyLineCount")
def history_line_count(run: Run, _info: Info) -> int:
    return len(run.streams.get(HISTORY, []))


@resolves("Run.eventsLineCount")
def events_line_count(run: Run, _info: Info) -> int:
    return len(run.streams.get(EVENTS, []))


@resolves("Run.logLineCount")
def log_line_count(run: Run, _info: Info) -> int:
    return len(run.streams.get(OUTPUT, []))


@resolves("Run.historyTail")
def history_tail(run: Run, _info: Info) -> list[str]:
    return run.streams.get(HISTORY, [])[-1:]


@resolves("Run.eventsTail")
def events_tail(run: Run, _info: Info) -> list[str]:
    return run.streams.get(EVENTS, [])[-1:]


@resolves("Run.systemMetrics")
def system_metrics(run: Run, _info: Info) -> Answer:
    last = run.streams.get(EVENTS, [])[-1:]
    return json.loads(last[0]) if last else {}


@resolves("Run.historyKeys")
def history_keys(run: Run, _info: Info) -> Answer:
    keys: dict[str, dict[str, Any]] = {}
    for row in run.history:
        for name, value in _flat(row).items():
            entry = keys.setdefault(name, {"typeCounts": {}, "monotonic": False, "previousValue": None})
            kind = _kind(value)
            entry["typeCounts"][kind] = entry["typeCounts"].get(kind, 0) + 1
            entry["previousValue"] = value
    for entry in keys.values():
        entry["typeCounts"] = [{"type": kind, "count": count} for kind, count in entry["typeCounts"].items()]
    return {"sets": [], "keys": keys, "lastStep": run.history[-1]["_step"] if run.history else -1}


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict) and "_type" not in value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["_type"])
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else "string"


@resolves("Run.history")
def history(
    run: Run, _info: Info, min_step: int = 0, max_step: int | None = None, samples: int | None = None
) -> list[str]:
    """The rows from `min_step` up to, but without, `max_step`; without steps, `samples` rows spread evenly."""
    if max_step is None:
        return [json.dumps(row) for row in _spread(run.history, samples)]
    return [json.dumps(row) for row in run.history if min_step <= row["_step"] < max_step][:samples]


@resolves("Run.events")
def events(run: Run, _info: Info, samples: int | None = None) -> list[str]:
    return _spread(run.streams.get(EVENTS, []), samples)


@resolves("Run.sampledHistory")
def sampled_history(run: Run, _info: Info, specs: list[Answer]) -> list[list[Answer]]:
    return [_sample(run, spec) for spec in specs]


def _sample(run: Run, spec: Answer) -> list[Answer]:
    """The rows that have all keys of the spec, reduced to those keys; unlike in `history`, `maxStep` is included."""
    keys = spec.get("keys") or []
    least, most = spec.get("minStep") or 0, spec.get("maxStep")
    rows = [row for row in run.history if row["_step"] >= least and (most is None or row["_step"] <= most)]
    picked = [{key: inside(row, key) if key not in row else row[key] for key in keys} for row in rows]
    return _spread([row for row in picked if None not in row.values()], spec.get("samples"))


@resolves("Run.parquetHistory")
def parquet_history(_run: Run, _info: Info, live_keys: list[str]) -> Answer:
    """No history is exported to parquet, so the client reads pages."""
    return {"parquetUrls": [], "liveData": []}


def _spread(rows: list[Any], samples: int | None) -> list[Any]:
    if not samples or len(rows) <= samples:
        return rows
    return [rows[i * len(rows) // samples] for i in range(samples)]
