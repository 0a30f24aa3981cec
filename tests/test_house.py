"""The limits of CONTRIBUTING on the length of functions and files, and where helpers of tests live."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "emtoolkit"
LONGEST_FUNCTION = 60
LONGEST_FILE = 350
# What may be longer, each with its reason.
_OPTIONS = "most of its lines declare the command's options and their help texts"
LONG_FUNCTIONS = {
    "cli/evaluate.py: evaluate": _OPTIONS,
    "cli/sandbox.py: evaluate": _OPTIONS,
    "cli/zoom.py: zoom": _OPTIONS,
}
LONG_FILES: dict[str, str] = {}


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of each function, from its first decorator to its end."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.name, node.end_lineno - first + 1


def test_no_function_is_longer_than_60_lines_without_a_reason() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}: {name}": lines
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, lines in _functions(path)
        if lines > LONGEST_FUNCTION
    }
    assert sorted(long) == sorted(LONG_FUNCTIONS)


def test_no_file_is_longer_than_350_lines_without_a_reason() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_bytes().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert sorted(name for name, lines in lengths.items() if lines > LONGEST_FILE) == sorted(LONG_FILES)


def test_no_test_module_imports_another() -> None:
    """Helpers that tests share are in modules of their own."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {node.module}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2].startswith("test_")
    ]
    assert wrong == []
