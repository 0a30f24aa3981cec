"""The order of imports: data goes one way, and no package imports one that stands to its right."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Packages and modules that stand between two arrows are of one level and do not import each other.
ORDER = [
    [
        "errors",
        "progress",
        "paths",
        "regular_files",
        "json_files",
        "yaml_scalars",
        "yaml_files",
        "byte_sizes",
        "stop_signals",
        "launch",
        "shell_command",
        "usage_errors",
        "cpu_threads",
        "notebook_tables",
        "number_checks",
    ],
    ["schedules", "storage"],
    ["personas", "checkpoints"],
    ["config"],
    ["artifacts", "data", "hub"],
    ["reuse"],
    ["saving", "trajectory"],
    ["models", "pruning"],
    ["evaluation"],
    ["training"],
    ["sweeps", "sandbox", "analysis"],
    ["zoom"],
    ["cli"],
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def _imports(path: Path) -> set[str]:
    """The rooms that the file at `path` imports, whether at its top, in a function or for types only."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            package, _, rest = node.module.partition(".")
            if package == "emtoolkit":
                rooms |= {rest.partition(".")[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("emtoolkit.")}
    return rooms


def test_no_module_imports_to_the_right() -> None:
    wrong = []
    for path in sorted((ROOT / "emtoolkit").rglob("*.py")):
        relative = path.relative_to(ROOT / "emtoolkit")
        room = relative.parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):  # the public names come from everywhere
            continue
        for imported in _imports(path) - {room}:
            ground = LEVEL[room] == 0
            if LEVEL[imported] > LEVEL[room] or (LEVEL[imported] == LEVEL[room] and not ground):
                wrong.append(f"{relative} imports {imported}")
    assert wrong == []


def test_contributing_says_the_same_order() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    (errors.*► cli)$", text, re.MULTILINE)
    assert [part.strip().split(", ") for part in line.split("►")] == ORDER
