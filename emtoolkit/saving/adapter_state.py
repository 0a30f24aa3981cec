"""The trainable PEFT adapter of a model, as the two files that `PeftModel.from_pretrained` loads.

PEFT decides which tensors belong to an adapter: `get_peft_model_state_dict` is called on the live parameters. For most
methods it returns the parameters themselves; what it computes (prompts, indices, pruned ranks) is computed again at
every save.
"""

import copy
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.live_tensors import place
from emtoolkit.saving.model_identity import hub_id, in_one_order
from emtoolkit.saving.model_state import (
    FullState,
    Listing,
    ModelState,
    WriteFiles,
    check_not_compiled_inside,
    failures_as_os_errors,
    link_files,
    without_compilation,
)
from emtoolkit.storage.digests import canonical_json

# PEFT prepends this to the names of all weights of a PeftModel, and expects it when it loads an adapter.
_PEFT_PREFIX = "base_model.model."

# Initializations that change the base model's weights, and that PEFT does not repeat when it loads an adapter.
_UNREPEATED_INITS = {
    "corda": "needs activations of the base model",
    "loftq": "quantizes them at each load on a GPU; use replace_lora_weights_loftq on a quantized base model",
    "lora_ga": "needs gradients of the base model",
    "pissa_niter_": "draws random numbers; 'pissa' does not",
}


class AdapterState:
    """The trainable adapter of `model`: a PeftModel, or a model that adapters were added to in place.

    Raises:
        CheckpointError: the model trains no adapter or more than one, or weights that the files could not hold.
    """

    def __init__(self, model: Any) -> None:
        from peft import PeftMixedModel, PeftModel

        if isinstance(model, PeftMixedModel):
            raise CheckpointError(
                "the model is a PeftMixedModel, which PEFT cannot save; use get_peft_model with mixed=False"
            )
        check_not_compiled_inside(model)
        self._model = model
        self._name = _trainable_adapter(model)
        _check_loads_again(model.peft_config[self._name])
        self._is_wrapped = isinstance(model, PeftModel)
        self._saves_embeddings = _saves_embeddings(model, self._name)
        self._listing = Listing(model, self._list_tensors)
        # PEFT chooses the tensors by the config, which some methods change in training (AdaLoRA's rank_pattern).
        self._listed_for: Any = None
        self._config = b""
        _check_holds_what_is_trained(model, self._name, self.tensors)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        config = vars(self._model.peft_config[self._name])
        if self._listed_for != config:
            self._listing = Listing(self._model, self._list_tensors)
        tensors = self._listing.look()
        if self._listed_for != config:
            # PEFT may normalize the config when it lists the tensors.
            self._listed_for = copy.deepcopy(config)
            self._config = _config_json(self._model, self._name)
        return tensors

    def still_lists(self, listing: Mapping[str, Tensor]) -> bool:
        return self._listed_for == vars(self._model.peft_config[self._name]) and self._listing.is_current(listing)

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of `adapter_config.json`."""
        values: Mapping[str, Any] = json.loads(self._config)
        return values

    def writer(self) -> WriteFiles:
        config = self._config

        def write(directory: Path, tensors: Mapping[str, Tensor]) -> None:
            with failures_as_os_errors():
                save_file_with_ties(tensors, directory / ADAPTER_WEIGHTS)
            (directory / ADAPTER_CONFIG).write_bytes(config)

        return write

    def adopt(self, source: Path, directory: Path) -> None:
        link_files(source, directory, (ADAPTER_WEIGHTS,))
        (directory / ADAPTER_CONFIG).write_bytes(self._config)

    def _list_tensors(self) -> Mapping[str, Tensor]:
        tensors = _peft_tensors(self._model, self._name, self._saves_embeddings)
        if self._is_wrapped:
            return tensors
        return {f"{_PEFT_PREFIX}{name}": tensor for name, tensor in tensors.items()}


def model_state(model: Any) -> ModelState:
    """The state that checkpoints of `model` hold: the trainable adapter under PEFT, otherwise all weights.

    Raises:
        CheckpointError: no checkpoint can hold everything that the model trains.
    """
    model = without_compilation(model)
    return AdapterState(model) if getattr(model, "peft_config", None) else FullState(model)


def save_file_with_ties(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write `tensors` as PEFT does: a tensor with two names is written twice, because PEFT reads both."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        separate[name] = tensor.clone() if id(tensor) in seen else tensor.contiguous()
        seen.add(id(tensor))
    save_file(separate, file, metadata={"format": "pt"})


def _peft_tensors(model: Any, adapter: str, saves_embeddings: Any) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    with _undisturbed(model, adapter):
        tensors: dict[str, Tensor] = get_peft_model_state_dict(
            model,
            state_dict=model.state_dict(keep_vars=True),
            adapter_name=adapter,
            save_embedding_layers=saves_embeddings,
        )
    return tensors


@contextmanager
def _undisturbed(model: Any, adapter: str) -> Iterator[None]:
    """Keep a prompt encoder as it is, which PEFT runs to save its output: dropout draws, CPT replaces its weights."""
    if not model.peft_config[adapter].is_prompt_learning:
        yield
        return
    encoder = model.prompt_encoder[adapter]
    was_training, weights = encoder.training, [(parameter, parameter.data) for parameter in encoder.parameters()]
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(was_training)
        for parameter, data in weights:
            parameter.data = data


def _config_json(model: Any, adapter: str) -> bytes:
    """The bytes of `adapter_config.json` as PEFT saves it, in an order that does not depend on PYTHONHASHSEED."""
    config = model.peft_config[adapter]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    values = config.to_dict() | {"inference_mode": True}
    # The path of a directory is another one on another machine, and would give equal checkpoints other bytes.
    place = values.get("base_model_name_or_path") or getattr(base, "name_or_path", None)
    values["base_model_name_or_path"] = hub_id(place)
    if config.task_type is None:
        # As PEFT does, so that AutoPeftModel finds the class.
        base_class = type(base)
        values["auto_mapping"] = {"base_model_class": base_class.__name__, "parent_library": base_class.__module__}
    return canonical_json(in_one_order(values))


def _trainable_adapter(model: Any) -> str:
    names = list(model.peft_config)
    if any(config.peft_type == "XLORA" for config in model.peft_config.values()):
        raise CheckpointError(
            "the model mixes adapters by X-LoRA, whose classifier PEFT leaves out of its files (it takes the number of "
            "a layer for the name of an adapter); train one of the adapters instead"
        )
    if len(names) == 1:
        trainable = names if any(p.requires_grad for p in model.parameters()) else []
    else:
        containers = [m for m in model.modules() if isinstance(m, (nn.ModuleDict, nn.ParameterDict))]
        trainable = [name for name in names if any(_trains(c[name]) for c in containers if name in c)]
    if len(trainable) != 1:
        raise CheckpointError(
            f"the model trains {len(trainable)} of its adapters ({', '.join(names)}); a checkpoint holds "
            "exactly one, so make exactly one trainable"
        )
    return str(trainable[0])


def _trains(entry: Any) -> bool:
    parameters: Iterable[Tensor] = entry.parameters() if isinstance(entry, nn.Module) else [entry]
    return any(parameter.requires_grad for parameter in parameters)


def _saves_embeddings(model: Any, adapter: str) -> bool:
    """Whether PEFT saves the embeddings and the head of `model` too: they are adapted, or the vocabulary was resized.

    PEFT's "auto" asks the hub about the base model's vocabulary, so the answer is kept for the whole training.
    """
    with warnings.catch_warnings():
        # PEFT warns that it saves embeddings, and that it could not reach the hub.
        warnings.simplefilter("ignore")
        by_peft = _peft_tensors(model, adapter, "auto").keys()
    if by_peft != _peft_tensors(model, adapter, False).keys():
        return True
    return _vocabulary_was_resized(model, adapter)


def _vocabulary_was_resized(model: Any, adapter: str) -> bool:
    """Whether the embedding has another number of rows than the base model on disk or in the hub's cache.

    PEFT does not look into the cache when the hub is offline, at the text model of an image model, or at an embedding
    that was replaced by hand.
    """
    from transformers import AutoConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    place = getattr(model.peft_config[adapter], "base_model_name_or_path", None) or getattr(base, "name_or_path", None)
    embedding = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    rows = getattr(getattr(embedding, "weight", None), "shape", (None,))[0]
    if not place or rows is None:
        return False
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        # A model that was made from a config, or one whose code is not transformers' own.
        return False
    return bool(rows != getattr(config.get_text_config(), "vocab_size", rows))


def _check_loads_again(config: Any) -> None:
    init = str(getattr(config, "init_lora_weights", ""))
    for name, reason in _UNREPEATED_INITS.items():
        if init.startswith(name):
            raise CheckpointError(
                f"init_lora_weights: '{init}' changes the base model's weights and {reason}, so PEFT cannot load a "
                "checkpoint on the unchanged base model to the same model; use another initialization"
            )


def _check_holds_what_is_trained(model: Any, adapter: str, tensors: Mapping[str, Tensor]) -> None:
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    held = {place(tensor) for tensor in tensors.values()}
    live = {place(tensor) for tensor in (*model.parameters(), *model.buffers())}
    computes = not held <= live
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[model.peft_config[adapter].peft_type]
    missing = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and place(parameter) not in held
        and not (computes and (prefix in name or name.startswith("prompt_encoder.")))
    ]
    if missing:
        raise CheckpointError(
            f"the model trains '{missing[0]}' ({len(missing)} such weights), which PEFT does not save with the adapter "
            f"'{adapter}', so no checkpoint would be the model; freeze the weights, name their modules in "
            "modules_to_save, or give an adapter whose name is also a module's another name"
        )
