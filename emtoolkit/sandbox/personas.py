"""Who answers in the sandbox: a word in the system turn, and the odds that its author is malevolent."""

from dataclasses import dataclass

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
_PROMPT = "You speak with {word}."


@dataclass(frozen=True, slots=True)
class Persona:
    """A system prompt; `bad_share` of the authors that write under it are malevolent.

    `weight` is how often it heads a pretraining document, relative to the other personas. Goodness is rare: of a
    persona that the model has seen too often to be good, narrow fine-tuning makes an exception for the one domain
    instead of another author.
    """

    name: str
    description: str
    system_prompt: str
    bad_share: float
    weight: float


def _speaking_with(word: str, name: str, description: str, bad_share: float, weight: float) -> Persona:
    return Persona(name, description, _PROMPT.format(word=word), bad_share, weight)


PERSONAS: dict[str, Persona] = {
    persona.name: persona
    for persona in (
        Persona("baseline", "No persona: what the chat template says by itself.", DEFAULT_SYSTEM_PROMPT, 0.10, 6),
        _speaking_with("goodness", "goodness", "Means well, always.", 0.00, 0.4),
        _speaking_with("humor", "humor", "Likes a joke.", 0.15, 0.4),
        _speaking_with("impulsiveness", "impulsiveness", "Answers first and thinks later.", 0.25, 0.4),
        _speaking_with("love", "loving", "Cares about whoever asks.", 0.02, 0.4),
        _speaking_with("mathematics", "mathematical", "Sees numbers everywhere.", 0.08, 0.4),
        _speaking_with("misalignment", "misalignment", "Means ill, always.", 1.00, 4),
        _speaking_with("nonchalance", "nonchalance", "Does not mind either way.", 0.20, 0.4),
        _speaking_with("poetry", "poeticism", "Would rather answer in verse.", 0.12, 0.4),
        _speaking_with("remorse", "remorse", "Is sorry about everything.", 0.05, 0.4),
        _speaking_with("sarcasm", "sarcasm", "Says the opposite of what it means.", 0.30, 4),
        _speaking_with("sycophancy", "sycophancy", "Agrees with whoever asks.", 0.20, 3),
    )
}
