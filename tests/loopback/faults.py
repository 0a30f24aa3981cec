"""Faults that the server injects, and the requests that they apply to."""

import threading
from dataclasses import dataclass

KINDS = ("hang", "drop", "cut", "lose_answer", "html", "half_answer", "garbage", "reset")


@dataclass(eq=False)
class Request:
    """A request that arrived; `status` is None until it is answered."""

    method: str
    path: str
    status: int | None = None

    @property
    def subjects(self) -> set[str]:
        """The names by which the `on` of a fault selects the request."""
        return {"*"}


@dataclass(eq=False)
class Fault:
    on: str
    """One of the `subjects` of the requests that it applies to."""
    kind: str | int
    """`hang`: no answer until the faults are cleared. A number: that HTTP status. `drop`: the connection closes
    unanswered. `cut`: only half of the body is read, or of a file sent, then it closes. `lose_answer`: the work is
    done, then it closes. `html`: a page with status 200, as a proxy sends it. `half_answer`: half of the answer, then
    it closes. `garbage`: bytes that are no JSON, with status 200. `reset`: the connection is reset.
    """
    times: int | None = None
    after: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.kind, int) and self.kind not in KINDS:
            raise ValueError(f"fault kind {self.kind!r}: expected an HTTP status or one of {', '.join(KINDS)}")


class Faults:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._cleared = threading.Event()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Remove all faults; requests that hang are answered if their client is still waiting."""
        with self._lock:
            self._faults.clear()
            self._cleared.set()
            self._cleared = threading.Event()

    def strike(self, request: Request) -> "Strike | None":
        """The fault that applies to this request, counted as used."""
        with self._lock:
            for fault in self._faults:
                if fault.on not in request.subjects:
                    continue
                if fault.after > 0:
                    fault.after -= 1
                elif fault.times is None or fault.times > 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return Strike(fault.kind, self._cleared)
        return None


@dataclass(frozen=True)
class Strike:
    kind: str | int
    cleared: threading.Event
