"""Names of repositories on the hub, and the nearest valid form of any other text."""

import re

from emtoolkit.errors import ConfigError, shown

# A name that the hub accepts on either side of the slash.
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_LONGEST = 96


def repository_name(text: str) -> str:
    """`text`, if it names a repository as `ORG/REPO`.

    Raises:
        ConfigError: `text` is no such name; the message says the nearest one.
    """
    if _is_name(text):
        return text
    near = _nearest(text)
    advice = f"did you mean {near!r}?" if near and near != text else "write ORG/REPO, such as lab/goodness-medical"
    raise ConfigError(
        f"{shown(text)}: is not the name of a repository on the hub, which is ORG/REPO of letters, digits, '-', '_' "
        f"and '.'; {advice}"
    )


def _is_name(text: str) -> bool:
    owner, _, name = text.partition("/")
    return all(map(_PART.fullmatch, (owner, name))) and not (".." in text or "--" in text or name.endswith(".git"))


def _nearest(text: str) -> str | None:
    """The valid name that `text` comes closest to; None if it has no owner."""
    text = re.sub(r"^(hf:/*|https?://[^/]+/)(models/)?", "", text.strip())
    parts = [part for part in text.split("/") if part][:2]
    if len(parts) < 2:
        return None
    name = "/".join(map(_cleaned, parts))
    return name if _is_name(name) else None


def _cleaned(part: str) -> str:
    part = re.sub(r"[^A-Za-z0-9_.-]+", "-", part.removesuffix(".git"))
    part = re.sub(r"--+", "-", re.sub(r"\.\.+", ".", part))
    return part.strip("-.")[:_LONGEST].strip("-.")
