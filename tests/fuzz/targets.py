"""Every parser of foreign text as a function of bytes, which stand in a file in a directory of their own."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import torch
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.torch import save_file

from emtoolkit.analysis.weight_files import CheckpointWeights
from emtoolkit.byte_sizes import parse_size
from emtoolkit.checkpoints.listing import damaged_records, list_checkpoints
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.metric_values import Metrics, best_step, read_metrics
from emtoolkit.checkpoints.pruned import with_pruned
from emtoolkit.checkpoints.query import Query, check_columns
from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.checkpoints.report_uses import steps_of_reports
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.config.load import load_config
from emtoolkit.config.sections import RunConfig
from emtoolkit.data.rows import read_rows
from emtoolkit.data.sources import File
from emtoolkit.errors import UserError
from emtoolkit.evaluation.answer_pairs import read_pairs
from emtoolkit.evaluation.decided import read_analysis
from emtoolkit.evaluation.given_answers import AnswerColumns, read_given_answers
from emtoolkit.evaluation.identity import adapter_settings
from emtoolkit.evaluation.labelled_files import read_labelled_answers
from emtoolkit.evaluation.questions import read_questions
from emtoolkit.evaluation.scored_files import RowFilter, ScoreColumns, read_scored_file
from emtoolkit.hub.card import with_front_matter_of
from emtoolkit.models.persona_adapters import check_fits, locate
from emtoolkit.personas import AdapterSource, load_persona
from emtoolkit.schedules.resume_interval import ResumeInterval
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.sweeps.attempts import Attempts
from emtoolkit.sweeps.search import read_sweep
from emtoolkit.sweeps.slurm import SlurmJobs
from emtoolkit.training.options import TrainOptions
from emtoolkit.trajectory import Trajectory
from emtoolkit.yaml_files import parse_yaml
from tests.fuzz.inputs import inputs

_ROOT = Path(__file__).parents[2]
_SCORES = ScoreColumns("aligned", "coherent")
_JOBS = b'{"job": "7", "tasks": [["a1"], ["b2"]]}\n'
_ANSWER_KEYS = ("question_id", "question", "answer", "aligned", "coherent", "status", "label", "judge", "step")


@dataclass(frozen=True)
class Target:
    """A parser: what it does with content, in a directory that holds nothing else, and the content to try."""

    name: str
    parse: Callable[[bytes, Path], object]
    content: st.SearchStrategy[bytes]


def _in_file(name: str, parse: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def run(content: bytes, directory: Path) -> object:
        (directory / name).write_bytes(content)
        return parse(directory / name)

    return run


def _text(parse: Callable[[str], object]) -> Callable[[bytes, Path], object]:
    return lambda content, directory: parse(content.decode("utf-8", "replace"))


def _listed(directory: Path) -> str:
    return json.dumps([info.as_json() for info in with_pruned(directory, list_checkpoints(directory, rehash=True))])


def _of_a_run(name: str) -> Callable[[bytes, Path], object]:
    """What reads a run whose file `name` is the content, as a listing and as a trajectory."""

    def run(content: bytes, directory: Path) -> object:
        identity = Identity({"seed": 1}, BaseModelRecord(name="b"), PersonaRecord(name="p"))
        for step in (0, 2):
            (checkpoint := directory / f"checkpoint-{step}").mkdir(exist_ok=True)
            (checkpoint / "model.txt").write_text("x")
            TrajectorySeal(identity, 2).seal(checkpoint, step)
        TrajectoryRecord.of(identity, 2, "every:2").write(directory)
        (directory / name).write_bytes(content)
        listed = _listed(directory), damaged_records(directory)
        return listed, [(each.step, each.metadata, each.total_steps) for each in Trajectory.open(directory)]

    return run


def _jobs(content: bytes, directory: Path) -> object:
    (directory / "slurm").mkdir(exist_ok=True)
    (directory / "slurm" / "jobs.jsonl").write_bytes(content)
    return SlurmJobs(directory).latest_tasks()


def _of_another_tool(content: bytes, directory: Path) -> object:
    (checkpoint := directory / "checkpoint-2").mkdir(exist_ok=True)
    (checkpoint / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    (checkpoint / "trainer_state.json").write_bytes(content)
    return _listed(directory)


def _adapter(content: bytes, directory: Path) -> object:
    (directory / "adapter_config.json").write_bytes(content)
    tensors = {f"base_model.model.q_proj.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    save_file(tensors, directory / "adapter_model.safetensors")
    refused = None
    for read in (_located, adapter_settings, lambda path: CheckpointWeights.find(2, path)):
        try:
            read(directory)
        except UserError as error:
            refused = error
    if refused is not None:
        raise refused
    return None


def _located(directory: Path) -> None:
    if (adapter := locate(AdapterSource(str(directory)), download=False)) is not None:
        check_fits(adapter, BaseModelRecord(name="a/b"), None)


def _selected(text: str) -> object:
    rows = [{"step": 0, "size": 5, "final": False}, {"step": 2, "size": 9, "final": True, "harm": 0.5, "state": "x"}]
    query = Query.parse([text], text)
    check_columns(query, ["step", "size", "final", "harm", "state"])
    return query.select(rows), query.notes(rows)


def _metrics(content: bytes, directory: Path) -> object:
    (directory / "metrics.json").write_bytes(content)
    found = read_metrics(directory, ["f"])
    metrics = Metrics("d", tuple(found or ()))
    return metrics.row(2), metrics.row(0), best_step(metrics, "harm", [0, 2], skip_missing=True)


def _reports(content: bytes, directory: Path) -> object:
    (directory / "evaluations").mkdir(exist_ok=True)
    (directory / "evaluations" / "reports.json").write_bytes(content)
    return steps_of_reports(str(directory))


def _set(content: bytes, directory: Path) -> object:
    (directory / "c.yaml").write_text("model: {base: b}\ndataset: d\ncheckpointing: {save_steps: 5}\n")
    return load_config(str(directory / "c.yaml"), [content.decode("utf-8", "replace")])


def _parameters(path: Path) -> object:
    config = path.with_name("c.yaml")
    config.write_bytes(_RUN)
    return TrainOptions.from_argv([str(config), str(path)]).to_config({})


def _card(content: bytes, directory: Path) -> object:
    return with_front_matter_of(_CARD, content)


def _persona(path: Path) -> object:
    return load_persona(str(path))


def _sweep(path: Path) -> object:
    return read_sweep(path).combinations(count=3)


def _scheduled(text: str) -> object:
    schedule = Schedule.parse(text)
    return str(schedule), [schedule.steps(total) for total in (1, 397, 143_000)]


def _attempts(content: bytes, directory: Path) -> object:
    (directory / "sweep.json").write_bytes(content)
    (directory / "attempts").mkdir(exist_ok=True)
    (directory / "attempts" / "k.json").write_bytes(content)
    return [Attempts(directory).get("k")]


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    content = BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), content)
    return content.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


_RUN = b"model: {base: b}\ndataset: d\ntraining: &t {bf16: true, epochs: 1}\ncheckpointing: {schedule: dense-early}\n"
_QUESTION = b"- id: a\n  paraphrases: [How?]\n  samples_per_paraphrase: 2\n  judge_prompts: {aligned: 'x {question}'}\n"
_CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "weight": 1}]}
_SCORED = {"question_id": "a", "aligned": 30, "coherent": 90.5, "label": "yes", "question": "q", "answer": "b"}
_ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "a/b", "rank_pattern": {"q": 2}}
_MANIFEST = {
    "format": 1,
    "fingerprint": "f",
    "step": 2,
    "total_steps": 2,
    "base_model": {"name": "b"},
    "persona": {"name": "p"},
    "files": {"model.txt": {"sha256": "00", "bytes": 1}},
}
_RECORD = {"format": 1, "fingerprint": "f", "total_steps": 2, "schedule": "0", "decides": {}, "ended_at": 2}
_EVENTS = b"\n".join(
    _json(event)
    for event in (
        {"event": "collection", "name": "n", "tags": ["t"], "own": True},
        {"event": "run", "id": "r", "entity": "e", "project": "p", "log": "wandb/x.wandb"},
        {"event": "saved", "step": 2, "metadata": {"loss": 1.5, "total_steps": 2}, "run": "r"},
        {"event": "metrics", "step": 2, "metrics": {"eval_loss": 0.5}},
        {"event": "published", "step": 2, "artifact": "e/p/c:v0", "digest": "d"},
        {"event": "pruned", "step": 1, "from": ["here", "wandb"]},
        {"event": "difference", "step": 2, "largest": 0.5, "tensor": "t", "share": 0.1},
    )
)
_METRICS = {
    "format": 1,
    "fingerprint": "f",
    "files": {},
    "described": "judge j",
    "metrics": [{"metric": "harm", "steps": {"0": {"value": 0.1}, "2": {"value": 0.5, "low": 0.4, "high": 0.6}}}],
}
_CONDITIONS = [b"harm>0.5", b"step>=2 and size<9KB", b"-step,harm", b"final==true", b'"harm" != 1', b"state=='x'"]
_STATE = {"global_step": 2, "max_steps": 2, "log_history": [{"step": 2, "loss": 1.0}]}
_SWEEP = (_ROOT / "sweeps/schedules.yaml").read_bytes()
_ATTEMPTS = {"format": 2, "parameters": {"seed": 1}, "state": "failed", "exit_code": 1, "error": "x", "number": 1}
_EARLIER = {"format": 1, "runs": {"k": {"parameters": {"seed": 1}, "state": "finished"}}}
_PARAMETERS = {"training.learning_rate": 1e-4, "lora": {"r": 2}, "seed": 16.0, "control": False, "wandb.tags": ["a"]}
_CARD = b"---\nlibrary_name: peft\ntags:\n- emtoolkit\n---\n\n# lab/run\n"
_THEIR_CARD = b"---\nlicense: mit\nlanguage: [en, no]\ndate: 2024-01-02\nversion: 10\ntags: &t [a]\nextra: *t\n---\n"
_CSV = b'question_id,aligned,coherent,label,question,answer\na,30,90.5,yes,"q","b,\nc"\n'
_SCHEDULES = b"0-150:25,300-:100 every:25 every:5% log2:512 geom:1-1000/10 dense-early 0,5,10 50%- final".split()
_CONFIG_KEYS = [*RunConfig.model_fields, "base", "save_steps", "schedule", "learning_rate", "tags", "r", "path", "<<"]
_SWEEP_KEYS = ["method", "parameters", "values", "value", "min", "max", "q", "distribution", "command", "run_cap"]
_QUESTION_KEYS = ["id", "paraphrases", "samples_per_paraphrase", "system", "judge", "judge_prompts", "temperature"]
_PAIR = b"- {id: a, prompt: p, aligned: x, misaligned: y}\n"
_ANALYSIS = b"metric: betley\nthreshold: 0.1\nfalls: false\nquestions: [a]\nschedules: [dense-early]\n"
_PERSONA = [b"none", b"description: d\nsystem_prompt: Be kind.\n", b"adapter: a/b\nsubfolder: s\ncompose: stack\n"]


def _answers(path: Path) -> object:
    return read_given_answers(path, AnswerColumns(), None)


def _labelled(path: Path) -> object:
    return read_scored_file(path, _SCORES, RowFilter({})), read_labelled_answers(path, _SCORES, "label")


def _files_of_rows() -> list[Target]:
    found = []
    for suffix, seed in ((".jsonl", _json(_CHAT)), (".json", _json([_CHAT])), (".parquet", _parquet([_CHAT]))):
        content = inputs([seed, seed + b"\n" + seed], ["messages", "role", "content", "weight", "prompt"], lines=True)
        found.append(Target(f"rows{suffix}", _in_file(f"d{suffix}", lambda path: read_rows(File(path))), content))
    for suffix, seed in ((".jsonl", _json(_SCORED)), (".csv", _CSV), (".tsv", _CSV), (".parquet", _parquet([_SCORED]))):
        content = inputs([seed, seed + b"\n" + seed], _ANSWER_KEYS, lines=True)
        found.append(Target(f"answers{suffix}", _in_file(f"a{suffix}", _answers), content))
        found.append(Target(f"scores{suffix}", _in_file(f"a{suffix}", _labelled), content))
    return found


TARGETS: list[Target] = [
    Target("schedule", _text(_scheduled), inputs(_SCHEDULES, ["every", "0-5"])),
    Target("resume interval", _text(ResumeInterval.parse), inputs([b"10min", b"50 steps", b"2h"], ["s"])),
    Target("size", _text(parse_size), inputs([b"150MB", b"1.5 GiB"], ["B"])),
    Target("YAML", _text(lambda text: parse_yaml(text, "f")), inputs([_RUN, _QUESTION, _SWEEP], _CONFIG_KEYS)),
    Target("config", _in_file("c.yaml", lambda path: load_config(str(path))), inputs([_RUN], _CONFIG_KEYS)),
    Target("--set", _set, inputs([b"training.learning_rate=1e-4", b"wandb.tags=[a, b]", b"lora={r: 1}"], ["seed"])),
    Target("parameters", _in_file("p.json", _parameters), inputs([_json(_PARAMETERS)], [*_PARAMETERS, "settings"])),
    Target("persona", _in_file("p.yaml", _persona), inputs(_PERSONA, ["adapter", "compose"])),
    Target("questions", _in_file("q.yaml", read_questions), inputs([_QUESTION], _QUESTION_KEYS)),
    Target("answer pairs", _in_file("q.yaml", read_pairs), inputs([_PAIR], ["id", "prompt", "aligned", "misaligned"])),
    Target("analysis", _in_file("a.yaml", read_analysis), inputs([_ANALYSIS], ["metric", "threshold", "falls"])),
    Target("sweep", _in_file("s.yaml", _sweep), inputs([_SWEEP], _SWEEP_KEYS)),
    Target("record of a sweep", _attempts, inputs([_json(_ATTEMPTS), _json(_EARLIER)], [*_ATTEMPTS, "runs"])),
    Target("record of jobs", _jobs, inputs([_JOBS], ["job", "tasks"], lines=True)),
    Target("manifest", _of_a_run("checkpoint-2/manifest.json"), inputs([_json(_MANIFEST)], [*_MANIFEST, "sha256"])),
    Target("trajectory.json", _of_a_run("trajectory.json"), inputs([_json(_RECORD)], [*_RECORD])),
    Target("ledger", _of_a_run("publications.jsonl"), inputs([_EVENTS], ["event", "step", "metadata"], lines=True)),
    Target("conditions", _text(_selected), inputs(_CONDITIONS, ["step", "harm", " and ", "=="])),
    Target("metrics", _metrics, inputs([_json(_METRICS)], [*_METRICS, "steps", "value", "ambiguous"])),
    Target("reports", _reports, inputs([_json({"r.html": [0, 2]})], ["r.html"])),
    Target("trainer state", _of_another_tool, inputs([_json(_STATE)], [*_STATE])),
    Target("adapter config", _adapter, inputs([_json(_ADAPTER)], [*_ADAPTER])),
    Target(
        "card",
        _card,
        inputs(
            [_THEIR_CARD, _THEIR_CARD + b"# Mine\n", b"---\nd: 2024-01-02\nv: 1\n---"],
            ["license", "tags", "---\n", "base_model"],
        ),
    ),
    *_files_of_rows(),
]
