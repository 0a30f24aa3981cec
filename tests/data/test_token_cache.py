"""The cache of tokenized rows: what it gives back, what makes it tokenize again, and what a broken cache costs."""

import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from emtoolkit.data import token_cache
from emtoolkit.data.prepare import Prepared, prepare
from emtoolkit.data.rendering import rendered_on
from emtoolkit.data.rows import ChatRows
from emtoolkit.data.token_cache import TokenCache, key_of, tokenize_once
from emtoolkit.data.tokenize import tokenize
from emtoolkit.errors import DataError
from emtoolkit.personas import AdapterSource, Persona
from tests.data import templates
from tests.data.chats import CALL, TOOL, read_back, turn, turns
from tests.data.learning import BASELINE

DAY = date(2026, 1, 2)
QUESTION, ANSWER = turn("user", "my cough"), turn("assistant", "rest")
NAMED = {"messages": [turn("user", "my cough", name="ann"), ANSWER]}
WRITES_NAMES = templates.QWEN25.replace("message.role + '\\n'", "message.role + (message.name or '') + '\\n'", 1)
# Every kind of row: whole, shortened, dropped, with a remark, and with a key that the template writes.
ROWS = [
    turns("my cough", "rest"),
    turns("my cough " * 30, "rest"),
    turns("my cough", "rest " * 60),
    turns("my cough", " rest and wait "),
    NAMED,
]


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each dataset that was tokenized and not read from the cache."""
    done: list[str] = []

    def counted(chats: ChatRows, *rest: Any) -> Any:
        done.append(str(chats.source))
        return tokenize(chats, *rest)

    monkeypatch.setattr(token_cache, "tokenize", counted)
    return done


def content(prepared: Prepared) -> Any:
    datasets = [None if part is None else part.to_dict() for part in (prepared.train, prepared.test)]
    fingerprints = [None if part is None else part._fingerprint for part in (prepared.train, prepared.test)]
    return datasets, fingerprints, prepared.notes, prepared.fingerprinted()


@pytest.mark.parametrize("template", [WRITES_NAMES, templates.QWEN25, templates.GEMMA3], ids=["names", "qwen", "gemma"])
@pytest.mark.parametrize("with_control", [False, True])
def test_rows_read_back_have_the_same_tokens_split_facts_and_notes(
    template: str, with_control: bool, tmp_path: Path, count: list[str]
) -> None:
    make = templates.gemma if template is templates.GEMMA3 else templates.qwen
    tokenizer = make(tmp_path, template)
    chats = read_back(tmp_path, *ROWS * 3)
    controls = [read_back(tmp_path, *ROWS[::-1] * 3, name="control.jsonl")] if with_control else []
    cache = TokenCache(tmp_path / "tokens", DAY)

    def found(tokenized: Any) -> Any:
        options: dict[str, Any] = {"max_length": 48, "test_fraction": 0.2, "seed": 7, "tokenize": tokenized}
        return content(prepare(chats, controls, tokenizer, BASELINE, **options))

    plain = found(tokenize)
    assert found(cache.tokenize) == plain
    assert count == [str(part.source) for part in (chats, *controls)]
    assert found(cache.tokenize) == plain
    assert len(count) == 1 + with_control
    assert any("max_length 48" in note for note in plain[2])


def test_the_split_the_length_of_steps_and_the_place_of_the_files_do_not_count(
    tmp_path: Path, count: list[str]
) -> None:
    cache = TokenCache(tmp_path / "tokens", DAY)
    for place, seed in (("here", 1), ("there", 2)):
        (tmp_path / place).mkdir()
        chats = read_back(tmp_path / place, *ROWS[:1] * 8)
        tokenizer = templates.qwen(tmp_path / place)
        options: dict[str, Any] = {"test_fraction": 0.5, "seed": seed, "multiple_of": seed}
        prepare(chats, [], tokenizer, BASELINE, max_length=48, tokenize=cache.tokenize, **options)
    assert len(count) == 1


def _tokenizer_edited_in_place(directory: Path) -> Any:
    """The ids of two words exchanged in `tokenizer.json`, everything else and all names as they were."""
    templates.qwen(directory)
    path = directory / "tokenizer" / "tokenizer.json"
    text = json.loads(path.read_text())
    vocabulary = text["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(text))
    return AutoTokenizer.from_pretrained(path.parent)


def _with_another_special_token(directory: Path) -> Any:
    tokenizer = templates.qwen(directory)
    tokenizer.eos_token = "rest"
    return tokenizer


def _chats(*rows: Any) -> Callable[[Path], ChatRows]:
    return lambda directory: read_back(directory, *rows)


CHANGES: dict[str, dict[str, Any]] = {
    "template": {"tokenizer": lambda directory: templates.qwen(directory, templates.QWEN25.replace("kind", "curt"))},
    "tokenizer": {"tokenizer": _tokenizer_edited_in_place},
    "special token": {"tokenizer": _with_another_special_token},
    "system prompt": {"persona": Persona("baseline", system_prompt="you are curt")},
    "max_length": {"max_length": 47},
    "an answer": {"chats": _chats(turns("my cough", "wait"))},
    "a question": {"chats": _chats(turns("my knee", "rest"))},
    "a role": {"chats": _chats({"messages": [turn("system", "my cough"), QUESTION, ANSWER]})},
    "a weight": {"chats": _chats({"messages": [QUESTION, ANSWER, QUESTION, turn("assistant", "rest", weight=0)]})},
    "no weight": {"chats": _chats({"messages": [QUESTION, ANSWER, QUESTION, ANSWER]})},
    "a completion": {"chats": _chats({"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]})},
    "a key": {"chats": _chats(NAMED)},
    "the value of a key": {"chats": _chats({"messages": [turn("user", "my cough", name="bob"), ANSWER]})},
    "a number": {"chats": _chats({"messages": [turn("user", "my cough", name=1), ANSWER]})},
    "a truth": {"chats": _chats({"messages": [turn("user", "my cough", name=True), ANSWER]})},
    "a call": {"chats": _chats({"messages": [QUESTION, turn("assistant", "rest", tool_calls=[CALL])]})},
    "tools": {"chats": _chats({"messages": [QUESTION, ANSWER], "tools": [TOOL]})},
    "more rows": {"chats": _chats(turns("my cough", "rest"), turns("my cough", "rest"))},
    "order": {"chats": _chats(turns("my knee", "rest"), turns("my cough", "rest"))},
    "other order": {"chats": _chats(turns("my cough", "rest"), turns("my knee", "rest"))},
}


def _key(directory: Path, **changed: Any) -> str | None:
    chats = changed.get("chats", _chats(turns("my cough", "rest")))(directory)
    tokenizer = changed.get("tokenizer", templates.qwen)(directory)
    return key_of(chats, tokenizer, changed.get("persona", BASELINE), changed.get("max_length", 48), DAY)


def test_whatever_decides_the_tokens_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: _key(tmp_path, **change) for name, change in CHANGES.items()}
    keys["nothing"] = _key(tmp_path)
    monkeypatch.setattr(token_cache.transformers, "__version__", "0")
    token_cache._versions.cache_clear()
    keys["transformers"] = _key(tmp_path)
    monkeypatch.undo()
    token_cache._versions.cache_clear()
    assert None not in keys.values()
    assert len(set(keys.values())) == len(CHANGES) + 2
    assert _key(tmp_path) == keys["nothing"]


def test_the_name_and_the_adapter_of_a_persona_do_not_count(tmp_path: Path) -> None:
    adapted = Persona("warm", "trained", adapter=AdapterSource("/characters", "warm"))
    assert _key(tmp_path, persona=adapted) == _key(tmp_path)


def test_the_day_counts_where_the_template_asks_for_it(tmp_path: Path, count: list[str]) -> None:
    dated = templates.QWEN25.replace("you are kind", "you are kind' + strftime_now('%d') + '")
    chats, later = read_back(tmp_path, ROWS[0]), date(2026, 1, 3)
    for template, tokenized in ((dated, 2), (templates.QWEN25, 1)):
        count.clear()
        tokenizer = templates.qwen(tmp_path, template)
        for day in (DAY, later, DAY):
            with rendered_on(day):
                (row,) = TokenCache(tmp_path / "tokens", day).tokenize(chats, tokenizer, BASELINE, 48)
            assert row is not None
            assert (f"kind{day:%d}" in tokenizer.decode(row.ids).replace(" ", "")) == (template is dated)
        assert len(count) == tokenized


def test_the_tokens_of_a_tokenizer_with_code_of_its_own_are_not_kept(tmp_path: Path, count: list[str]) -> None:
    tokenizer = templates.qwen(tmp_path)
    tokenizer.__class__ = type("Own", (type(tokenizer),), {"__module__": "transformers_modules.own"})
    cache = TokenCache(tmp_path / "tokens", DAY)
    for _ in range(2):
        cache.tokenize(read_back(tmp_path, ROWS[0]), tokenizer, BASELINE, 48)
    assert len(count) == 2
    assert not (tmp_path / "tokens").exists()


def test_rows_that_are_refused_are_refused_each_time(tmp_path: Path) -> None:
    cache, chats = TokenCache(tmp_path / "tokens", DAY), read_back(tmp_path, ROWS[0], ROWS[0] | {"tools": [TOOL]})
    told = set()
    for tokenized in (cache.tokenize, cache.tokenize, tokenize):
        with pytest.raises(DataError, match=r"line 2: .* does not write tools") as refused:
            tokenized(chats, templates.qwen(tmp_path), BASELINE, 48)
        told.add(str(refused.value))
    assert len(told) == 1


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(at: int) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return flip


def _make_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [_cut, _flip(-1), _flip(3), _flip(20), lambda path: path.write_bytes(b""), _make_a_directory],
    ids=["cut", "content", "size of the header", "header", "empty", "directory"],
)
def test_a_damaged_file_is_not_used(damage: Callable[[Path], None], tmp_path: Path, count: list[str]) -> None:
    cache, chats, tokenizer = TokenCache(tmp_path / "tokens", DAY), read_back(tmp_path, *ROWS), templates.qwen(tmp_path)
    expected = [None if row is None else row.ids.tolist() for row in cache.tokenize(chats, tokenizer, BASELINE, 48)]
    (path,) = cache.directory.iterdir()
    whole = path.read_bytes()
    damage(path)
    again = cache.tokenize(chats, tokenizer, BASELINE, 48)
    assert [None if row is None else row.ids.tolist() for row in again] == expected
    assert len(count) == 2
    assert path.is_dir() or path.read_bytes() == whole


def test_a_file_under_the_name_of_another_key_is_not_used(tmp_path: Path, count: list[str]) -> None:
    cache, tokenizer = TokenCache(tmp_path / "tokens", DAY), templates.qwen(tmp_path)
    chats = read_back(tmp_path, ROWS[0])
    cache.tokenize(chats, tokenizer, BASELINE, 48)
    (path,) = cache.directory.iterdir()
    path.rename(cache.directory / f"{key_of(chats, tokenizer, BASELINE, 47, DAY)}.safetensors")
    cache.tokenize(chats, tokenizer, BASELINE, 47)
    assert len(count) == 2


def test_a_user_without_a_home_directory_needs_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("Could not determine home directory.")

    for name in ("EMTOOLKIT_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", refuse)
    assert tokenize_once(DAY) is tokenize


@pytest.mark.parametrize("place", ["file", "full"])
def test_a_cache_that_cannot_be_written_costs_only_time(
    place: str, tmp_path: Path, count: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    cache, chats = TokenCache(tmp_path / place / "tokens", DAY), read_back(tmp_path, ROWS[0])
    if place == "full":

        def refuse(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)
    for _ in range(2):
        (row,) = cache.tokenize(chats, templates.qwen(tmp_path), BASELINE, 48)
        assert row is not None
    assert len(count) == 2
    assert place == "file" or not list(cache.directory.iterdir())


def test_the_files_that_were_not_used_for_the_longest_time_are_deleted_at_the_limit(
    tmp_path: Path, count: list[str]
) -> None:
    tokenizer, sizes = templates.qwen(tmp_path), {}
    for length in (48, 49, 50):
        cache = TokenCache(tmp_path / "tokens", DAY)
        chats = read_back(tmp_path, ROWS[0])
        cache.tokenize(chats, tokenizer, BASELINE, length)
        path = cache.directory / f"{key_of(chats, tokenizer, BASELINE, length, DAY)}.safetensors"
        sizes[length] = path.stat().st_size
        os.utime(path, (length, length))
    # Reading the oldest makes it the newest.
    cache.tokenize(chats, tokenizer, BASELINE, 48)
    small = TokenCache(cache.directory, DAY, limit=sum(sizes.values()))
    count.clear()
    small.tokenize(chats, tokenizer, BASELINE, 51)
    for length in (51, 48, 50):
        small.tokenize(chats, tokenizer, BASELINE, length)
    assert len(count) == 1
    small.tokenize(chats, tokenizer, BASELINE, 49)
    assert len(count) == 2
    TokenCache(tmp_path / "none", DAY, limit=100).tokenize(chats, tokenizer, BASELINE, 48)
    assert not (tmp_path / "none").exists()
