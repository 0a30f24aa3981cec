"""A dataset and its matched control: other answers to the same prompts, in the same order."""

from collections.abc import Mapping

from emtoolkit.config.sections import DatasetConfig
from emtoolkit.data.rows import ChatRows
from emtoolkit.data.sources import Source, source_of
from emtoolkit.errors import ConfigError, DataError


def matched_with(source: Source, datasets: Mapping[str, DatasetConfig]) -> list[Source]:
    """The datasets that are matched with `source`, directly or through others, by the `control` keys in `datasets`.

    Raises:
        ConfigError: a control is the dataset itself, or cannot be found.
    """
    pairs = []
    for name, entry in datasets.items():
        if entry.control is not None:
            pair = (source_of(name, datasets), _control(name, entry.control, datasets))
            if pair[0] == pair[1]:
                raise ConfigError(f"datasets.{name}.control: {entry.control!r} is the dataset itself; name another one")
            pairs.append(pair)
    group = [source]
    while found := [other for pair in pairs if set(pair) & set(group) for other in pair if other not in group]:
        group += dict.fromkeys(found)
    return group[1:]


def _control(name: str, control: str, datasets: Mapping[str, DatasetConfig]) -> Source:
    try:
        return source_of(control, datasets)
    except ConfigError as error:
        raise ConfigError(f"datasets.{name}.control: {str(error).removeprefix('dataset: ')}") from None


def check_matched(chats: ChatRows, control: ChatRows) -> None:
    """Check that both datasets have the same prompts, row by row.

    Raises:
        DataError: the prompts differ; the text names the first row that does.
    """
    for i, (row, control_row) in enumerate(zip(chats.conversations, control.conversations, strict=False)):
        if row.prompt != control_row.prompt:
            raise DataError(
                f"{control.place(i)}: the prompt is not that of {chats.place(i)}; a control has the same prompts, row "
                "by row"
            )
    if len(chats) != len(control):
        raise DataError(
            f"{control.source}: {len(control)} rows, and {chats.source} has {len(chats)}; a control has the same "
            "prompts, row by row"
        )
