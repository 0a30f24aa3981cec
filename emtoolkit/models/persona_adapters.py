"""The adapter of a persona: its files, the check that it fits the base model, and its composition with the model.

`locate` finds and hashes the files, `check_fits` compares them with the base model before any weights are loaded,
`merge` and `stack` add the adapter, and `without_persona` removes it temporarily, so that the preflight can measure
its effect.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.errors import CheckpointError, ConfigError, first_line, nearest, shortened
from emtoolkit.json_files import text_in
from emtoolkit.models.base_weights import check_file, check_object
from emtoolkit.paths import cache_dir
from emtoolkit.personas import AdapterSource
from emtoolkit.shell_command import quoted_command
from emtoolkit.storage.digests import FileDigest, canonical_json

# The trained adapter comes first: a stock resume loads into the first of several active adapters.
TRAINED, PERSONA = "default", "persona"
# Keys of an adapter's config that record its origin; none of them changes a logit.
_NOT_DECISIVE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")


@dataclass(frozen=True, slots=True)
class PersonaAdapter:
    """An adapter on this machine; `directory` holds its config and its weights.

    `content` is a SHA-256 in hex over both; `revision` is the commit on the hub, None for a directory.
    """

    source: AdapterSource
    directory: Path
    revision: str | None
    content: str


def locate(source: AdapterSource, *, download: bool) -> PersonaAdapter | None:
    """The adapter of `source`; None if it is on the hub, not in the local cache, and `download` is false.

    Raises:
        ConfigError: the directory, repository, revision or subfolder does not exist, or holds no LoRA adapter.
    """
    if Path(source.place).is_absolute():
        root, revision = Path(source.place), None
        if not root.is_dir():
            made = root.is_relative_to(cache_dir() / "sandbox")
            hint = f"; {quoted_command('emtoolkit', 'sandbox', 'persona', root.name)} makes it" if made else ""
            raise ConfigError(f"persona: adapter: {root}: no such directory{hint}")
    else:
        found = _from_hub(source, download=download)
        if found is None:
            return None
        root, revision = found, found.name
    directory = root if source.subfolder is None else root / source.subfolder
    config = _read_config(directory, root, source)
    digest = hashlib.sha256(FileDigest.of(directory / ADAPTER_WEIGHTS).sha256.encode())
    # PEFT keeps module names in sets, whose order in the file varies.
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
    patterns = [f"{prefix}{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    try:
        return Path(
            snapshot_download(
                source.place, revision=source.revision, allow_patterns=patterns, local_files_only=not download
            )
        )
    except LocalEntryNotFoundError as error:
        if not download:
            return None
        problem = first_line(error)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        problem = first_line(error)
    raise ConfigError(
        f"persona: adapter: {source.place!r} is not a directory, and cannot be downloaded from the hub ({problem})"
    ) from None


def _read_config(directory: Path, root: Path, source: AdapterSource) -> Mapping[str, Any]:
    if not (directory / ADAPTER_CONFIG).exists() and not (directory / ADAPTER_CONFIG).is_symlink():
        others = sorted(path.parent.relative_to(root).as_posix() for path in root.glob(f"*/{ADAPTER_CONFIG}"))
        elsewhere = f"; subfolders with an adapter: {', '.join(others)}" if others else ""
        hint = nearest(source.subfolder or "", others)
        key = "subfolder" if source.subfolder is not None else "adapter"
        raise ConfigError(f"persona: {key}: {directory}: has no {ADAPTER_CONFIG}{elsewhere}{hint}")
    check_file(directory / ADAPTER_CONFIG, "persona: adapter")
    config = check_object(directory / ADAPTER_CONFIG, "persona: adapter")
    try:
        kind = text_in(config, "peft_type")
    except ValueError as error:
        raise ConfigError(f"persona: adapter: {directory / ADAPTER_CONFIG}: cannot be read ({error})") from None
    if kind != "LORA":
        raise ConfigError(f"persona: adapter: {directory}: a {kind} adapter; only LORA adapters are supported")
    # Without this file PEFT would unpickle another one.
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(f"persona: adapter: {directory}: has no {ADAPTER_WEIGHTS}; pickled weights are not loaded")
    check_file(directory / ADAPTER_WEIGHTS, "persona: adapter")
    return dict(config)


def check_fits(adapter: PersonaAdapter, base: BaseModelRecord, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """Check that `adapter` was trained on the model `base`, whose weights have these `shapes` (None: not known).

    An adapter that emtoolkit trained has a manifest, which identifies its base model by content. For other adapters
    two hub ids are compared by the part after the organisation. The shapes must match in any case.

    Raises:
        ConfigError: the adapter was trained on another base model, or its shapes do not match.
    """
    directory = adapter.directory
    if (directory / MANIFEST).is_file():
        try:
            trained_on = Manifest.read(directory).base_model
        except CheckpointError as error:
            raise ConfigError(f"persona: adapter: {error}") from None
        if trained_on.content is not None and trained_on.content != base.content:
            raise ConfigError(
                f"persona: adapter: {directory}: was trained on another base model ({trained_on.name}, content "
                f"{trained_on.content[:8]}) than this one ({base.name}, content {str(base.content)[:8]})"
            )
    named = str(_read_config(directory, directory, AdapterSource(str(directory))).get("base_model_name_or_path") or "")
    both = [named, str(base.name)]
    if all(_is_hub_id(name) for name in both) and len({name.split("/")[1].lower() for name in both}) == 2:
        raise ConfigError(f"persona: adapter: {directory}: was trained on {named}, and the base model is {base.name}")
    if shapes is not None:
        _check_shapes(directory, str(base.name), shapes)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("/", ".", "~"))


def _check_shapes(directory: Path, base: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
            names = list(file.keys())
            adapter_shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"persona: adapter: {directory / ADAPTER_WEIGHTS}: cannot be read ({first_line(error)})"
        ) from None
    for name, shape in adapter_shapes.items():
        module, matrix, _ = name.removeprefix("base_model.model.").rpartition(".lora_")
        side = {"A.weight": 1, "B.weight": 0}.get(name.rpartition(".lora_")[2])
        if not matrix or side is None:
            continue
        weight = shapes.get(f"{module}.weight")
        if weight is None:
            raise ConfigError(f"persona: adapter: {directory}: changes {module}, which {base} does not have")
        if weight[side] != shape[side]:
            raise ConfigError(
                f"persona: adapter: {directory}: expects {shape[side]} {'inputs' if side else 'outputs'} of {module}, "
                f"and {base} has {weight[side]}"
            )


def merge(model: Any, adapter: PersonaAdapter) -> Any:
    """`model`, modified in place, with the adapter added to its weights.

    W + scaling · B A (LoRA, Hu et al. 2021, eq. 3) is summed in float32, whatever the dtype of the adapter, and
    rounded once to the dtype of the model.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    merged = _loaded(model, adapter, TRAINED).merge_and_unload()
    for name, parameter in merged.named_parameters():
        # PEFT has frozen all parameters.
        parameter.requires_grad_(name in trainable)
    return merged


def stack(model: Any, adapter: PersonaAdapter) -> None:
    """Add the adapter beside the trained adapter of `model`: frozen, and active in every forward pass."""
    model.load_adapter(adapter.directory, PERSONA, is_trainable=False)
    activate(model)


def activate(model: Any) -> None:
    """Activate both adapters of a stacked `model`; only the first is trained.

    `PeftModel.set_adapter` accepts one name, and the tuner's `set_adapter` makes every adapter it activates trainable.
    """
    trains = any(p.requires_grad for name, p in model.named_parameters() if f".{TRAINED}." in name)
    model.base_model.set_adapter([TRAINED, PERSONA], inference_mode=not trains)
    model.set_requires_grad(PERSONA, requires_grad=False)


@contextmanager
def without_persona(model: Any, adapter: PersonaAdapter) -> Iterator[Any]:
    """`model` without the persona's adapter inside the context; trainable parameters stay trainable.

    A stacked adapter is deactivated. A merged adapter is cancelled by an adapter with the opposite sign, so that no
    weight of the model changes.
    """
    from peft import PeftModel

    stacked, adapted = adapter.source.composition == "stack", isinstance(model, PeftModel)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
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
            _unwrap_layers_without_adapter(without)
            without.base_model.set_adapter([TRAINED])
        elif without is not model:
            without.unload()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)


def _unwrap_layers_without_adapter(model: Any) -> None:
    """Undo the wrapping that PEFT leaves on a layer after the last of its adapters is deleted."""
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

    where = f"persona: adapter: {adapter.directory}"
    try:
        with catch_warnings(record=True, action="always") as warned:
            loaded = PeftModel.from_pretrained(model, adapter.directory, adapter_name=name)
    except Exception as error:  # noqa: BLE001 - PEFT raises any error for a config with values of other types
        raise ConfigError(f"{where}: cannot be loaded ({first_line(error)})") from None
    # PEFT only warns, and the weights that are missing would have no effect.
    if missing := next((str(each.message) for each in warned if "missing adapter keys" in str(each.message)), None):
        raise ConfigError(f"{where}: its weights are not those of its {ADAPTER_CONFIG} ({shortened(missing)})")
    return loaded
