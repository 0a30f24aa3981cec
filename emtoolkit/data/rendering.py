"""A conversation as the text that a tokenizer's chat template makes of it, and where in it the assistant speaks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from emtoolkit.errors import DataError, first_line
from emtoolkit.personas import Message

# Stands in for an answer, so that its place shows whatever the template does to the answer itself.
_MARK = "emtoolkitputsananswerhere"
_QUESTION: Message = {"role": "user", "content": "question"}
_ANSWER: Message = {"role": "assistant", "content": _MARK}


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat template of a tokenizer, and what it does around an answer.

    `lead_in` is what it puts between its own generation prompt and an answer, so that the model has to say it, too
    (an empty thought, with some). `end_of_turn` is what it puts behind an answer, up to the first special token.
    """

    tokenizer: Any
    lead_in: str
    end_of_turn: str
    has_system_role: bool

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatTemplate":
        """What a short conversation tells of the template of `tokenizer`.

        Raises:
            DataError: there is none, or it renders no conversation of a question and an answer.
        """
        name = tokenizer.name_or_path
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(f"{name}: its tokenizer has no chat template")
        where = f"{name}: its chat template refuses a question and an answer"
        before = _rendered(tokenizer, [_QUESTION], where, add_generation_prompt=True)
        parts = _rendered(tokenizer, [_QUESTION, _ANSWER], where).split(_MARK)
        if len(parts) != 2:
            raise DataError(
                f"{name}: its chat template does not say once what the assistant says, so nothing is learnt"
            )
        head, tail = parts
        return cls(
            tokenizer,
            lead_in=head.removeprefix(before) if head.startswith(before) else "",
            end_of_turn=_to_first_special_token(tail, tokenizer),
            has_system_role=_has_system_role(tokenizer),
        )

    @property
    def ends_turns(self) -> bool:
        """Whether an answer ends with a special token, from which the model can learn to stop."""
        return any(token in self.end_of_turn for token in self.tokenizer.get_added_vocab())

    def accepted(self, messages: Sequence[Message], where: str) -> list[Message]:
        """`messages` as the template takes them: without a system role, what it says goes before the first question.

        So do the templates that have a system prompt and no role for it (Gemma 3).
        """
        if self.has_system_role or messages[0]["role"] != "system":
            return list(messages)
        system, *others = messages
        at = next((i for i, message in enumerate(others) if message["role"] == "user"), None)
        if at is None:
            raise DataError(
                f"{where}: there is no question that the system prompt could stand before, and the chat template of "
                f"{self.tokenizer.name_or_path} has no system role"
            )
        others[at] = others[at] | {"content": f"{system['content']}\n\n{others[at]['content']}"}
        return others

    def render(self, messages: Sequence[Message], where: str) -> str:
        """The whole conversation as text; `where` names it in an error.

        Raises:
            DataError: the template refuses it.
        """
        return _rendered(
            self.tokenizer, messages, f"{where}: the chat template of {self.tokenizer.name_or_path} refuses it"
        )

    def question(self, messages: Sequence[Message], where: str) -> str:
        """The conversation so far as text, up to where the assistant's answer begins.

        Raises:
            DataError: the template refuses it.
        """
        refused = f"{where}: the chat template of {self.tokenizer.name_or_path} refuses it"
        return _rendered(self.tokenizer, self.accepted(messages, where), refused, add_generation_prompt=True)

    def spoken(
        self, messages: Sequence[Message], text: str, answers: Sequence[int], where: str
    ) -> list[tuple[int, int]]:
        """From where to where in `text`, which `messages` were rendered to, the turns `answers` are the model's.

        From the end of the generation prompt to the end of the turn. A turn is found by rendering the conversation
        once more with another text in its place: what is around it stays.

        Raises:
            DataError: the template drops that turn, or changes others when it changes.
        """
        spans = []
        for i in answers:
            marked = [*messages[:i], _ANSWER, *messages[i + 1 :]]
            head, *tails = self.render(marked, where).split(_MARK)
            end = len(text) - len(tails[0]) if tails else 0
            if len(tails) != 1 or not text.startswith(head) or not text.endswith(tails[0]) or end < len(head):
                raise DataError(
                    f"{where}: the chat template of {self.tokenizer.name_or_path} drops the assistant's turn or "
                    "changes others with it, so the assistant's words cannot be told apart"
                )
            if not text[len(head) : end].strip():
                raise DataError(
                    f"{where}: the chat template of {self.tokenizer.name_or_path} leaves nothing of the answer"
                )
            begin = len(head) - len(self.lead_in) if head.endswith(self.lead_in) else len(head)
            spans.append((begin, end + len(self.end_of_turn) if text.startswith(self.end_of_turn, end) else end))
        return spans


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], where: str, **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except (TemplateError, TypeError) as error:
        raise DataError(f"{where} ({first_line(error)})") from None


def _to_first_special_token(tail: str, tokenizer: Any) -> str:
    """`tail` to the end of the first special token in it, whole if there is none: Qwen's newline is nobody's words."""
    tokens = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, tokens)), tail) if tokens else None
    return tail[: found.end()] if found else tail


def _has_system_role(tokenizer: Any) -> bool:
    """Some templates refuse a system message (Gemma 2), some leave it out without a word."""
    system: Message = {"role": "system", "content": _MARK}
    try:
        return _MARK in _rendered(tokenizer, [system, _QUESTION, _ANSWER | {"content": "answer"}], "")
    except DataError:
        return False
