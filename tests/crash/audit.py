"""Kills a training at every file-system event of its saves, one event a run; resumes; compares. `make crash-test`.

The libraries are imported once; each training, and each resume, is a process forked from there.
"""

import argparse
import gc
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

# Before anything imports torch: a process that has a pool of threads cannot be forked.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "offline",
}

from emtoolkit.checkpoints.layout import TRAINER_STATE
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.publications import PUBLICATIONS, Publications
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.resume_state import RESUME_DIRECTORY, newest_resume_state
from tests.crash.shim import AFTER, BEFORE, HALFWAY, Event, arm, build, compiler, read_events
from tests.crash.training import STEPS, STOCK_STEPS, train, train_stock
from tests.saving.trainings import bytes_of, lora_model, make_trainer, saved_steps

DAMAGES = ("half", "empty", "gone")


@dataclass(frozen=True, slots=True)
class Subject:
    """A way of saving under audit: how to train and resume, and the checks after a kill and at the end.

    `after_kill` and `at_end` take the directory and the directory of the uninterrupted run, and return sentences.
    `at_end` returns two lists: the differences and the files that were left over.
    """

    train: Callable[[Path], None]
    resume: Callable[[Path], None]
    after_kill: Callable[[Path, Path], list[str]]
    at_end: Callable[[Path, Path], tuple[list[str], list[str]]]


@dataclass(frozen=True, slots=True)
class Point:
    """One kill: the process dies before, after or halfway through `event`."""

    event: Event
    how: str


@dataclass(frozen=True, slots=True)
class Row:
    """Kills of one kind. With `start`, the directory of an earlier kill, the process that dies is a resume."""

    name: str
    subject: Subject
    points: list[Point]
    start: Path | None = None


@dataclass(slots=True)
class Counts:
    """The results of one row; `faults` has a sentence for each."""

    name: str
    kill_points: int = 0
    failed_resumes: int = 0
    corrupt_or_phantom: int = 0
    divergences: int = 0
    left_overs: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.failed_resumes or self.corrupt_or_phantom or self.divergences or self.left_overs)


@dataclass(slots=True)
class TornCounts:
    """The results of resuming where one file of the newest resume checkpoint is damaged.

    `fell_back`: the older, complete checkpoint was chosen. A resume from the damaged checkpoint must be refused, or end
    with the same bytes because the file does not matter; all others are `silently_wrong`.
    """

    damaged: int = 0
    fell_back: int = 0
    resumes: int = 0
    failed_resumes: int = 0
    divergences: int = 0
    refused: int = 0
    same_bytes: int = 0
    silently_wrong: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return self.fell_back == self.damaged and not (self.failed_resumes or self.divergences or self.silently_wrong)


class Audit:
    """Runs trainings in one directory below `work`, because some files contain the path."""

    def __init__(self, work: Path, library: Path) -> None:
        self.run = work / "run"
        self.output = work / "output"
        self._work = work
        self._library = library
        self._log = work / "events"

    def uninterrupted(
        self, begin: Callable[[Path], None], name: str, start: Path | None = None
    ) -> tuple[Path, list[Event]]:
        """The directory and the events of a complete run, which begins in a copy of `start` if given."""
        self.clear(start)
        self.in_child(lambda: self._armed(begin, 0, BEFORE), expect=0)
        return self.kept(name), read_events(self._log)

    def killed(self, begin: Callable[[Path], None], point: Point, start: Path | None = None) -> Event:
        """Run `begin` in a copy of `start`, if given, until it dies at `point`."""
        self.clear(start)
        self.in_child(lambda: self._armed(begin, point.event.number, point.how), expect=-signal.SIGKILL)
        return read_events(self._log)[point.event.number - 1]

    def kept(self, name: str) -> Path:
        """Move the directory of the run to another name."""
        kept = self._work / name
        self.run.rename(kept)
        return kept

    def clear(self, start: Path | None = None) -> None:
        """Start with an empty directory or a copy of `start`."""
        shutil.rmtree(self.run, ignore_errors=True)
        self._log.unlink(missing_ok=True)
        if start is not None:
            shutil.copytree(start, self.run)

    def in_child(self, function: Callable[[], None], expect: int | None = None) -> int:
        """Call `function` in a forked process; its exit code, or minus the signal that ended it."""
        child = os.fork()
        if child == 0:
            self._be_child(function)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if expect is not None and code != expect:
            raise RuntimeError(f"a run ended with {code} and not {expect}:\n{self.output.read_text()}")
        return code

    def last_words(self) -> str:
        """The last line that a child process wrote: for an exception, its type and message."""
        lines = self.output.read_text().strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _armed(self, begin: Callable[[Path], None], at: int, how: str) -> None:
        arm(self._library, self.run, at, how, self._log)
        begin(self.run)

    def _be_child(self, function: Callable[[], None]) -> None:
        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        try:
            function()
            code = 0
        except BaseException:  # noqa: BLE001  # a fork must never return into its parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def kill_at_points(audit: Audit, row: Row, reference: Path) -> Counts:
    """Kill at each point of `row`, resume, and compare with the uninterrupted run in `reference`."""
    counts, subject = Counts(row.name), row.subject
    begin = subject.train if row.start is None else subject.resume
    for point in _with_progress(row.points, row.name):
        event = audit.killed(begin, point, row.start)
        moment = "halfway through" if point.how == HALFWAY else point.how
        where = f"{moment} {event.call} {event.path.relative_to(audit.run)} (event {event.number})"
        counts.kill_points += 1
        counts.calls[event.call] = counts.calls.get(event.call, 0) + 1
        bad = subject.after_kill(audit.run, reference)
        counts.corrupt_or_phantom += bool(bad)
        differing: list[str] = []
        left_over: list[str] = []
        if audit.in_child(lambda: subject.resume(audit.run)) == 0:
            differing, left_over = subject.at_end(audit.run, reference)
        else:
            counts.failed_resumes += 1
            bad.append(f"the resume failed: {audit.last_words()}")
        counts.divergences += bool(differing)
        counts.left_overs += bool(left_over)
        counts.faults += [f"killed {where}: {fault}" for fault in (*bad, *differing, *left_over)]
    return counts


def tear_files(audit: Audit, subject: Subject, reference: Path, both: Path, stride: int) -> TornCounts:
    """Damage each file of the newest resume checkpoint in `both`, which holds an older one as well.

    Every damage is shown to `newest_resume_state`; trainings are resumed after every `stride`-th of them.
    """
    counts = TornCounts()
    steps = sorted(int(path.name.split("-")[1]) for path in (both / RESUME_DIRECTORY).glob("checkpoint-*"))
    older, newest = (Path(RESUME_DIRECTORY) / f"checkpoint-{step}" for step in steps)
    damages = [(file.name, damage) for file in sorted((both / newest).iterdir()) for damage in DAMAGES]
    for number, (name, damage) in enumerate(_with_progress(damages, "torn files")):
        counts.damaged += 1
        audit.clear(both)
        _damage(audit.run / newest / name, damage)
        found = newest_resume_state(audit.run)
        shutil.move(audit.run / older, audit.output.with_name("aside"))
        alone = newest_resume_state(audit.run)
        shutil.move(audit.output.with_name("aside"), audit.run / older)
        if found == audit.run / older and alone is None:
            counts.fell_back += 1
        else:
            counts.faults.append(f"{name} {damage}: resume from {found}, and without the older one from {alone}")
        if number % stride:
            continue

        counts.resumes += 1
        if audit.in_child(lambda: subject.resume(audit.run)) != 0:
            counts.failed_resumes += 1
            counts.faults.append(f"{name} {damage}: the resume failed: {audit.last_words()}")
        elif wrong := [fault for faults in subject.at_end(audit.run, reference) for fault in faults]:
            counts.divergences += 1
            counts.faults += [f"{name} {damage}: {fault}" for fault in wrong]

        audit.clear(both)
        _damage(audit.run / newest / name, damage)
        if audit.in_child(lambda: train(audit.run, resume_from=audit.run / newest)) != 0:
            counts.refused += 1
            print(f"told to resume with {name} {damage}: {audit.last_words()[:200]}", file=sys.stderr)
        elif wrong := subject.at_end(audit.run, reference)[0]:
            counts.silently_wrong += 1
            counts.faults += [f"{name} {damage}, told to resume from there: {fault}" for fault in wrong]
        else:
            counts.same_bytes += 1
    return counts


def unsynced_renames(events: list[Event]) -> list[str]:
    """Renames to a final name before every renamed file was synced, or without a sync of the directory right after.

    A kill cannot show it, because the kernel still has what was written; a power cut would.
    """
    faults = []
    for rename, after in pairwise(events):
        if rename.call != "rename" or not re.fullmatch(r"\.tmp-.*-[0-9]+", rename.path.name):
            continue
        inside = [e for e in events[: rename.number] if e.path == rename.path or rename.path in e.path.parents]
        made = {event.path for event in inside if event.call in ("create", "mkdir")}
        changed = max(e.number for e in inside if e.call not in ("fsync", "rename"))
        synced = {event.path for event in inside if event.call == "fsync" and event.number > changed}
        if len(synced) < len(made) or (after.call, after.path) != ("fsync", rename.path.parent):
            faults.append(f"{rename.path.name} (event {rename.number}) was renamed before everything was on the disk")
    return faults


def _damage(file: Path, damage: str) -> None:
    if damage == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2 if damage == "half" else 0)


def _after_kill(directory: Path, reference: Path) -> list[str]:
    """Incomplete emtoolkit checkpoints, scheduled or for resuming, under a final name."""
    if not directory.is_dir():
        return []
    try:
        listed = {info.path: info for info in list_checkpoints(directory, rehash=True)}
    except CheckpointError as error:
        return [f"the checkpoints cannot be listed: {error}"]
    faults = []
    for path in sorted(directory.glob("checkpoint-*")):
        expected = reference / path.name
        if path not in listed:
            faults.append(f"{path.name} is a phantom: a directory that is no checkpoint")
        elif not listed[path].complete:
            faults.append(f"{path.name} is corrupt: {'; '.join(listed[path].problems)}")
        elif not expected.is_dir() or bytes_of(path) != bytes_of(expected):
            faults.append(f"{path.name} is listed as whole and is not what the uninterrupted run saved")
    for path in sorted((directory / RESUME_DIRECTORY).glob("checkpoint-*")):
        try:
            problems = Manifest.read(path).problems(path, rehash=True)
        except CheckpointError as error:
            problems = [str(error)]
        if problems:
            faults.append(f"{RESUME_DIRECTORY}/{path.name} is corrupt: {'; '.join(problems)}")
    return faults


def _at_end(directory: Path, reference: Path) -> tuple[list[str], list[str]]:
    ours, theirs = bytes_of(directory), bytes_of(reference)
    differing = [
        f"{name} is missing or differs at the end"
        for name in theirs
        if ours.get(name) != theirs[name] and name not in (PUBLICATIONS, TRAINER_STATE)
    ]
    if _logged(ours.get(TRAINER_STATE)) != _logged(theirs[TRAINER_STATE]):
        differing.append(f"{TRAINER_STATE} is missing or tells of another training")
    # The file contains times and attempts, so only the steps are compared.
    told, steps = Publications.read(directory).metadata, saved_steps(directory)
    differing += [
        f"{PUBLICATIONS} says nothing of step {step}" for step in steps if told.get(step, {}).get("step") != step
    ]
    names = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    expected = {str(path.relative_to(reference)) for path in reference.rglob("*")}
    return differing, [f"{name} was left over" for name in sorted(names - expected)]


def _logged(state: bytes | None) -> dict[str, Any]:
    """The state of a Trainer without the summary of its last process: its times, mean loss and operations."""
    if state is None:
        return {}
    values: dict[str, Any] = json.loads(state)
    del values["total_flos"]
    values["log_history"] = [entry for entry in values["log_history"] if "train_runtime" not in entry]
    return values


def _stock_after_kill(directory: Path, reference: Path) -> list[str]:
    """Directories with the name of a checkpoint that lack a file or a part of a file."""
    faults = []
    for path in sorted(directory.glob("checkpoint-*")):
        sizes = {file.name: file.stat().st_size for file in path.iterdir()}
        expected = {file.name: file.stat().st_size for file in (reference / path.name).iterdir()}
        if lacking := sorted(name for name, size in expected.items() if sizes.get(name, -1) < size):
            faults.append(f"{path.name} lacks all or a part of {', '.join(lacking)}")
    return faults


def _stock_at_end(directory: Path, reference: Path) -> tuple[list[str], list[str]]:
    files = [f"checkpoint-{step}/adapter_model.safetensors" for step in STOCK_STEPS]
    differing = [
        f"{file} is missing or differs at the end"
        for file in files
        if not (directory / file).is_file() or (directory / file).read_bytes() != (reference / file).read_bytes()
    ]
    return differing, []


OURS = Subject(train, lambda directory: train(directory, resume=True), _after_kill, _at_end)
# The training thread continues while the disk thread saves, as outside this audit.
UNDRAINED = Subject(
    lambda directory: train(directory, drained=False),
    lambda directory: train(directory, resume=True, drained=False),
    _after_kill,
    _at_end,
)
STOCK = Subject(
    train_stock,
    lambda directory: train_stock(directory, resume=True),
    _stock_after_kill,
    _stock_at_end,
)


def audit_ours(audit: Audit, spread: int | None) -> tuple[list[Counts], TornCounts, list[str]]:
    """Every row of the matrix, or only about `spread` points of it; the torn files; the renames that came too early."""
    reference, events = audit.uninterrupted(OURS.train, "reference")
    if saved_steps(reference) != list(STEPS):
        raise RuntimeError(f"the uninterrupted run saved {saved_steps(reference)} and not {list(STEPS)}")
    # The most that a kill can leave: a complete resume checkpoint and most of the next, or two complete ones.
    seals_second = [e for e in events if e.call == "create" and e.path.match("resume/*/manifest.json")][1]
    deletes_first = next(e for e in events[seals_second.number :] if "checkpoint-3" in str(e.path))
    audit.killed(OURS.train, Point(seals_second, BEFORE))
    killed_once = audit.kept("killed-once")
    audit.killed(OURS.train, Point(deletes_first, BEFORE))
    both = audit.kept("both-resume-checkpoints")
    _, events_of_resume = audit.uninterrupted(OURS.resume, "resumed", start=killed_once)

    rows = [
        Row("before each event", OURS, [Point(event, BEFORE) for event in events]),
        Row("after each event", OURS, [Point(event, AFTER) for event in events]),
        Row("halfway through each write", OURS, [Point(e, HALFWAY) for e in events if e.call == "write"]),
        Row("before each, training going on", UNDRAINED, [Point(event, BEFORE) for event in events]),
        Row("again, before each of a resume", OURS, [Point(e, BEFORE) for e in events_of_resume], killed_once),
    ]
    if spread is not None:
        rows = _spread(rows, spread)
    counts = [kill_at_points(audit, row, reference) for row in rows]
    torn = tear_files(audit, OURS, reference, both, stride=1 if spread is None else 20)
    return counts, torn, unsynced_renames(events)


def audit_stock(audit: Audit, spread: int | None) -> Counts:
    """The same for a stock Trainer."""
    reference, events = audit.uninterrupted(STOCK.train, "stock-reference")
    row = Row("stock Trainer, before each event", STOCK, [Point(event, BEFORE) for event in events])
    return kill_at_points(audit, _spread([row], spread)[0] if spread is not None else row, reference)


def _spread(rows: list[Row], number: int) -> list[Row]:
    """About `number` points, evenly over all rows, and in the first row each kind of call that they leave out."""
    total = sum(len(row.points) for row in rows)
    chosen: list[list[Point]] = []
    for row in rows:
        share = max(1, round(number * len(row.points) / total))
        chosen.append([row.points[(2 * i + 1) * len(row.points) // (2 * share)] for i in range(share)])
    calls = {point.event.call for points in chosen for point in points}
    for point in rows[0].points:
        if point.event.call not in calls:
            calls.add(point.event.call)
            chosen[0].append(point)
    return [replace(row, points=points) for row, points in zip(rows, chosen, strict=True)]


def _with_progress(items: list[Any], name: str) -> Iterator[Any]:
    for number, item in enumerate(items, 1):
        if sys.stderr.isatty() or number % 25 == 0 or number == len(items):
            end = "\r" if sys.stderr.isatty() and number < len(items) else "\n"
            print(f"{name}: {number} of {len(items)}", end=end, file=sys.stderr, flush=True)
        yield item


def _table(rows: list[Counts]) -> str:
    heads = ("killed", "kill points", "failed resumes", "corrupt or phantom", "divergences", "left over")
    numbers = [
        (row.kill_points, row.failed_resumes, row.corrupt_or_phantom, row.divergences, row.left_overs) for row in rows
    ]
    names = [row.name for row in rows]
    if len(rows) > 1:
        numbers.append(tuple(sum(column) for column in zip(*numbers, strict=True)))
        names.append("together")
    first = max(map(len, names))
    lines = ["  ".join([heads[0].ljust(first), *heads[1:]])]
    for name, cells in zip(names, numbers, strict=True):
        padded = [str(cell).rjust(len(head)) for cell, head in zip(cells, heads[1:], strict=True)]
        lines.append("  ".join([name.ljust(first), *padded]))
    return "\n".join(lines)


def _print_report(rows: list[Counts], torn: TornCounts, unsynced: list[str], stock: Counts | None) -> None:
    calls: Counter[str] = Counter()
    for row in rows:
        calls.update(row.calls)
    print(_table(rows))
    print("\nevents: " + ", ".join(f"{call} {number}" for call, number in calls.most_common()))
    print(
        f"torn files: {torn.damaged} damages to the newest resume checkpoint, {torn.fell_back} fell back to the older "
        f"one, {torn.failed_resumes} of {torn.resumes} resumes failed, {torn.divergences} diverged; told to start from "
        f"the torn one, {torn.refused} refused, {torn.same_bytes} ended with the same bytes, "
        f"{torn.silently_wrong} silently with others"
    )
    print(f"names given before everything was synced: {len(unsynced)}")
    for fault in [fault for row in rows for fault in row.faults] + torn.faults + unsynced:
        print(f"  {fault}")
    if stock is not None:
        print("\n" + _table([stock]))
        for fault in stock.faults:
            print(f"  {fault}")


def _warm_up(audit: Audit) -> None:
    """Import the modules that every child needs, and exclude inherited objects from garbage collection."""
    import wandb  # noqa: F401

    make_trainer(audit.run, model=lora_model())
    gc.collect()
    gc.freeze()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stock", action="store_true", help="audit a stock Trainer with save_steps=3 as well")
    parser.add_argument("--spread", type=int, metavar="N", help="only about N kill points, spread over all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts and the faults to FILE as well")
    arguments = parser.parse_args()
    if compiler() is None:
        print("there is no C compiler (cc or gcc) here, and the audit needs one", file=sys.stderr)
        return 2
    # The damage that the audit does is not news.
    logging.getLogger("emtoolkit").setLevel(logging.ERROR)
    started = time.monotonic()
    # A killed process loses nothing that the kernel holds, so a file system in memory shows the same, faster.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as work:
        audit = Audit(Path(work).resolve(), build(Path(work)))
        _warm_up(audit)
        rows, torn, unsynced = audit_ours(audit, arguments.spread)
        stock = audit_stock(audit, arguments.spread and arguments.spread // 3) if arguments.stock else None
    _print_report(rows, torn, unsynced, stock)
    print(f"{time.monotonic() - started:.0f} s")
    if arguments.json:
        report = {"rows": list(map(asdict, rows)), "torn": asdict(torn), "unsynced": unsynced}
        arguments.json.write_text(json.dumps(report | {"stock": stock and asdict(stock)}))
    return 0 if torn.is_clean and not unsynced and all(row.is_clean for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
