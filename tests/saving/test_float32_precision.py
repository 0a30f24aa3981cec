"""The float32 precision of torch in the fingerprint, whichever of torch's two interfaces asked for it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from emtoolkit.saving.float32_precision import float32_precision, without_tf32

BACKENDS: Any = torch.backends
CHANGED: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "nothing": (lambda: None, {}),
    "set_float32_matmul_precision": (lambda: torch.set_float32_matmul_precision("high"), {"matmul": "high"}),
    "medium": (lambda: torch.set_float32_matmul_precision("medium"), {"matmul": "medium"}),
    "allow_tf32": (lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True), {"matmul": "high"}),
    "cudnn off": (lambda: setattr(BACKENDS.cudnn, "allow_tf32", False), {"cudnn_tf32": False}),
    # What transformers sets for tf32=True and torch_compile=True on a GPU.
    "all": (
        lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
        {"matmul": "high", "mkldnn": {"conv": "tf32", "rnn": "tf32"}},
    ),
    "matmul of cuda": (lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"), {"matmul": "high"}),
    "matmul of the CPU": (lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"), {"matmul": "medium"}),
    "conv": (lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"), {"cudnn_tf32": {"conv": "ieee"}}),
    "conv of the CPU": (
        lambda: setattr(BACKENDS.mkldnn.conv, "fp32_precision", "bf16"),
        {"mkldnn": {"conv": "bf16"}},
    ),
}


def operations() -> list[Any]:
    cuda, cudnn, mkldnn = BACKENDS.cuda.matmul, BACKENDS.cudnn, BACKENDS.mkldnn
    return [BACKENDS, cudnn, mkldnn, cuda, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


def values() -> list[str]:
    return [each.fp32_precision for each in operations()]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = values()
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32 = False, True
    for each, value in zip(operations(), before, strict=True):
        each.fp32_precision = value
    assert torch.get_float32_matmul_precision() == "highest"
    assert BACKENDS.cudnn.allow_tf32


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_precision_is_named_alike_by_both_interfaces(case: str) -> None:
    change, expected = CHANGED[case]
    change()
    assert {name: value for name, value in float32_precision().items() if value is not None} == expected


@pytest.mark.parametrize("case", CHANGED)
def test_tf32_is_off_inside_the_block_and_as_before_after_it(case: str) -> None:
    CHANGED[case][0]()
    before = values()
    with without_tf32():
        inside = float32_precision()
        assert BACKENDS.cuda.matmul.fp32_precision in ("none", "ieee")
        assert inside["cudnn_tf32"] is False
    assert values() == before
