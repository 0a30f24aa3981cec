"""Run the server until Ctrl-C: `python -m tests.wandb_server --directory D [--port P]`."""

import argparse
import signal
from pathlib import Path

from tests.wandb_server import WandbServer


def main() -> None:
    parser = argparse.ArgumentParser(description="A W&B server on loopback, for tests.")
    parser.add_argument("--directory", type=Path, required=True, help="where uploaded files are kept")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    arguments = parser.parse_args()
    with WandbServer.start(arguments.directory, arguments.port) as server:
        for name, value in server.environment().items():
            print(f"export {name}={value}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
