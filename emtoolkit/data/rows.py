"""The conversations of a dataset, and the digest that identifies their content."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from emtoolkit.data.formats import Conversation, conversation, format_of, unused_columns
from emtoolkit.data.messages import CALLS
from emtoolkit.data.sources import Source, raw_rows
from emtoolkit.errors import DataError, located
from emtoolkit.personas import Message
from emtoolkit.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class ChatRows:
    """The conversations of one dataset in its order, and the SHA-256 of their content in hex.

    The digest depends only on the content, not on the file format or row format. `repeated` are the places of rows that
    equal an earlier row, `unused` the columns that no format has, with the number of rows that have them.
    """

    source: Source
    conversations: tuple[Conversation, ...]
    digest: str
    repeated: tuple[str, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.conversations)

    def place(self, index: int) -> str:
        """The file and the line of the row at `index`, for errors."""
        return f"{self.source}, {self.conversations[index].place}"

    def remarks(self) -> list[str]:
        """Observations that are not necessarily problems, one sentence each."""
        found = []
        if self.repeated:
            found.append(f"{self.source}: {len(self.repeated)} rows repeat earlier ones, first at {self.repeated[0]}")
        if self.unused:
            columns = ", ".join(f"{name} (in {count_of_rows(count)})" for name, count in self.unused.items())
            found.append(f"{self.source}: not used for training: {columns}")
        if unweighted := sum(row.unweighted for row in self.conversations):
            found.append(f"{self.source}: answers that are not learnt, because their weight is 0: {unweighted}")
        return found


def read_rows(source: Source, progress: Progress = silent) -> ChatRows:
    """All rows of `source`.

    Raises:
        NotHereError: the file does not exist, or the hub cannot be reached.
        DataError: the dataset has no rows, or a row (named by its line or number) is broken, has another format than
            the first row, or has no answer or an empty one.
    """
    conversations: list[Conversation] = []
    digest = hashlib.sha256()
    seen: set[bytes] = set()
    repeated: list[str] = []
    empty: list[str] = []
    unused: Counter[str] = Counter()
    first: tuple[str, ...] = ()
    for place, row in raw_rows(source, progress):
        with located(f"{source}, {place}"):
            columns = format_of(row)
            first = first or columns
            if columns != first:
                raise DataError(
                    f"the row has {' and '.join(columns)}, and {conversations[0].place} has {' and '.join(first)}; "
                    "use one format in the whole dataset"
                )
            found = conversation(row, columns, place)
        if any(_is_empty(found.messages[i]) for i in found.answers):
            empty.append(place)
        content = found.content
        digest.update(content)
        key = hashlib.sha256(content).digest()
        if key in seen:
            repeated.append(place)
        seen.add(key)
        unused.update(unused_columns(row, columns))
        conversations.append(found)
    if empty:
        raise DataError(f"{source}, {empty[0]}: the answer is empty{_and_more(empty)}; write one, or remove the row")
    if not conversations:
        raise DataError(f"{source}: the dataset has no rows")
    return ChatRows(source, tuple(conversations), digest.hexdigest(), tuple(repeated), unused)


def _is_empty(answer: Message) -> bool:
    return not answer["content"].strip() and not any(key in answer for key in CALLS)


def count_of_rows(count: int) -> str:
    """`1 row`, `2 rows` and so on."""
    return "1 row" if count == 1 else f"{count} rows"


def _and_more(places: Sequence[str]) -> str:
    more = len(places) - 1
    return f", and in {more} more rows" if more > 1 else ", and in 1 more row" if more else ""
