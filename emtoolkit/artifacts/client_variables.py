"""W&B's environment variables, for its client: it starts for no run if it cannot read the value of one of them."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from emtoolkit.config.wandb_names import check_variables
from emtoolkit.errors import ConfigError, first_line, shown

_PREFIX = "WANDB_"
# The client reads any value of them, or emtoolkit reads them first.
_ANY_VALUE = frozenset(
    _PREFIX + name
    for name in ("API_KEY", "DIR", "DISABLED", "ENTITY", "LOG_MODEL", "MODE", "NAME", "RUN_GROUP", "SWEEP_ID", "WATCH")
)
_CHECKED = ("WANDB_PROJECT", "WANDB_TAGS")


def check_client_variables(ignored: Collection[str] = ()) -> None:
    """Check W&B's variables but those `ignored`, as its client and its server would when the run begins.

    Raises:
        ConfigError: the value of one is refused.
    """
    check_variables(name for name in _CHECKED if name not in ignored)
    known = {*_ANY_VALUE, *_CHECKED, *ignored}
    values = {name: value for name, value in _ours().items() if name not in known}
    if not values:
        return
    import wandb

    for name, value in values.items():
        try:
            wandb.Settings().update_from_env_vars({name: value})
        except (ValueError, wandb.Error) as error:
            raise ConfigError(f"{name}: {shown(value)} is not valid: {_reason(error)}") from None


@contextmanager
def client_variables(overridden: Collection[str] = ()) -> Iterator[None]:
    """Within the block W&B's variables are as users mean them, and those `overridden` by the config are not set.

    Blanks around a value do not belong to it, and an empty variable is none: the client would refuse both.
    `WANDB_RESUME` is not set, because emtoolkit knows which runs go on.
    """
    # Only these are restored: the client keeps variables of its own, which may change within the block.
    before = {name: value for name, value in _ours().items() if not value or _meant(name, value, overridden) != value}
    try:
        for name, value in before.items():
            if meant := _meant(name, value, overridden):
                os.environ[name] = meant
            else:
                del os.environ[name]
        yield
    finally:
        os.environ.update(before)


def _ours() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)}


def _meant(name: str, value: str, overridden: Collection[str]) -> str:
    """What the user means by the `value` of a variable; empty for a variable that is not to be set."""
    if name in overridden or name == "WANDB_RESUME":
        return ""
    if name == "WANDB_TAGS":
        return ",".join(tag.strip() for tag in value.split(",") if tag.strip())
    return value if name.endswith("_DIR") else value.strip()


def _reason(error: Exception) -> str:
    details = getattr(error, "errors", None)
    if details is None:
        return first_line(error)
    sentence = str(details()[0]["msg"]).removeprefix("Value error, ")
    return sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence
