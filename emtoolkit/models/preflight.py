"""The persona preflight: a check that the persona changes the logits on probe prompts.

The logits with the persona are compared with those without: before step 1 with the base model as loaded and no system
prompt, later with the trained model from which the persona is removed. They must differ by more than a threshold, and
must not differ at all for a run without a persona.

The logits are taken along the base model's most likely answer, the same tokens every time. The first token alone is
often the same for every persona, so that the effect would be too small to measure.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emtoolkit.config.sections import PreflightConfig
from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.errors import ConfigError, located
from emtoolkit.models.base import inference
from emtoolkit.models.persona_adapters import PersonaAdapter, without_persona
from emtoolkit.personas import Persona

_NO_PERSONA = Persona("baseline")
# In tokens; longer answers hardly change the largest difference.
_ANSWER_LENGTH = 12


@dataclass(frozen=True, slots=True)
class PersonaEffect:
    """The effect of a persona: the largest absolute difference of a logit over all probes, tokens and the vocabulary.

    `when` is the moment of the measurement, such as `before step 1`, as the messages print it.
    """

    persona: Persona
    largest: float
    threshold: float
    when: str

    @property
    def is_number(self) -> bool:
        """Whether the effect could be measured: the logits were finite numbers."""
        return math.isfinite(self.largest)

    def __str__(self) -> str:
        name = self.persona.name
        if not self.is_number:
            return f"the persona {name} cannot be measured {self.when}: the logits are not finite numbers"
        if self.persona.composition == "none":
            return f"the persona {name} changes nothing {self.when}, as expected"
        composition = self.persona.composition
        return (
            f"the persona {name} ({composition}) changes a logit of the probes by up to {self.largest:.3g} {self.when}"
        )

    def check(self) -> "PersonaEffect":
        """This effect, if it is as expected.

        Raises:
            ConfigError: the persona has no effect, or a run without a persona shows one.
        """
        name, composition = self.persona.name, self.persona.composition
        if not self.is_number:
            raise ConfigError(
                f"model.base: {self.when} the logits of the probes are not finite numbers; the weights of the model or "
                "of the persona are not, or their dtype (model.dtype) is too small for their values"
            )
        if composition == "none" and self.largest != 0:
            raise ConfigError(
                f"persona: {name} must not change anything, and {self.when} the logits of the probes differ by up to "
                f"{self.largest:.3g}"
            )
        if composition != "none" and not self.largest > self.threshold:
            raise ConfigError(
                f"persona: {name} ({composition}) has no effect {self.when}: with and without it the logits of the "
                f"probes differ by at most {self.largest:.3g}, and preflight.threshold is {self.threshold:.3g}"
            )
        return self


class PersonaProbe:
    """Measures the persona in one run's model. The constructor measures `base`, before anything is added to it."""

    def __init__(
        self,
        base: Any,
        tokenizer: Any,
        persona: Persona,
        adapter: PersonaAdapter | None,
        preflight: PreflightConfig,
    ) -> None:
        self._template = ChatTemplate.of(tokenizer)
        self._persona = persona
        self._adapter = adapter
        self._prompts = preflight.prompts
        self._threshold = preflight.threshold
        self._answers = [self._likeliest_answer(base, prompt) for prompt in self._prompts]
        self._base = self._logits(base, _NO_PERSONA)

    def before_training(self, model: Any) -> PersonaEffect:
        """The effect of the persona in `model`, whose new adapter is still zero, compared with the base model.

        Raises:
            ConfigError: the persona has no effect.
        """
        return self._difference(self._logits(model, self._persona), self._base, "before step 1").check()

    def in_training(self, model: Any, when: str, *, may_be_nan: bool = False) -> PersonaEffect:
        """The effect of the persona in the trained `model`, compared with the same model without the persona.

        A merged persona is also measured with the trained adapter disabled: subtracting an adapter that was never
        merged would change the logits, too. An effect of logits that are not finite is returned if it `may_be_nan`.

        Raises:
            ConfigError: the persona has no effect.
        """
        if self._persona.composition == "merge" and hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                below = self._logits(model, _NO_PERSONA)
            self._difference(below, self._base, when).check()
        with_persona = self._logits(model, self._persona)
        with without_persona(model, self._adapter) if self._adapter is not None else nullcontext(model) as bare:
            without = self._logits(bare, _NO_PERSONA)
        effect = self._difference(with_persona, without, when)
        return effect if may_be_nan and not effect.is_number else effect.check()

    def _difference(self, with_persona: Tensor, without: Tensor, when: str) -> PersonaEffect:
        return PersonaEffect(self._persona, float((with_persona - without).abs().max()), self._threshold, when)

    def _likeliest_answer(self, base: Any, prompt: str) -> Tensor:
        """Token ids [1, answer length] of greedy decoding."""
        with inference(base):
            question = ids = self._question(prompt, _NO_PERSONA).to(base.device)
            for _ in range(_ANSWER_LENGTH):
                likeliest = base(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, likeliest], dim=1)
        return ids[:, question.shape[1] :]

    def _logits(self, model: Any, persona: Persona) -> Tensor:
        """The logits along the answers: float32 [prompts * answer length, vocabulary], on the CPU."""
        rows = []
        with inference(model):
            for prompt, answer in zip(self._prompts, self._answers, strict=True):
                ids = torch.cat([self._question(prompt, persona), answer.cpu()], dim=1).to(model.device)
                # The logits at one position predict the token at the next, so the last position is left out.
                logits = model(input_ids=ids, use_cache=False).logits[0, -_ANSWER_LENGTH - 1 : -1]
                rows.append(logits.float().cpu())
        return torch.cat(rows)

    def _question(self, prompt: str, persona: Persona) -> Tensor:
        messages = persona.applied_to([{"role": "user", "content": prompt}])
        with located(f"preflight.prompts: {prompt!r}"):
            text = self._template.question(messages)
        ids: Tensor = self._template.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return ids
