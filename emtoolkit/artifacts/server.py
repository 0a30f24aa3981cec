"""The W&B server that this process would use, whether anybody is logged in to it, and whether it answers at all."""

import os
from typing import Any

from emtoolkit.errors import first_line

# How long the server may take to show that it is there, in seconds.
_PROBE_SECONDS = 5
# The client's own bounds, in whole seconds: fractions count as unset. An attempt that fails is made again by us.
_BOUNDS = {
    "init_timeout": 20,
    "x_graphql_retry_max": 2,
    "x_graphql_retry_wait_min_seconds": 1,
    "x_graphql_retry_wait_max_seconds": 5,
    "x_graphql_timeout_seconds": 20,
    "x_file_transfer_retry_max": 3,
    "x_file_transfer_retry_wait_min_seconds": 1,
    "x_file_transfer_retry_wait_max_seconds": 10,
    # One file: large adapters over slow lines must have their time.
    "x_file_transfer_timeout_seconds": 600,
    "x_file_stream_timeout_seconds": 30,
}
# Names of variables that mean one of these and are not spelt like it.
_OTHER_NAMES = {
    "x_graphql_timeout_seconds": "WANDB_HTTP_TIMEOUT",
    "x_file_transfer_timeout_seconds": "WANDB_FILE_PUSHER_TIMEOUT",
}


def address() -> str:
    """`$WANDB_BASE_URL`, else what W&B's own settings say."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)


def why_not_logged_in() -> str | None:
    """Why there is no key for that server, None if there is one; W&B's client would ask for it at the terminal."""
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        found = wbauth.authenticate_session(host=address(), source="emtoolkit", prompt=False, update_session=False)
    except wandb.errors.AuthenticationError as error:
        return first_line(error)
    return None if found is not None else "nobody is logged in"


def why_unreachable() -> str | None:
    """Why nothing at that address answers HTTP, None if something does; whatever it says is wandb's to read.

    W&B's own client tries for 20 s, and then says that a process of its own is busy.
    """
    import requests

    try:
        requests.get(f"{address()}/healthz", timeout=_PROBE_SECONDS, allow_redirects=False)
    except requests.ConnectionError:
        return f"no connection to {address()}"
    except requests.Timeout:
        return f"{address()} said nothing for {_PROBE_SECONDS} s"
    except requests.RequestException as error:
        return f"{address()}: {error}"
    return None


def client_bounds() -> dict[str, Any]:
    """Settings of the client that bound its waits, without those that the user has set in the environment."""
    return {
        name: value
        for name, value in _BOUNDS.items()
        if f"WANDB_{name.upper()}" not in os.environ and _OTHER_NAMES.get(name, "") not in os.environ
    }
