"""Where a run writes: a template such as `outputs/{persona}-{dataset}-s{seed}-{schedule}`, filled in for one run."""

import hashlib
import re
from collections.abc import Mapping
from string import Formatter

from emtoolkit.errors import ConfigError, nearest

PLACEHOLDERS = ("persona", "dataset", "schedule", "seed", "sweep")

# A name this long can still be read, and stays far below the 255 bytes that file systems allow.
_LONGEST = 60


def check_template(template: str) -> None:
    """Raises `ConfigError` if `template` has a placeholder that is none of `PLACEHOLDERS`, or a lone brace."""
    for name in _names(template):
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            hint = nearest(f"{{{name}}}", [f"{{{known}}}" for known in PLACEHOLDERS])
            raise ConfigError(f"{template!r} has the unknown placeholder {{{name}}}; known are {known}{hint}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with every placeholder replaced by its value made fit for a name; `{{` and `}}` are braces."""
    return template.format_map({name: fit_for_a_name(value) for name, value in values.items()})


def fit_for_a_name(text: str) -> str:
    """`text` as part of a file's name that reads like it: `every-100` for `every:100`, `0-150-25_300--50`, `5pct`.

    A text that is long ends with a digest of it, so that two of them that begin alike differ.
    """
    for sign, word in ((",", "_"), ("%", "pct")):
        text = text.replace(sign, word)
    name = re.sub(r"[^\w.-]", "-", text).lstrip(".") or "-"
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST - 9]}-{digest}"


def _names(template: str) -> list[str]:
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template)]
    except ValueError:
        raise ConfigError(f"{template!r} has a brace without its partner; write {{{{ or }}}} for a brace") from None
    # What follows the name (`{seed:03d}`, `{seed!r}`) is part of what is unknown.
    return [
        f"{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}"
        for name, spec, conversion in fields
        if name is not None
    ]
