"""What counts as a number in an option or a file: True and False do not, although Python takes them for 1 and 0."""

from numbers import Integral, Real
from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number, of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_count(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number from 1 on."""
    return is_whole(value) and value >= 1


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number, of Python or NumPy; infinities and NaN are."""
    return isinstance(value, Real) and not isinstance(value, bool)
