"""`emtoolkit train` itself, with each way in which a persona enters the model."""

from collections.abc import Iterator

from emtoolkit.config.load import load_config
from emtoolkit.errors import UserError
from emtoolkit.training.run import train
from tests.gpu_check.device import Device, Outcome
from tests.tiny import config_text, write_world

_RUNS = {
    "baseline": ("baseline", []),
    "system prompt": ("curt", []),
    "merged adapter": ("warm", ["compose=merge"]),
    "stacked adapter": ("warm", ["compose=stack"]),
    "all weights": ("curt", ["lora=null"]),
}


def check_command(device: Device) -> Iterator[Outcome]:
    """Runs in bfloat16, under autocast on a GPU, that save four checkpoints."""
    world = write_world(device.home / "world")
    config = device.home / "config.yaml"
    config.write_text(config_text(world))
    shared = ["wandb.mode=disabled", "model.dtype=bfloat16", f"training.bf16={str(device.is_gpu).lower()}"]
    # A threshold for tiny models in bfloat16.
    shared += [f"model.device={device.name}", "preflight.threshold=0.0001"]
    for name, (persona, settings) in _RUNS.items():
        flags = {"output_dir": str(device.home / f"train-{persona}-{len(name)}"), "persona": persona}
        try:
            result = train(load_config(str(config), [*shared, *settings], flags))
        except UserError as error:
            yield Outcome.of(f"emtoolkit train, {name}", False, error)
            continue
        effects = ", ".join(f"{effect.largest:.2g}" for effect in result.persona_effects)
        yield Outcome.of(f"emtoolkit train, {name}", len(result.checkpoints) == 4, f"effects of the persona {effects}")
