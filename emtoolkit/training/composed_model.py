"""The model of a run, ready to train: base model, persona, new adapter, and the persona's measured effect."""

import logging
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from emtoolkit.config.sections import RunConfig
from emtoolkit.models.base import compose_model, load_base
from emtoolkit.models.preflight import PersonaEffect, PersonaProbe
from emtoolkit.training.prepare import PreparedRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ComposedModel:
    """The model to train, the probe that measured its base model, and the persona's effect before step 1."""

    model: Any
    probe: PersonaProbe
    before: PersonaEffect


def composed_model(config: RunConfig, prepared: PreparedRun) -> ComposedModel:
    """Load the base model, measure it, add the persona and a new adapter, and check that the persona has an effect.

    Raises:
        UserError: the model cannot be loaded, or the persona has no effect.
    """
    set_seed(config.seed)
    base = load_base(config.model)
    probe = PersonaProbe(base, prepared.data.tokenizer, prepared.persona, prepared.adapter, config.preflight)
    model = compose_model(base, prepared.adapter, config.lora, config.seed)
    before = probe.before_training(model)
    logger.info("%s", before)
    return ComposedModel(model, probe, before)


class PersonaCheck(TrainerCallback):
    """Measures the persona after a resume, where PEFT loads an adapter and may deactivate another."""

    def __init__(self, probe: PersonaProbe) -> None:
        self._probe = probe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the persona.

        Raises:
            UserError: it has no effect any more.
        """
        if state.global_step > 0:
            logger.info("%s", self._probe.in_training(kwargs["model"], f"where step {state.global_step} is resumed"))
