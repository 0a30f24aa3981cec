"""How a trajectory on the hub is named, and which revisions and folders of a repository are training steps.

Published trainings keep a checkpoint for each step in one of two layouts: a branch or tag (`step-100`, Pythia's
`step1000`, OLMo's `step1000-tokens4B`, `stage1-step1000-tokens4B`), or a folder (`checkpoints/checkpoint-100`).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from emtoolkit.checkpoints.layout import step_of
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.safe_paths import why_unsafe

PREFIX = "hf:"
# The tag of the commit of the last step, once training has ended; `emtoolkit push` makes it.
FINAL_TAG = "final"
FORM = "a trajectory on the Hugging Face hub is written hf:ORG/REPO, hf:ORG/REPO@REVISION or hf:ORG/REPO/FOLDER"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_STEP = re.compile(
    r"(?:(?P<training>.*[^-_/])[-_/])?(?:step[-_]?|checkpoint-)(?P<step>[0-9]{1,18})"
    r"(?:-tokens[0-9]+(?:\.[0-9]+)?[KMBT]?)?"
)

# For each training, by its name, the revision or folder of each step.
NamedSteps = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class HubReference:
    """`hf:ORG/REPO/FOLDER@REVISION`; None where folder or revision are not given, "" for the repository's top."""

    repository: str
    folder: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubReference":
        """Parse a reference that begins with `hf:`.

        Raises:
            CheckpointError: `text` is something else, such as an address.
        """
        place, at, revision = text.removeprefix(PREFIX).partition("@")
        parts = place.rstrip("/").split("/")
        if len(parts) < 2 or not all(_PART.fullmatch(part) for part in parts[:2]) or (at and not revision):
            raise CheckpointError(f"{text}: {FORM}")
        folder = "/".join(parts[2:])
        if folder not in ("", ".") and (why := why_unsafe(folder)):
            raise CheckpointError(f"{text}: {FORM}, and {why}")
        if revision and (revision.startswith("/") or not revision.isprintable() or ".." in revision):
            raise CheckpointError(f"{text}: {FORM}, and {revision!r} is no name of a branch, tag or commit")
        return cls("/".join(parts[:2]), {"": None, ".": ""}.get(folder, folder), revision or None)

    def __str__(self) -> str:
        folder = {None: "", "": "/."}.get(self.folder, f"/{self.folder}")
        return f"{PREFIX}{self.repository}{folder}{f'@{self.revision}' if self.revision else ''}"

    @property
    def directory(self) -> str:
        """A relative path that no other reference has."""
        rest = str(self).removeprefix(f"{PREFIX}{self.repository}")
        return f"{self.repository}{quote(rest, safe='@')}"


def is_hub(reference: object) -> bool:
    """Whether `reference` names a trajectory on the hub."""
    return isinstance(reference, str) and reference.startswith(PREFIX)


@dataclass(frozen=True, slots=True)
class StepName:
    """A step in the name of a branch or tag; `training` is what stands before, such as `stage1`, "" for nothing."""

    step: int
    training: str = ""

    @classmethod
    def parse(cls, name: str) -> "StepName | None":
        """The step in the name of a revision; None if the name is no step."""
        match = _STEP.fullmatch(name)
        return None if match is None else cls(int(match["step"]), match["training"] or "")


def steps_of_revisions(place: str, commits: Mapping[str, str]) -> NamedSteps:
    """The steps among the branches and tags of a repository, whose `commits` are given by their names.

    Raises:
        CheckpointError: two names are one step of one training, and are not the same commit.
    """
    found: dict[str, dict[int, str]] = defaultdict(dict)
    # Of several names of one commit the shortest is the step's: `step-1` and not `step-1-tokens4B`.
    for name in sorted(commits, key=lambda name: (len(name), name)):
        if (parsed := StepName.parse(name)) is None:
            continue
        chosen = found[parsed.training].setdefault(parsed.step, name)
        if commits[chosen] != commits[name]:
            raise CheckpointError(
                f"{place}: step {parsed.step} is the revision {chosen} (commit {commits[chosen][:8]}) and the revision "
                f"{name} (commit {commits[name][:8]}); remove one of them, or open a single one as {place}@{name}"
            )
    return dict(found)


def steps_of_folders(paths: Iterable[str]) -> NamedSteps:
    """The steps among the folders of a revision with the files `paths`, by the folder that holds `checkpoint-N`."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for path in paths:
        parts = path.split("/")[:-1]
        depth = next((index for index, part in enumerate(parts) if step_of(part) is not None), None)
        if depth is not None and (step := step_of(parts[depth])) is not None:
            found["/".join(parts[:depth])][step] = "/".join(parts[: depth + 1])
    return dict(found)
