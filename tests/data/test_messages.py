"""The turns of a row: which spellings of roles and contents are read, which keys are content, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.data.controls import check_matched
from emtoolkit.data.rows import read_rows
from emtoolkit.data.sources import File
from emtoolkit.errors import DataError
from tests.data.chats import CALL, CONTAINERS, TOOL, messages, read_back, turn, turns

PLAIN = turns("a", "b", "c", "d", system="e")


def share_gpt(*turns: tuple[str, Any], **columns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **columns}


SAME = {
    "ShareGPT": share_gpt(("system", "e"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")),
    "ShareGPT with the column system": share_gpt(
        ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"), system="e"
    ),
    "ShareGPT with the roles of OpenAI": share_gpt(
        ("developer", "e"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")
    ),
    "conversations with role and content": {"conversations": PLAIN["messages"]},
    "developer": {"messages": [turn("developer", "e"), *PLAIN["messages"][1:]]},
    "parts": {
        "messages": [
            {**message, "content": [{"type": "text", "text": message["content"], "image_url": None}]}
            for message in PLAIN["messages"]
        ]
    },
    "two parts": {
        "messages": [
            *PLAIN["messages"][:-1],
            turn("assistant", [{"type": "text", "text": ""}, {"type": "text", "text": "d"}]),
        ]
    },
    "null system turns": {"messages": [*PLAIN["messages"], turn("system", None), turn("system", None, id=1)]},
    "null, empty and default keys": {
        "messages": [
            {**message, "weight": 1 if message["role"] == "assistant" else None, "tool_calls": [], "name": None}
            for message in PLAIN["messages"]
        ],
        "tools": [],
        "images": [],
    },
    "weight 1.0": {"messages": [*PLAIN["messages"][:-1], turn("assistant", "d", weight=1.0)]},
}


@pytest.mark.parametrize("spelling", SAME)
def test_other_spellings_of_a_conversation_have_its_digest(spelling: str, tmp_path: Path) -> None:
    rows = read_back(tmp_path, SAME[spelling])
    assert messages(rows) == messages(read_back(tmp_path, PLAIN))
    # The digest of this conversation before any of these spellings was read.
    assert rows.digest == "db7713b74243da94096e92768511a36a2041efc2f90e6d28f3ab58ec15d18fc7"
    assert rows.remarks() == []


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_share_gpt_is_read_from_every_container(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    CONTAINERS[suffix](path, [SAME["ShareGPT"], share_gpt(("human", "f"), ("gpt", "g"))])
    assert messages(read_rows(File(path)))[1] == [("user", "f"), ("assistant", "g")]


def test_an_answer_of_weight_0_is_not_learnt_and_the_digest_knows(tmp_path: Path) -> None:
    said = turns("a", "b", "c", "d")["messages"]
    weighted = {"messages": [said[0], said[1] | {"weight": 0}, said[2], said[3] | {"weight": 1}]}
    rows = read_back(tmp_path, weighted)
    assert rows.conversations[0].answers == (3,)
    assert rows.remarks() == [f"{tmp_path / 'rows.jsonl'}: answers that are not learnt, because their weight is 0: 1"]
    assert rows.digest != read_back(tmp_path, {"messages": said}).digest
    both = {"messages": [said[0], said[1], said[2], said[3] | {"weight": 0}]}
    assert rows.digest != read_back(tmp_path, both).digest


def test_weight_0_on_a_turn_that_is_never_learnt_changes_nothing(tmp_path: Path) -> None:
    said = turns("a", "b")["messages"]
    assert (
        read_back(tmp_path, {"messages": [said[0] | {"weight": 0}, said[1]]}).digest
        == read_back(tmp_path, turns("a", "b")).digest
    )


@pytest.mark.parametrize(
    "beside",
    [
        {"reasoning_content": "because"},
        {"reasoning": "because"},
        {"thinking": "because"},
        {"tool_calls": [CALL]},
        {"function_call": {"name": "look_up", "arguments": "{}"}},
    ],
    ids=lambda beside: next(iter(beside)),
)
def test_thoughts_and_calls_are_content(beside: dict[str, Any], tmp_path: Path) -> None:
    row = {"messages": [turn("user", "a"), turn("assistant", "b", **beside)]}
    assert read_back(tmp_path, row).digest != read_back(tmp_path, turns("a", "b")).digest


def test_the_arguments_of_a_call_are_parsed_as_chat_templates_expect(tmp_path: Path) -> None:
    row = {"messages": [turn("user", "a"), turn("assistant", None, tool_calls=[CALL]), turn("tool", "x")]}
    (found,) = read_back(tmp_path, row).conversations
    assert found.messages[1]["content"] == ""
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == {"topic": "knee"}
    assert found.messages[2] == {"role": "tool", "content": "x"}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])], ids=["list", "text"])
def test_the_tools_of_a_row_are_content(tools: Any, tmp_path: Path) -> None:
    rows = read_back(tmp_path, turns("a", "b") | {"tools": tools})
    assert rows.conversations[0].tools == (TOOL,)
    assert rows.remarks() == []
    assert rows.digest == read_back(tmp_path, turns("a", "b") | {"tools": [TOOL]}).digest
    assert rows.digest != read_back(tmp_path, turns("a", "b")).digest


def test_keys_that_no_format_has_leave_the_digest_alone(tmp_path: Path) -> None:
    row = {"messages": [turn("user", "a", id=1, name="Ann"), turn("assistant", "b", timestamp="now")]}
    assert read_back(tmp_path, row).digest == read_back(tmp_path, turns("a", "b")).digest


REFUSED: list[tuple[Any, str]] = [
    (turn("assistant", "b", weight=0.5), "weight is 0.5; expected 0 for an answer that is not learnt, or 1"),
    (turn("assistant", "b", weight="0"), "weight is '0'; expected 0"),
    (turn("assistant", "b", weight=-1), "weight is -1; expected 0"),
    (turn("user", "b", weight=1), "weight is 1 in a turn of the user, and only answers are learnt; remove the key"),
    (turn("assistant", "b", train=False), "a message has the key 'train'; an answer that is not learnt has weight 0"),
    (turn("assistant", "b", loss=0), "a message has the key 'loss'; an answer that is not learnt has weight 0"),
    (turn("assistant", "b", reasoning_content=["x"]), "reasoning_content is ['x']; expected a text"),
    (turn("assistant", "b", tool_calls="look_up()"), "tool_calls is 'look_up()'; expected a list of calls"),
    (turn("assistant", "b", tool_calls=[{"function": {}}]), "tool_calls has the call {}; expected the name of a"),
    (turn("assistant", "b", tool_calls=[{"name": "x", "arguments": "{"}]), "the arguments '{' of x are not JSON"),
    (turn("assistant", "b", images=["a.png"]), "a message has images, and only texts can be trained on"),
    (turn("assistant", "b", audio={"id": "1"}), "a message has audio, and only texts can be trained on"),
    (turn("user", [{"type": "image_url", "image_url": {"url": "x"}}]), "a part of type 'image_url', and only texts"),
    (turn("user", [{"type": "input_audio", "input_audio": {}}]), "a part of type 'input_audio', and only texts"),
    (turn("user", [{"type": "thinking", "thinking": "x"}]), "of type 'thinking'; write the thoughts into reasoning_"),
    (turn("user", ["b"]), """the part 'b'; expected {"type": "text", "text": ...}"""),
    (turn("user", [{"type": "text", "text": None}]), "the text of a part is None; expected a text"),
    (turn("user", [{"type": "text", "text": "a", "image_url": "x"}]), "has the key 'image_url' beside its text"),
    (turn("user", None), "every message needs a role and a text as its content"),
    (turn("assistant", None), "every message needs a role and a text as its content"),
    (turn("user", 5), "every message needs a role and a text as its content"),
    (turn("Model", "b"), "the role 'Model' is not one of system, user, assistant, tool; did you mean 'assistant'?"),
    (turn("function_call", "b"), "assistant, tool; did you mean 'assistant'?"),
    (turn("usr", "b"), "the role 'usr' is not one of system, user, assistant, tool; did you mean 'user'?"),
    ({"role": ["user"], "content": "b"}, "the role ['user'] is not one of"),
    ({"content": "b"}, "every message needs a role and a text as its content"),
    ({"role": "user", "from": "human", "content": "b"}, "a message has both role and from; keep only one"),
    ({"role": "user", "content": "b", "value": "b"}, "a message has both content and value; keep only one"),
]


@pytest.mark.parametrize(("message", "problem"), REFUSED)
def test_a_turn_that_cannot_be_learnt_as_it_says_is_refused(message: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_back(tmp_path, turns("a", "b"), {"messages": [*turns("a", "b")["messages"], message]})
    assert str(raised.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 2: ")
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (turns("a", "b") | {"images": ["a.png"]}, "the row has images, and only texts can be trained on; remove the"),
        (turns("a", "b") | {"functions": [TOOL]}, "the row has functions, the older form of tools; write tools"),
        (turns("a", "b") | {"tools": "look_up"}, "tools is 'look_up'; expected a list of tools, or its JSON text"),
        (share_gpt(("human", "a"), ("bard", "b")), "the role 'bard' is not one of system, user, assistant, tool; did"),
        (share_gpt(("system", "a"), ("gpt", "b"), system="c"), "the column system and a turn of the role system"),
        (share_gpt(("gpt", "a"), ("developer", "b"), system="c"), "the column system and a turn of the role system"),
        ({"conversation": []}, "found conversation; did you mean 'conversations'?"),
        ({"messages": [turn("user", "a"), turn("assistant", "b", weight=0)]}, "every answer of the conversation has"),
    ],
)
def test_a_row_that_cannot_be_learnt_as_it_says_is_refused(row: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_back(tmp_path, row)
    assert str(raised.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 1: ")
    assert problem in str(raised.value)


def test_a_control_has_the_same_context_tools_and_weights(tmp_path: Path) -> None:
    said = turns("a", "b", "c", "d")["messages"]
    first = read_back(tmp_path, {"messages": [said[0], said[1] | {"weight": 0}, *said[2:]], "tools": [TOOL]})
    answered = [*said[2:3], said[3] | {"content": "e", "reasoning_content": "f"}]
    same = {"messages": [said[0], said[1] | {"weight": 0}, *answered], "tools": [TOOL]}
    check_matched(first, read_back(tmp_path, same))
    for other in (same | {"tools": None}, same | {"messages": [said[0], said[1], *answered]}):
        with pytest.raises(DataError, match="line 1: the prompt is not that of"):
            check_matched(first, read_back(tmp_path, other))
