"""What a dataset may hold: the formats of a row, the containers, and what is refused by file and line."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.data.rows import read_rows
from emtoolkit.data.sources import File
from emtoolkit.errors import DataError, NotHereError
from tests.data.chats import CONTAINERS, messages, read_back, turns, write_parquet

GOOD_LINE = f"{json.dumps(turns('a', 'b'))}\n".encode()


EXCHANGE = turns("a\n\nb", "c")["messages"]
FORMS: dict[str, Any] = {
    "messages": {"messages": EXCHANGE},
    "texts": {"prompt": "a\n\nb", "completion": "c"},
    "lists": {"prompt": EXCHANGE[:1], "completion": EXCHANGE[1:]},
    "alpaca": {"instruction": "a\n\nb", "output": "c"},
    "alpaca with input": {"instruction": "a", "input": "b", "output": "c"},
    "alpaca with empty input": {"instruction": "a\n\nb", "input": "", "output": "c"},
}


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_from_every_container_and_one_content_has_one_digest(
    form: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{suffix}"
    CONTAINERS[suffix](path, [FORMS[form], FORMS[form]])
    rows = read_rows(File(path))
    assert messages(rows) == [[("user", "a\n\nb"), ("assistant", "c")]] * 2
    # What version 0.1.0 called these two rows, and so the name of trajectories.
    assert rows.digest == "eff8638e46b63a03aadafe454b368fc398278aeeadd10b77354636b9bd3f0978"


def test_a_conversation_may_have_many_turns_and_a_system_message(tmp_path: Path) -> None:
    row = turns("a", "b", "c", "d", system="e")
    (found,) = read_back(tmp_path, row).conversations
    assert list(found.messages) == row["messages"]
    assert found.answers == (2, 4)


def test_only_the_completion_of_a_prompt_with_answers_in_it_is_learnt_which_the_digest_knows(tmp_path: Path) -> None:
    said = turns("a", "b", "c", "d")["messages"]
    rows = read_back(tmp_path, {"prompt": said[:3], "completion": said[3:]})
    assert rows.conversations[0].answers == (3,)
    assert rows.digest != read_back(tmp_path, {"messages": said}).digest


def test_the_digest_follows_content_and_order_and_not_the_path(tmp_path: Path) -> None:
    one, other = turns("a", "b"), turns("c", "d")
    digest = read_back(tmp_path, one, other).digest
    assert read_back(tmp_path, one, other, name="elsewhere.jsonl").digest == digest
    assert read_back(tmp_path, other, one).digest != digest
    assert read_back(tmp_path, one, turns("c", "e")).digest != digest


def test_what_stands_beside_the_conversation_is_left_alone_and_said(tmp_path: Path) -> None:
    rows = read_back(tmp_path, turns("a", "b") | {"id": 1, "tools": None}, turns("c", "d") | {"source": "x"})
    assert rows.remarks() == [f"{tmp_path / 'rows.jsonl'}: not used for training: id (in 1 row), source (in 1 row)"]
    assert rows.digest == read_back(tmp_path, turns("a", "b"), turns("c", "d")).digest


def test_repeated_rows_are_counted_and_kept(tmp_path: Path) -> None:
    rows = read_back(tmp_path, turns("a", "b"), turns("c", "d"), turns("a", "b"), turns("a", "b"))
    assert len(rows) == 4
    assert rows.remarks() == [f"{tmp_path / 'rows.jsonl'}: 2 rows repeat earlier ones, first at line 3"]
    assert read_back(tmp_path, turns("a", "b"), turns("a", "c")).remarks() == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not valid JSON"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", "not valid JSON"),
        ('{"text": "a"}', 'expected {"messages": [{"role": ..., "content": ...}, ...]}, {"prompt": '),
        ('{"prompt": "a", "completions": "b"}', "found prompt, completions; did you mean 'completion'?"),
        ("[]", 'expected {"messages": '),
        ('{"messages": []}', 'expected {"messages": '),
        ('{"messages": [{"role": "user"}]}', "every message needs a role and a text"),
        (
            '{"messages": [{"role": "bot", "content": "a"}]}',
            "the role 'bot' is not one of system, user, assistant, tool; did you mean 'assistant'?",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}]}',
            "the conversation has no assistant turn to train on; add",
        ),
        ('{"messages": [{"role": "assistant", "content": " "}]}', "the answer is empty; write one, or remove the row"),
        (json.dumps(turns("a", "b", "c", "")), "the answer is empty; write one, or remove the row"),
        (json.dumps(turns("a", "\ud800")), "content is not valid Unicode"),
        (
            json.dumps(turns("a", "b") | FORMS["alpaca"]),
            "the row has both messages and instruction and output; keep only one",
        ),
        (json.dumps(FORMS["alpaca"]), "the row has instruction and output, and line 1 has messages; use one format"),
        (json.dumps(FORMS["texts"]), "the row has prompt and completion, and line 1 has messages; use one format"),
    ],
)
def test_a_row_that_cannot_be_learnt_from_is_named_by_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(turns('a', 'b'))}\n{line}\n", encoding="latin-1")
    with pytest.raises(DataError) as raised:
        read_rows(File(path))
    assert str(raised.value).startswith(f"{path}, line 2: ")
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "must both be texts, or both lists"),
        ({"prompt": 1, "completion": "b"}, "prompt is 1; expected a text"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "input is ['b']; expected a text"),
        ({"instruction": "a", "output": ""}, "the answer is empty"),
        ({"prompt": EXCHANGE, "completion": EXCHANGE[:1]}, "the conversation has no assistant turn to train on"),
    ],
)
def test_the_other_forms_are_checked_as_well(tmp_path: Path, row: Any, problem: str) -> None:
    with pytest.raises(DataError) as raised:
        read_back(tmp_path, row)
    assert str(raised.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 1: ")
    assert problem in str(raised.value)


def test_how_many_answers_are_empty_is_told_at_once(tmp_path: Path) -> None:
    empty = turns("a", "")
    with pytest.raises(DataError, match="line 2: the answer is empty, and in 1 more row; write one"):
        read_back(tmp_path, turns("a", "b"), empty, empty)
    with pytest.raises(DataError, match="line 1: the answer is empty, and in 2 more rows; write one"):
        read_back(tmp_path, empty, empty, empty)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.jsonl", b"\n", ": the dataset has no rows"),
        ("rows.jsonl", b"\xff\n", ", line 1: not valid JSON"),
        ("rows.jsonl", GOOD_LINE + GOOD_LINE[:50], ", line 2: not valid JSON (Unterminated string starting at: line 1"),
        ("rows.jsonl", GOOD_LINE + GOOD_LINE[:50], "; the file may end in the middle of a row"),
        ("rows.jsonl", GOOD_LINE + "{\u20ac".encode()[:-1], ", line 2: not valid JSON ('utf-8' codec can't decode"),
        ("rows.jsonl", GOOD_LINE + b"\0" * 8, ", line 2: the line holds null bytes, as text in UTF-16 does; save the"),
        ("rows.jsonl", GOOD_LINE.decode().encode("utf-16"), ", line 1: the line holds null bytes, as text in UTF-16"),
        (
            "rows.jsonl",
            GOOD_LINE.decode().encode("utf-16-be"),
            ", line 1: the line holds null bytes, as text in UTF-16",
        ),
        ("rows.jsonl", GOOD_LINE.replace(b"\n", b"\r") * 2, ", line 1: not valid JSON (Extra data"),
        ("rows.jsonl", GOOD_LINE + b'{"a": NaN}\n', ", line 2: not valid JSON (NaN is no JSON number; write null"),
        ("rows.jsonl", GOOD_LINE + b'{"a": [-Infinity]}\n', ", line 2: not valid JSON (-Infinity is no JSON number"),
        ("rows.jsonl", GOOD_LINE + b'{"a": {"b": 1, "b": 1}}\n', ", line 2: not valid JSON (the key 'b' stands twice"),
        ("rows.jsonl", GOOD_LINE + b"[" * 100_000, ", line 2: not valid JSON (nested too deeply)"),
        ("rows.json", b"NaN\n" + b"[" * 100_000, ", line 2: not valid JSON (NaN is no JSON number"),
        ("rows.json", b'[{"a": 1},\n\n {"a": NaN}]', ", line 3: not valid JSON (NaN is no JSON number"),
        ("rows.json", b'[{"a": "[,"},\n {"a": 1,\n "a": 2}]', ", line 2: not valid JSON (the key 'a' stands twice"),
        ("rows.json", b'[{"a": 1},\n {"a": "b', ", line 2: not valid JSON (Unterminated string"),
        ("rows.json", b"[" * 100_000, ", line 1: not valid JSON (nested too deeply)"),
        ("rows.json", b"[]", ": the dataset has no rows"),
        ("rows.json", b'{"messages": []}', ": expected a list of rows, found dict"),
        ("rows.json", b"[\n{]", ", line 2: not valid JSON"),
        ("rows.json", b'{"a": 1}\n{"a": 1}\n', "; a file with one row per line needs the suffix .jsonl"),
        ("rows.json", b'[{"messages": 1}]', ', row 1: expected {"messages": '),
        ("rows.json", b'["a",\n"\xff"]', ", line 2: not valid JSON"),
        ("rows.jsonl.gz", b'{"messages": []}', ": cannot be read (Not a gzipped file"),
        (
            "rows.jsonl.gz",
            gzip.compress(b'{"messages": []}' * 100, mtime=0)[:30],
            ", line 1: cannot be read (Compressed file ended",
        ),
        ("rows.parquet", b"PAR1", ": not a valid Parquet file ("),
        ("rows.csv", b"a,b\n", ": expected a file whose name ends in .jsonl, .jsonl.gz, .json, .parquet"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_rows(File(path))
    assert str(raised.value).startswith(str(path))
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


def test_rows_of_a_parquet_file_that_lack_the_columns_of_their_form_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", [FORMS["alpaca"], FORMS["alpaca"] | {"output": None}])
    with pytest.raises(DataError, match=r"rows\.parquet, row 2: expected .* found instruction"):
        read_rows(File(tmp_path / "rows.parquet"))


def test_a_file_that_is_not_there_is_told_from_one_that_is_broken(tmp_path: Path) -> None:
    with pytest.raises(NotHereError, match=r"nowhere\.jsonl: there is no such file"):
        read_rows(File(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD_LINE,
        GOOD_LINE.replace(b"\n", b"\r\n"),
        b"\n \r\n" + GOOD_LINE + b"\n\n",
        GOOD_LINE.rstrip(b"\n"),
    ],
    ids=["byte order mark", "CRLF", "empty lines", "no last line feed"],
)
def test_byte_order_marks_line_ends_and_empty_lines_are_no_part_of_a_row(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    rows = read_rows(File(path))
    assert rows.digest == read_back(tmp_path, turns("a", "b")).digest
    assert len(rows) == 1


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_reading_tells_how_far_it_is(suffix: str, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    CONTAINERS[suffix](tmp_path / f"rows{suffix}", [FORMS["texts"]] * 2500)
    read_rows(File(tmp_path / f"rows{suffix}"), lambda *state: told.append(state))
    assert len(told) == 3
    assert {what for what, _, _ in told} == {f"reading rows{suffix}"}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == told[-1][2]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".jsonl.gz"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"rows{suffix}")
    with pytest.raises(DataError, match=r"cannot be read \(expected a file, found a pipe\)"):
        read_rows(File(tmp_path / f"rows{suffix}"))


@pytest.mark.parametrize("damaged", [b"weight", b"assistant"])
def test_a_parquet_file_with_a_name_or_a_text_that_is_no_utf_8_is_named(tmp_path: Path, damaged: bytes) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"messages": [{"role": "user", "content": "Hi", "weight": 1}, {"role": "assistant", "content": "Ho"}]}]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="none", write_statistics=False)
    path.write_bytes(path.read_bytes().replace(damaged, b"\x80" + damaged[1:]))
    with pytest.raises(DataError, match=r"rows\.parquet: (not a valid Parquet file|cannot be read) \("):
        read_rows(File(path))
