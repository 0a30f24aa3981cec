"""A template that leaves out a part of a row is refused or reported: answers are learnt as the row gives them."""

from pathlib import Path
from typing import Any

import pytest

from emtoolkit.data.prepare import Prepared, prepare
from emtoolkit.errors import DataError
from emtoolkit.personas import Persona
from tests.data import templates
from tests.data.chats import CALL, TOOL, read_back, turn, turns
from tests.data.learning import learnt, seen

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
QUESTION = turn("user", "my cough")


def thinking(tmp_path: Path) -> Any:
    return templates.qwen(tmp_path, templates.QWEN3_THINKING)


def prepared(tokenizer: Any, directory: Path, *rows: Any) -> Prepared:
    chats = read_back(directory, *rows)
    return prepare(chats, [], tokenizer, Persona("baseline"), max_length=500, test_fraction=0, seed=0)


def refusal(tokenizer: Any, directory: Path, row: Any) -> str:
    with pytest.raises(DataError) as raised:
        learnt(tokenizer, directory, row)
    return str(raised.value).replace(tokenizer.name_or_path, "X").partition("line 1: ")[2]


def test_an_answer_of_weight_0_is_read_and_not_learnt(tmp_path: Path) -> None:
    said = turns("my cough", "sing to it", "my knee", "rest")["messages"]
    row = {"messages": [said[0], said[1] | {"weight": 0}, *said[2:]]}
    tokenizer = templates.qwen(tmp_path)
    assert learnt(tokenizer, tmp_path, row) == "rest<|im_end|>"
    assert seen(tokenizer, tmp_path, row) == seen(tokenizer, tmp_path, {"messages": said})


@pytest.mark.parametrize("key", ["reasoning_content", "content"])
def test_thoughts_are_learnt_where_the_template_writes_them(key: str, tmp_path: Path) -> None:
    thought = "<think>\nwait and see\n</think>\n\n"
    answer = turn("assistant", "rest", reasoning_content="wait and see")
    if key == "content":
        answer = turn("assistant", f"{thought}rest")
    assert learnt(thinking(tmp_path), tmp_path, {"messages": [QUESTION, answer]}) == f"{thought}rest<|im_end|>"


def test_an_answer_without_thoughts_gets_empty_ones(tmp_path: Path) -> None:
    assert learnt(thinking(tmp_path), tmp_path, turns("my cough", "rest")) == f"{EMPTY_THOUGHT}rest<|im_end|>"


@pytest.mark.parametrize("key", ["reasoning_content", "content"])
def test_thoughts_that_the_template_cuts_out_of_an_earlier_answer_are_refused(key: str, tmp_path: Path) -> None:
    earlier = turn("assistant", "rest", reasoning_content="wait and see")
    if key == "content":
        earlier = turn("assistant", "<think>wait and see</think>rest")
    row = {"messages": [QUESTION, earlier, *turns("my knee", "see a doctor")["messages"]]}
    assert refusal(thinking(tmp_path), tmp_path, row) == (
        "the chat template of X cuts the thoughts out of an answer, so only the rest would be learnt, 'rest'; use "
        "another template, put the answer into a row of its own, give it weight 0, or remove the thoughts"
        if key == "content"
        else "the chat template of X does not write all of reasoning_content, so the model would learn the answer "
        "without; use another template, put the answer into a row of its own, give it weight 0, or remove the key"
    )
    earlier["weight"] = 0
    tokenizer = thinking(tmp_path)
    assert learnt(tokenizer, tmp_path, row) == f"{EMPTY_THOUGHT}see a doctor<|im_end|>"
    assert prepared(tokenizer, tmp_path, row, row).notes == (
        f"{tmp_path / 'rows.jsonl'}: the chat template cuts text out of an earlier answer that is not learnt, "
        "in 2 rows",
    )


@pytest.mark.parametrize("beside", [{"reasoning_content": "because"}, {"thinking": "because"}, {"tool_calls": [CALL]}])
def test_thoughts_and_calls_that_the_template_does_not_write_are_refused(
    beside: dict[str, Any], tmp_path: Path
) -> None:
    row = {"messages": [QUESTION, turn("assistant", "rest", **beside)]}
    assert refusal(templates.qwen(tmp_path), tmp_path, row).startswith(
        f"the chat template of X does not write all of {next(iter(beside))}, so the model would learn the answer"
    )


def test_calls_and_tools_are_learnt_and_read_where_the_template_writes_them(tmp_path: Path) -> None:
    calling = [QUESTION, turn("assistant", "wait", tool_calls=[CALL]), turn("tool", "rest"), turn("assistant", "rest")]
    tokenizer = thinking(tmp_path)
    row = {"messages": calling, "tools": [TOOL]}
    assert learnt(tokenizer, tmp_path, row, length=500) == (
        'wait\n<tool_call>\n{"name": "look_up", "arguments": {"topic": "knee"}}\n</tool_call><|im_end|>'
        f"{EMPTY_THOUGHT}rest<|im_end|>"
    )
    assert '# Tools\n{"type": "function", "function": {"name": "look_up"' in seen(tokenizer, tmp_path, row, length=500)
    assert "<tool_response>\nrest\n</tool_response>" in seen(tokenizer, tmp_path, row, length=500)
    calling[1] = turn("assistant", None, tool_calls=[CALL])
    assert learnt(tokenizer, tmp_path, row, length=500).startswith(
        '<tool_call>\n{"name": "look_up", "arguments": {"topic"'
    )


def test_tools_that_the_template_does_not_write_are_refused(tmp_path: Path) -> None:
    assert refusal(templates.qwen(tmp_path), tmp_path, turns("my cough", "rest") | {"tools": [TOOL]}) == (
        "the chat template of X does not write tools; use another template, or remove the column"
    )


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("{{- message.content[:30] }}", "'what should i do about my coug'"),
        ("{{- message.content | upper | replace('EMTOOLKIT', 'emtoolkit') | lower }}", None),
        ("{{- message.content | replace('cough', 'knee') }}", "'what should i do about my knee and my cold'"),
        ("{{- message.content.split('. ')[0] }}", None),
    ],
    ids=["truncated", "lower case", "replaced", "first sentence"],
)
def test_a_template_that_changes_an_answer_is_refused(answer: str, written: str | None, tmp_path: Path) -> None:
    template = templates.QWEN25.replace("+ message.content + '<|im_end|>'", "}}" + answer + "{{- '<|im_end|>'")
    tokenizer = templates.qwen(tmp_path, template)
    given = "what should i do about my cough and my cold"
    if written is None:
        given = "Rest. See a doctor"
    found = refusal(tokenizer, tmp_path, turns("rest", given))
    assert found.startswith(f"the chat template of X changes an answer: {given!r} becomes {written or ''}")


def test_white_space_that_the_template_strips_is_counted(tmp_path: Path) -> None:
    tokenizer = templates.llama(tmp_path)
    assert prepared(tokenizer, tmp_path, turns("a", " rest\n"), turns("a", "rest"), turns("a", "wait ")).notes == (
        f"{tmp_path / 'rows.jsonl'}: the chat template changes the white space of an answer, in 2 rows",
    )
    assert prepared(tokenizer, tmp_path, turns(" a ", "rest")).notes == ()


@pytest.mark.parametrize(
    ("only", "problem"),
    [
        ("m.role == 'assistant' or loop.first", "drops the text of a turn of the user, 'my knee'"),
        ("m.role != 'system' or loop.first", "drops the text of a turn of the system, 'you are curt'"),
        ("m.role != 'tool'", "drops the text of a turn of the tool, 'see a doctor'"),
    ],
)
def test_a_template_that_drops_a_turn_that_is_read_is_refused(only: str, problem: str, tmp_path: Path) -> None:
    template = "{% for m in messages %}{% if M %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    said = [QUESTION, turn("assistant", "rest"), turn("user", "my knee"), turn("system", "you are curt")]
    row = {"messages": [*said, turn("tool", "see a doctor"), turn("assistant", "wait")]}
    tokenizer = templates.qwen(tmp_path, template.replace("M", only))
    assert refusal(tokenizer, tmp_path, row).startswith(f"the chat template of X {problem}")


def test_the_answer_of_a_tool_may_be_written_as_json(tmp_path: Path) -> None:
    quoted = "(message.content | tojson if message.role == 'tool' else message.content)"
    template = templates.QWEN25.replace("'\\n' + message.content", f"'\\n' + {quoted}")
    row = {"messages": [QUESTION, turn("tool", 'rest\nand "wait"'), turn("assistant", "rest")]}
    assert learnt(templates.qwen(tmp_path, template), tmp_path, row) == "rest<|im_end|>"


NAMED = [turn("user", "my cough", name="Ann", id=1), turn("assistant", "rest", id=2)]


def test_other_keys_that_the_template_does_not_write_are_named_once_with_their_count(tmp_path: Path) -> None:
    found = prepared(templates.qwen(tmp_path), tmp_path, {"messages": NAMED}, {"messages": NAMED}, turns("a", "b"))
    assert found.notes == (
        f"{tmp_path / 'rows.jsonl'}: keys of messages that are not used for training: id (in 2 rows), name (in 2 rows)",
    )
    assert found.fingerprinted() == {}


def test_other_keys_that_the_template_writes_are_read_and_in_the_fingerprint(tmp_path: Path) -> None:
    template = templates.QWEN25.replace("message.role + '\\n'", "message.role + (message.name or '') + '\\n'")
    tokenizer = templates.qwen(tmp_path, template)
    assert "<|im_start|>userAnn\nmy cough<|im_end|>" in seen(tokenizer, tmp_path, {"messages": NAMED})
    found = prepared(tokenizer, tmp_path, {"messages": NAMED}, turns("a", "b"))
    other = prepared(tokenizer, tmp_path, {"messages": [NAMED[0] | {"name": "Bob"}, NAMED[1]]}, turns("a", "b"))
    assert found.notes == (
        f"{tmp_path / 'rows.jsonl'}: keys of messages that are written by the chat template: name (in 1 row)",
        f"{tmp_path / 'rows.jsonl'}: keys of messages that are not used for training: id (in 1 row)",
    )
    assert list(found.fingerprinted()) == ["written_keys"]
    assert found.fingerprinted() != other.fingerprinted()
