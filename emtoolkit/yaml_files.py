"""YAML as people write it: YAML 1.2 with merge keys, no repeated keys, and nothing that grows without end.

The parser is PyYAML's; the values are built here from its events, because its own constructor reads YAML 1.1
(see `yaml_scalars`), repeats aliased values without a limit, and knows no line of a key.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from emtoolkit.errors import ConfigError, nearest, shortened, shown
from emtoolkit.regular_files import read_regular
from emtoolkit.yaml_scalars import ScalarError, scalar

# Far above any config or question file, and read within about a second.
LARGEST_FILE = 4_000_000
_MOST_VALUES = 200_000
_MOST_CHARACTERS = 64_000_000
_DEEPEST = 60
_TOO_DEEP = f"nested more than {_DEEPEST} levels deep"

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "<<"
# The characters of https://yaml.org/spec/1.2.2/#51-character-set.
_PRINTABLE = re.compile("[\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse_yaml(text: str, source: str) -> Any:
    """The value of the YAML in `text`; `source` names the text in an error.

    Raises:
        ConfigError: `text` is not valid YAML, repeats a key, or describes more than any config needs; the sentence
            names the line and the dotted key.
    """
    return _Document(source).read(text)


def read_text(path: Path) -> str:
    """The text of the YAML file at `path`.

    Raises:
        ConfigError: the file does not exist (the text names a similar one in its directory), cannot be read, is no
            regular file, is far too large, or is not UTF-8.
    """
    try:
        content = read_regular(path, LARGEST_FILE)
    except FileNotFoundError:
        beside = [str(other) for other in path.parent.glob("*.yaml")]
        raise ConfigError(f"{path}: there is no such file{nearest(str(path), beside)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise ConfigError(f"{path}: the file holds null bytes, as text in UTF-16 does; save the file in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not text in UTF-8 ({error.reason}); save the file in UTF-8") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file at `path`.

    Raises:
        ConfigError: the file does not exist, cannot be read, or contains no mapping.
    """
    return mapping_in(read_text(path), path)


def mapping_in(text: str, path: Path) -> dict[str, Any]:
    """The mapping in `text`, which is that of the YAML file at `path`.

    Raises:
        ConfigError: as `read_yaml`.
    """
    content = parse_yaml(text, str(path))
    if content is None:
        raise ConfigError(f"{path}: holds nothing; expected a mapping of keys to values")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


def place_of(path: Path, location: Sequence[str | int]) -> str:
    """`path` and the line of the key at `location`, such as `run.yaml, line 7`; of a missing key its section's line.

    `location` holds the keys and the numbers of entries on the way from the top, as in an error of pydantic.
    """
    document = _Document(str(path))
    try:
        document.read(read_text(path))
    except ConfigError:
        return str(path)
    for length in range(len(location), 0, -1):
        if (line := document.lines.get(tuple(location[:length]))) is not None:
            return f"{path}, line {line}"
    return str(path)


@dataclass(frozen=True, slots=True)
class _Anchored:
    """A value with an anchor, how deep it is nested, and how many values and characters it has."""

    value: Any
    depth: int
    values: int
    characters: int


class _Document:
    """Reads one document and collects the `lines` of its keys and entries by their location."""

    def __init__(self, source: str) -> None:
        self.lines: dict[tuple[str | int, ...], int] = {}
        self._source = source
        self._location: list[str | int] = []
        # The deepest location inside the value that is read, and how much has been read.
        self._deepest = self._values = self._characters = 0
        # None while the value is being read: an alias in it would make it contain itself.
        self._anchors: dict[str, _Anchored | None] = {}

    def read(self, text: str) -> Any:
        """The value of the document in `text`. Raises: as `parse_yaml`."""
        if (at := text.find("\0")) >= 0:
            self._refuse(text.count("\n", 0, at) + 1, "the text holds a null byte; remove it")
        events = yaml.parse(text, Loader=_Parser)
        try:
            next(events)
            if isinstance(next(events), yaml.StreamEndEvent):
                return None
            value = self._value(next(events), events)
            next(events)
            if not isinstance(event := next(events), yaml.StreamEndEvent):
                self._refuse(_line(event), "a second document begins; write one document in a file")
        except yaml.YAMLError as error:
            raise ConfigError(f"{self._source}{_explained(error, text)}") from None
        return value

    def _value(self, event: Any, events: Iterator[Any]) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event)
        self._count(event, 1, 0)
        self._enter(event, len(self._location))
        values, characters, deepest = self._values, self._characters, self._deepest
        if event.anchor is not None:
            self._anchors[event.anchor] = None
            self._deepest = len(self._location)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        else:
            is_list = isinstance(event, yaml.SequenceStartEvent)
            if event.tag not in (None, "!", f"tag:yaml.org,2002:{'seq' if is_list else 'map'}"):
                self._refuse(_line(event), f"the tag {shortened(event.tag)} is not read; remove the tag")
            value = self._list(events) if is_list else self._mapping(events)
        if event.anchor is not None:
            depth = self._deepest - len(self._location)
            self._anchors[event.anchor] = _Anchored(
                value, depth, self._values - values + 1, self._characters - characters
            )
            self._deepest = max(self._deepest, deepest)
        return value

    def _aliased(self, event: Any) -> Any:
        anchored = self._anchors.get(event.anchor)
        if anchored is None:
            problem = "stands inside its own value" if event.anchor in self._anchors else "names no anchor before it"
            self._refuse(_line(event), f"the alias *{shortened(event.anchor)} {problem}")
        self._count(event, anchored.values, anchored.characters)
        self._enter(event, len(self._location) + anchored.depth)
        return _copied(anchored.value)

    def _scalar(self, event: Any) -> Any:
        self._count(event, 0, len(event.value))
        try:
            return scalar(event.value, event.tag, plain=event.style in (None, ""))
        except ScalarError as error:
            self._refuse(_line(event), str(error))

    def _list(self, events: Iterator[Any]) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            found.append(self._inside(len(found), event, event, events))
        return found

    def _mapping(self, events: Iterator[Any]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        merges = False
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._key(event)
            merging = key == _MERGE and isinstance(event, yaml.ScalarEvent) and event.style in (None, "")
            if key in own or (merging and merges):
                hint = "; write one, <<: [*a, *b]" if merging else ""
                self._refuse(_line(event), f"the key {shown(key)} appears twice in one mapping{hint}")
            value = self._inside(key, event, next(events), events)
            if merging:
                merges, merged = True, self._to_merge(event, value)
            else:
                own[key] = value
        # As in https://yaml.org/type/merge.html: the mapping's own keys win, then the first mapping of the list.
        return {key: value for mapping in reversed(merged) for key, value in mapping.items()} | own

    def _key(self, event: Any) -> str:
        self._count(event, 1, 0)
        key: Any = None
        if isinstance(event, yaml.ScalarEvent):
            key = self._scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            key = self._aliased(event)
        else:
            kind = "a list" if isinstance(event, yaml.SequenceStartEvent) else "a mapping"
            self._refuse(_line(event), f"expected a text as key, found {kind}; put a key with brackets in quotes")
        if not isinstance(key, str):
            self._refuse(_line(event), f"the key {shown(key)} is not a text; put the key in quotes")
        return key

    def _inside(self, name: str | int, at: Any, event: Any, events: Iterator[Any]) -> Any:
        """The value of `event`, which stands under `name`; `at` is the event of the key or of the value itself."""
        self._location.append(name)
        self.lines[tuple(self._location)] = _line(at)
        value = self._value(event, events)
        self._location.pop()
        return value

    def _to_merge(self, event: Any, value: Any) -> list[dict[str, Any]]:
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            self._refuse(_line(event), f"<<: expected a mapping or a list of mappings, found {shown(value)}")
        return mappings

    def _enter(self, event: Any, depth: int) -> None:
        self._deepest = max(self._deepest, depth)
        if depth > _DEEPEST:
            self._refuse(_line(event), _TOO_DEEP)

    def _count(self, event: Any, values: int, characters: int) -> None:
        self._values += values
        self._characters += characters
        if self._values > _MOST_VALUES:
            self._refuse(_line(event), f"more than {_MOST_VALUES:,} values, those that aliases repeat included")
        if self._characters > _MOST_CHARACTERS:
            self._refuse(_line(event), f"more than {_MOST_CHARACTERS:,} characters, those that aliases repeat included")

    def _refuse(self, line: int, problem: str) -> NoReturn:
        key = shortened(".".join(map(str, self._location)))
        raise ConfigError(f"{self._source}, line {line}: {f'{key}: ' if key else ''}{problem}")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _copied(value: Any) -> Any:
    """A copy, so that a later change of one place of an aliased value does not change the others."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _explained(error: yaml.YAMLError, text: str) -> str:
    """The line and the problem of a parser's error."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    line = None if mark is None else mark.line + 1
    if isinstance(error, yaml.reader.ReaderError):
        bad = next((at for at, character in enumerate(text) if not _PRINTABLE.match(character)), None)
        line = None if bad is None else text.count("\n", 0, bad) + 1
        problem = "a control character" if bad is None else f"the control character {text[bad]!a}"
    where = "" if line is None else f", line {line}"
    if "nesting depth" in str(problem):  # newer parsers have a limit of their own
        return f"{where}: {_TOO_DEEP}"
    return f"{where}: not valid YAML ({shortened(str(problem))})"
