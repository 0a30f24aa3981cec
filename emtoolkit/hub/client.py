"""Questions to the hub by its own client: asked again after a failure that may pass, and refused in one sentence."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from emtoolkit.errors import CheckpointError, first_line

# The pauses before the same question, in seconds, and the longest that the hub may ask for.
_PAUSES = (1.0, 2.0, 4.0)
_LONGEST_PAUSE = 30.0
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"

T = TypeVar("T")


class HubError(CheckpointError):
    """The hub refuses, does not answer, or does not have what was asked for."""


class NoSuchFileError(HubError):
    """The commit has no file of this name."""


class OfflineError(HubError):
    """HF_HUB_OFFLINE is set."""


def asked(place: str, ask: Callable[[], T]) -> T:
    """The answer of `ask`, which calls the hub's client and changes nothing; `place` begins the text of an error.

    Raises:
        OfflineError: HF_HUB_OFFLINE is set.
        HubError: the hub refuses, has no such repository, revision or file, or fails again and again.
    """
    for pause in (*_PAUSES, None):
        try:
            return ask()
        except Exception as error:  # the client raises its own errors, those of httpx, and plain ones for bad answers
            inner = _cause(error)
            if pause is None or not _may_pass(inner):
                raise _refusal(place, inner) from error
        time.sleep(max(pause, min(_seconds_asked(inner), _LONGEST_PAUSE)))
    raise AssertionError("the last pause is None")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the hub's client from drawing bars of its own."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def endpoint() -> str:
    """The address of the hub."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def _cause(error: Exception) -> Exception:
    """The reason why a file is not there, for which the client raises that the file is not in its cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    reason = error.__cause__
    return reason if isinstance(error, LocalEntryNotFoundError) and isinstance(reason, Exception) else error


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _may_pass(error: Exception) -> bool:
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    if (status := _status(error)) is not None:
        return status in _MAY_PASS
    if isinstance(error, OfflineModeIsEnabled | HFValidationError):
        return False
    # A full disk stays full; an answer that was cut, or is a page of a proxy, has no number.
    return not (isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError))


def _seconds_asked(error: Exception) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return float(headers.get("Retry-After", 0))
    except ValueError:
        return 0.0


def _refusal(place: str, error: Exception) -> HubError:
    from huggingface_hub import errors

    status, reason = _status(error), first_line(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return OfflineError(f"{place}: is not on this machine, and HF_HUB_OFFLINE is set; unset it to download")
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{place}: is no name of a repository ({reason})")
    if isinstance(error, errors.GatedRepoError):
        page = f"{endpoint()}/{place.removeprefix('hf:').partition('@')[0]}"
        return HubError(f"{place}: the repository is gated; accept its terms on {page}, and {_LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"{place}: there is no such repository on {endpoint()}, or it is private; check the name, and for a "
            f"private repository {_LOG_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{place}: there is no such revision in the repository any more; run the same command again")
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return NoSuchFileError(f"{place}: the file is not in the repository any more; run the same command again")
    if status == 401:
        return HubError(f"{place}: the hub refuses the token; {_LOG_IN} with a valid one")
    if status == 403:
        return HubError(f"{place}: the token may not read the repository ({reason}); {_LOG_IN} with another one")
    if status == 429:
        return HubError(f"{place}: the hub answers that it was asked too often (429); run the same command later")
    if status is not None:
        return HubError(f"{place}: the hub fails with status {status}; run the same command again later")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return HubError(f"{place}: writing the download failed ({error.strerror or reason})")
    return HubError(
        f"{place}: {endpoint()} could not be asked ({reason}); check the connection, or set HF_HUB_OFFLINE=1 to read "
        "what was downloaded before"
    )
