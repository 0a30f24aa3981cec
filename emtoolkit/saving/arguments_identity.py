"""The identity of a Trainer's arguments: all arguments except `EXCLUSIONS`, which change no weights."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emtoolkit.saving.describe import describe, is_off

_LOGS = "what is logged, and where"
_SAVES = "what the Trainer saves, which the schedule owns here"
_HUB = "uploads to the Hugging Face hub"
_STEPS = "the number of steps is in"
_MEASURES = "how an evaluation computes its numbers; when it runs is in, because it draws random numbers"
_SCRIPTS = "a flag for scripts, which the Trainer does not read"

# An argument that is not named here is in, also one that a later version of transformers adds.
EXCLUSIONS: Mapping[str, str] = {
    "auto_find_batch_size": "the batch size that is found is in",
    "batch_eval_metrics": _MEASURES,
    "bf16": "the precision in force is in, which the environment may change",
    "bf16_full_eval": _MEASURES,
    "dataloader_pin_memory": "how batches reach the GPU",
    "ddp_timeout": "how long a process waits for others",
    "debug": "looks for overflow",
    "disable_tqdm": _LOGS,
    "do_eval": _SCRIPTS,
    "do_predict": _SCRIPTS,
    "do_train": _SCRIPTS,
    "enable_jit_checkpoint": _SAVES,
    "eval_accumulation_steps": _MEASURES,
    "eval_do_concat_batches": _MEASURES,
    "eval_use_gather_object": _MEASURES,
    "fp16": "the precision in force is in, which the environment may change",
    "fp16_full_eval": _MEASURES,
    "hub_always_push": _HUB,
    "hub_model_id": _HUB,
    "hub_private_repo": _HUB,
    "hub_revision": _HUB,
    "hub_strategy": _HUB,
    "hub_token": _HUB,
    "include_for_metrics": _MEASURES,
    "include_num_input_tokens_seen": "counts tokens",
    "load_best_model_at_end": "refused beside a schedule",
    "local_rank": "which process this is",
    "log_level": _LOGS,
    "log_level_replica": _LOGS,
    "log_on_each_node": _LOGS,
    "logging_dir": _LOGS,
    "logging_first_step": _LOGS,
    "logging_nan_inf_filter": _LOGS,
    "logging_steps": _LOGS,
    "logging_strategy": _LOGS,
    "max_steps": _STEPS,
    "num_train_epochs": _STEPS,
    "output_dir": "where the run writes",
    "per_device_eval_batch_size": _MEASURES,
    "per_device_train_batch_size": "the batch size in force is in",
    "prediction_loss_only": _MEASURES,
    "project": _LOGS,
    "push_to_hub": _HUB,
    "report_to": _LOGS,
    "restore_callback_states_from_checkpoint": "what a resume restores",
    "resume_from_checkpoint": _SCRIPTS,
    "run_name": _LOGS,
    "save_on_each_node": _SAVES,
    "save_only_model": _SAVES,
    "save_safetensors": _SAVES,
    "save_steps": _SAVES,
    "save_strategy": _SAVES,
    "save_total_limit": _SAVES,
    "skip_memory_metrics": "measures memory",
    "torch_empty_cache_steps": "frees memory that is not in use",
    "trackio_bucket_id": _LOGS,
    "trackio_space_id": _LOGS,
    "trackio_static_space_id": _LOGS,
    "use_cpu": "the device in force is in",
    # Of TRL's trainers:
    "activation_offloading": "where activations are kept",
    "dataset_num_proc": "how many processes prepare the rows, which are in",
    "eval_packing": _MEASURES,
    "precompute_ref_batch_size": "how many rows are prepared at a time",
}
# How rows are loaded: in only where rows, or the collator, may draw random numbers, which they would do elsewhere.
LOADING: Mapping[str, str] = dict.fromkeys(
    (
        "dataloader_multiprocessing_context",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
    ),
    "loads the same rows, unless rows or collator draw random numbers",
)
# When an evaluation runs; nothing of it matters without one.
_EVALUATION = ("eval_delay", "eval_on_start", "eval_steps", "eval_strategy")


def arguments_identity(args: Any, total_steps: int, *, loading_decides: bool) -> dict[str, Any]:
    """The arguments that decide the weights of a training of `total_steps`, as JSON values.

    An option that is off (None, or False by default) is left out, so that a version of transformers that adds one
    changes no fingerprint.
    """
    excluded = set(EXCLUSIONS)
    if not loading_decides:
        excluded |= LOADING.keys()
    if not evaluates(args):
        excluded |= set(_EVALUATION)
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    values = {
        name: describe(_read_if_file(_as_declared(getattr(args, name), defaults[name])))
        for name in sorted(defaults.keys() - excluded)
        if not is_off(getattr(args, name, None), defaults[name])
    }
    if isinstance(fsdp := values.get("fsdp_config"), dict):
        # How the weights are gathered for a save.
        fsdp.pop("state_dict_type", None)
    # A value below 1 is a fraction of the run.
    values["warmup_steps"] = int(args.get_warmup_steps(total_steps))
    return values


def evaluates(args: Any) -> bool:
    """Whether the Trainer evaluates during training. Each evaluation draws a random number."""
    return bool(getattr(args, "eval_on_start", False)) or str(describe(args.eval_strategy)) != "no"


def _as_declared(value: Any, default: Any) -> Any:
    """`value` as a float where the default is one: `weight_decay=0` is `weight_decay=0.0`."""
    return float(value) if type(value) is int and isinstance(default, float) else value


def _read_if_file(value: Any) -> Any:
    """The content of a JSON file in place of its path: a moved file is the same configuration."""
    if isinstance(value, str) and value.endswith(".json") and (path := Path(value).expanduser()).is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return value
