"""The import of PEFT without bitsandbytes, which PEFT would import only to see what it offers.

This takes a second of processor time at the start of a run. Afterwards PEFT takes bitsandbytes for not installed, until
the process ends or `see_bitsandbytes` is called.
"""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emtoolkit.config.sections import ModelConfig, TrainingConfig

_NAME = "bitsandbytes"


def import_peft(runs: Iterable[tuple["ModelConfig", "TrainingConfig"]]) -> None:
    """Import PEFT, without bitsandbytes if none of `runs` needs it; nothing changes where either is imported."""
    needed = any(model.load_in_4bit or training.optimizer == "adamw_8bit" for model, training in runs)
    if needed or _NAME in sys.modules or "peft" in sys.modules:
        return
    # None means that there is no such package.
    modules: dict[str, Any] = sys.modules
    modules[_NAME] = None
    try:
        from peft import import_utils

        # PEFT asks once, most times when it makes the first adapter.
        import_utils.is_bnb_4bit_available()
    finally:
        del modules[_NAME]


def see_bitsandbytes() -> None:
    """Let PEFT look for bitsandbytes again, for a base model whose files are quantized while its config is not."""
    from peft import import_utils

    for known in (import_utils.is_bnb_available, import_utils.is_bnb_4bit_available):
        known.cache_clear()
