"""Words of a sweep file that W&B's agent reads as other values than emtoolkit.

W&B's client reads a sweep file as YAML 1.1, where `on` is true, `010` is 8, `1_000` is 1000, `1:30` is 90 and `1e5` is
a text; emtoolkit reads YAML 1.2. One file must start the same runs under both, so a word is refused where the two
readings give a program different arguments. `1e-5` for a key that takes a number is the same number in both.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from emtoolkit.config.key_values import is_key, takes_boolean, takes_text
from emtoolkit.errors import ConfigError, shortened, shown
from emtoolkit.yaml_scalars import boolean_meant, scalar

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The keys of a sweep file that decide what runs.
_READ_BY_BOTH = ("parameters", "command", "program", "project", "entity", "run_cap")
_NUMBERS = ("min", "max", "q", "probabilities", "run_cap")
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class _Word:
    """An unquoted word under the dotted keys `location`, and what W&B's client and emtoolkit read it as.

    `lists` is the number of lists around the word.
    """

    text: str
    line: int
    location: tuple[str, ...]
    lists: int
    is_name: bool
    agents: Any
    ours: Any

    @property
    def parameter(self) -> str:
        """The dotted name of the parameter whose value the word is."""
        return ".".join(name for name in self.location[1:] if name not in ("parameters", "value", "values"))


def check_read_alike(text: str, path: Path, content: Mapping[str, Any]) -> None:
    """Check that W&B's agent would start the runs that emtoolkit starts.

    Args:
        text: the text of the sweep file at `path`, which is valid YAML.
        content: the value of `text`.

    Raises:
        ConfigError: a word has two readings; names the line, both readings and what to write.
    """
    trains = _trains(content)
    for word in _words(text):
        if not _agree(word, trains):
            raise ConfigError(
                f"{path}, line {word.line}: {shortened('.'.join(word.location))}: {shortened(word.text)} is "
                f"{_reading(word.agents)} to W&B's agent (YAML 1.1) and {_reading(word.ours)} to emtoolkit (YAML 1.2); "
                f"write {_unambiguous(word)}"
            )


def _trains(content: Mapping[str, Any]) -> bool:
    """Whether the command of the sweep is an `emtoolkit train`."""
    command = content.get("command")
    words = [str(word) for word in command] if isinstance(command, list) else []
    named = [str(content.get("program")) if word == "${program}" else word for word in words]
    return any(Path(program).name == "emtoolkit" and name == "train" for program, name in pairwise(named))


def _words(text: str) -> Iterator[_Word]:
    """The unquoted words with two readings under the keys that both read."""
    loader = _Loader(text)
    try:
        top = loader.get_single_node()
        for key, value in top.value:
            if key.value in _READ_BY_BOTH:
                yield from _below(loader, value, (key.value,))
    finally:
        loader.dispose()


def _below(loader: Any, node: Any, location: tuple[str, ...], lists: int = 0) -> Iterator[_Word]:
    if isinstance(node, yaml.ScalarNode):
        yield from _word(loader, node, location, lists)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _below(loader, item, location, lists + 1)
    else:
        for key, value in node.value:
            if key.tag == _MERGE:
                yield from _below(loader, value, location, lists)
                continue
            yield from _word(loader, key, location, lists, is_name=True)
            yield from _below(loader, value, (*location, str(key.value)), lists)


def _word(loader: Any, node: Any, location: tuple[str, ...], lists: int, *, is_name: bool = False) -> Iterator[_Word]:
    if not isinstance(node, yaml.ScalarNode) or node.style not in (None, ""):
        return
    implicit = loader.resolve(yaml.ScalarNode, node.value, (True, False)) == node.tag
    ours = scalar(node.value, None if implicit else node.tag, plain=True)
    try:
        agents = loader.construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        # Impossible dates, and "=", which has a tag of its own in YAML 1.1.
        agents = _Unreadable()
    # 1.10 is 1.1 to both; a key that takes a text means another text.
    rounded = isinstance(ours, float) and math.isfinite(ours) and str(ours) != node.value
    if rounded or type(agents) is not type(ours) or (agents != ours and str(agents) != str(ours)):
        yield _Word(node.value, node.start_mark.line + 1, location, lists, is_name, agents, ours)


class _Unreadable:
    """A word that W&B's client cannot read."""


def _agree(word: _Word, trains: bool) -> bool:
    """Whether a program gets the same from both readings of `word`."""
    if isinstance(word.agents, _Unreadable) or word.is_name:
        return False
    same_number = _number(word.agents) is not None and _number(word.agents) == _number(word.ours)
    if word.location[0] != "parameters" or word.location[-1] in _NUMBERS:
        return same_number
    if isinstance(word.agents, str | int | float) and str(word.agents) == str(word.ours):
        return not (trains and isinstance(word.ours, float) and _takes_text(word.parameter))
    if not isinstance(word.agents, str | int | float):
        # No value of JSON, in which W&B's server keeps the parameters.
        return False
    if word.lists > ("values" in word.location):
        # A list is one argument, in which a text is no number.
        return False
    if not trains:
        return same_number
    name = word.parameter
    try:
        if not is_key(name) or takes_text(name):
            return False
        return same_number or (takes_boolean(name) and boolean_meant(word.ours) is word.agents)
    except ConfigError:
        # Planning names the unknown key.
        return word.location[-1] in ("value", "values")


def _takes_text(name: str) -> bool:
    try:
        return is_key(name) and takes_text(name)
    except ConfigError:
        return False


def _number(value: Any) -> float | None:
    """The number that a program reads in the argument `value`."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _reading(value: Any) -> str:
    if isinstance(value, _Unreadable):
        return "unreadable"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return f"the number {shown(value)}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def _unambiguous(word: _Word) -> str:
    quoted = f'"{shortened(word.text)}" in quotes'
    meant: Sequence[Any] = [value for value in (word.ours, word.agents) if isinstance(value, int | float)]
    if word.is_name or not meant:
        return quoted
    text = str(meant[0]).lower()
    # YAML 1.1 reads a number with an exponent only if there is a point in it.
    both = text.replace("e", ".0e") if "e" in text and not isinstance(meant[0], bool) and "." not in text else text
    return f"{both}, or {quoted}"
