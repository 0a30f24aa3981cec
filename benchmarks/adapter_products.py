"""What the adapters of one layer cost beside its base weights, by several ways to multiply.

    OMP_NUM_THREADS=1 python -m benchmarks.adapter_products

11 adapters of rank 8 with 8 rows each, as while answers are decoded: microseconds of CPU time of one thread, the least
of three rounds. The layers are those of the model of 26M parameters in `benchmarks.evaluation`.
"""

import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

ADAPTERS, ROWS, RANK = 11, 8, 8
LAYERS = ((512, 512), (512, 1408), (1408, 512))
_CALLS, _ROUNDS = 40, 3


def ways(inputs: int, outputs: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Each way to add the adapters of a layer to the output of the base weights, and the base weights alone."""
    x = torch.randn(ADAPTERS, ROWS, inputs)
    weight = torch.randn(outputs, inputs)
    a, b = torch.randn(ADAPTERS, inputs, RANK), torch.randn(ADAPTERS, RANK, outputs)
    rows = x.reshape(-1, inputs)
    output = torch.nn.functional.linear(x, weight)
    as_in_file = a.transpose(1, 2).contiguous()
    all_a, all_b = a.permute(1, 0, 2).reshape(inputs, -1).contiguous(), b.reshape(-1, outputs)
    own = torch.block_diag(*[torch.ones(ROWS, RANK)] * ADAPTERS)

    def block_diagonal() -> torch.Tensor:
        products = (rows @ all_a).view(ADAPTERS, ROWS, ADAPTERS, RANK)
        return torch.baddbmm(output, torch.diagonal(products, dim1=0, dim2=2).permute(2, 0, 1).contiguous(), b)

    return {
        "base weights": lambda: torch.nn.functional.linear(x, weight),
        "bmm, bmm, sum": lambda: output + torch.bmm(torch.bmm(x, a), b),
        "bmm, baddbmm": lambda: torch.baddbmm(output, torch.bmm(x, a), b),
        "A as in the file, bmm, baddbmm": lambda: torch.baddbmm(output, torch.bmm(x, as_in_file.transpose(1, 2)), b),
        "all A at once, block diagonal, baddbmm": block_diagonal,
        "all A at once, mask, all B at once": lambda: torch.addmm(
            output.view(-1, outputs), (rows @ all_a).mul_(own), all_b
        ),
    }


def microseconds(way: Callable[[], torch.Tensor]) -> float:
    """The CPU time of one call."""
    way()
    rounds = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        for _ in range(_CALLS):
            way()
        rounds.append((time.process_time() - start) / _CALLS * 1e6)
    return min(rounds)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        for inputs, outputs in LAYERS:
            print(f"{inputs} inputs, {outputs} outputs")
            for name, way in ways(inputs, outputs).items():
                print(f"  {name}: {microseconds(way):.0f}")


if __name__ == "__main__":
    main()
