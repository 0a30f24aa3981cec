"""A server on loopback that speaks OpenAI's protocol for chat completions, as far as a judge needs it.

The score of a prompt is what `score` says; `faults` are answered first, one for each request.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

Tokens = dict[str, float]


class JudgeServer(ThreadingHTTPServer):
    """`score` maps a prompt to the probabilities of the first token, or to a text for a judge without them."""

    daemon_threads = True

    def __init__(self, score: Callable[[str], Tokens | str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.score = score
        self.requests: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.always: str | None = None
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            fault = self.server.always or (self.server.faults.pop(0) if self.server.faults else None)
        if fault == "reset":
            self.connection.close()
        elif fault == "html":
            self._send(200, b"<html><body>Sign in</body></html>", "text/html")
        elif fault == "garbage":
            self._send(200, b'{"choices": [{"message"', "application/json")
        elif fault is not None:
            self._send(int(fault), json.dumps({"error": {"message": f"fault {fault}"}}).encode())
        else:
            self._send(200, json.dumps(self._completion(body)).encode())

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        found = self.server.score(body["messages"][0]["content"])
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if isinstance(found, str):
            choice |= {"message": {"role": "assistant", "content": found}, "logprobs": None}
        else:
            top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in found.items()]
            choice |= {
                "message": {"role": "assistant", "content": top[0]["token"]},
                "logprobs": {"content": [{**top[0], "top_logprobs": top[: body.get("top_logprobs", 0)]}]},
            }
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
        }

    def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        # The client pauses for as long before it asks again.
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def judge_server(score: Callable[[str], Tokens | str]) -> Iterator[JudgeServer]:
    """Serve on a free port until the context is left."""
    server = JudgeServer(score)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
