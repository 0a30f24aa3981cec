"""`training.deterministic`: the settings of torch and its libraries that let a training give the same bytes again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from emtoolkit.errors import ConfigError, first_line
from emtoolkit.saving.float32_precision import without_tf32

# cuBLAS reads the first when it is loaded, FlashAttention through transformers the second at its first call.
_CUBLAS, _CUBLAS_VALUES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
_FLASH_ATTENTION = "FLASH_ATTENTION_DETERMINISTIC"


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Compute with deterministic kernels and without TF32 inside the block, if `enabled`; nothing else changes.

    The block must be entered before the first computation on a GPU.

    Raises:
        ConfigError: an operation of the model has no deterministic implementation.
    """
    if not enabled:
        yield
        return
    cudnn = torch.backends.cudnn
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    # Its attribute is made at run time, and type checkers do not see it.
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    variables = {name: os.environ.get(name) for name in (_CUBLAS, _FLASH_ATTENTION)}
    torch.use_deterministic_algorithms(True)
    # Only a program that reads memory before it writes there needs the filling, which takes time.
    memory.fill_uninitialized_memory = False
    cudnn.deterministic, cudnn.benchmark = True, False
    if os.environ.get(_CUBLAS) not in _CUBLAS_VALUES:
        os.environ[_CUBLAS] = _CUBLAS_VALUES[0]
    os.environ[_FLASH_ATTENTION] = "1"
    try:
        with without_tf32():
            yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        problem = first_line(error).partition(", but you set")[0]
        raise ConfigError(f"training.deterministic: {problem}; set it to false") from error
    finally:
        memory.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        cudnn.deterministic, cudnn.benchmark = flags
        for name, value in variables.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
