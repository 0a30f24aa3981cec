"""Digests of files."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.storage.digests import FileDigest

CONTENT = b"x" * 3_000_000


@pytest.mark.parametrize("digest_of", [FileDigest.of, FileDigest.with_xxh128])
def test_a_digest_is_of_the_file_until_a_byte_changes(digest_of: Callable[[Path], FileDigest], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    digest = digest_of(file)
    assert (digest.sha256, digest.bytes) == (hashlib.sha256(CONTENT).hexdigest(), 3_000_000)
    assert digest == FileDigest.of(file)
    assert digest.is_of(file)
    file.write_bytes(CONTENT[:-1] + b"y")
    assert not digest.is_of(file)
