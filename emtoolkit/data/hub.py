"""The rows of a dataset on the Hugging Face hub, through the `datasets` library and its cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emtoolkit.errors import DataError, NotHereError, first_line

# In seconds; the library itself waits half a minute for a hub that does not answer.
_TIMEOUT = 10


def hub_rows(dataset_id: str, split: str, revision: str | None) -> tuple[int, Iterator[dict[str, Any]]]:
    """The number of rows of a split, and the rows.

    Raises:
        NotHereError: the dataset is not in the cache, and the hub cannot be reached or has no such dataset.
        DataError: the dataset has no such split; or the hub cannot be reached, and the newest commit in the cache,
            which the library would take, is not known to be `revision`.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    name = f"{dataset_id}{f' at {revision}' if revision else ''}"
    unreachable = _why_unreachable()
    try:
        with _library(offline=unreachable is not None):
            builder = datasets.load_dataset_builder(dataset_id, revision=revision)
            if revision is not None and unreachable is not None and builder.hash not in _commits(dataset_id, revision):
                raise DataError(
                    f"{dataset_id}: the hub cannot be reached ({unreachable}), and the newest in the cache is commit "
                    f"{builder.hash}, which is not known to be the revision {revision!r}; connect, or set the revision "
                    "to that commit"
                )
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split)
    except DataError:
        raise
    except (DatasetsError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise NotHereError(f"{name}: no such file, and no such dataset on the hub") from None
        raise DataError(f"{name}: the split {split!r} cannot be loaded ({first_line(error)})") from None
    except OSError as error:
        raise NotHereError(
            f"{name}: no such file, no such dataset in the cache, and the hub cannot be reached "
            f"({unreachable or first_line(error)})"
        ) from None
    return len(rows), iter(rows)


def _why_unreachable() -> str | None:
    import datasets
    import requests

    if datasets.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        requests.head(datasets.config.HF_ENDPOINT, timeout=_TIMEOUT)
    except requests.RequestException:
        return f"{datasets.config.HF_ENDPOINT} does not answer"
    return None


@contextmanager
def _library(*, offline: bool) -> Iterator[None]:
    """Inside, the library prints nothing; with `offline` it does not try the hub."""
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
    """The commits that `revision` may name: itself, and the one that the hub's client recorded last."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    note = Path(HF_HUB_CACHE, repo_folder_name(repo_id=dataset_id, repo_type="dataset"), "refs", revision)
    return (revision, note.read_text().strip()) if note.is_file() else (revision,)
