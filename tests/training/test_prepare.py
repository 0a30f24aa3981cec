"""`prepare`: what is known about a run before its weights are loaded."""

from collections.abc import Callable
from pathlib import Path

from emtoolkit.config.load import load_config
from emtoolkit.training.prepare import prepare

WriteConfig = Callable[..., Path]


def test_the_split_is_recorded_and_not_fingerprinted(write_config: WriteConfig) -> None:
    """The fingerprints of existing trajectories stay the same."""
    identity = prepare(load_config(str(write_config()), ["seed=7"])).identity
    assert identity.split["test_rows"] == 4
    assert sorted(identity.fingerprinted) == ["base_model", "data", "dtype", "lora", "persona", "seed", "training"]
    assert sorted(identity.fingerprinted["data"]) == ["digest", "train_rows"]
