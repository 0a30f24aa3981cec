"""The conversations of a data set, and the digest by which a trajectory knows them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from emtoolkit.data.formats import Conversation, conversation, form_of
from emtoolkit.data.sources import Source, raw_rows
from emtoolkit.errors import DataError
from emtoolkit.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class ChatRows:
    """The conversations of one data set, in its order, and the SHA-256 of their content.

    The digest is of what is learnt from what, so that it is one for one content in any container and any form.
    `repeated` are the places of rows that are the same as an earlier one, `unused` the columns that nobody reads.
    """

    source: Source
    conversations: tuple[Conversation, ...]
    digest: str
    repeated: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.conversations)

    def where(self, index: int) -> str:
        """The row at `index` as errors name it."""
        return f"{self.source}, {self.conversations[index].place}"

    def remarks(self) -> list[str]:
        """What can be seen of the rows and need not be wrong, a sentence each."""
        found = []
        if self.repeated:
            found.append(
                f"{self.source}: {len(self.repeated)} rows repeat earlier ones, the first is {self.repeated[0]}"
            )
        if self.unused:
            found.append(f"{self.source}: nothing is learnt from {' and '.join(self.unused)}")
        return found


def read_rows(source: Source, progress: Progress = silent) -> ChatRows:
    """All rows of `source`.

    Raises:
        NotHereError: there is no such file, or the hub cannot be asked.
        DataError: there are no rows, or a row (named by its line or number) is broken, of another form than the
            first, or holds no answer or an empty one.
    """
    conversations: list[Conversation] = []
    digest = hashlib.sha256()
    seen: set[bytes] = set()
    repeated: list[str] = []
    empty: list[str] = []
    columns: dict[str, None] = {}
    first: tuple[str, ...] = ()
    for place, row in raw_rows(source, progress):
        where = f"{source}, {place}"
        form = form_of(row, where)
        first = first or form
        if form[:2] != first[:2]:
            raise DataError(
                f"{where}: it has {' and '.join(form)} where {conversations[0].place} has {' and '.join(first)}, and "
                "a data set keeps to one form"
            )
        found = conversation(row, form, where, place)
        if any(not found.messages[i]["content"].strip() for i in found.answers):
            empty.append(where)
        content = _content(found)
        digest.update(content)
        key = hashlib.sha256(content).digest()
        if key in seen:
            repeated.append(place)
        seen.add(key)
        columns.update((str(name), None) for name, value in row.items() if value is not None and name not in form)
        conversations.append(found)
    if empty:
        raise DataError(f"{empty[0]}: the answer is empty{_and_more(empty)}; write one, or remove the row")
    if not conversations:
        raise DataError(f"{source}: it holds no rows")
    return ChatRows(source, tuple(conversations), digest.hexdigest(), tuple(repeated), tuple(columns))


def _content(row: Conversation) -> bytes:
    """What a digest says of a row: its turns, and how many are only read where that is not plain from their roles."""
    all_answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    shown: object = row.messages if len(all_answers) == len(row.answers) else [row.read_only, row.messages]
    return json.dumps(shown, sort_keys=True).encode()


def _and_more(places: Sequence[str]) -> str:
    more = len(places) - 1
    return f", as are those of {more} more rows" if more > 1 else ", as is that of one more row" if more else ""
