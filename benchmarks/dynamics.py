"""Time and peak memory of `emtoolkit dynamics` on a synthetic trajectory with the modules of Qwen2.5-7B.

    python -m benchmarks.dynamics [--checkpoints 100] [--rank 32] [--layers 2] [--json FILE]

Modules are read one after the other, so that time grows with the layers and peak memory does not; a whole 7B model has
28 layers, and its 100 checkpoints in float32 take 32 GB of disk.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.subject import report, scratch
from emtoolkit.analysis.dynamics import trajectory_dynamics
from emtoolkit.trajectory import Trajectory

LAYERS = 28
# Outputs and inputs of the seven projections.
SHAPES = {
    "self_attn.q_proj": (3584, 3584),
    "self_attn.k_proj": (512, 3584),
    "self_attn.v_proj": (512, 3584),
    "self_attn.o_proj": (3584, 3584),
    "mlp.gate_proj": (18944, 3584),
    "mlp.up_proj": (18944, 3584),
    "mlp.down_proj": (3584, 18944),
}


def write_trajectory(directory: Path, checkpoints: int, rank: int, layers: int) -> None:
    """A random walk of A and B in float32, with a checkpoint every 5 steps."""
    torch.manual_seed(0)
    weights = {}
    for layer in range(layers):
        for module, (outputs, inputs) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(rank, inputs) / inputs**0.5
            weights[f"{name}.lora_B.weight"] = torch.zeros(outputs, rank)
    for step in range(0, 5 * checkpoints, 5):
        place = directory / f"checkpoint-{step}"
        place.mkdir()
        save_file(weights, place / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "use_rslora": True}
        (place / "adapter_config.json").write_text(json.dumps(settings))
        (place / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 5 * checkpoints}))
        for tensor in weights.values():
            tensor += 1e-4 * torch.randn(tensor.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--json")
    options = parser.parse_args()
    with scratch() as directory:
        write_trajectory(directory, options.checkpoints, options.rank, options.layers)
        before = _peak_mb()
        began, cpu = time.perf_counter(), time.process_time()
        dynamics = trajectory_dynamics(Trajectory.open(directory))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    row = {
        "checkpoints": options.checkpoints,
        "rank": options.rank,
        "layers": options.layers,
        "wall s": f"{seconds:.0f}",
        "CPU s": f"{cpu:.0f}",
        "CPU s for 28 layers": f"{cpu * LAYERS / options.layers:.0f}",
        "peak MB": f"{_peak_mb():.0f}",
        "peak MB before": f"{before:.0f}",
        "norm at the end": f"{dynamics.steps[-1].norm:.4g}",
    }
    report("Dynamics at the size of Qwen2.5-7B", [row], options.json)


def _peak_mb() -> float:
    """The peak of the resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
