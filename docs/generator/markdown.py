"""Text as Markdown takes it in the cell of a table."""

import re

_CODE = re.compile(r"(`[^`]*`)")


def cell(text: str) -> str:
    """`text` on one line; outside of code, `<persona>` is a placeholder and no HTML, and `|` ends no cell."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(part if i % 2 else part.replace("<", "&lt;").replace("|", "\\|") for i, part in enumerate(parts))
