"""The W&B server that this process would use, whether anybody is logged in to it, and whether it answers at all."""

import os

from emtoolkit.errors import first_line

# How long the server may take to show that it is there, in seconds.
_PROBE_SECONDS = 5


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
