"""The changes of `benchmarks.fingerprint_table`: every training argument and option of a LoRA, or why it is left."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import LoraRuntimeConfig

Of = Literal["argument", "LoRA"]
Options = Mapping[str, Any]

_EVALUATES: Options = {"eval_strategy": "steps", "eval_steps": 1}
_WORKERS: Options = {"dataloader_num_workers": 1}

# Fields that are not changed here, and why.
NOT_CHANGED: Mapping[tuple[Of, str], str] = {
    ("argument", "ddp_backend"): "raises an error in a single process",
    ("argument", "deepspeed"): "needs the package deepspeed and several processes",
    ("argument", "fp16"): "needs a GPU",
    ("argument", "fsdp"): "needs several processes",
    ("argument", "fsdp_config"): "needs several processes",
    ("argument", "hub_revision"): "is read by an upload only",
    ("argument", "liger_kernel_config"): "needs the package liger-kernel and a GPU",
    ("argument", "load_best_model_at_end"): "is refused beside a schedule",
    ("argument", "local_rank"): "is set by a launcher",
    ("argument", "optim_target_modules"): "needs the package galore-torch or apollo-torch",
    ("argument", "parallelism_config"): "needs several processes",
    ("argument", "push_to_hub"): "needs a network",
    ("argument", "save_total_limit"): "is refused beside a schedule",
    ("argument", "tf32"): "needs a GPU",
    ("argument", "torch_compile_mode"): "is an option of inductor, which compiles for minutes",
    ("argument", "use_liger_kernel"): "needs the package liger-kernel and a GPU",
    ("LoRA", "arrow_config"): "routes between adapters that are trained already",
    ("LoRA", "corda_config"): "needs covariances of activations, collected before",
    ("LoRA", "layer_replication"): "fails in PEFT for a model whose config has a list of layer types",
    ("LoRA", "eva_config"): "needs activations, collected before",
    ("LoRA", "inference_mode"): "freezes the adapter, so there is nothing to train",
    ("LoRA", "loftq_config"): "needs a base model in 4-bit",
    ("LoRA", "lora_ga_config"): "needs gradients, collected before",
    ("LoRA", "megatron_config"): "needs the package megatron",
    ("LoRA", "megatron_core"): "needs the package megatron",
    ("LoRA", "peft_type"): "is set by the class of the config",
    ("LoRA", "qalora_group_size"): "needs a base model quantised with GPTQ",
    ("LoRA", "use_bdlora"): "needs several GPUs",
    ("LoRA", "use_qalora"): "needs a base model quantised with GPTQ",
}


@dataclass(frozen=True)
class Change:
    """The value `changed` of one field, beside a training with the other options of `beside`."""

    of: Of
    name: str
    changed: Any
    beside: Options = field(default_factory=dict)


def _arguments(beside: Options | None = None, **changed: Any) -> list[Change]:
    return [Change("argument", name, value, beside or {}) for name, value in changed.items()]


def _lora(beside: Options | None = None, **changed: Any) -> list[Change]:
    return [Change("LoRA", name, value, beside or {}) for name, value in changed.items()]


CHANGES: tuple[Change, ...] = (
    *_arguments(
        accelerator_config={"use_seedable_sampler": False},
        activation_checkpointing=True,
        adam_beta1=0.5,
        adam_beta2=0.5,
        adam_epsilon=0.1,
        auto_find_batch_size=True,
        average_tokens_across_devices=False,
        bf16=True,
        data_seed=1,
        dataloader_in_order=False,
        dataloader_num_workers=1,
        dataloader_pin_memory=False,
        ddp_broadcast_buffers=False,
        ddp_bucket_cap_mb=10,
        ddp_find_unused_parameters=False,
        ddp_static_graph=True,
        ddp_timeout=100,
        debug="underflow_overflow",
        disable_tqdm=False,
        do_eval=True,
        do_predict=True,
        do_train=True,
        enable_jit_checkpoint=True,
        eval_on_start=True,
        eval_steps=2,
        full_determinism=True,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        hub_always_push=True,
        hub_model_id="someone/other",
        hub_private_repo=True,
        hub_strategy="end",
        hub_token="hf_none",
        ignore_data_skip=True,
        include_num_input_tokens_seen="all",
        label_names=["labels"],
        label_smoothing_factor=0.1,
        learning_rate=2e-2,
        log_level="info",
        log_level_replica="info",
        log_on_each_node=False,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        logging_steps=2,
        logging_strategy="steps",
        lr_scheduler_type="cosine",
        max_grad_norm=1e-3,
        max_steps=2,
        neftune_noise_alpha=5.0,
        num_train_epochs=1,
        optim="sgd",
        output_dir="elsewhere",
        per_device_train_batch_size=4,
        project="other",
        remove_unused_columns=False,
        report_to="none",
        restore_callback_states_from_checkpoint=True,
        resume_from_checkpoint="elsewhere",
        run_name="other",
        save_on_each_node=True,
        save_only_model=True,
        save_steps=1,
        save_strategy="epoch",
        seed=8,
        skip_memory_metrics=False,
        torch_empty_cache_steps=1,
        trackio_bucket_id="other",
        trackio_space_id="other",
        trackio_static_space_id="other",
        train_sampling_strategy="sequential",
        use_cache=True,
        use_cpu=False,
        warmup_steps=2,
        weight_decay=0.5,
    ),
    *_arguments(
        _EVALUATES,
        batch_eval_metrics=True,
        bf16_full_eval=True,
        eval_accumulation_steps=1,
        eval_delay=2,
        eval_do_concat_batches=False,
        eval_steps=2,
        eval_strategy="epoch",
        eval_use_gather_object=True,
        fp16_full_eval=True,
        greater_is_better=True,
        include_for_metrics=["loss"],
        metric_for_best_model="eval_loss",
        per_device_eval_batch_size=1,
        prediction_loss_only=True,
    ),
    *_arguments(
        _WORKERS,
        dataloader_multiprocessing_context="fork",
        dataloader_persistent_workers=True,
        dataloader_prefetch_factor=4,
    ),
    *_arguments(
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        lr_scheduler_kwargs={"min_lr_rate": 0.9},
    ),
    *_arguments({"optim": "adafactor"}, optim_args="decay_rate=-0.5"),
    *_arguments({"max_steps": 9}, dataloader_drop_last=True),
    *_arguments(
        {"gradient_checkpointing": True},
        gradient_checkpointing_kwargs={"use_reentrant": True},
        activation_checkpointing_kwargs={"use_reentrant": True},
    ),
    *_arguments({"train_sampling_strategy": "group_by_length"}, length_column_name="lengths"),
    *_arguments({"torch_compile_backend": "eager"}, torch_compile=True),
    *_arguments(torch_compile_backend="eager"),
    *_lora(
        alora_invocation_tokens=[1, 2],
        alpha_pattern={"q_proj": 16},
        auto_mapping={"base_model_class": "Other"},
        base_model_name_or_path="elsewhere",
        bias="all",
        ensure_weight_tying=True,
        exclude_modules=["v_proj"],
        fan_in_fan_out=True,
        init_lora_weights="pissa",
        kasa_config={},
        layers_to_transform=[0],
        lora_alpha=16,
        lora_bias=True,
        lora_dropout=0.5,
        modules_to_save=["lm_head"],
        monteclora_config={},
        peft_version="0",
        r=3,
        rank_pattern={"q_proj": 3},
        revision="other",
        runtime_config=LoraRuntimeConfig(ephemeral_gpu_offload=True),
        target_modules=["q_proj", "k_proj"],
        task_type=None,
        trainable_token_indices=[1, 2],
        use_dora=True,
        use_rslora=True,
        velora_config={},
    ),
    *_lora({"layers_to_transform": [0]}, layers_pattern="layers"),
    *_lora({"lora_dropout": 0.0}, target_parameters=["self_attn.o_proj.weight"]),
)
