"""`emtoolkit push`: the checkpoints of a trajectory become branches of one repository on the hub.

A checkpoint is a branch `step-N` and not a tag: branches need no order, so that steps which are pushed later stand
beside the others, and a tag would have to be made on a `main` that goes back to its weights. A branch begins at the
first commit of the repository, which holds no weights, and one commit puts all files of the checkpoint there: a
reader sees either none of them or all. `trajectory.json` on `main` says which trajectory the repository belongs to,
before any branch is made.

The hub's own digests decide what is sent, so that a push may be interrupted and repeated at will.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emtoolkit.checkpoints.trajectory_file import RECORD
from emtoolkit.errors import CheckpointError
from emtoolkit.hub.access import Hub, HubUnavailableError
from emtoolkit.hub.card import CARD, model_card, with_front_matter_of
from emtoolkit.hub.local import LocalCheckpoint, LocalFile, LocalTrajectory, read_trajectory
from emtoolkit.hub.names import FINAL_TAG
from emtoolkit.hub.remote import (
    MAIN,
    OF_ANY_REPOSITORY,
    RemoteRepository,
    branch_of,
    check_is_of,
    differences,
    read_repository,
    read_tree,
    step_of_branch,
)
from emtoolkit.progress import Progress, silent

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    Change = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push: `sent` are the steps that it sent, `present` those that the repository held already.

    `main` is the step that was put or left onto `main`. `created` is how a new repository can be seen; None for one
    that existed.
    """

    repository: str
    url: str
    created: Literal["private", "public"] | None
    sent: tuple[int, ...]
    present: tuple[int, ...]
    main: int | None


def push(
    directory: Path,
    repository: str,
    steps: str | None = None,
    *,
    private: bool = True,
    to_main: bool = True,
    progress: Progress = silent,
    on_sent: Callable[[int], object] = lambda step: None,
) -> Pushed:
    """Send the checkpoints of `directory` that `steps` selects (all if None), unless the hub has them.

    Without `to_main` the last step is not put onto `main`, as long as more steps will come. `on_sent` is called with
    each step that the hub has taken.

    A repository that does not exist is made, `private` or public; one that exists stays as it is. Everything that can
    be refused is looked at before the first change on the hub.

    Raises:
        ScheduleError: `steps` is not a schedule.
        CheckpointError: there is nothing to push or not from here, the repository holds something else, the token has
            no right to write, or the hub fails several times; what was sent stays, and the same call goes on.
    """
    hub = Hub(repository)
    trajectory = read_trajectory(directory, steps, progress)
    remote = read_repository(hub)
    check_is_of(hub, remote, trajectory)
    missing = [each for each in trajectory.checkpoints if not _is_there(hub, remote, each)]
    try:
        return _Push(hub, trajectory, remote, progress, on_sent).send(missing, private=private, to_main=to_main)
    except HubUnavailableError as error:
        raise HubUnavailableError(f"{error}; what was sent stays there, and the same command goes on") from error


def _is_there(hub: Hub, remote: RemoteRepository, checkpoint: LocalCheckpoint) -> bool:
    """Whether the branch of the checkpoint holds the checkpoint.

    Raises:
        CheckpointError: it holds other files.
    """
    commit = remote.branches.get(branch_of(checkpoint.step))
    if commit is None:
        return False
    tree = read_tree(hub, commit)
    if not (different := differences(tree, checkpoint)):
        return True
    if tree.keys() <= OF_ANY_REPOSITORY:
        return False  # a push was interrupted after it had made the branch
    raise CheckpointError(
        f"{hub.repository}: the branch {branch_of(checkpoint.step)} holds another {different[0]} than "
        f"{checkpoint.directory}; delete that branch, or push into another repository"
    )


class _Push:
    """The commits to one repository, in the order that keeps it readable: its owner, branches, `main`."""

    def __init__(
        self,
        hub: Hub,
        trajectory: LocalTrajectory,
        remote: RemoteRepository,
        progress: Progress,
        on_sent: Callable[[int], object],
    ) -> None:
        self._hub = hub
        self._trajectory = trajectory
        self._remote = remote
        self._progress = progress
        self._on_sent = on_sent

    def send(self, missing: Sequence[LocalCheckpoint], *, private: bool, to_main: bool) -> Pushed:
        name = self._hub.repository
        if is_new := not self._remote.exists:
            self._hub.ask(lambda api: api.create_repo(name, private=private, exist_ok=True))
            self._remote = read_repository(self._hub)
        if self._remote.fingerprint is None:
            self._commit(self._about(), "Name the trajectory", MAIN)
        self._send_branches(missing)
        sent = {each.step for each in missing}
        return Pushed(
            name,
            self._hub.url,
            created=("private" if private else "public") if is_new else None,
            sent=tuple(sorted(sent)),
            present=tuple(each.step for each in self._trajectory.checkpoints if each.step not in sent),
            main=self._advance_main(sent) if to_main else None,
        )

    def _send_branches(self, missing: Sequence[LocalCheckpoint]) -> None:
        new = [each.step for each in missing if branch_of(each.step) not in self._remote.branches]
        first = _first_commit(self._hub) if new else None
        total, done = sum(each.size for each in missing), 0
        for checkpoint in missing:
            self._progress("pushing checkpoints", done, total)
            branch = branch_of(checkpoint.step)
            if checkpoint.step in new:
                self._make_branch(branch, first)
            self._commit(checkpoint.files, f"Step {checkpoint.step}", branch)
            self._on_sent(checkpoint.step)
            done += checkpoint.size
        self._progress("pushing checkpoints", done, total)

    def _make_branch(self, branch: str, first: str | None) -> None:
        name = self._hub.repository
        self._hub.ask(lambda api: api.create_branch(name, branch=branch, revision=first, exist_ok=True))

    def _advance_main(self, sent: set[int]) -> int | None:
        """Put the checkpoint of the last step onto `main`; return the step that `main` holds."""
        there = {step for name in self._remote.branches if (step := step_of_branch(name)) is not None}
        last = self._trajectory.at(max(there | sent))
        held = self._remote.manifest
        if last is None:
            # Somebody pushed a later step from another directory.
            return None if held is None else held.step
        changes = {name: last.files[name] for name in differences(self._remote.main, last)} | self._about()
        gone = set() if held is None else held.files.keys() - last.files.keys()
        if changes or gone:
            self._commit(changes, f"Step {last.step}", MAIN, gone & self._remote.main.keys())
        if last.final:
            self._tag_final(branch_of(last.step))
        return last.step

    def _tag_final(self, branch: str) -> None:
        """Tag the last commit of `branch` as the final checkpoint, which `main` is no more once its card is edited."""
        name, tagged = self._hub.repository, self._remote.tags.get(FINAL_TAG)
        if tagged is not None and tagged == self._remote.branches.get(branch):
            return
        if tagged is not None:
            self._hub.ask(lambda api: api.delete_tag(name, tag=FINAL_TAG))
        self._hub.ask(lambda api: api.create_tag(name, tag=FINAL_TAG, revision=branch, exist_ok=True))

    def _about(self) -> dict[str, LocalFile]:
        """The files on `main` about the whole trajectory that are new, or not as they were when training ended."""
        record, main = self._trajectory.record, self._remote.main
        manifest = self._trajectory.checkpoints[0].manifest
        card = LocalFile.of_text(model_card(self._hub.repository, manifest, record))
        if self._remote.fingerprint is None:
            theirs = self._their_card() if CARD in main else b""
            merged = with_front_matter_of(card.content(), theirs)  # their own text stays
            about = {} if merged is None else {CARD: LocalFile.of_text(merged)}
            return about | ({} if record is None else {RECORD: LocalFile.of_text(record.to_json())})
        before = self._remote.record
        if record is None or record.ended_at is None or (before is not None and before.ended_at is not None):
            return {}
        about = {RECORD: LocalFile.of_text(record.to_json())}
        old = LocalFile.of_text(model_card(self._hub.repository, manifest, before))
        # A card that somebody edited stays as it is.
        return about | ({CARD: card} if CARD in main and main[CARD].equals(old) and old != card else {})

    def _their_card(self) -> bytes:
        return (self._hub.download(CARD, self._remote.branches[MAIN]) / CARD).read_bytes()

    def _commit(self, files: Mapping[str, LocalFile], title: str, branch: str, gone: Collection[str] = ()) -> None:
        """Put `files` on top of `branch` in one commit; the client makes none if the branch holds them all."""
        if not files and not gone:
            return

        def commit(api: "HfApi") -> object:
            # New for each attempt, so that the client sees what an attempt whose answer was lost has committed.
            changes: list[Change] = [*map(_addition, files, files.values()), *map(_deletion, sorted(gone))]
            return api.create_commit(self._hub.repository, changes, commit_message=title, revision=branch)

        self._hub.ask(commit)


def _first_commit(hub: Hub) -> str:
    """The first commit of `main`, on which every branch begins.

    Raises:
        CheckpointError: that commit has files, which would be taken for those of a checkpoint.
    """
    first = hub.ask(lambda api: api.list_repo_commits(hub.repository))[-1].commit_id
    if others := sorted(read_tree(hub, first).keys() - OF_ANY_REPOSITORY):
        raise CheckpointError(
            f"{hub.repository}: the first commit of its {MAIN} holds files ({', '.join(others[:3])}), and every branch "
            "begins there; push into a repository that is new"
        )
    return first


def _addition(name: str, file: LocalFile) -> "CommitOperationAdd":
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(name, file.source if isinstance(file.source, bytes) else str(file.source))


def _deletion(name: str) -> "CommitOperationDelete":
    from huggingface_hub import CommitOperationDelete

    return CommitOperationDelete(name)
