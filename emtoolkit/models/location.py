"""Where a base model is; nothing here loads a model or a library that does."""

from pathlib import Path

from emtoolkit.config.sections import ModelConfig
from emtoolkit.errors import ConfigError, located
from emtoolkit.paths import expand


def model_path(config: ModelConfig) -> str:
    """The directory or hub id to load from.

    Raises:
        ConfigError: `model.base` looks like a path, and the directory holds no model.
    """
    if not config.base.startswith(("~", "/", ".")) and "$" not in config.base and not Path(config.base).is_dir():
        return config.base
    with located("model.base"):
        directory = expand(config.base).absolute()
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"model.base: {directory}: holds no model (no config.json); 'emtoolkit sandbox build' makes the sandbox's"
        )
    return str(directory)
