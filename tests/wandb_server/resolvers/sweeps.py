"""Sweeps: creation, one run per heartbeat of an agent, and the end."""

import itertools
import json
import secrets
from typing import Any

import yaml

from tests.wandb_server.context import Answer, Info, store_of
from tests.wandb_server.execution import resolves
from tests.wandb_server.paging import edges, inside, page
from tests.wandb_server.store import Agent, Project, Run, Sweep, now

OVER = ("FINISHED", "CANCELED", "CRASHED")

# ---- making and finding


@resolves("Mutation.upsertSweep")
def upsert_sweep(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    if input.get("id"):
        sweep = store.find(Sweep, input["id"])
    else:
        project = store.open_project(input.get("entity_name"), input.get("project_name"))
        config = yaml.safe_load(input["config"])
        name = secrets.token_hex(4)
        sweep = Sweep(store.new_id("Sweep"), name, project, config, input["config"], grid(config))
        sweep.display_name = input.get("display_name") or config.get("name")
        project.sweeps[name] = store.keep(sweep)
    sweep.state = input.get("state") or sweep.state
    sweep.description = input.get("description") or sweep.description
    sweep.updated_at = now()
    return {"sweep": sweep, "configValidationWarnings": []}


def grid(config: Answer) -> list[dict[tuple[str, ...], Any]]:
    """All combinations of the parameters' values; the last parameter changes fastest."""
    if config.get("method") != "grid":
        raise ValueError(f"sweep method {config.get('method')!r} is not implemented: only 'grid'")
    parameters = _flat(config.get("parameters") or {})
    combinations = itertools.product(*parameters.values())
    return [dict(zip(parameters, values, strict=True)) for values in combinations][: config.get("run_cap")]


def _flat(parameters: Answer, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], list[Any]]:
    """The values of each parameter by its path, because parameters may be nested."""
    flat: dict[tuple[str, ...], list[Any]] = {}
    for name, spec in parameters.items():
        if "parameters" in spec:
            flat |= _flat(spec["parameters"], (*prefix, name))
        elif "values" in spec:
            flat[*prefix, name] = spec["values"]
        elif "value" in spec:
            flat[*prefix, name] = [spec["value"]]
        else:
            raise ValueError(f"parameter {'.'.join((*prefix, name))}: a grid needs values")
    return flat


@resolves("Project.sweep")
def find_sweep(project: Project, _info: Info, sweep_name: str) -> Sweep | None:
    return project.sweeps.get(sweep_name)


@resolves("Project.sweeps")
def sweeps(project: Project, _info: Info, after: str | None = None, first: int | None = None, **_: Any) -> Answer:
    return page(list(project.sweeps.values()), after, first)


@resolves("Project.totalSweeps")
def total_sweeps(project: Project, _info: Info) -> int:
    return len(project.sweeps)


@resolves("Sweep.config")
def config(sweep: Sweep, _info: Info) -> str:
    return sweep.config_text


@resolves("Sweep.method")
def method(sweep: Sweep, _info: Info) -> str:
    return str(sweep.config["method"])


@resolves("Sweep.runs")
def runs(sweep: Sweep, _info: Info, after: str | None = None, first: int | None = None) -> Answer:
    return page(sweep.runs, after, first)


@resolves("Sweep.runCount")
def run_count(sweep: Sweep, _info: Info) -> int:
    return len(sweep.runs)


@resolves("Sweep.runCountExpected")
def run_count_expected(sweep: Sweep, _info: Info) -> int:
    return len(sweep.combinations)


@resolves("Sweep.bestLoss")
def best_loss(sweep: Sweep, _info: Info) -> float | None:
    metric = sweep.config.get("metric") or {}
    values = [inside(run.summary, metric.get("name", "")) for run in sweep.runs]
    numbers = [value for value in values if isinstance(value, int | float)]
    best = max if metric.get("goal") == "maximize" else min
    return best(numbers, default=None)


# ---- agents


@resolves("Mutation.createAgent")
def create_agent(_source: Any, info: Info, input: Answer) -> Answer:
    store = store_of(info)
    project = store.find_project(input.get("entity_name"), input.get("project_name"))
    sweep = project.sweeps.get(input["sweep"]) if project else None
    if sweep is None:
        raise LookupError(f"no sweep {input['sweep']!r}")
    agent = store.keep(Agent(store.new_id("Agent"), secrets.token_hex(4), input["host"], sweep))
    sweep.agents[agent.id] = agent
    if sweep.state == "PENDING":
        sweep.state = "RUNNING"
    return {"agent": agent}


@resolves("Sweep.agents")
def agents(sweep: Sweep, _info: Info) -> Answer:
    return edges(sweep.agents.values())


@resolves("Sweep.agent")
def find_agent(sweep: Sweep, _info: Info, agent_name: str) -> Agent | None:
    return next((agent for agent in sweep.agents.values() if agent_name in (agent.id, agent.name)), None)


@resolves("Agent.runs")
def runs_of_agent(agent: Agent, _info: Info, after: str | None = None, first: int | None = None, **_: Any) -> Answer:
    return page(_started(agent), after, first)


@resolves("Agent.totalRuns")
def total_runs(agent: Agent, _info: Info) -> int:
    return len(_started(agent))


def _started(agent: Agent) -> list[Run]:
    known = agent.sweep.project.runs
    return [known[name] for name in agent.runs if name in known]


@resolves("Mutation.agentHeartbeat")
def heartbeat(_source: Any, info: Info, input: Answer) -> Answer:
    agent = store_of(info).find(Agent, input["id"])
    agent.live = {name for name, lives in (input.get("run_state") or {}).items() if lives}
    agent.heartbeat_at = now()
    return {"agent": agent, "commands": json.dumps(_commands(agent))}


def _commands(agent: Agent) -> list[Answer]:
    """Hand out at most one run, because the function agent reads only the first command of a heartbeat."""
    sweep = agent.sweep
    if sweep.state == "CANCELED" and agent.live:
        return [{"type": "stop", "run_id": name} for name in sorted(agent.live)]
    if agent.live or sweep.state == "PAUSED":
        return []
    if sweep.state not in OVER and (preempted := [run for run in sweep.runs if run.state == "preempted"]):
        return [_give_again(agent, preempted[0])]
    if sweep.state not in OVER and sweep.given < len(sweep.combinations):
        return [_give(agent)]
    if not any(other.live for other in sweep.agents.values()) and sweep.state not in OVER:
        sweep.state = "FINISHED"
    # Only now: the agent kills what still runs when it is told to exit.
    return [{"type": "exit"}]


def _give(agent: Agent) -> Answer:
    sweep = agent.sweep
    combination = sweep.combinations[sweep.given]
    sweep.given += 1
    name = secrets.token_hex(4)
    agent.runs.append(name)
    sweep.arguments[name] = _arguments(combination)
    return {"type": "run", "run_id": name, "program": sweep.config.get("program"), "args": sweep.arguments[name]}


def _give_again(agent: Agent, run: Run) -> Answer:
    """A run that was marked as preempted and ended with an error is continued under its id."""
    sweep = agent.sweep
    run.state = "pending"
    agent.runs.append(run.name)
    program, arguments = sweep.config.get("program"), sweep.arguments[run.name]
    return {"type": "resume", "run_id": run.name, "program": program, "args": arguments}


def _arguments(combination: dict[tuple[str, ...], Any]) -> Answer:
    """`{name: {"value": ...}}`, where nested parameters form one value."""
    arguments: Answer = {}
    for (name, *inner), value in combination.items():
        if not inner:
            arguments[name] = {"value": value}
            continue
        place = arguments.setdefault(name, {"value": {}})["value"]
        for key in inner[:-1]:
            place = place.setdefault(key, {})
        place[inner[-1]] = value
    return arguments
