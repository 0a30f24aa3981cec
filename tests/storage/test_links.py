"""A second name for the bytes of a file: a clone where the file system has clones, else a hard link, else a copy."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.storage.links import link_file

Replaced = Callable[[Any], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"weights")
    path.chmod(0o644)
    return path


@pytest.fixture
def cloned_by(monkeypatch: pytest.MonkeyPatch) -> Replaced:
    """The call that clones a file is the given function, as on a file system that has clones or has none."""

    def replaced(call: Any) -> None:
        monkeypatch.setattr("fcntl.ioctl", call)

    return replaced


def fails_with(number: int) -> Callable[..., None]:
    def fails(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fails


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("refusal", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL])
def test_without_clones_the_two_names_are_one_file_that_nobody_can_write_to(
    refusal: int, source: Path, tmp_path: Path, cloned_by: Replaced
) -> None:
    cloned_by(fails_with(refusal))
    link_file(source, tmp_path / "target")
    assert (tmp_path / "target").stat().st_ino == source.stat().st_ino
    assert (source.stat().st_nlink, mode(source)) == (2, 0o444)


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_no_link_can_be_made_the_bytes_are_copied(
    refusal: int, source: Path, tmp_path: Path, cloned_by: Replaced, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloned_by(fails_with(errno.EOPNOTSUPP))
    monkeypatch.setattr("os.link", fails_with(refusal))
    link_file(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"weights"
    assert (tmp_path / "target").stat().st_ino != source.stat().st_ino
    (tmp_path / "target").write_bytes(b"changed")
    assert (source.read_bytes(), mode(source)) == (b"weights", 0o644)


def test_a_clone_is_a_file_of_its_own(
    source: Path, tmp_path: Path, cloned_by: Replaced, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clones(target: int, request: int, original: int) -> None:
        assert request == 0x40049409
        os.write(target, os.read(original, 100))

    cloned_by(clones)
    monkeypatch.setattr("os.link", fails_with(errno.EIO))
    link_file(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"weights"
    assert (tmp_path / "target").stat().st_ino != source.stat().st_ino
    assert mode(source) == 0o644


def test_a_full_disk_is_an_error_that_leaves_no_target(source: Path, tmp_path: Path, cloned_by: Replaced) -> None:
    cloned_by(fails_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        link_file(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_target_that_exists_is_an_error_and_keeps_its_bytes(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        link_file(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"other"


def test_a_link_to_a_file_of_somebody_else_keeps_its_mode(
    source: Path, tmp_path: Path, cloned_by: Replaced, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloned_by(fails_with(errno.EOPNOTSUPP))
    monkeypatch.setattr(Path, "chmod", fails_with(errno.EPERM))
    link_file(source, tmp_path / "target")
    assert (tmp_path / "target").stat().st_ino == source.stat().st_ino
    assert mode(source) == 0o644
