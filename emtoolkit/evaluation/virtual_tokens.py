"""Adapters that put tokens of their own before the prompt: prompt tuning, prefix tuning and their relatives.

PEFT adds the tokens in each forward pass. A pass over one more token of an answer would have them again, and positions
in the hidden states would be off by their number.
"""

from typing import Any

from emtoolkit.errors import CheckpointError


def virtual_tokens(model: Any) -> str | None:
    """The type of the active adapter if it has virtual tokens, such as `PROMPT_TUNING`; else None."""
    adapter: Any = getattr(model, "active_peft_config", None)
    if not getattr(adapter, "is_prompt_learning", False):
        return None
    return str(getattr(adapter.peft_type, "value", adapter.peft_type))


def refuse_virtual_tokens(model: Any) -> None:
    """Refuse a model whose tokens are not those of its input.

    Raises:
        CheckpointError: the active adapter has virtual tokens.
    """
    if kind := virtual_tokens(model):
        raise CheckpointError(
            f"the adapter is of type {kind}, whose virtual tokens are neither sampled from nor located; use "
            "model.generate of a checkpoint that Checkpoint.load_adapter loads"
        )
