"""Inputs that are almost right: seeds with pieces cut, repeated and replaced, and trees of the right keys."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# Each has broken a parser of some program.
_PIECES = [
    *("[" * 3000, "{" * 3000, '{"a":' * 1000, "- " * 2000, "9" * 5000, "1e999", "-1e999", "NaN", "Infinity", ".nan"),
    *("010", "1_000", "1:30", "on", "No", "~", "null", "2024-13-45", "0x" + "f" * 5000, "1e-999", "-0", "true", "''"),
    *("&a [*a]", "*a", "<<: *a", "<<: [1]", "? [x]\n: 1\n", "!!int x", "!!python/name:os", "!!set {a}", "%YAML 1.1\n"),
    *("\0", "\x07", "\ufeff", "\u2028", "\x85", "\\ud800", '"\\ud800"', "\t", "\r", "\n", "\n\n", '"', "'", "|", "#"),
    *("every:", "0-", "-:", "geom:", "log2:", "/", "%", ",", "1-2:0", "every:0%", "9" * 400, "٣", "²", "x" * 5000),
    *("../../x", "/etc/passwd", "a\\b", "C:x", "${envvar:HOME}", "$(id)", "{persona}", "{", "}", "{}", "[]", "[[]]"),
]
_LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10),
    st.sampled_from([2**31, 2**63, 10**60, -(10**300), 1e308, 1e-320, 0.5, float("nan"), float("inf"), -1.0, 1.0]),
    st.sampled_from([piece for piece in _PIECES if len(piece) < 500]),
    st.text(max_size=8),
)


def inputs(seeds: Sequence[bytes], keys: Sequence[str], *, lines: bool = False) -> st.SearchStrategy[bytes]:
    """Bytes for a parser that takes `seeds` and reads `keys`; with `lines`, JSON stands in lines."""
    names = st.one_of(st.sampled_from(list(keys)), st.text(max_size=4))
    trees = st.recursive(
        _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5), max_leaves=12
    )
    documents = st.dictionaries(names, trees, max_size=7) | trees
    as_json = documents.map(json.dumps)
    if lines:
        as_json = st.lists(as_json, max_size=4).map("\n".join)
    return st.one_of(
        st.builds(_mutated, st.sampled_from(list(seeds)), st.lists(_EDITS, min_size=1, max_size=4)),
        as_json.map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(st.sampled_from(_PIECES), max_size=6).map(lambda pieces: " ".join(pieces).encode("utf-8")),
        st.binary(max_size=60),
    )


_EDITS = st.tuples(
    st.sampled_from(["insert", "replace", "cut", "repeat", "flip", "utf-16"]),
    st.floats(0, 1),
    st.integers(0, 30),
    st.sampled_from(_PIECES),
)


def _mutated(seed: bytes, edits: Sequence[tuple[str, float, int, str]]) -> bytes:
    content = seed
    for edit, place, length, piece in edits:
        at = int(place * len(content))
        end = at + length
        match edit:
            case "insert":
                content = content[:at] + piece.encode() + content[at:]
            case "replace":
                content = content[:at] + piece.encode() + content[end:]
            case "cut":
                content = content[:at] + content[end:]
            case "repeat":
                content = content[:end] + content[at:]
            case "flip":
                byte = content[at] if at < len(content) else 0
                content = content[:at] + bytes([(byte + 1 + length) % 256]) + content[at + 1 :]
            case _:
                content = content.decode("utf-8", "replace").encode("utf-16") if len(content) < 10_000 else content
    return content[:200_000]
