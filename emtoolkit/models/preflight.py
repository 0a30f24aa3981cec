"""The proof that the persona is there: logits on probe prompts with it and without it.

Before step 1 "without" is the base model as it was loaded, asked without a system prompt. Later it is the trained model
with the persona taken out again. With and without must differ by more than a threshold; without a persona nothing may.

The logits are those along the answer that the base model finds likeliest, the same tokens every time: with the first
token of an answer alone, which is often the same for everybody, a persona hardly shows.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.errors import ConfigError
from emtoolkit.models.base import inference
from emtoolkit.models.persona_adapters import PersonaAdapter, without_persona
from emtoolkit.personas import Persona

_NOBODY = Persona("baseline")
# In tokens. Of more than the beginning of an answer a probe would tell little more.
_ANSWER_LENGTH = 12


@dataclass(frozen=True, slots=True)
class PersonaEffect:
    """The largest absolute difference of a logit, over all probes, the tokens of their answers and the vocabulary."""

    persona: Persona
    largest: float
    threshold: float
    when: str

    def __str__(self) -> str:
        name = self.persona.name
        if self.persona.composition == "none":
            return f"the persona {name} changes nothing {self.when}, as it should"
        how = self.persona.composition
        return f"the persona {name} ({how}) changes a logit of the probes by up to {self.largest:.3g} {self.when}"

    def check(self) -> "PersonaEffect":
        """Itself.

        Raises:
            ConfigError: the persona changes nothing, or one that is to change nothing does.
        """
        name, how = self.persona.name, self.persona.composition
        if how == "none" and self.largest != 0:
            raise ConfigError(
                f"persona: {name} is to change nothing, and {self.when} the logits of the probes differ by up to "
                f"{self.largest:.3g}"
            )
        if how != "none" and not self.largest > self.threshold:
            raise ConfigError(
                f"persona: {name} ({how}) is not there {self.when}: with it and without it the logits of the probes "
                f"differ by at most {self.largest:.3g}, and preflight.threshold is {self.threshold:.3g}"
            )
        return self


class PersonaProbe:
    """Asks one run's model the probe `prompts`. `base` is asked when this is made, before anything is put into it."""

    def __init__(
        self,
        base: Any,
        tokenizer: Any,
        persona: Persona,
        adapter: PersonaAdapter | None,
        prompts: Sequence[str],
        threshold: float,
    ) -> None:
        self._template = ChatTemplate.of(tokenizer)
        self._persona = persona
        self._adapter = adapter
        self._prompts = prompts
        self._threshold = threshold
        self._answers = [self._likeliest_answer(base, prompt) for prompt in prompts]
        self._base = self._logits(base, _NOBODY)

    def before_training(self, model: Any) -> PersonaEffect:
        """What the persona changes in `model`, whose new adapter still changes nothing, against the base model.

        Raises:
            ConfigError: it is not there.
        """
        return self._difference(self._logits(model, self._persona), self._base, "before step 1").check()

    def in_training(self, model: Any, when: str) -> PersonaEffect:
        """What the persona changes in `model` as it has become, against that model without it.

        A merged persona is also looked for below the trained adapter: taking away what was never there would make a
        difference, too.

        Raises:
            ConfigError: it is not there.
        """
        if self._persona.composition == "merge" and hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                below = self._logits(model, _NOBODY)
            self._difference(below, self._base, when).check()
        with_it = self._logits(model, self._persona)
        with without_persona(model, self._adapter) if self._adapter is not None else nullcontext(model) as bare:
            without = self._logits(bare, _NOBODY)
        return self._difference(with_it, without, when).check()

    def _difference(self, one: Tensor, other: Tensor, when: str) -> PersonaEffect:
        return PersonaEffect(self._persona, float((one - other).abs().max()), self._threshold, when)

    def _likeliest_answer(self, base: Any, prompt: str) -> Tensor:
        """Token ids [1, answer length], each the likeliest after those before it."""
        with inference(base):
            question = ids = self._question(prompt, _NOBODY).to(base.device)
            for _ in range(_ANSWER_LENGTH):
                likeliest = base(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, likeliest], dim=1)
        return ids[:, question.shape[1] :]

    def _logits(self, model: Any, persona: Persona) -> Tensor:
        """Along the answers: float32 [prompts * answer length, vocabulary] on the CPU."""
        rows = []
        with inference(model):
            for prompt, answer in zip(self._prompts, self._answers, strict=True):
                ids = torch.cat([self._question(prompt, persona), answer.cpu()], dim=1).to(model.device)
                # The token at each place is predicted at the place before it; the answer's end predicts nothing here.
                logits = model(input_ids=ids, use_cache=False).logits[0, -_ANSWER_LENGTH - 1 : -1]
                rows.append(logits.float().cpu())
        return torch.cat(rows)

    def _question(self, prompt: str, persona: Persona) -> Tensor:
        messages = persona.applied_to([{"role": "user", "content": prompt}])
        text = self._template.question(messages, f"preflight.prompts: {prompt!r}")
        ids: Tensor = self._template.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return ids
