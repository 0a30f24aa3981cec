"""Code of the user's own: which functions and classes are not a library's, and a digest of what their code does."""

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

# Installed from a clone, these have files outside the directories of installed packages.
_LIBRARIES = {"accelerate", "datasets", "emtoolkit", "numpy", "peft", "torch", "transformers", "trl"}
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def qualified_name(value: Any) -> str:
    """Module and name of a function or class."""
    return f"{getattr(value, '__module__', None) or 'builtins'}.{getattr(value, '__qualname__', type(value).__name__)}"


def is_own(value: Any) -> bool:
    """Whether a function, class or module is the user's and not a library's: the name alone does not identify it."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    if name is None or isinstance(value, BuiltinFunctionType) or str(name).partition(".")[0] in _LIBRARIES:
        return False
    if name == "__main__":
        return True
    file = getattr(sys.modules.get(str(name)), "__file__", None)
    return file is not None and is_own_file(str(name), str(file))


def is_own_file(module: str, file: str) -> bool:
    """Whether `file` of the module named `module` is the user's and not a library's."""
    if module.partition(".")[0] in _LIBRARIES:
        return False
    return not file.startswith(_INSTALLED) and "site-packages" not in file


def has_own_code(value: Any) -> bool:
    """Whether a function or class is the user's, or a class has a base or a method of the user's."""
    return is_own(value) or (isinstance(value, type) and next(functions_of(value), None) is not None)


def functions_of(value: Any) -> Iterator[FunctionType]:
    """The user's functions that a function, method or class consists of, base classes included."""
    if isinstance(value, MethodType):
        value = value.__func__
    value = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, type):
        for owner in value.__mro__:
            for _, member in sorted(vars(owner).items()):
                # A method that the user has put into a library's class is the user's, too.
                yield from (f for f in _functions_in(member) if is_own(owner) or is_own(f))


def _functions_in(member: Any) -> Iterator[FunctionType]:
    if isinstance(member, property):
        parts: tuple[Any, ...] = (member.fget, member.fset, member.fdel)
    else:
        parts = (getattr(member, "__func__", member),)
    yield from (unwatched(part) for part in parts if isinstance(part, FunctionType))


def put_around(original: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which emtoolkit puts around `original`: only `original` counts as the user's code."""
    function.__watched__ = original  # type: ignore[attr-defined]  # functions take any attribute
    return function


def unwatched(function: FunctionType) -> FunctionType:
    """The function that `function` has been put around, or itself."""
    original: FunctionType = getattr(function, "__watched__", function)
    return original


def names_in(function: FunctionType) -> set[str]:
    """The globals and attributes that the code of `function` names, functions defined inside it included."""
    return set().union(*(code.co_names for code in _codes(function.__code__)))


def bytecode_digest(function: FunctionType) -> str:
    """SHA-256 in hex over the bytecode of `function`; comments, blank lines and names of files are not in it."""
    digest = hashlib.sha256()
    for code in _codes(function.__code__):
        constants = [_constant(value) for value in code.co_consts]
        digest.update(repr((code.co_code, constants, code.co_names, code.co_varnames)).encode())
    return digest.hexdigest()


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _constant(value: Any) -> str:
    """`value` as a text that has no memory address, and no order of a set in it."""
    if isinstance(value, CodeType):
        return value.co_name
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
