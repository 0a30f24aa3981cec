"""Names that W&B refuses, by the rules of its client: found in the config, and not when the run begins."""

import os
from collections.abc import Callable, Iterable, Mapping

from emtoolkit.errors import ConfigError, shown

_LONGEST_PROJECT, _LONGEST_TAG = 128, 64
_NOT_IN_PROJECTS = "/\\#?%:"


def check_project(name: str) -> None:
    """Check the name of a project.

    Raises:
        ValueError: W&B refuses the name.
    """
    if not name.strip():
        raise ValueError("W&B needs a project with a name")
    if len(name) > _LONGEST_PROJECT:
        raise ValueError(f"W&B accepts at most {_LONGEST_PROJECT} characters, found {len(name)}")
    if refused := [sign for sign in _NOT_IN_PROJECTS if sign in name]:
        raise ValueError(f"W&B accepts none of {' '.join(_NOT_IN_PROJECTS)} in a project, found {' '.join(refused)}")


def check_tags(tags: Iterable[str]) -> None:
    """Check the tags of a run.

    Raises:
        ValueError: W&B refuses one of them.
    """
    for tag in tags:
        if not tag.strip():
            raise ValueError("W&B accepts no empty tag")
        if len(tag) > _LONGEST_TAG:
            raise ValueError(f"W&B accepts at most {_LONGEST_TAG} characters in a tag, found {len(tag)} in {tag!r}")


def check_variables(names: Iterable[str] = ("WANDB_PROJECT", "WANDB_TAGS")) -> None:
    """Check W&B's environment variables `names` as the same values in a config; other variables are fitted.

    Raises:
        ConfigError: W&B refuses the value of one of them.
    """
    for name in names:
        value = os.environ.get(name)
        if not value:
            continue
        try:
            _CHECKS[name](value)
        except ValueError as error:
            raise ConfigError(f"{name}: {shown(value)} is not valid: {error}") from None


_CHECKS: Mapping[str, Callable[[str], None]] = {
    "WANDB_PROJECT": check_project,
    "WANDB_TAGS": lambda value: check_tags(tag for tag in value.split(",") if tag.strip()),
}
