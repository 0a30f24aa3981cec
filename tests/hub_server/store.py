"""What the hub holds: repositories with commits, branches and tags, and the contents of their files."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from pathlib import Path

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
# The patterns of the `.gitattributes` that the hub writes into a new repository, as far as tests meet them.
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.parquet", "*.npz", "*.zip")
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()
LFS_BYTES = 10_000_000
_FIRST_COMMIT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a commit: `oid` is its git blob; `sha256` is set if that blob is a pointer to a content in LFS."""

    oid: str
    size: int
    content: str  # sha256 of the content, whether in LFS or not
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True, slots=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    files: Mapping[str, File]
    date: datetime


@dataclass(eq=False)
class Repository:
    id: str
    private: bool = False
    gated: bool = False
    """Whether files can be had only by the repository's owners, although anybody sees their names."""
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    """The contents that were uploaded into this repository, whether a commit names them or not."""

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or a full oid names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.commits.get(self.branches.get(name) or self.tags.get(name) or revision)

    def commit(self, branch: str, title: str, files: Mapping[str, File]) -> Commit:
        """Put a commit with exactly these files on top of `branch`."""
        parent = self.branches.get(branch)
        text = f"{parent} {title} {sorted((path, file.oid) for path, file in files.items())} {len(self.commits)}"
        date = _FIRST_COMMIT + timedelta(seconds=len(self.commits))
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, dict(files), date)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def history(self, commit: Commit) -> list[Commit]:
        """The commit and those before it, newest first."""
        commits = [commit]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits


class Store:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}

    def create(self, id: str, *, private: bool = False, gated: bool = False) -> Repository:
        """A repository as the hub creates it: `main` with one commit that holds `.gitattributes`."""
        repository = self.repositories[id] = Repository(id, private, gated)
        repository.commit("main", "initial commit", {".gitattributes": self.regular(ATTRIBUTES)})
        return repository

    def publish(self, repository: Repository, branch: str, files: Mapping[str, bytes], title: str = "add") -> Commit:
        """Commit exactly these contents (and `.gitattributes`) to a branch, which may be new, without any request."""
        made = {path: self.file(repository, path, content) for path, content in files.items()}
        return repository.commit(branch, title, {".gitattributes": self.regular(ATTRIBUTES), **made})

    def file(self, repository: Repository, path: str, content: bytes) -> File:
        return self.in_lfs(repository, self.keep(content)) if is_lfs(path, len(content)) else self.regular(content)

    def regular(self, content: bytes) -> File:
        return File(git_oid(content), len(content), self.keep(content))

    def in_lfs(self, repository: Repository, sha256: str) -> File:
        repository.lfs.add(sha256)
        size = self.path(sha256).stat().st_size
        return File(git_oid(POINTER.format(sha256, size).encode()), size, sha256, sha256)

    def keep(self, content: bytes) -> str:
        """Store a content; return its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.path(sha256).write_bytes(content)
        return sha256

    def path(self, sha256: str) -> Path:
        return self._directory / sha256

    def content(self, file: File) -> bytes:
        return self.path(file.content).read_bytes()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return size > LFS_BYTES or any(fnmatch(path.rpartition("/")[2], pattern) for pattern in LFS_PATTERNS)
