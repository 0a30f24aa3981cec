"""The contents of a repository on the hub: its branches, and the digests of the files in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.trajectory_file import RECORD, TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.hub.access import Hub, NoRepositoryError
from emtoolkit.hub.card import CARD
from emtoolkit.hub.local import LocalCheckpoint, LocalFile, LocalTrajectory

MAIN = "main"
# Files that a new repository may hold, whoever made it.
OF_ANY_REPOSITORY = {".gitattributes", ".gitignore", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt"}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`sha256` is None for a file that is not in LFS."""

    oid: str
    sha256: str | None

    def equals(self, file: LocalFile) -> bool:
        return self.sha256 == file.sha256 if self.sha256 is not None else self.oid == file.git_oid()


Tree = Mapping[str, RemoteFile]


@dataclass(frozen=True, slots=True)
class RemoteRepository:
    """The state of a repository before a push; `main` is empty for one that does not exist."""

    exists: bool
    branches: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    main: Tree = field(default_factory=dict)
    record: TrajectoryRecord | None = None
    manifest: Manifest | None = None

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the trajectory that the repository holds; None if it holds none."""
        if self.record is not None:
            return self.record.fingerprint
        return None if self.manifest is None else self.manifest.fingerprint


def branch_of(step: int) -> str:
    """The name of the branch that holds the checkpoint of `step`."""
    return f"step-{step}"


def step_of_branch(name: str) -> int | None:
    """The step whose checkpoint the branch `name` holds, or None for any other branch."""
    number = name.removeprefix("step-")
    return int(number) if number.isascii() and number.isdigit() and name == branch_of(int(number)) else None


def read_repository(hub: Hub) -> RemoteRepository:
    """The state of the repository.

    Raises:
        CheckpointError: the repository is gated, or the hub does not answer.
    """
    try:
        refs = hub.ask(lambda api: api.list_repo_refs(hub.repository))
    except NoRepositoryError:
        return RemoteRepository(exists=False)
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    main = read_tree(hub, branches[MAIN]) if MAIN in branches else {}
    record, manifest = None, None
    if RECORD in main:
        record = TrajectoryRecord.read_if_any(hub.download(RECORD, branches[MAIN]))
    if MANIFEST in main:
        manifest = Manifest.read(hub.download(MANIFEST, branches[MAIN]))
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    return RemoteRepository(True, branches, tags, main, record, manifest)


def read_tree(hub: Hub, commit: str) -> Tree:
    """The files of a commit, at any depth."""
    from huggingface_hub.hf_api import RepoFile

    entries = hub.ask(lambda api: [*api.list_repo_tree(hub.repository, recursive=True, revision=commit)])
    return {
        entry.path: RemoteFile(entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def check_is_of(hub: Hub, remote: RemoteRepository, trajectory: LocalTrajectory) -> None:
    """Check that the repository holds `trajectory` or nothing yet.

    Raises:
        CheckpointError: it holds another trajectory, or files of somebody else.
    """
    if remote.fingerprint is not None:
        record, here = remote.record, trajectory.record
        facts = here.fingerprinted if here else {}
        own = trajectory.fingerprint
        if not (record.is_of(own, facts) if record else remote.fingerprint == own):
            differs = record.differs_from(facts) if record and record.fingerprinted and facts else []
            why = differs[0] if differs else f"{remote.fingerprint[:8]}, not {own[:8]}"
            raise CheckpointError(
                f"{hub.repository}: holds another trajectory ({why}); push {trajectory.name} into its own repository"
            )
    elif others := sorted(remote.main.keys() - OF_ANY_REPOSITORY):
        raise CheckpointError(
            f"{hub.repository}: holds files that emtoolkit did not push ({', '.join(others[:3])}); push "
            f"{trajectory.name} into its own repository"
        )


def differences(tree: Tree, checkpoint: LocalCheckpoint) -> list[str]:
    """The files of `checkpoint` that the tree of its branch lacks, or holds with another content."""
    return [name for name, file in checkpoint.files.items() if name not in tree or not tree[name].equals(file)]
