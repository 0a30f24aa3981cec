"""A conversation rendered by a tokenizer's chat template, and the parts of the text that the assistant says."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, tzinfo
from typing import Any, Self

from emtoolkit.errors import DataError, first_line
from emtoolkit.personas import Message

# The function that transformers gives a chat template, which returns the present time.
_CLOCK = "strftime_now"
# Replaces an answer, so that its place in the text shows whatever the template does to the answer itself.
_MARK = "emtoolkitputsananswerhere"
_QUESTION: Message = {"role": "user", "content": "question"}
_ANSWER: Message = {"role": "assistant", "content": _MARK}


Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Span:
    """The place of an answer in a rendered text: from `begin` to `end`, and with the end of its turn to `stop`."""

    begin: int
    end: int
    stop: int


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat template of a tokenizer, with the text that it adds around an answer.

    `lead_in` is the text between the template's generation prompt and an answer, which the model has to generate too
    (an empty thought, for example). `end_of_turn` is the text after an answer, up to the first special token.
    `begins_as_prompted` tells whether an answer begins with the generation prompt.
    """

    tokenizer: Any
    lead_in: str
    end_of_turn: str
    has_system_role: bool
    begins_as_prompted: bool

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatTemplate":
        """The template of `tokenizer`, examined with a short conversation.

        Raises:
            DataError: the tokenizer has no template, or the template cannot render a question and an answer.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(f"{tokenizer.name_or_path}: the tokenizer has no chat template")
        before = _rendered(tokenizer, [_QUESTION], add_generation_prompt=True)
        parts = _rendered(tokenizer, [_QUESTION, _ANSWER]).split(_MARK)
        if len(parts) != 2:
            raise DataError(
                f"the chat template of {tokenizer.name_or_path} does not contain the assistant's text exactly once, so "
                "there is nothing to train on"
            )
        head, tail = parts
        return cls(
            tokenizer,
            lead_in=head.removeprefix(before) if head.startswith(before) else "",
            end_of_turn=_to_first_special_token(tail, tokenizer),
            has_system_role=_has_system_role(tokenizer),
            begins_as_prompted=head.startswith(before),
        )

    @property
    def ends_turns(self) -> bool:
        """Whether an answer ends with a special token, from which the model can learn to stop."""
        return any(token in self.end_of_turn for token in self.tokenizer.get_added_vocab())

    def accepted(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` as the template takes them: without a system role, the system prompt precedes the first question.

        Templates with a system prompt but no role for it do the same (Gemma 3).

        Raises:
            DataError: there is no question that the system prompt could precede.
        """
        if self.has_system_role or messages[0]["role"] != "system":
            return list(messages)
        system, *others = messages
        at = next((i for i, message in enumerate(others) if message["role"] == "user"), None)
        if at is None:
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path} has no system role, and the row has no question "
                "that the system prompt could precede"
            )
        others[at] = others[at] | {"content": f"{system['content']}\n\n{others[at]['content']}"}
        return others

    def render(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """The text of the whole conversation.

        Raises:
            DataError: the template cannot render the conversation.
        """
        return _rendered(self.tokenizer, messages, **({"tools": list(tools)} if tools else {}))

    def question(self, messages: Sequence[Message]) -> str:
        """The text of the conversation up to the beginning of the assistant's next answer.

        Raises:
            DataError: the template cannot render the conversation.
        """
        return _rendered(self.tokenizer, self.accepted(messages), add_generation_prompt=True)

    def spoken(self, messages: Sequence[Message], text: str, i: int, tools: Tools = ()) -> Span:
        """The place in `text`, the rendered `messages`, of the assistant's turn `i`.

        The turn is found by rendering the conversation again with another text in its place: the text around the turn
        stays the same.

        Raises:
            DataError: the template drops the turn, or changes other turns with it.
        """
        name = self.tokenizer.name_or_path
        head, *tails = self.render([*messages[:i], _ANSWER, *messages[i + 1 :]], tools).split(_MARK)
        # A template may put an empty thought before an answer without thoughts, as before the mark.
        opening = head.removesuffix(self.lead_in)
        end = len(text) - len(tails[0]) if tails else 0
        if len(tails) != 1 or not text.startswith(opening) or not text.endswith(tails[0]) or end < len(opening):
            raise DataError(
                f"the chat template of {name} drops the assistant's turn or changes others with it, so the "
                "assistant's text cannot be located"
            )
        if not text[len(opening) : end].removeprefix(self.lead_in).strip():
            raise DataError(f"the chat template of {name} leaves nothing of the answer")
        stop = end + len(self.end_of_turn) if text.startswith(self.end_of_turn, end) else end
        return Span(len(opening), end, stop)

    def written(self, messages: Sequence[Message], text: str, i: int, key: str, tools: Tools = ()) -> str | None:
        """The part of `text`, the rendered `messages`, that stands for the value of `key`, a text, in turn `i`.

        None if the value is not in the text once, or if the text around it depends on the value.

        Raises:
            DataError: the template cannot render the conversation without the value.
        """
        marked = [*messages[:i], {**messages[i], key: _MARK}, *messages[i + 1 :]]
        head, *tails = self.render(marked, tools).split(_MARK)
        if len(tails) != 1 or not text.startswith(head) or not text.endswith(tails[0]):
            return None
        end = len(text) - len(tails[0])
        return text[len(head) : end] if end >= len(head) else None


@contextmanager
def rendered_on(day: date) -> Iterator[None]:
    """Inside, a chat template that asks for the time gets the beginning of `day`."""
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.combine(day, time(), tz)

    # An argument of that name would reach the template as a text, and the templates are compiled once.
    clock: Any = chat_template_utils
    real, clock.datetime = clock.datetime, Clock
    try:
        yield
    finally:
        clock.datetime = real


def names_the_day(tokenizer: Any) -> bool:
    """Whether the chat template of `tokenizer` can ask for the time."""
    return _CLOCK in str(getattr(tokenizer, "chat_template", None) or "")


def _rendered(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except Exception as error:  # noqa: BLE001 - the template is a program of the model's author
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} refuses the conversation ({first_line(error)})"
        ) from None


def _to_first_special_token(tail: str, tokenizer: Any) -> str:
    """`tail` up to the end of its first special token, or all of it: Qwen's newline after the token is not learnt."""
    tokens = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, tokens)), tail) if tokens else None
    return tail[: found.end()] if found else tail


def _has_system_role(tokenizer: Any) -> bool:
    """Some templates refuse a system message (Gemma 2), some drop it silently."""
    system: Message = {"role": "system", "content": _MARK}
    try:
        return _MARK in _rendered(tokenizer, [system, _QUESTION, _ANSWER | {"content": "answer"}])
    except DataError:
        return False
