"""A data set on the Hugging Face hub, through the `datasets` library: from its cache, or downloaded into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emtoolkit.errors import DataError, NotHereError, first_line

# The library itself tries a hub that does not answer for half a minute.
_SECONDS = 10


def hub_rows(dataset_id: str, split: str, revision: str | None) -> tuple[int, Iterator[dict[str, Any]]]:
    """How many rows a split has, and the rows.

    Raises:
        NotHereError: it is not in the cache, and the hub cannot be asked or does not have it.
        DataError: there is no such split; or the hub cannot be asked, and what the cache holds is not known to be
            `revision`: the library itself would take the newest that is there.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    where = f"{dataset_id}{f' at {revision}' if revision else ''}"
    why_not = _why_unreachable()
    try:
        with _library(offline=why_not is not None):
            builder = datasets.load_dataset_builder(dataset_id, revision=revision)
            if revision is not None and why_not is not None and builder.hash not in _commits(dataset_id, revision):
                raise DataError(
                    f"{dataset_id}: the hub cannot be asked ({why_not}), and the newest in the cache is commit "
                    f"{builder.hash}, which is not known to be the revision {revision!r}"
                )
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split)
    except DataError:
        raise
    except (DatasetsError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise NotHereError(f"{where}: there is neither such a file nor such a data set on the hub") from None
        raise DataError(f"{where}: its split {split!r} cannot be loaded ({first_line(error)})") from None
    except OSError as error:
        raise NotHereError(
            f"{where}: there is neither such a file nor such a data set in the cache, and the hub cannot be asked "
            f"({why_not or first_line(error)})"
        ) from None
    return len(rows), iter(rows)


def _why_unreachable() -> str | None:
    import datasets
    import requests

    if datasets.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        requests.head(datasets.config.HF_ENDPOINT, timeout=_SECONDS)
    except requests.RequestException:
        return f"{datasets.config.HF_ENDPOINT} does not answer"
    return None


@contextmanager
def _library(*, offline: bool) -> Iterator[None]:
    """The library without its bars and words, and without the hub where that is known not to answer."""
    import datasets

    hidden, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    was_offline = datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
        datasets.logging.set_verbosity(verbosity)
        if not hidden:
            datasets.enable_progress_bars()


def _commits(dataset_id: str, revision: str) -> tuple[str, ...]:
    """The commits that `revision` may be: itself, and what the hub's client noted when it last asked."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    note = Path(HF_HUB_CACHE, repo_folder_name(repo_id=dataset_id, repo_type="dataset"), "refs", revision)
    return (revision, note.read_text().strip()) if note.is_file() else (revision,)
