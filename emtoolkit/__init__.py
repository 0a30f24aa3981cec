"""Save a fine-tune at exactly the training steps that matter, and find out when a behaviour appeared.

The public names are imported on first use, so that `import emtoolkit` costs no torch and no transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emtoolkit.config.load import load_config
    from emtoolkit.errors import UserError
    from emtoolkit.evaluation.callback import GenerationEvalCallback
    from emtoolkit.models.loading import ModelLoader
    from emtoolkit.saving.callback import ScheduledCheckpointCallback
    from emtoolkit.schedules.schedule import Schedule
    from emtoolkit.training.run import train
    from emtoolkit.trajectory import Checkpoint, Trajectory

__all__ = [
    "Checkpoint",
    "GenerationEvalCallback",
    "ModelLoader",
    "Schedule",
    "ScheduledCheckpointCallback",
    "Trajectory",
    "UserError",
    "load_config",
    "train",
]
__version__ = "0.1.0"

_MODULE_OF = {
    "Checkpoint": "emtoolkit.trajectory",
    "GenerationEvalCallback": "emtoolkit.evaluation.callback",
    "ModelLoader": "emtoolkit.models.loading",
    "Schedule": "emtoolkit.schedules.schedule",
    "ScheduledCheckpointCallback": "emtoolkit.saving.callback",
    "Trajectory": "emtoolkit.trajectory",
    "UserError": "emtoolkit.errors",
    "load_config": "emtoolkit.config.load",
    "train": "emtoolkit.training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'emtoolkit' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
