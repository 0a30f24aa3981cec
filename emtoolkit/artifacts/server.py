"""The W&B server that this process uses: its address, the login, and whether the server answers."""

import os
import time
from typing import Any

from emtoolkit.artifacts.client_variables import check_client_variables
from emtoolkit.errors import first_line

# The time limit for the server's first answer, in seconds.
_PROBE_SECONDS = 5
# The pauses before the server is asked again, in seconds.
_PROBE_PAUSES = (0.25, 0.5, 1.0)
# The statuses with which a gateway says that the server behind it does not answer.
_FROM_A_GATEWAY = (502, 503, 504)
# Time limits of W&B's client, in whole seconds (the client ignores fractions). emtoolkit retries what fails.
_LIMITS = {
    "init_timeout": 20,
    "x_graphql_retry_max": 2,
    "x_graphql_retry_wait_min_seconds": 1,
    "x_graphql_retry_wait_max_seconds": 5,
    "x_graphql_timeout_seconds": 20,
    "x_file_transfer_retry_max": 3,
    "x_file_transfer_retry_wait_min_seconds": 1,
    "x_file_transfer_retry_wait_max_seconds": 10,
    # For one file: a large adapter on a slow connection takes minutes.
    "x_file_transfer_timeout_seconds": 600,
    "x_file_stream_timeout_seconds": 30,
}
# Older environment variables for the same settings.
_OTHER_VARIABLES = {
    "x_graphql_timeout_seconds": "WANDB_HTTP_TIMEOUT",
    "x_file_transfer_timeout_seconds": "WANDB_FILE_PUSHER_TIMEOUT",
}


def address() -> str:
    """The server's URL: `$WANDB_BASE_URL`, or else the one in W&B's settings."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)


def why_not_logged_in() -> str | None:
    """The reason why there is no API key for the server, None if there is one; never asks at the terminal.

    Raises:
        ConfigError: W&B's client cannot read one of its environment variables.
    """
    check_client_variables()
    from wandb.sdk.lib import wbauth

    try:
        found = wbauth.authenticate_session(host=address(), source="emtoolkit", prompt=False, update_session=False)
    except Exception as error:  # noqa: BLE001 - also for settings and files of W&B that cannot be read
        return first_line(error)
    return None if found is not None else "nobody is logged in"


def why_unreachable() -> str | None:
    """The reason why the server does not answer HTTP requests, None if it does; the answer itself is not examined.

    One refused request is no reason: the server is asked again, all within the time limit for its first answer.
    """
    deadline = time.monotonic() + _PROBE_SECONDS
    why = _why_no_answer(_PROBE_SECONDS)
    for pause in _PROBE_PAUSES:
        if why is None or time.monotonic() + pause >= deadline:
            break
        time.sleep(pause)
        why = _why_no_answer(deadline - time.monotonic())
    return why


def _why_no_answer(seconds: float) -> str | None:
    # W&B's client would retry for 20 s and then report that its service process is busy.
    import requests

    try:
        answer = requests.get(f"{address()}/healthz", timeout=seconds, allow_redirects=False)
    except requests.ConnectionError:
        return f"no connection to {address()}"
    except requests.Timeout:
        return f"{address()} sent no answer in {_PROBE_SECONDS} s"
    except requests.RequestException as error:
        return f"{address()}: {error}"
    return f"{address()} answered HTTP {answer.status_code}" if answer.status_code in _FROM_A_GATEWAY else None


def client_limits() -> dict[str, Any]:
    """The settings that limit the client's waiting times, except those that the user set in the environment."""
    return {
        name: value
        for name, value in _LIMITS.items()
        if f"WANDB_{name.upper()}" not in os.environ and _OTHER_VARIABLES.get(name, "") not in os.environ
    }
