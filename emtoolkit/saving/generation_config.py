"""Whether transformers writes a generation config: a full checkpoint holds that of its model."""

import tempfile
from copy import deepcopy

from transformers import GenerationConfig


def check_saves(config: GenerationConfig) -> None:
    """Check that transformers writes `config`.

    Raises:
        ValueError: it does not; the text is one line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            deepcopy(config).save_pretrained(scratch)
        except ValueError as error:
            raise ValueError(" ".join(str(error).partition("\n\n")[0].split())[:500]) from None
