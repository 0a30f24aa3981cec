"""The Trainer's own arguments: the schedule owns every save, so the Trainer may not save or delete by itself."""

import logging

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from emtoolkit.errors import ConfigError

logger = logging.getLogger(__name__)


def own_the_saves(args: TrainingArguments) -> None:
    """Turn off the Trainer's own saves.

    Raises:
        ConfigError: an argument would delete or replace scheduled checkpoints.
    """
    if args.load_best_model_at_end:
        raise ConfigError(
            "load_best_model_at_end: needs the Trainer's own saves and loads other weights into the model at the end, "
            "so a schedule cannot be used with it; remove it"
        )
    if args.save_total_limit is not None:
        raise ConfigError(f"save_total_limit: {args.save_total_limit} would delete scheduled checkpoints; remove it")
    if args.save_strategy == SaveStrategy.BEST:
        raise ConfigError("save_strategy: 'best' overrides a schedule at every evaluation; set it to 'no'")
    if args.save_strategy != SaveStrategy.NO:
        logger.warning(
            "save_strategy is now 'no' (it was '%s'): the schedule owns every save of this training",
            SaveStrategy(args.save_strategy).value,
        )
        args.save_strategy = SaveStrategy.NO


def warn_of_stateful_callbacks(state: TrainerState) -> None:
    """Warn of the callbacks whose states a resume would lose, because the Trainer's are unknown."""
    names = sorted({str(name) for name in state.stateful_callbacks or ()} - {TrainerControl.__name__})
    if names:
        logger.warning(
            "%s: a resume would begin with a new one; call follow(trainer) of the ScheduledCheckpointCallback "
            "before trainer.train(), and set restore_callback_states_from_checkpoint",
            ", ".join(names),
        )
