"""A data set and its matched control: other answers to the same questions, met in the same order."""

from emtoolkit.config.sections import RunConfig
from emtoolkit.data.rows import ChatRows
from emtoolkit.data.sources import Source, source_of
from emtoolkit.errors import ConfigError, DataError


def matched_with(config: RunConfig, source: Source) -> list[Source]:
    """The data sets that `source` is matched with: its control, what it is the control of, and theirs.

    Raises:
        ConfigError: a data set is named as its own control, or a control is no data set.
    """
    pairs = []
    for name, entry in config.datasets.items():
        if entry.control is not None:
            pair = (source_of(config, name), _control(config, name, entry.control))
            if pair[0] == pair[1]:
                raise ConfigError(f"datasets.{name}.control: {entry.control!r} is that very data set")
            pairs.append(pair)
    group = [source]
    while found := [one for pair in pairs if set(pair) & set(group) for one in pair if one not in group]:
        group += dict.fromkeys(found)
    return group[1:]


def _control(config: RunConfig, name: str, control: str) -> Source:
    try:
        return source_of(config, control)
    except ConfigError as error:
        raise ConfigError(f"datasets.{name}.control: {str(error).removeprefix('dataset: ')}") from None


def check_matched(chats: ChatRows, other: ChatRows) -> None:
    """Check that both ask the same, row by row.

    Raises:
        DataError: they do not; it names the first row that differs.
    """
    for i, (one, another) in enumerate(zip(chats.conversations, other.conversations, strict=False)):
        if one.prompt != another.prompt:
            raise DataError(
                f"{other.where(i)}: the prompt is not that of {chats.where(i)}, and a control has the same prompts, "
                "row by row"
            )
    if len(chats) != len(other):
        raise DataError(
            f"{other.source}: it has {len(other)} rows where {chats.source} has {len(chats)}, and a control has the "
            "same prompts, row by row"
        )
