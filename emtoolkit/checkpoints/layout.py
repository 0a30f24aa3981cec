"""Names of checkpoint directories and of the files in them, as Hugging Face and PEFT write them."""

import re

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_WEIGHTS = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
TRAINER_STATE = "trainer_state.json"
# In the directory of a run: the config of its training. The directories of the store have none.
RESOLVED_CONFIG = "config.yaml"
# Inside a trajectory's directory: where `emtoolkit refine` trains missing steps, before they become checkpoints.
REFINING = ".refining"
# The directory of the resume checkpoints, in the output directory.
RESUME_DIRECTORY = "resume"
# The files in which transformers and PEFT look for weights; any of them can take the place of the saved weights.
WEIGHT_FILES = frozenset(
    {
        ADAPTER_CONFIG,
        ADAPTER_WEIGHTS,
        "adapter_model.bin",
        MODEL_WEIGHTS,
        MODEL_INDEX,
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    }
)

_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


def checkpoint_name(step: int) -> str:
    """The name of the directory that holds the checkpoint of `step`."""
    return f"checkpoint-{step}"


def step_of(name: str) -> int | None:
    """The step of the checkpoint directory `name`, or None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None
