"""The grammar of schedules: from the text of a schedule to its terms."""

import re
from collections.abc import Callable, Mapping, Sequence

from emtoolkit.errors import ScheduleError, nearest
from emtoolkit.schedules.adaptive import AdaptiveTerm, Budget, Moved
from emtoolkit.schedules.terms import (
    At,
    Between,
    Every,
    EveryFraction,
    From,
    Geom,
    Log2,
    Preset,
    SimpleTerm,
    Term,
    bad_term,
)

# At most 1000 digits, because int() refuses more than 4300 with an error of its own.
_N = "([0-9]{1,1000})"
_FORMS: tuple[tuple[re.Pattern[str], Callable[..., SimpleTerm]], ...] = (
    (re.compile(_N), At),
    (re.compile(f"every:{_N}"), Every),
    (re.compile(f"{_N}-{_N}:{_N}"), Between),
    (re.compile(f"{_N}-:{_N}"), From),
    (re.compile(f"log2:{_N}"), Log2),
    (re.compile(f"geom:{_N}-{_N}/{_N}"), Geom),
)
_PERCENT = re.compile(r"every:([0-9]+(?:\.[0-9]+)?)%")
_FRACTION = re.compile(r"every:(0?\.[0-9]+)")
_MOVED = re.compile(r"moved:([0-9]+(?:\.[0-9]+)?)%")
_BUDGET = re.compile(f"budget:{_N}")
_RANGE_WITHOUT_STRIDE = re.compile("[0-9]+-[0-9]*")
_EXPECTED_AFTER = {
    "every": "every:STRIDE such as every:25, or every:PERCENT% such as every:5%",
    "log2": "log2:LIMIT such as log2:512",
    "geom": "geom:START-STOP/COUNT such as geom:1-1000/10",
}
_EXPECTED_AFTER_ADAPTIVE = {
    "moved": "moved:PERCENT% such as moved:5%",
    "budget": "budget:COUNT such as budget:20",
}
_A_TERM = "a step such as 40, a range such as 0-150:25 or 300-:100, every:25, every:5%, log2:512, geom:1-1000/10"


def parse_terms(
    text: str, presets: Callable[[], Mapping[str, str]], selectors: Sequence[str] = ()
) -> tuple[Term | AdaptiveTerm, ...]:
    """The comma-separated terms of `text`; `presets` is called only for a term of no other form.

    `selectors` are further words, such as `final`, where `text` selects from steps that exist. The caller reads them;
    a message about a term that cannot be read names them, and leaves out `moved:` and `budget:`, which select nothing.

    Raises:
        ScheduleError: a term cannot be read; the message quotes the term and what was expected.
    """
    return tuple(
        _simple_term(item) or _adaptive_term(item) or _preset(item, presets(), selectors) for item in split_terms(text)
    )


def split_terms(text: str) -> list[str]:
    """The texts of the terms of `text`, none if it is empty.

    Raises:
        ScheduleError: a comma has no term on one of its sides.
    """
    items = [item.strip() for item in text.split(",")]
    filled = [item for item in items if item]
    if len(filled) < len(items) and filled:
        hint = f'did you mean "{",".join(filled)}"?'
        raise ScheduleError(f'schedule "{text}": there is an empty term beside a comma; {hint}')
    return filled


def _simple_term(text: str) -> SimpleTerm | None:
    """The term `text` unless it can only be the name of a preset."""
    for pattern, form in _FORMS:
        if match := pattern.fullmatch(text):
            return form(*map(int, match.groups()))
    if match := _PERCENT.fullmatch(text):
        # The double nearest to p/100, which p divided by 100 as a double is not always.
        return EveryFraction(float(f"{match[1]}e-2"))
    if _RANGE_WITHOUT_STRIDE.fullmatch(text):
        raise bad_term(text, f'expected a stride after the range; did you mean "{text}:1"?')
    if expected := _EXPECTED_AFTER.get(text.partition(":")[0]):
        hint = ""
        if (match := _FRACTION.fullmatch(text)) and (fraction := float(match[1])) > 0:
            hint = f'; did you mean "{EveryFraction(fraction)}"?'
        raise bad_term(text, f"expected {expected}{hint}")
    return None


def _adaptive_term(text: str) -> AdaptiveTerm | None:
    """The term `text` if its steps are chosen during training."""
    if match := _MOVED.fullmatch(text):
        return Moved(float(f"{match[1]}e-2"))
    if match := _BUDGET.fullmatch(text):
        return Budget(int(match[1]))
    if expected := _EXPECTED_AFTER_ADAPTIVE.get(text.partition(":")[0]):
        hint = ""
        if match := re.fullmatch(r"moved:([0-9]+(?:\.[0-9]+)?)", text):
            share = float(match[1]) if "." in match[1] else float(f"{match[1]}e-2")
            hint = f'; did you mean "{Moved(share)}"?' if 0 < share < 1 else ""
        raise bad_term(text, f"expected {expected}{hint}")
    return None


def _preset(name: str, known: Mapping[str, str], selectors: Sequence[str]) -> Preset:
    if name not in known:
        preset = f" or a preset ({', '.join(known)})" if known else ""
        others = selectors or ("moved:5%", "budget:20")
        candidates = [*_EXPECTED_AFTER, *(other.partition(":")[0] for other in others), *known]
        hint = nearest(name.partition(":")[0], candidates)
        raise bad_term(name, f"expected {_A_TERM}, {', '.join(others)}{preset}{hint}")
    terms = []
    try:
        items = split_terms(known[name])
        if not items:
            raise ScheduleError("expected at least one term")
        for item in items:
            if item in known:
                raise ScheduleError(f'expected a schedule without presets, but it names "{item}"')
            if (term := _simple_term(item)) is None:
                raise bad_term(item, f"expected {_A_TERM}")
            terms.append(term)
    except ScheduleError as error:
        raise ScheduleError(f'preset "{name}": {error}') from error
    return Preset(name, tuple(terms))
