"""A conversation as its chat template writes it, compared with the conversation as its row gives it.

Whatever the template cuts out of an answer would not be learnt, and nobody would know.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from emtoolkit.data.formats import Conversation
from emtoolkit.data.messages import CONTENT_KEYS, other_keys
from emtoolkit.data.rendering import ChatTemplate, Span, Tools
from emtoolkit.errors import DataError
from emtoolkit.personas import Message, Persona

WHITE_SPACE = "the chat template changes the white space of an answer"
CONTEXT = "the chat template cuts text out of an earlier answer that is not learnt"
_THOUGHTS = re.compile(r"</?(think|thinking|thought|reasoning)\b")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered conversation: its `text`, the place of each answer that is learnt, and remarks on differences.

    `written` are the keys of messages that no format describes and the template writes, with their values;
    `unwritten` those that the template leaves out.
    """

    text: str
    spans: tuple[Span, ...]
    remarks: frozenset[str]
    written: tuple[tuple[int, str, Any], ...]
    unwritten: frozenset[str]


def render(template: ChatTemplate, row: Conversation, persona: Persona) -> Rendered:
    """`row` under `persona`, rendered and compared.

    Raises:
        DataError: the template cannot render the row, or leaves out a part of an answer, the text of another turn,
            the tools, or thoughts and calls of an answer.
    """
    messages = template.accepted(persona.applied_to([_without(message, "weight") for message in row.messages]))
    # A persona may add a system turn before the row's own turns, and a template without a system role removes one.
    added = len(messages) - len(row.messages)
    keys = [(i, key) for i, message in enumerate(messages) for key in other_keys(message)]
    messages, written = _with_written_keys(template, messages, keys, row.tools) if keys else (messages, ())
    text = template.render(messages, row.tools)
    answers = [i + added for i in row.answers]
    spans = tuple(template.spoken(messages, text, i, row.tools) for i in answers)
    comparison = _Comparison(template, messages, text, row.tools)
    remarks = {remark for i, span in zip(answers, spans, strict=True) for remark in comparison.answer(i, span)}
    remarks |= {remark for i in range(len(messages)) if i not in answers for remark in comparison.context(i)}
    comparison.tools_are_written()
    unwritten = {key for _, key in keys} - {key for _, key, _ in written}
    return Rendered(text, spans, frozenset(remarks), written, frozenset(unwritten))


def _with_written_keys(
    template: ChatTemplate, messages: Sequence[Message], keys: Sequence[tuple[int, str]], tools: Tools
) -> tuple[list[Message], tuple[tuple[int, str, Any], ...]]:
    """`messages` with those of the `keys`, by turn, that change the rendered text; and these keys with their values."""
    bare = [{key: message[key] for key in message if key not in other_keys(message)} for message in messages]
    full, without = template.render(messages, tools), template.render(bare, tools)
    if full == without:
        return bare, ()
    written = []
    for i, key in keys:
        if template.render([*messages[:i], _without(messages[i], key), *messages[i + 1 :]], tools) != full:
            bare[i] |= {key: messages[i][key]}
            written.append((i, key, messages[i][key]))
    return bare, tuple(written)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """`text` is what the template writes for `messages` and `tools`."""

    template: ChatTemplate
    messages: Sequence[Message]
    text: str
    tools: Tools

    def answer(self, i: int, span: Span) -> Iterator[str]:
        """Compare an answer that is learnt, whose place is `span`."""
        message = self.messages[i]
        yield from self._keys(i, learnt=True)
        body, given = self.text[span.begin : span.end], message["content"]
        if any(key in message for key in CONTENT_KEYS):
            candidates = [self.template.written(self.messages, self.text, i, "content", self.tools)] if given else []
        else:
            candidates = [body, body.removeprefix(self.template.lead_in)]
        if not candidates or given in candidates:
            return
        if _squeezed(given) not in [_squeezed(found) for found in candidates if found is not None]:
            raise DataError(self._about_a_changed_answer(given, candidates[-1]))
        yield WHITE_SPACE

    def context(self, i: int) -> Iterator[str]:
        """Compare a turn that is read and not learnt."""
        message = self.messages[i]
        learnt_earlier = message["role"] == "assistant"
        yield from self._keys(i, learnt=not learnt_earlier)
        given = message["content"]
        if given.strip() in self.text:
            return
        written = self.template.written(self.messages, self.text, i, "content", self.tools)
        if written is not None and _squeezed(given) in (_squeezed(written), _squeezed(_unquoted(written))):
            return
        if not learnt_earlier:
            raise DataError(
                f"{self._template} {'changes' if written else 'drops'} the text of a turn of the {message['role']}, "
                f"{_short(given)}; use another template, or remove the row"
            )
        yield CONTEXT

    def tools_are_written(self) -> None:
        if self.tools and self.template.render(self.messages) == self.text:
            raise DataError(f"{self._template} does not write tools; use another template, or remove the column")

    def _keys(self, i: int, *, learnt: bool) -> Iterator[str]:
        """Compare the thoughts and the calls of turn `i`."""
        message = self.messages[i]
        for key in CONTENT_KEYS:
            if key not in message or self._is_written(i, key):
                continue
            if learnt:
                raise DataError(
                    f"{self._template} does not write all of {key}, so the model would learn the answer without; use "
                    "another template, put the answer into a row of its own, give it weight 0, or remove the key"
                )
            yield CONTEXT

    def _is_written(self, i: int, key: str) -> bool:
        value = self.messages[i][key]
        if isinstance(value, str):
            written = self.template.written(self.messages, self.text, i, key, self.tools)
            return written is not None and _squeezed(written) == _squeezed(value)
        without = [*self.messages[:i], _without(self.messages[i], key), *self.messages[i + 1 :]]
        try:
            changes = self.template.render(without, self.tools) != self.text
        except DataError:
            changes = True
        return changes and all(leaf in self.text for leaf in _leaves(value))

    def _about_a_changed_answer(self, given: str, written: str | None) -> str:
        if _THOUGHTS.search(given) and written is not None and _squeezed(written) in _squeezed(given):
            return (
                f"{self._template} cuts the thoughts out of an answer, so only the rest would be learnt, "
                f"{_short(written)}; use another template, put the answer into a row of its own, give it weight 0, or "
                "remove the thoughts"
            )
        became = "" if written is None else f" becomes {_short(written)}"
        return f"{self._template} changes an answer: {_short(given)}{became}; use another template, or remove the row"

    @property
    def _template(self) -> str:
        return f"the chat template of {self.template.tokenizer.name_or_path}"


def _leaves(value: Any) -> Iterator[str]:
    """The texts in calls of functions: names, and the values of arguments as JSON writes them."""
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call)
        yield function["name"]
        arguments = function.get("arguments")
        for leaf in arguments.values() if isinstance(arguments, dict) else [arguments]:
            if isinstance(leaf, str):
                yield json.dumps(leaf, ensure_ascii=False)[1:-1]


def _without(message: Message, key: str) -> Message:
    return {name: value for name, value in message.items() if name != key}


def _unquoted(written: str) -> str:
    """The text that `written` is between the quotes of JSON, as some templates write the answers of tools."""
    try:
        return str(json.loads(f'"{written}"'))
    except ValueError:
        return written


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
