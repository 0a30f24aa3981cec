"""The front matter of a card that is on the hub already, which anybody may have written."""

from pathlib import Path

import pytest
import yaml

from emtoolkit.hub.card import with_front_matter_of
from emtoolkit.hub.push import push
from tests.hub_server import HubServer

OURS = b"---\nlibrary_name: peft\ntags:\n- emtoolkit\n---\n\n# lab/run\n"
UNREADABLE = {
    "an impossible date with a tag": b"date: !!timestamp 2024-13-45",
    "5,000 digits": b"version: " + b"9" * 5000,
    "lists in lists": b"tags: " + b"[" * 3000 + b"]" * 3000,
    "more values than any card has": b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"b: [" + b"*a," * 30_000 + b"]",
    "an object of Python": b"license: !!python/name:os.system",
    "an open list": b"tags: [",
    "a key twice": b"license: mit\nlicense: apache-2.0",
    "a list": b"- mit",
    "a control character": b"license: \x07",
}


@pytest.mark.parametrize("front", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_card_whose_front_matter_cannot_be_read_stays(front: bytes) -> None:
    assert with_front_matter_of(OURS, b"---\n" + front + b"\n---\n") is None


@pytest.mark.parametrize("name", ["5,000 digits", "lists in lists"])
def test_a_push_beside_such_a_card_works(hub_server: HubServer, runs: Path, name: str) -> None:
    theirs = b"---\n" + UNREADABLE[name] + b"\n---\n"
    repository = hub_server.store.create("lab/run")
    hub_server.store.publish(repository, "main", {"README.md": theirs})
    assert push(runs / "stack", "lab/run", "0").sent == (0,)
    commit = repository.find("main")
    assert commit is not None
    assert hub_server.store.content(commit.files["README.md"]) == theirs


@pytest.mark.parametrize("theirs", [b"---" + b"\n" * 1_000_000, b"---\n" * 200_000 + b"x", b" " * 5_000_000])
def test_a_card_without_an_end_is_given_up_at_once(theirs: bytes) -> None:
    assert with_front_matter_of(OURS, theirs) is None


def test_the_values_of_a_front_matter_stay_as_they_are_written() -> None:
    """`no` is the language of Norway, and an impossible date is a text."""
    merged = with_front_matter_of(OURS, b"---\nlanguage: no\ndate: 2024-13-45\nlicense: mit\ntags: [mine]\n---\n")
    assert merged is not None
    _, front, body = merged.decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "peft",
        "tags": ["mine"],
        "language": "no",
        "date": "2024-13-45",
        "license": "mit",
    }
    assert body == "\n# lab/run\n"
