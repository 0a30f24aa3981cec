"""The hub's client, asked with patience: what the hub refuses becomes one sentence, what it fails at is asked again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from emtoolkit.config.hub_names import repository_name
from emtoolkit.errors import CheckpointError, UserError, first_line, shortened
from emtoolkit.hub.client import endpoint, quiet

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Answer = TypeVar("Answer")

_LOGIN = "run 'hf auth login', or set HF_TOKEN to a token that may write"
# The pauses before a request that failed is made again, in seconds; the client itself tries uploads several times.
_PAUSES = (2.0, 10.0)
# The longest silence of the hub within a request, and the longest pause that it may ask for, in seconds; the client
# waits for both without a limit.
_SECONDS = 60.0
_TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class HubUnavailableError(CheckpointError):
    """The hub did not answer, or failed; the same request may succeed later."""


class LimitedError(HubUnavailableError):
    """The hub takes no request of this account for a long time."""


class NoRepositoryError(CheckpointError):
    """There is no such repository, or none that this account sees."""


class Hub:
    """One repository on the hub, which need not exist.

    Raises:
        CheckpointError: the name is not valid, the client is offline, or nobody is logged in.
    """

    def __init__(self, repository: str) -> None:
        self.repository = repository_name(repository)
        from huggingface_hub import HfApi, constants, get_token

        if constants.HF_HUB_OFFLINE:
            raise CheckpointError(f"{repository}: HF_HUB_OFFLINE is set, and nothing can be sent; unset it")
        if get_token() is None:
            raise CheckpointError(f"{repository}: no token for {endpoint()} is set; {_LOGIN}")
        self.url = f"{endpoint()}/{repository}"
        self._api = HfApi(library_name="emtoolkit")

    def ask(self, request: "Callable[[HfApi], Answer]") -> Answer:
        """The answer to `request`, which is made again a few times if the hub fails.

        Raises:
            HubUnavailableError: the hub failed each time.
            CheckpointError: the hub refused the request.
        """
        for pause in _PAUSES:
            try:
                return self._ask_once(request)
            except LimitedError:
                raise
            except HubUnavailableError:
                time.sleep(pause)
        return self._ask_once(request)

    def _ask_once(self, request: "Callable[[HfApi], Answer]") -> Answer:
        with _silent_client(), self._errors_as_sentences(), self._bounded_waits():
            return request(self._api)

    @contextmanager
    def _bounded_waits(self) -> Iterator[None]:
        """Bound the client's waits for an answer, and raise where the hub asks for a long pause."""
        from huggingface_hub import get_session
        from huggingface_hub.utils._http import parse_ratelimit_headers

        def bound(request: Any) -> None:
            # Requests of listings turn the client's own timeout off.
            given = request.extensions.get("timeout") or {}
            kinds = ("connect", "read", "write", "pool")
            request.extensions["timeout"] = {kind: min(given.get(kind) or _SECONDS, _SECONDS) for kind in kinds}

        def check(response: Any) -> None:
            if response.status_code < HTTPStatus.BAD_REQUEST:
                return
            limit = parse_ratelimit_headers(response.headers)
            asked = response.headers.get("Retry-After", "")
            pause = limit.reset_in_seconds if limit and not limit.remaining else int(asked) if asked.isdigit() else 0
            if pause > _SECONDS:
                raise LimitedError(
                    f"{self.repository}: the hub takes no more requests for {pause} seconds ({response.status_code})"
                )

        client = get_session()
        hooks = client.event_hooks
        client.event_hooks = {"request": [*hooks["request"], bound], "response": [*hooks["response"], check]}
        try:
            yield
        finally:
            client.event_hooks = hooks

    def download(self, name: str, commit: str) -> Path:
        """The directory that holds the small file `name` of this commit, in the cache of the client."""
        from huggingface_hub import hf_hub_download

        return Path(self.ask(lambda _: hf_hub_download(self.repository, name, revision=commit))).parent

    @contextmanager
    def _errors_as_sentences(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError

        # One of its bases is that of all errors of a connection; the library depends on the client's version.
        of_connections = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
        expected: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *of_connections)
        try:
            yield
        except UserError:
            raise
        except expected as error:
            raise self._sentence(error) from error

    def _sentence(self, error: Exception) -> CheckpointError:
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

        # An upload's own error is the cause of the one that the client raises.
        answer: BaseException | None = error
        while answer is not None and not isinstance(answer, HfHubHTTPError):
            answer = answer.__cause__
        if answer is None:
            if isinstance(own := _deepest(error), CheckpointError):
                return own
            if isinstance(error, ValueError):
                return CheckpointError(f"{self.repository}: the hub refuses it ({first_line(error)})")
            if isinstance(error, OSError) and error.filename is not None:
                return CheckpointError(f"{error.filename}: cannot be read ({error.strerror})")
            return HubUnavailableError(f"{self.repository}: the hub does not answer ({first_line(own)})")
        status = int(answer.response.status_code)
        message = shortened(answer.server_message or first_line(answer))
        if isinstance(answer, GatedRepoError):
            return CheckpointError(
                f"{self.repository}: is gated, and this account has no access; ask for access at {self.url}"
            )
        if isinstance(answer, RepositoryNotFoundError) and status == HTTPStatus.NOT_FOUND:
            return NoRepositoryError(
                f"{self.repository}: the hub has no such repository, or hides it from this account"
            )
        if status == HTTPStatus.UNAUTHORIZED:
            return CheckpointError(f"{self.repository}: the hub does not accept the token ({message}); {_LOGIN}")
        if status == HTTPStatus.FORBIDDEN:
            return CheckpointError(
                f"{self.repository}: the token may not write there ({message}); use a token with the right to write to "
                "this repository, or push into another one"
            )
        if status in _TRY_AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return HubUnavailableError(f"{self.repository}: the hub fails ({status} {message})")
        return CheckpointError(f"{self.repository}: the hub refuses it ({status} {message})")


@contextmanager
def _silent_client() -> Iterator[None]:
    """Keep the client from drawing bars, and from writing lines about attempts of its own."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the client leaves it untyped
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(verbosity)


def _deepest(error: Exception) -> Exception:
    """The first cause of `error`."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error
