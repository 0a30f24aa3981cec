"""The file stream of a run: history, output and summary, in the format of `wandb-core`."""

import json
from typing import Any

from tests.wandb_server.resolvers.history import HISTORY
from tests.wandb_server.store import Run, now

SUMMARY = "wandb-summary.json"


def take(run: Run, message: dict[str, Any]) -> dict[str, Any]:
    """Store one message and answer it."""
    for name, chunk in (message.get("files") or {}).items():
        if name == SUMMARY:
            run.summary = json.loads(chunk["content"][-1])
        else:
            _overwrite(run.streams.setdefault(name, []), chunk.get("offset") or 0, chunk["content"])
    if HISTORY in (message.get("files") or {}):
        run.history = _one_row_per_step(run.streams[HISTORY])
    run.heartbeat_at = now()
    run.preempting |= bool(message.get("preempting"))
    if message.get("complete"):
        run.exit_code = message.get("exitcode") or 0
        run.state = ("preempted" if run.preempting else "failed") if run.exit_code else "finished"
        if run.sweep:
            run.sweep.end_if_done()
    elif run.preempting:
        run.state = "preempting"
    return {"exitcode": None, "limits": {}} | ({"stopped": True} if run.stop_requested else {})


def _overwrite(lines: list[str], offset: int, content: list[str]) -> None:
    """Replace the lines from the offset on, so that a repeated message counts once."""
    lines.extend([""] * (offset - len(lines)))
    lines[offset : offset + len(content)] = content


def _one_row_per_step(lines: list[str]) -> list[dict[str, Any]]:
    """Keep the last row of each step, because a log that is synced twice repeats its rows."""
    rows = [json.loads(line) for line in lines if line]
    by_step = {row["_step"]: row for row in rows}
    return [by_step[step] for step in sorted(by_step)]
