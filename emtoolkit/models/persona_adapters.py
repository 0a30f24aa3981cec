"""The adapter of a persona: where its files are, whether it fits the base model, and how it gets into the model.

`locate` finds the files and what they are known by, `check_fits` compares them with the base model's shapes before any
weights are loaded, `merge` and `stack` put them in, and `without_persona` takes the persona out of a model for a
moment, so that the preflight can measure its effect.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.errors import CheckpointError, ConfigError, first_line, nearest
from emtoolkit.paths import cache_dir
from emtoolkit.personas import AdapterSource
from emtoolkit.storage.digests import FileDigest, canonical_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The adapter that is trained comes first: of several active ones a stock resume loads into the first.
TRAINED, PERSONA = "default", "persona"
# What an adapter's config says of where it came from and who wrote it; none of it changes a logit.
_NOT_DECISIVE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")


@dataclass(frozen=True, slots=True)
class PersonaAdapter:
    """An adapter that is on this machine; `directory` holds its config and its weights.

    `content` is a SHA-256 in hex over both, `revision` the commit on the hub, None for a directory.
    """

    source: AdapterSource
    directory: Path
    revision: str | None
    content: str


def locate(source: AdapterSource, *, download: bool) -> PersonaAdapter | None:
    """The adapter of `source`; None if it is on the hub, not in the local cache, and is not to be downloaded.

    Raises:
        ConfigError: there is no such directory, repository, revision or subfolder, or no LoRA adapter in it.
    """
    if Path(source.place).is_absolute():
        root, revision = Path(source.place), None
        if not root.is_dir():
            made = root.is_relative_to(cache_dir() / "sandbox")
            hint = f"; 'emtoolkit sandbox persona {root.name}' makes it" if made else ""
            raise ConfigError(f"persona: adapter: {root}: there is no such directory{hint}")
    else:
        found = _from_hub(source, download=download)
        if found is None:
            return None
        root, revision = found, found.name
    directory = root if source.subfolder is None else root / source.subfolder
    config = _read_config(directory, root, source)
    digest = hashlib.sha256(FileDigest.of(directory / WEIGHTS).sha256.encode())
    # PEFT keeps modules in sets and writes them in any order.
    decisive = {
        key: sorted(value) if key.endswith("_modules") and isinstance(value, list) else value
        for key, value in config.items()
        if key not in _NOT_DECISIVE
    }
    digest.update(canonical_json(decisive))
    return PersonaAdapter(source, directory, revision, digest.hexdigest())


def _from_hub(source: AdapterSource, *, download: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    prefix = "" if source.subfolder is None else f"{source.subfolder}/"
    patterns = [f"{prefix}{name}" for name in (CONFIG, WEIGHTS)]
    try:
        return Path(
            snapshot_download(
                source.place, revision=source.revision, allow_patterns=patterns, local_files_only=not download
            )
        )
    except LocalEntryNotFoundError as error:
        if not download:
            return None
        why = first_line(error)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = first_line(error)
    raise ConfigError(
        f"persona: adapter: {source.place!r} is neither a directory nor to be had from the hub ({why})"
    ) from None


def _read_config(directory: Path, root: Path, source: AdapterSource) -> Mapping[str, Any]:
    if not (directory / CONFIG).is_file():
        others = sorted(path.parent.relative_to(root).as_posix() for path in root.glob(f"*/{CONFIG}"))
        there = f"; its subfolders with one are {', '.join(others)}" if others else ""
        hint = nearest(source.subfolder or "", others)
        what = "subfolder" if source.subfolder is not None else "adapter"
        raise ConfigError(f"persona: {what}: {directory}: there is no {CONFIG} in it{there}{hint}")
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"persona: adapter: {directory / CONFIG}: it cannot be read ({error})") from None
    if kind != "LORA":
        raise ConfigError(f"persona: adapter: {directory}: it is a {kind} adapter, and a persona takes LORA")
    # Without this file PEFT would look for one that has to be unpickled.
    if not (directory / WEIGHTS).is_file():
        raise ConfigError(f"persona: adapter: {directory}: there is no {WEIGHTS} in it, and nothing is unpickled")
    return dict(config)


def check_fits(adapter: PersonaAdapter, base: BaseModelRecord, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """Check that `adapter` was trained on the model known as `base`, whose weights have these `shapes` (None: unknown).

    An adapter that emtoolkit trained has a manifest, which tells the base by its content. Of others two hub ids are
    compared by what comes behind the organisation, and the shapes must match in any case.

    Raises:
        ConfigError: it was trained on another base, or does not fit in shape.
    """
    directory = adapter.directory
    if (directory / MANIFEST).is_file():
        try:
            trained_on = Manifest.read(directory).base_model
        except CheckpointError as error:
            raise ConfigError(f"persona: adapter: {error}") from None
        if trained_on.content is not None and trained_on.content != base.content:
            raise ConfigError(
                f"persona: adapter: {directory}: it was trained on another base ({trained_on.name}, content "
                f"{trained_on.content[:8]}) than model.base ({base.name}, content {str(base.content)[:8]})"
            )
    named = str(json.loads((directory / CONFIG).read_text()).get("base_model_name_or_path") or "")
    both = [named, str(base.name)]
    if all(_is_hub_id(name) for name in both) and len({name.split("/")[1].lower() for name in both}) == 2:
        raise ConfigError(f"persona: adapter: {directory}: it was trained on {named}, and model.base is {base.name}")
    if shapes is not None:
        _check_shapes(directory, str(base.name), shapes)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("/", ".", "~"))


def _check_shapes(directory: Path, base: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            names = list(file.keys())
            of_adapter = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"persona: adapter: {directory / WEIGHTS}: it cannot be read ({first_line(error)})") from None
    for name, shape in of_adapter.items():
        module, matrix, _ = name.removeprefix("base_model.model.").rpartition(".lora_")
        side = {"A.weight": 1, "B.weight": 0}.get(name.rpartition(".lora_")[2])
        if not matrix or side is None:
            continue
        weight = shapes.get(f"{module}.weight")
        if weight is None:
            raise ConfigError(f"persona: adapter: {directory}: it changes {module}, which {base} does not have")
        if weight[side] != shape[side]:
            raise ConfigError(
                f"persona: adapter: {directory}: it is for a model whose {module} has {shape[side]} "
                f"{'inputs' if side else 'outputs'}, and that of {base} has {weight[side]}"
            )


def merge(model: Any, adapter: PersonaAdapter) -> Any:
    """`model`, which this changes, with the adapter folded into its weights.

    W + scaling · B A (LoRA, Hu et al. 2021, eq. 3) is summed in float32, whatever the adapter is stored in, and
    rounded once to the dtype of the model.
    """
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    merged = _loaded(model, adapter, TRAINED).merge_and_unload()
    for name, parameter in merged.named_parameters():
        # PEFT has frozen them all.
        parameter.requires_grad_(name in learns)
    return merged


def stack(model: Any, adapter: PersonaAdapter) -> None:
    """Put the adapter beside the one that `model` trains: frozen, and active in every forward pass."""
    model.load_adapter(adapter.directory, PERSONA, is_trainable=False)
    activate(model)


def activate(model: Any) -> None:
    """Let both adapters of a stacked `model` take part; only the first is trained.

    `PeftModel.set_adapter` takes one name, and that of the tuner makes all it is given trainable.
    """
    trains = any(p.requires_grad for name, p in model.named_parameters() if f".{TRAINED}." in name)
    model.base_model.set_adapter([TRAINED, PERSONA], inference_mode=not trains)
    model.set_requires_grad(PERSONA, requires_grad=False)


@contextmanager
def without_persona(model: Any, adapter: PersonaAdapter) -> Iterator[Any]:
    """`model` without the persona's adapter, for as long as this is open; what is trained stays so.

    A stacked one is switched off. A merged one is taken away by adding its negative, so that no weight of the model is
    touched.
    """
    from peft import PeftModel

    stacked, adapted = adapter.source.compose == "stack", isinstance(model, PeftModel)
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    without: Any = model
    try:
        if stacked:
            without.base_model.set_adapter([TRAINED])
        elif adapted:
            without.load_adapter(adapter.directory, PERSONA, is_trainable=False)
            without.base_model.set_adapter([TRAINED, PERSONA])
            _negate(without)
        else:
            without = _loaded(model, adapter, PERSONA)
            _negate(without)
        yield without
    finally:
        if stacked:
            without.base_model.set_adapter([TRAINED, PERSONA])
        elif adapted:
            without.delete_adapter(PERSONA)
            _unwrap_what_has_no_adapter(without)
            without.base_model.set_adapter([TRAINED])
        elif without is not model:
            without.unload()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in learns:
            parameter.requires_grad_(True)


def _unwrap_what_has_no_adapter(model: Any) -> None:
    """PEFT leaves a layer wrapped when the last of its adapters is deleted."""
    from peft.tuners.lora import LoraLayer

    inner = model.base_model.model
    for name, layer in list(inner.named_modules()):
        if isinstance(layer, LoraLayer) and not (layer.lora_A or layer.lora_embedding_A):
            parent, _, child = name.rpartition(".")
            setattr(inner.get_submodule(parent), child, layer.get_base_layer())


def _negate(model: Any) -> None:
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and PERSONA in layer.scaling:
            layer.scaling[PERSONA] *= -1


def _loaded(model: Any, adapter: PersonaAdapter, name: str) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter.directory, adapter_name=name)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"persona: adapter: {adapter.directory}: it cannot be loaded ({first_line(error)})") from None
