"""A digest of the code of a module: its file, and the user's other files that this imports."""

import ast
import hashlib
import inspect
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType

from emtoolkit.errors import UserError
from emtoolkit.saving.own_code import is_own_file


def source_digest(module: ModuleType) -> str:
    """SHA-256 in hex over the code of the file of `module`, and of own files that the file imports.

    Own files are those of no installed package. Comments, layout and the places of the files do not count.

    Raises:
        UserError: the module has no file, or a file cannot be read or is not Python.
    """
    try:
        file = inspect.getsourcefile(module)
    except TypeError:
        file = None
    if file is None:
        raise UserError(f"{module.__name__}: has no source file, so a change of its code would go unnoticed")
    found: dict[str, str] = {}
    _collect(Path(file), module.__name__, module.__package__ or "", found)
    return hashlib.sha256("".join(f"{name}\0{text}\0" for name, text in sorted(found.items())).encode()).hexdigest()


def _collect(file: Path, name: str, package: str, found: dict[str, str]) -> None:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as Python ({error})") from None
    # Without line numbers and comments.
    found[name] = ast.dump(tree)
    for imported in _imports(tree, package):
        spec = None if imported in found else _own_spec(imported)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            inside = imported if spec.submodule_search_locations is not None else imported.rpartition(".")[0]
            _collect(Path(spec.origin), imported, inside, found)


def _own_spec(name: str) -> ModuleSpec | None:
    """Where the user's module `name` is; None for a library's. Nothing is imported, as `find_spec` imports parents."""
    top, *parts = name.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        # A module that was made in memory has no place.
        return None
    for part in parts:
        if spec is None or spec.submodule_search_locations is None or not _is_own(spec):
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return spec if spec is not None and _is_own(spec) else None


def _is_own(spec: ModuleSpec) -> bool:
    return all(
        is_own_file(spec.name, place) for place in (spec.origin, *(spec.submodule_search_locations or ())) if place
    )


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that a file may import, anywhere in it; names imported from a package may be modules, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: count + 1]) for count in range(len(parts)))
