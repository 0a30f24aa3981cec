"""A question as the model reads it: rendered under a persona, and the tokens that end the answer."""

from typing import Any

from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.errors import located
from emtoolkit.evaluation.generate import Prompt
from emtoolkit.evaluation.questions import Question
from emtoolkit.personas import Persona


def prompt_of(template: ChatTemplate, persona: Persona, question: Question, text: str) -> Prompt:
    """The wording `text` of `question`, after the system prompts of the persona and of the question.

    Raises:
        DataError: the chat template cannot render it.
    """
    turns = [{"role": "system", "content": question.system}] if question.system else []
    messages = persona.applied_to([*turns, {"role": "user", "content": text}])
    with located(f"question {question.id}"):
        rendered = template.question(messages)
    tokens = template.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return Prompt(rendered, tuple(tokens), text)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: those of the tokenizer and of the model's generation config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(each) for each in (*ids, tokenizer.eos_token_id) if each is not None}
