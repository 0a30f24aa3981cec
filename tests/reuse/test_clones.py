"""What a run takes from a store on a file system with clones shares the blocks of the store, and no name with it."""

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.training.reusing import take_without_training
from emtoolkit.training.run import train
from tests.reuse.on_disk import digests, steps
from tests.tiny import config_text

# The smallest file system that both programs make, in bytes; the file has holes and takes a few megabytes.
SIZE = 320 * 1024 * 1024
# btrfs keeps a small file among its metadata, and copies such a file, unless this is 0.
OPTIONS = {"btrfs": "loop,max_inline=0", "xfs": "loop"}
# From <linux/fiemap.h>: the extents of a file, after what waits in memory is written.
FIEMAP, SYNC, SHARED = 0xC020660B, 1, 0x2000


def done(*argv: str | Path) -> str | None:
    """Run a program of the system; why it does not work here, None if it does."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    program = shutil.which(str(argv[0]), path=path)
    if program is None:
        return f"{argv[0]} is not installed"
    ended = subprocess.run([program, *argv[1:]], capture_output=True, text=True, check=False)
    return f"{argv[0]}: {ended.stderr.strip() or ended.returncode}" if ended.returncode else None


@pytest.fixture(params=sorted(OPTIONS))
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system with clones, in a file."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE)
    why = done(f"mkfs.{request.param}", "-q", image)
    why = why or done("mount", "-t", request.param, "-o", OPTIONS[request.param], image, place)
    if why is not None:
        pytest.skip(why)
    try:
        yield place
    finally:
        # A failed test may hold a file open; a lazy unmount ends once the file is closed.
        assert done("umount", place) is None or done("umount", "--lazy", place) is None


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the store of a training that saved steps 0, 4 and 9."""
    home = tmp_path_factory.mktemp("trained")
    (home / "run.yaml").write_text(config_text(world, "schedule: '0,4'"))
    words = ["wandb.mode=disabled", f"trajectory.store={home / 'store'}"]
    train(load_config(str(home / "run.yaml"), words, {"output_dir": str(home / "out"), "trajectory.reuse": True}))
    return home


def taken(trained: Path, store: Path, directory: Path) -> dict[str, Path]:
    """The files of the checkpoints that a run into `directory` takes from `store`."""
    words = ["wandb.mode=disabled", f"trajectory.store={store}"]
    config = load_config(str(trained / "run.yaml"), words, {"output_dir": str(directory), "trajectory.reuse": True})
    result = take_without_training(config, resume=False)
    assert result is not None
    assert result.reused == (0, 4, 9)
    return {str(file.relative_to(directory)): file for file in directory.glob("checkpoint-*/*")}


def extents(file: Path) -> list[tuple[int, bool]]:
    """Where each extent of `file` is on the disk, and whether another file shares the extent."""
    header = struct.pack("=QQIIII", 0, 2**64 - 1, SYNC, 0, 16, 0)
    with file.open("rb") as opened:
        answer = fcntl.ioctl(opened.fileno(), FIEMAP, header + bytes(16 * 56))
    count = struct.unpack_from("=I", answer, 20)[0]
    found = [struct.unpack_from("=QQQQQI", answer, 32 + 56 * number) for number in range(count)]
    return [(physical, bool(flags & SHARED)) for _, physical, _, _, _, flags in found]


@pytest.mark.subprocess
def test_a_checkpoint_is_a_clone_whose_change_leaves_the_store_as_it_is(
    trained: Path, disk: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "store", disk / "store")
    (store,) = (disk / "store").glob("*-*")
    before = digests(store)
    own = taken(trained, disk / "store", disk / "own")
    assert len(own) == 9
    for name, file in own.items():
        assert (file.stat().st_nlink, os.access(file, os.W_OK)) == (1, True)
        ((place, is_shared),) = extents(file)
        assert (is_shared, extents(store / name)) == (True, [(place, True)])

    name = "checkpoint-4/adapter_model.safetensors"
    with own[name].open("r+b") as opened:
        opened.write(b"changed")
    ((place, is_shared),), ((place_of_store, store_is_shared),) = extents(own[name]), extents(store / name)
    assert (is_shared, store_is_shared, place == place_of_store) == (False, False, False)
    assert digests(store) == before
    assert (steps(store), steps(disk / "own")) == ([0, 4, 9], [0, 9])

    # Another file system gets a copy.
    for file in taken(trained, disk / "store", tmp_path / "elsewhere").values():
        assert (file.stat().st_nlink, os.access(file, os.W_OK)) == (1, True)
    assert digests(tmp_path / "elsewhere") == before
