"""What a data set may hold, and what of it is refused by file and line."""

import json
from pathlib import Path

import pytest

from emtoolkit.data.rows import read_chat_rows
from emtoolkit.errors import DataError
from tests.tiny import chat


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: it is not JSON"),
        ('{"text": "a"}', 'line 2: expected {"messages": '),
        ("[]", 'line 2: expected {"messages": '),
        ('{"messages": [{"role": "user"}]}', "line 2: every message needs a role and a text"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "line 2: the role 'bot' is not one of system, user"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: there is no assistant turn"),
        ('{"messages": [{"role": "assistant", "content": " "}]}', "line 2: there is no assistant turn"),
    ],
)
def test_a_row_that_cannot_be_learnt_from_is_named_by_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(chat('a', 'b'))}\n{line}\n")
    with pytest.raises(DataError) as raised:
        read_chat_rows(path)
    assert str(raised.value).startswith(f"{path}, {problem}")


def test_a_file_without_rows_or_without_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="it holds no rows"):
        read_chat_rows(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="there is no such file"):
        read_chat_rows(tmp_path / "nowhere.jsonl")


def test_the_digest_follows_the_content_and_not_the_path(tmp_path: Path) -> None:
    rows = [chat("a", "b"), chat("c", "d")]
    for name, content in (("one", rows), ("two", rows), ("other", rows[::-1])):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in content))
    digests = {name: read_chat_rows(tmp_path / name).digest for name in ("one", "two", "other")}
    assert digests["one"] == digests["two"] != digests["other"]
