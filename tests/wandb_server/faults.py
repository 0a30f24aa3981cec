"""What a fault of this server may apply to."""

from dataclasses import dataclass

from tests.loopback.faults import Fault
from tests.loopback.faults import Request as LoopbackRequest

__all__ = ["Fault", "Request"]


@dataclass(eq=False)
class Request(LoopbackRequest):
    operation: str | None = None

    @property
    def subjects(self) -> set[str]:
        """A GraphQL operation, `PUT` (file uploads), `GET` (file downloads), `file_stream`, `graphql` and `*`."""
        subjects = {"*"}
        if self.path == "/graphql":
            subjects |= {"graphql", self.operation or "graphql"}
        elif self.path.endswith("/file_stream"):
            subjects.add("file_stream")
        elif self.path.startswith(("/storage/", "/artifactsV2/")):
            subjects.add(self.method)
        return subjects
