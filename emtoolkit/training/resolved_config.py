"""`config.yaml` in an output directory: the resolved config of its training, valid in any working directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from emtoolkit.checkpoints.layout import RESOLVED_CONFIG
from emtoolkit.config.load import load_config
from emtoolkit.config.sections import DatasetConfig, RunConfig
from emtoolkit.data.sources import File, source_of
from emtoolkit.errors import ConfigError
from emtoolkit.models.location import model_path
from emtoolkit.paths import expand, out_of_scratch
from emtoolkit.storage.atomic import write_file
from emtoolkit.yaml_scalars import scalar


class _Dumper(yaml.SafeDumper):
    """Puts a text into quotes wherever YAML 1.1 or YAML 1.2 would read another value."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    is_text = scalar(text, None, plain=True) == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _text)


def write_resolved_config(config: RunConfig, directory: Path) -> None:
    """Write `config` to `<directory>/config.yaml` atomically; `directory` is the run's and exists.

    Defaults are written out, so that a later version reads the same run. Paths are absolute, and the placeholders
    of `output_dir` are filled in. Keys of `wandb` that are not set stay absent, because absent keys take their values
    from W&B's variables.

    Raises:
        CheckpointError: the file cannot be written.
    """
    header = f"# The resolved config of the training in this directory: emtoolkit train {RESOLVED_CONFIG}\n"
    values = _resolved(config, directory)
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    write_file(directory / RESOLVED_CONFIG, (header + text).encode())


def read_resolved_config(directory: Path, file: Path | None = None) -> RunConfig:
    """The config of the training in `directory`: its `config.yaml`, or `file`; its `output_dir` is `directory`.

    Raises:
        ConfigError: the file is missing or not valid.
    """
    path = directory / RESOLVED_CONFIG if file is None else file
    if file is None and not path.exists():
        raise ConfigError(
            f"{directory}: holds no {RESOLVED_CONFIG}, as a directory of the store, of an older version of emtoolkit "
            "or of a script of one's own; pass --config FILE with the config of its training"
        )
    return in_directory(load_config(str(path)), directory)


def in_directory(config: RunConfig, directory: Path) -> RunConfig:
    """The same run with `directory` as its output directory."""
    return config.model_copy(update={"output_dir": _as_template(directory)})


def _resolved(config: RunConfig, directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = _written(config.model_dump(mode="json"))
    values["wandb"] = config.wandb.model_dump(mode="json", exclude_unset=True)
    if not values["wandb"]:
        del values["wandb"]
    values["model"]["base"] = model_path(config.model)
    if config.model.architecture is not None:
        values["model"]["architecture"] = config.model.architecture
    if config.lora is None:
        values["lora"] = None
    if config.persona.endswith((".yaml", ".yml")):
        values["persona"] = _absolute(config.persona)
    if config.personas is not None:
        values["personas"] = _absolute(config.personas)
    if config.dataset not in config.datasets:
        values["dataset"] = _data_path(config.dataset, config.datasets)
    for name, entry in config.datasets.items():
        values["datasets"][name]["path"] = _data_path(entry.path, config.datasets, name)
        if entry.control is not None and entry.control not in config.datasets:
            values["datasets"][name]["control"] = _data_path(entry.control, config.datasets)
    evaluation = config.evaluation
    if evaluation.questions is not None:
        values["evaluation"]["questions"] = _absolute(evaluation.questions)
    if evaluation.probe is not None:
        values["evaluation"]["probe"]["questions"] = _absolute(evaluation.probe.questions)
    values["trajectory"]["store"] = str(out_of_scratch(expand(config.trajectory.store).absolute()))
    values["output_dir"] = _as_template(out_of_scratch(directory))
    return values


def _data_path(text: str, datasets: Mapping[str, DatasetConfig], name: str | None = None) -> str:
    """The absolute path of a data file; a hub id, and an entry that no run here can read, stay as they are."""
    try:
        source = source_of(name or text, datasets)
    except ConfigError:
        return text
    return str(source.path) if isinstance(source, File) else text


def _absolute(text: str) -> str:
    return str(expand(text).absolute())


def _as_template(directory: Path) -> str:
    """`directory` as a value of `output_dir`: a brace in its name begins no placeholder."""
    return str(directory.absolute()).replace("{", "{{").replace("}", "}}")


def _written(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `values` to write: null is the default of every key that can be null except `lora`."""
    return {
        key: _written(value) if isinstance(value, dict) else value for key, value in values.items() if value is not None
    }
