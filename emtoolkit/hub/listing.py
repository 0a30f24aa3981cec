"""The checkpoints that a repository on the hub holds, listed with one or two requests and without any download."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from emtoolkit.checkpoints.declared import fingerprint_of
from emtoolkit.checkpoints.layout import step_of
from emtoolkit.checkpoints.remote import RefusedError
from emtoolkit.checkpoints.trajectory_file import RECORD
from emtoolkit.errors import nearest
from emtoolkit.hub.client import HubError, asked
from emtoolkit.hub.names import FINAL_TAG, HubReference, NamedSteps, StepName, steps_of_folders, steps_of_revisions
from emtoolkit.json_files import count_in, object_in, text_in
from emtoolkit.schedules.steps import elided

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_NAMES = 5


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a commit: its git blob, and the SHA-256 of its content if the content is in LFS."""

    path: str
    bytes: int
    blob: str
    sha256: str | None

    @property
    def declared(self) -> str:
        """The digest that the hub declares for the content."""
        return self.sha256 or self.blob


@dataclass(frozen=True, slots=True)
class HubCheckpoint:
    """The checkpoint of `step`: the folder `folder` ("" is the top) of `commit`, which `revision` names.

    `files` are None before they are listed.
    """

    step: int
    final: bool
    revision: str
    commit: str
    folder: str = ""
    files: tuple[HubFile, ...] | None = None


@dataclass(frozen=True, slots=True)
class HubListing:
    """The checkpoints of the training `training` of a repository: the beginning of revisions, or a folder.

    `record` is the commit and the path at which emtoolkit keeps `trajectory.json`, if there may be one.
    """

    reference: HubReference
    training: str
    checkpoints: tuple[HubCheckpoint, ...]
    record: tuple[str, str] | None = None

    @property
    def fingerprint(self) -> str:
        """The substitute for a fingerprint, if another tool trained."""
        return fingerprint_of(self.reference.repository, self.training)

    def place(self, checkpoint: HubCheckpoint) -> str:
        """The checkpoint as a reference, such as `hf:lab/run@step-100`."""
        return str(HubReference(self.reference.repository, checkpoint.folder or None, checkpoint.revision))

    def to_json(self) -> dict[str, Any]:
        """The listing as a JSON object, which `from_json` reads."""
        return {
            "format": 1,
            "training": self.training,
            "record": self.record,
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
        }

    @classmethod
    def from_json(cls, reference: HubReference, values: Any) -> "HubListing":
        """The listing of `reference` that an earlier call of `to_json` gave.

        Raises:
            ValueError: `values` is something else.
        """
        listed = object_in(values)
        if count_in(listed, "format") != 1 or not isinstance(entries := listed.get("checkpoints"), list):
            raise ValueError("not a listing of this version")
        checkpoints = tuple(
            HubCheckpoint(
                count_in(entry, "step"),
                entry.get("final") is True,
                text_in(entry, "revision"),
                text_in(entry, "commit"),
                text_in(entry, "folder"),
                None if entry.get("files") is None else tuple(HubFile(**object_in(file)) for file in entry["files"]),
            )
            for entry in map(object_in, entries)
        )
        commit, path = listed.get("record") or (None, "")
        record = None if commit is None else (str(commit), str(path))
        return cls(reference, text_in(listed, "training"), checkpoints, record)


def read_listing(reference: HubReference) -> HubListing:
    """Ask the hub for the checkpoints of `reference`.

    Without folder and revision, branches and tags that are steps come first, and then folders of `main`.

    Raises:
        OfflineError: HF_HUB_OFFLINE is set.
        HubError: there is no such repository or revision, no checkpoint, or several trainings to choose from.
        RefusedError: the checkpoints would have to be unpickled.
    """
    commits = _commits(reference)
    place = str(reference)
    revision = reference.revision
    if reference.folder is None:
        named = steps_of_revisions(str(replace(reference, revision=None)), commits)
        if revision is None and named:
            return _of_revisions(reference, _chosen(place, named, "@"), named, commits)
        if revision is not None and revision in named and revision not in commits:
            return _of_revisions(reference, revision, named, commits)
    commit = commits.get(revision or "main")
    if commit is None and revision is not None and _COMMIT.fullmatch(revision):
        commit = revision
    if commit is None:
        raise _no_such_revision(reference, commits)
    return _of_folders(reference, revision or "main", commit, commits)


def list_files(repository: str, commit: str, place: str) -> tuple[HubFile, ...]:
    """Every file of a commit, with one request for a thousand files.

    Raises:
        HubError: the hub has no such commit, or does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = asked(place, lambda: list(HfApi().list_repo_tree(repository, revision=commit, recursive=True)))
    return tuple(
        HubFile(entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile)
    )


def _commits(reference: HubReference) -> dict[str, str]:
    """The commits of the branches and tags by their names; a branch hides a tag of its name, as on the hub."""
    from huggingface_hub import HfApi

    pull_requests = (reference.revision or "").startswith("refs/pr/")
    refs = asked(
        str(reference),
        lambda: HfApi().list_repo_refs(reference.repository, include_pull_requests=pull_requests),
    )
    found = {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}
    return found | {ref.ref: ref.target_commit for ref in refs.pull_requests or ()}


def _of_revisions(reference: HubReference, training: str, named: NamedSteps, commits: Mapping[str, str]) -> HubListing:
    steps = named[training]
    # A training is over where the last step is `main`, or where a push has said so.
    ended = (commits.get("main"), commits.get(FINAL_TAG))
    return HubListing(
        reference,
        training,
        tuple(
            HubCheckpoint(step, step == max(steps) and commits[name] in ended, name, commits[name])
            for step, name in sorted(steps.items())
        ),
        (commits["main"], RECORD) if "main" in commits else None,
    )


def _of_folders(reference: HubReference, revision: str, commit: str, commits: Mapping[str, str]) -> HubListing:
    place = str(reference)
    files = list_files(reference.repository, commit, place)
    named = steps_of_folders(file.path for file in files if holds_weights(file.path))
    above, _, last = (reference.folder or "").rpartition("/")
    if (only := step_of(last)) is not None and only in named.get(above, {}):
        # The place of one checkpoint, as a listing shows it.
        return _of_folders_in(reference, above, {only: named[above][only]}, revision, commit, files)
    if reference.folder is not None and reference.folder not in named:
        raise HubError(
            f"{place}: there is no folder {reference.folder or '.'} with checkpoint-N in it"
            f"{_what_is_there(named, commits, files)}"
        )
    if not named and (named_step := StepName.parse(revision)) is not None:
        # One revision of many, which somebody named on purpose.
        return HubListing(
            reference, named_step.training, (HubCheckpoint(named_step.step, False, revision, commit, "", files),)
        )
    if not named:
        raise HubError(
            f"{place}: holds no training steps: no revision named like step-100, step100 or step100-tokens4B, and no "
            f"folder checkpoint-100 in {revision}{_what_is_there(named, commits, files)}"
        )
    training = _chosen(place, named, "/") if reference.folder is None else reference.folder
    return _of_folders_in(reference, training, named[training], revision, commit, files)


def _of_folders_in(
    reference: HubReference,
    training: str,
    steps: Mapping[int, str],
    revision: str,
    commit: str,
    files: tuple[HubFile, ...],
) -> HubListing:
    # A trainer saves the weights of the last step beside or above the folders of the checkpoints, too.
    ended = [_weights(files, folder) for folder in {training, training.rpartition("/")[0], ""}]
    checkpoints = []
    for step, folder in sorted(steps.items()):
        own = tuple(file for file in files if file.path.startswith(f"{folder}/"))
        final = step == max(steps) and any(weights and weights == _weights(own, folder) for weights in ended)
        checkpoints.append(HubCheckpoint(step, final, revision, commit, folder, own))
    of_weights = [file.path for each in checkpoints for file in each.files or () if holds_weights(file.path)]
    if not any(path.endswith(".safetensors") for path in of_weights):
        raise RefusedError(
            f"{reference}: the weights of its checkpoints are only in {_some(of_weights)}, and loading these could "
            "execute code; emtoolkit reads only safetensors"
        )
    record = f"{training}/{RECORD}".removeprefix("/")
    has_record = any(file.path == record for file in files)
    return HubListing(reference, training, tuple(checkpoints), (commit, record) if has_record else None)


def holds_weights(path: str) -> bool:
    """Whether the name is that of a file of weights, of any format."""
    name = PurePosixPath(path)
    return name.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") and not name.name.startswith(
        ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
    )


def _weights(files: Sequence[HubFile], folder: str) -> dict[str, str]:
    """The digests of the safetensors directly in `folder`, by their names."""
    inside = {file: PurePosixPath(file.path) for file in files if file.path.endswith(".safetensors")}
    return {path.name: file.declared for file, path in inside.items() if path.parent == PurePosixPath(folder)}


def _chosen(place: str, named: NamedSteps, sign: str) -> str:
    """The only training, or for revisions the one without a name of its own.

    Raises:
        HubError: there are several.
    """
    if len(named) == 1:
        return next(iter(named))
    if sign == "@" and "" in named:
        return ""
    choices = [f"{place}{sign}{name or '.'} ({elided(sorted(steps), 40)})" for name, steps in sorted(named.items())]
    raise HubError(f"{place}: holds several trainings; choose one of {', '.join(choices[:_MOST_NAMES])}")


def _no_such_revision(reference: HubReference, commits: Mapping[str, str]) -> HubError:
    revision = reference.revision or "main"
    steps = {parsed.step for name in commits if (parsed := StepName.parse(name)) is not None}
    wanted = StepName.parse(revision)
    if steps and wanted is not None:
        closest = min(sorted(steps), key=lambda step: abs(step - wanted.step))
        close = f"; the nearest step is {closest}"
    else:
        close = nearest(revision, commits) or _what_is_there({}, commits, ())
    return HubError(f"{reference}: the repository has no branch, tag or commit {revision!r}{close}")


def _what_is_there(named: NamedSteps, commits: Mapping[str, str], files: Sequence[HubFile]) -> str:
    there = []
    if named:
        folders = ", ".join(f"{folder or '.'} (steps {elided(sorted(of), 40)})" for folder, of in sorted(named.items()))
        there.append(f"checkpoints in {folders}")
    if commits:
        there.append(f"revisions {_some(sorted(commits))}")
    if files:
        there.append(f"files {_some(sorted(file.path for file in files))}")
    return f"; there are {' and '.join(there)}" if there else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"
