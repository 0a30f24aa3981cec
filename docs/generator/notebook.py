"""A page of a notebook: its texts, its code and the outputs that were saved in it."""

import base64
import json
from pathlib import Path
from typing import Any


def write_notebook_page(notebook: Path) -> Path:
    """Write the page of `notebook` beside it, with its pictures, and return the path of the page."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = []
    for number, cell in enumerate(cells):
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            parts += _shown(output.get("data", {}), notebook.with_name(f"{notebook.stem}-{number}.png"))
    parts.append(f'<a href="{notebook.name}" download>Download the notebook</a>')
    page = notebook.with_suffix(".md")
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _shown(data: dict[str, Any], picture: Path) -> list[str]:
    """The richest form of one output as Markdown."""
    if "image/png" in data:
        picture.write_bytes(base64.b64decode("".join(data["image/png"])))
        return [f"![Figure]({picture.name})"]
    if "text/html" in data:
        # A blank line would end the block of HTML.
        lines = "".join(data["text/html"]).splitlines()
        return ["\n".join(line for line in lines if line.strip())]
    return [f"```text\n{''.join(data['text/plain'])}\n```"] if "text/plain" in data else []
