"""Output directories: a template such as `outputs/{persona}-{dataset}-s{seed}-{schedule}`, filled in for one run."""

import hashlib
import re
from collections.abc import Mapping
from string import Formatter

from emtoolkit.errors import ConfigError, nearest

PLACEHOLDERS = ("persona", "dataset", "schedule", "seed", "sweep", "set")

# Readable, and far below the 255 bytes that file systems allow.
_LONGEST = 60


def check_template(template: str) -> None:
    """Check the placeholders of `template`.

    Raises:
        ConfigError: a placeholder is none of `PLACEHOLDERS`, a brace has no partner, or all characters are blanks.
    """
    if not template.strip():
        raise ConfigError(f"{template!r} names nothing; write a name, or leave the key out")
    for name in _names(_with_variables(template)):
        if name not in PLACEHOLDERS:
            known = [f"{{{placeholder}}}" for placeholder in PLACEHOLDERS]
            hint = nearest(f"{{{name}}}", known)
            raise ConfigError(
                f"{template!r} has the unknown placeholder {{{name}}}; expected one of {', '.join(known)}{hint}"
            )


def placeholders(template: str) -> frozenset[str]:
    """The names of the placeholders in `template`."""
    return frozenset(_names(template))


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with every placeholder replaced by its value as a file name; `{{` and `}}` are braces.

    An environment variable, `$NAME` or `${NAME}`, stays as it is.
    """
    return _with_variables(template).format_map({name: as_file_name(value) for name, value in values.items()})


def as_file_name(text: str) -> str:
    """`text` as a readable part of a file name: `every-100` for `every:100`, `0-150-25_300--50`, `5pct`.

    A long text is cut and ends with a digest, so that two long texts with the same beginning stay different.
    """
    for sign, word in ((",", "_"), ("%", "pct")):
        text = text.replace(sign, word)
    name = re.sub(r"[^\w.-]", "-", text).lstrip(".") or "-"
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST - 9]}-{digest}"


def _with_variables(template: str) -> str:
    """`template` with the braces of `${NAME}` doubled, because they belong to no placeholder."""
    return re.sub(r"\$\{(\w+)\}", r"${{\1}}", template)


def _names(template: str) -> list[str]:
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template)]
    except ValueError:
        raise ConfigError(f"{template!r} has a brace without a partner; write {{{{ or }}}} for a brace") from None
    # A format (`{seed:03d}`) or a conversion (`{seed!r}`) makes a placeholder unknown.
    return [
        f"{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}"
        for name, spec, conversion in fields
        if name is not None
    ]
