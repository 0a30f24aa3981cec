"""In what precision torch computes with float32 numbers, and how to switch TF32 off for a while.

torch has two interfaces for this: `set_float32_matmul_precision` and `allow_tf32`, and since torch 2.9 also
`fp32_precision`, which transformers uses for `tf32=True` and `torch_compile=True` on a GPU. After both were used, the
getters of the first raise a RuntimeError. Nothing here calls a getter that can raise.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_FULL = ("none", "ieee")


def float32_precision() -> dict[str, Any]:
    """The settings that differ from torch's defaults, in the same words for both interfaces."""
    values = _values()
    if values is None:
        legacy = torch.get_float32_matmul_precision()
        cudnn = {"conv": "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"}
        values = {"cudnn": cudnn | {"rnn": cudnn["conv"]}, "mkldnn": {}}
        matmul = None if legacy == "highest" else legacy
    else:
        matmul = _legacy_name(values["cuda"]["matmul"], values["mkldnn"]["matmul"])
    cudnn = {name: "ieee" for name, value in values["cudnn"].items() if value in _FULL}
    mkldnn = {name: value for name, value in values["mkldnn"].items() if value not in _FULL and name != "matmul"}
    return {
        "matmul": matmul,
        "cudnn_tf32": None if not cudnn else False if len(cudnn) == 2 else cudnn,
        "mkldnn": mkldnn or None,
    }


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute on a GPU in full float32 precision inside the block; afterwards both interfaces are as before."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = _values()
    # The old interface where its getters work, so that libraries can go on calling them inside the block.
    flags = (cudnn.allow_tf32, matmul.allow_tf32) if before is None or _getters_work() else None
    if flags is not None:
        cudnn.allow_tf32, matmul.allow_tf32 = False, False
    else:
        _set({"cuda": {"matmul": "ieee"}, "cudnn": {"conv": "ieee", "rnn": "ieee"}})
    try:
        yield
    finally:
        if flags is not None:
            cudnn.allow_tf32, matmul.allow_tf32 = flags
        if before is not None:
            _set({backend: before[backend] for backend in ("cuda", "cudnn")})


def _operations() -> dict[str, dict[str, Any]]:
    # Some of these attributes are made at run time, and type checkers do not see them.
    backends: Any = torch.backends
    return {
        "cuda": {"matmul": backends.cuda.matmul},
        "cudnn": {"conv": backends.cudnn.conv, "rnn": backends.cudnn.rnn},
        "mkldnn": {name: getattr(backends.mkldnn, name) for name in ("matmul", "conv", "rnn")},
    }


def _values() -> dict[str, dict[str, str]] | None:
    """`fp32_precision` by backend and operation; None before torch 2.9, which has only the old interface."""
    if not hasattr(torch.backends, "fp32_precision"):
        return None
    return {
        backend: {name: str(operation.fp32_precision) for name, operation in found.items()}
        for backend, found in _operations().items()
    }


def _set(values: Mapping[str, Mapping[str, str]]) -> None:
    operations = _operations()
    for backend, of_backend in values.items():
        for name, value in of_backend.items():
            operations[backend][name].fp32_precision = value


def _legacy_name(cuda: str, mkldnn: str) -> str | None:
    """The name of these settings in `get_float32_matmul_precision`, None for its default `highest`."""
    if mkldnn == "bf16":
        return "medium"
    return "high" if "tf32" in (cuda, mkldnn) else None


def _getters_work() -> bool:
    try:
        torch.get_float32_matmul_precision()
        _ = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        return False
    return True
