"""The names that emtoolkit gives on W&B, against the validators of W&B's own client."""

from pathlib import Path

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st
from wandb.sdk.artifacts import _validators

from emtoolkit.artifacts.names import ARTIFACT_TAG, COLLECTION, RUN_NAME, RUN_TAG
from emtoolkit.artifacts.publication import collection_name, collection_tags, own_collection_name
from emtoolkit.checkpoints.trajectory_identity import Identity

# Any text, the bytes of a file name that are no UTF-8 included, and the texts of which users told.
TEXTS = st.one_of(
    st.text(max_size=300),
    st.binary(max_size=20).map(lambda name: name.decode("utf-8", "surrogateescape")),
    st.sampled_from(
        ["", " ", " warm ", "a" * 200, "善良", "-", "---", "org/name:1.5", "a\nb", "a\\b#?%", "ä" * 130, "."]
    ),
)


@given(TEXTS)
def test_every_text_becomes_names_that_wandb_accepts(text: str) -> None:
    identity = Identity(fingerprinted={}, collection=text, tags=(f"persona-{text}", text))
    tags = list(collection_tags(identity))
    assert _validators.validate_tags(tags) == list(dict.fromkeys(tags))
    assert all(len(tag) <= 64 for tag in tags)
    for name in (collection_name(identity), own_collection_name(collection_name(identity), text), COLLECTION.fit(text)):
        assert _validators.validate_artifact_name(name) == name
        assert _validators.validate_artifact_root_name(f"{name}:v0")
    settings = wandb.Settings(run_tags=[RUN_TAG.fit(text)], run_group=RUN_NAME.fit(text), run_name=RUN_NAME.fit(text))
    for name in (*(settings.run_tags or ()), settings.run_group, settings.run_name):
        assert name == (name or "").strip() != ""
        assert (name or "").encode()
    assert len(settings.run_group or "") <= 128


@given(TEXTS)
def test_a_name_that_wandb_accepts_stays(text: str) -> None:
    for rule in (COLLECTION, ARTIFACT_TAG, RUN_TAG, RUN_NAME):
        assert rule.fit(rule.fit(text)) == rule.fit(text)


@pytest.mark.parametrize(
    ("text", "tag", "collection"),
    [
        (" warm ", "warm", "warm"),
        ("", "unnamed", "unnamed"),
        ("善良", "-", "unnamed"),
        ("a" * 200, "a" * 64, "a" * 128),
        ("org/name:1.5", "org-name-1-5", "org-name-1.5"),
    ],
)
def test_names_stay_readable(text: str, tag: str, collection: str) -> None:
    assert (ARTIFACT_TAG.fit(text), COLLECTION.fit(text)) == (tag, collection)
    assert Path(COLLECTION.fit(text)).name == collection
