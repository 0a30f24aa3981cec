"""A causal language model of transformers with every weight from its files.

`from_pretrained` gives random values to the weights that the files lack and only warns, so a model of other names would
be trained from nothing.
"""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from emtoolkit.errors import first_line


def load_causal_lm(place: str | Path, **options: Any) -> Any:
    """The model at `place`; `options` are those of `from_pretrained`.

    Raises:
        OSError, ImportError: the model is not there, or a package is missing.
        ValueError: the files cannot be read, or lack weights of the model that `config.json` describes; the text is a
            phrase for the user.
    """
    loader: Any = AutoModelForCausalLM
    try:
        model, found = loader.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:  # libraries raise plain Exceptions and errors of pickle for files that they cannot read
        raise ValueError(first_line(error)) from error
    for name, there, expected in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"its files have {name} in the shape {tuple(there)}, and its config.json says {tuple(expected)}; one of "
            "them is of another model"
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"its files lack {len(missing)} weights, such as {missing[0]}, which would have random values; the "
            "config.json is of another model, or files are missing"
        )
    return model
