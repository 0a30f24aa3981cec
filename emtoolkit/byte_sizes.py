"""File sizes as people write them: `150MB` to bytes and back."""

import re
from decimal import Decimal

from emtoolkit.errors import UserError, nearest, shortened

_DECIMAL = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_UNITS = _DECIMAL | _BINARY
_BYTES_IN = {unit.casefold(): size for unit, size in _UNITS.items()}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)")


def parse_size(text: str) -> int:
    """The number of bytes in `text`: a number with a unit (`150MB`, `1.5 GiB`), or a number of bytes.

    The case of the unit does not matter; a fraction of a byte is rounded.

    Raises:
        UserError: `text` is not a size, or is less than one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    expected = f"expected a number and one of {', '.join(_UNITS)}, such as 150MB"
    if match is None:
        raise UserError(f'size "{shortened(text)}": {expected}')
    number, unit = match.groups()
    size = _BYTES_IN.get(unit.casefold() or "b")
    if size is None:
        raise UserError(f'size "{shortened(text)}": {expected}{nearest(unit.upper(), _UNITS)}')
    count = round(Decimal(number) * size)
    if count < 1:
        raise UserError(f'size "{shortened(text)}": expected at least 1 byte')
    return count


def format_size(count: int) -> str:
    """`count` bytes with a decimal unit, to three digits: `600 MB`, `1.65 GB`."""
    units = list(_DECIMAL)
    power = 0
    # 999.5 rounds to 1000, which is better written as 1 of the next unit.
    while power + 1 < len(units) and count >= Decimal("999.5") * 1000**power:
        power += 1
    value = Decimal(count) / 1000**power
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    number = f"{value:.{digits}f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {units[power]}"
