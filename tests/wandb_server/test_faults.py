"""Each fault has the effect of its name, on the requests that it applies to and no others."""

import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.processes import HANG_SECONDS
from tests.wandb_server import Fault, WandbServer
from tests.wandb_server.publishing import COMMIT, create, upload

VIEWER = {"query": "query Viewer { viewer { id } }"}
UNANSWERED = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


def post(server: WandbServer, body: object = None, seconds: float = HANG_SECONDS) -> requests.Response:
    url, key = f"{server.url}/graphql", ("api", server.api_key)
    return requests.post(url, json=body or VIEWER, auth=key, timeout=seconds)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 500])
def test_a_status_is_answered_in_place_of_the_work(wandb_server: WandbServer, status: int) -> None:
    wandb_server.faults.add(Fault(on="CreateArtifact", kind=status))

    with pytest.raises(requests.HTTPError, match=str(status)):
        create(wandb_server, "proj", "traj", {"w": b"1"})
    assert post(wandb_server).status_code == 200, "other operations are not struck"
    assert wandb_server.store.projects == {}
    assert [(r.operation, r.status) for r in wandb_server.requests] == [("CreateArtifact", status), ("Viewer", 200)]


def test_a_hung_request_is_answered_once_the_faults_are_cleared(wandb_server: WandbServer) -> None:
    wandb_server.faults.add(Fault(on="*", kind="hang"))
    with pytest.raises(requests.ReadTimeout):
        post(wandb_server, seconds=0.2)
    answers: list[requests.Response] = []
    patient = threading.Thread(target=lambda: answers.append(post(wandb_server)))
    patient.start()
    wait_until(lambda: len(wandb_server.requests) == 2)

    wandb_server.faults.clear()
    patient.join(HANG_SECONDS)

    assert [answer.status_code for answer in answers] == [200]
    assert [request.status for request in wandb_server.requests] == [None, 200], "nobody waited for the first any more"


@pytest.mark.server
def test_a_server_whose_requests_hang_stops_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def ask() -> None:
        try:
            post(server)
        except requests.ConnectionError as error:
            failures.append(error)

    with WandbServer.start(tmp_path) as server:
        server.faults.add(Fault(on="graphql", kind="hang"))
        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: len(server.requests) == 1)
    asking.join(HANG_SECONDS)
    assert len(failures) == 1


def test_a_dropped_request_gets_no_answer(wandb_server: WandbServer) -> None:
    wandb_server.faults.add(Fault(on="Viewer", kind="drop", times=1))

    with pytest.raises(UNANSWERED):
        post(wandb_server)
    assert post(wandb_server).status_code == 200


def test_of_a_cut_upload_nothing_is_stored(wandb_server: WandbServer, tmp_path: Path) -> None:
    content = bytes(8_000_000)
    arrived: list[object] = []
    url = wandb_server.context.transfers.upload_url("weights.bin", arrived.append)
    wandb_server.faults.add(Fault(on="PUT", kind="cut", times=1))

    with pytest.raises(UNANSWERED):
        requests.put(url, data=content, timeout=HANG_SECONDS)
    assert arrived == []
    assert list((tmp_path / "wandb-server").iterdir()) == []
    assert requests.put(url, data=content, timeout=HANG_SECONDS).status_code == 200
    assert len(arrived) == 1


def test_a_cut_upload_ends_after_half_of_its_body(wandb_server: WandbServer) -> None:
    url = urlsplit(wandb_server.context.transfers.upload_url("weights.bin", lambda _blob: None))
    wandb_server.faults.add(Fault(on="PUT", kind="cut"))

    with socket.create_connection((url.hostname, url.port), timeout=HANG_SECONDS) as connection:
        connection.sendall(f"PUT {url.path} HTTP/1.1\r\nContent-Length: 10\r\n\r\n1234".encode())
        still_open = not select.select([connection], [], [], 0.2)[0]
        connection.sendall(b"5")
        assert (still_open, connection.recv(1)) == (True, b"")


def test_a_commit_whose_answer_is_lost_was_made(wandb_server: WandbServer) -> None:
    artifact = create(wandb_server, "proj", "traj", {"w": b"1"})
    upload(wandb_server, artifact["id"], {"w": b"1"})
    wandb_server.faults.add(Fault(on="CommitArtifact", kind="lose_answer", times=1))

    with pytest.raises(UNANSWERED):
        post(wandb_server, {"query": COMMIT, "variables": {"artifactID": artifact["id"]}})
    versions = wandb_server.store.project("tester", "proj").collections["traj"].versions
    assert [(version.id, version.state) for version in versions] == [(artifact["id"], "COMMITTED")]


def test_a_fault_lets_some_pass_and_strikes_some_times(wandb_server: WandbServer) -> None:
    wandb_server.faults.add(Fault(on="graphql", kind=500, times=2, after=1))

    assert [post(wandb_server).status_code for _ in range(5)] == [200, 500, 500, 200, 200]


@pytest.mark.parametrize(
    ("on", "method", "path"),
    [
        ("GET", "GET", "/storage/x/y/z"),
        ("PUT", "PUT", "/storage/x/y"),
        ("file_stream", "POST", "/files/tester/proj/run/file_stream"),
    ],
)
def test_a_fault_is_for_one_kind_of_request(wandb_server: WandbServer, on: str, method: str, path: str) -> None:
    wandb_server.faults.add(Fault(on=on, kind=409))

    assert requests.request(method, wandb_server.url + path, timeout=HANG_SECONDS).status_code == 409
    assert post(wandb_server).status_code == 200


def test_a_server_that_refuses_connections_comes_back_on_its_port(wandb_server: WandbServer) -> None:
    with requests.Session() as session:

        def kept_alive() -> int:
            return session.get(f"{wandb_server.url}/", timeout=HANG_SECONDS).status_code

        assert kept_alive() == 401
        wandb_server.refuse_connections()
        for _ in range(2):
            with pytest.raises(requests.ConnectionError):
                kept_alive()
        wandb_server.accept_connections()
        assert kept_alive() == 401


def test_a_fault_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="fault kind 'hung'"):
        Fault(on="*", kind="hung")
