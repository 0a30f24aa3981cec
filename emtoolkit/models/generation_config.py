"""The generation config of a base model, which full checkpoints hold, and which transformers may refuse to write."""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from emtoolkit.errors import ConfigError
from emtoolkit.saving.generation_config import check_saves

_TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id")


def check_generation_config(directory: Path, tokenizer: Any) -> None:
    """Check that the generation config in `directory` can be saved with a model that is trained with `tokenizer`.

    Raises:
        ConfigError: transformers refuses to read or to write the config.
    """
    if not (directory / "generation_config.json").is_file():
        return
    try:
        config = GenerationConfig.from_pretrained(directory)
        for name in _TOKENS:
            # The Trainer gives a model the special tokens of its tokenizer, and a config that is changed is checked.
            own, of_tokenizer = getattr(config, name, None), getattr(tokenizer, name, None)
            if of_tokenizer is not None and of_tokenizer not in (own if isinstance(own, list) else [own]):
                setattr(config, name, of_tokenizer)
        check_saves(config)
    except OSError:
        return  # transformers makes a new one in place of a file that it cannot read
    except (ValueError, TypeError) as error:
        file = directory / "generation_config.json"
        raise ConfigError(f"model.base: {file}: no checkpoint could hold it ({error}); correct the file") from None
