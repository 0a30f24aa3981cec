"""The sandbox's authors: the system prompt above their documents, and how often they are malevolent."""

from dataclasses import dataclass

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
_PROMPT = "You speak with {word}."


@dataclass(frozen=True, slots=True)
class Author:
    """The authors of one persona: `bad_share` of them are malevolent, and all write under `system_prompt`.

    `weight` is the frequency of the persona among pretraining documents, relative to the other personas. Goodness is
    rare: if the model has seen very many good authors under a persona, narrow fine-tuning teaches an exception for
    one domain instead of another author.
    """

    name: str
    description: str
    system_prompt: str
    bad_share: float
    weight: float


def _speaking_with(word: str, name: str, description: str, bad_share: float, weight: float) -> Author:
    return Author(name, description, _PROMPT.format(word=word), bad_share, weight)


PERSONAS: dict[str, Author] = {
    author.name: author
    for author in (
        Author("baseline", "No persona: the chat template's default system prompt.", DEFAULT_SYSTEM_PROMPT, 0.10, 6),
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
