"""Every PEFT method, and each option that changes what PEFT saves, as configs for a Qwen2 of a few thousand weights."""

from collections.abc import Callable, Mapping
from typing import Any

import peft
import torch
from peft import PeftConfig
from peft.tuners.lora import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

ATTENTION = ["q_proj", "v_proj"]


SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def base_model(case: str) -> PreTrainedModel:
    """The base of a case, the same weights at each call: a Qwen2, unless the method wants another architecture."""
    torch.manual_seed(0)
    if case == "lora target_parameters":
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1))
    if case in ("adaption_prompt", "lora layer_replication"):
        return LlamaForCausalLM(LlamaConfig(**SIZES))
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True, use_cache=case != "xlora"))


def _lora(**options: Any) -> Callable[[], PeftConfig]:
    return _of(peft.LoraConfig, **({"r": 2, "target_modules": ATTENTION} | options))


def _of(config: Callable[..., PeftConfig], **options: Any) -> Callable[[], PeftConfig]:
    return lambda: config(**({"task_type": "CAUSAL_LM"} | options))


def _on(config: Callable[..., PeftConfig], **options: Any) -> Callable[[], PeftConfig]:
    return _of(config, **({"target_modules": ATTENTION} | options))


CASES: Mapping[str, Callable[[], PeftConfig]] = {
    "lora": _lora(),
    "lora rslora": _lora(use_rslora=True),
    "lora bias all": _lora(bias="all"),
    "lora bias lora_only": _lora(bias="lora_only"),
    "lora lora_bias": _lora(lora_bias=True),
    "lora dora": _lora(use_dora=True),
    "lora modules_to_save lm_head": _lora(modules_to_save=["lm_head"]),
    "lora modules_to_save norm": _lora(modules_to_save=["norm"]),
    "lora modules_to_save embed_tokens, tied": _lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "lora on embed_tokens": _lora(target_modules=["embed_tokens", "q_proj"]),
    "lora on embed_tokens, tied": _lora(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True),
    "lora on lm_head": _lora(target_modules=["lm_head", "q_proj"]),
    "lora all-linear": _lora(target_modules="all-linear"),
    "lora regex": _lora(target_modules=r"^model\.(?!.*lm_head).*_proj$"),
    "lora trainable_token_indices": _lora(trainable_token_indices=[1, 5]),
    "lora trainable_token_indices of a module": _lora(trainable_token_indices={"embed_tokens": [1, 5]}),
    "lora trainable_token_indices, tied": _lora(trainable_token_indices=[1, 5], ensure_weight_tying=True),
    "lora layers_to_transform": _lora(layers_to_transform=[1]),
    "lora rank_pattern": _lora(rank_pattern={"q_proj": 3}, alpha_pattern={"q_proj": 5}),
    "lora layer_replication": _lora(layer_replication=[[0, 2], [1, 2]]),
    "lora target_parameters": _lora(target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
    "lora exclude_modules": _lora(exclude_modules=["model.layers.0.self_attn.q_proj"]),
    "lora gaussian": _lora(init_lora_weights="gaussian"),
    "lora orthogonal": _lora(init_lora_weights="orthogonal"),
    "lora random": _lora(init_lora_weights=False),
    "lora pissa": _lora(init_lora_weights="pissa"),
    "lora olora": _lora(init_lora_weights="olora"),
    "lora eva": _lora(init_lora_weights="eva", eva_config=peft.EvaConfig()),
    "lora monteclora": _lora(monteclora_config=MontecloraConfig()),
    "lora kasa": _lora(kasa_config=KasaConfig()),
    "lora velora": _lora(velora_config=VeloraConfig()),
    "lora bdlora": _lora(
        use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2)
    ),
    "alora": _lora(alora_invocation_tokens=[3, 4]),
    "adalora": _on(peft.AdaLoraConfig, init_r=4, target_r=1, total_step=3, tinit=0, tfinal=1),
    "adamss": _on(peft.AdamssConfig, r=4, num_subspaces=2),
    "adamss use_asa": _on(
        peft.AdamssConfig,
        r=4,
        num_subspaces=2,
        use_asa=True,
        asa_target_subspaces=1,
        init_warmup=0,
        final_warmup=100,
        mask_interval=1,
    ),
    "adamss use_dynamic_rank": _on(peft.AdamssConfig, r=4, num_subspaces=2, use_dynamic_rank=True),
    "boft": _on(peft.BOFTConfig, boft_block_size=4),
    "boft bias": _on(peft.BOFTConfig, boft_block_size=4, bias="boft_only"),
    "adaption_prompt": _of(peft.AdaptionPromptConfig, adapter_len=2, adapter_layers=2),
    "ia3": _on(peft.IA3Config, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "beft": _on(peft.BeftConfig),
    "lily": _on(peft.LilyConfig, r=2),
    "loha": _on(peft.LoHaConfig, r=2),
    "lokr": _on(peft.LoKrConfig, r=2),
    "lokr decompose_both": _on(peft.LoKrConfig, r=2, decompose_both=True),
    "oft": _on(peft.OFTConfig, oft_block_size=4),
    "oft block_share": _on(peft.OFTConfig, oft_block_size=4, block_share=True),
    "oft coft": _on(peft.OFTConfig, oft_block_size=4, coft=True),
    "poly": _on(peft.PolyConfig, r=2),
    "ln_tuning": _of(peft.LNTuningConfig, target_modules=["input_layernorm", "norm"]),
    "vera": _on(peft.VeraConfig, r=4),
    "vera without projection": _on(peft.VeraConfig, r=4, save_projection=False),
    "frod": _on(peft.FrodConfig, progressbar=False),
    "frod without projection": _on(peft.FrodConfig, progressbar=False, save_projection=False),
    "pvera": _on(peft.PveraConfig, r=4),
    "pvera without projection": _on(peft.PveraConfig, r=4, save_projection=False),
    "fourierft": _on(peft.FourierFTConfig, n_frequency=10),
    "glora": _on(peft.GloraConfig, r=2),
    "hra": _on(peft.HRAConfig, r=2),
    "hra bias": _on(peft.HRAConfig, r=2, bias="hra_only"),
    "vblora": _on(peft.VBLoRAConfig, r=2, num_vectors=10, vector_length=4),
    "vblora save_only_topk_weights": _on(
        peft.VBLoRAConfig, r=2, num_vectors=10, vector_length=4, save_only_topk_weights=True
    ),
    "unilora": _on(peft.UniLoraConfig, r=2, theta_d_length=16),
    "unilora save_indices": _on(peft.UniLoraConfig, r=2, theta_d_length=16, save_indices=True),
    "miss": _on(peft.MissConfig, r=2),
    "miss bat": _on(peft.MissConfig, r=2, init_weights="bat"),
    "miss mini": _on(peft.MissConfig, r=2, mini_r=2, init_weights="mini"),
    "randlora": _on(peft.RandLoraConfig, r=4),
    "randlora without projection": _on(peft.RandLoraConfig, r=4, save_projection=False),
    "randlora sparse": _on(peft.RandLoraConfig, r=4, sparse=True),
    "road_1": _on(peft.RoadConfig, group_size=8),
    "road_2": _on(peft.RoadConfig, group_size=8, variant="road_2"),
    "road_4": _on(peft.RoadConfig, group_size=8, variant="road_4"),
    "trainable_tokens": _of(peft.TrainableTokensConfig, token_indices=[1, 5], target_modules=["embed_tokens"]),
    "hira": _on(peft.HiraConfig, r=2),
    "shira": _on(peft.ShiraConfig, r=2),
    "shira random_seed": _on(peft.ShiraConfig, r=2, random_seed=3),
    "c3a": _on(peft.C3AConfig, block_size=8),
    "waveft": _on(peft.WaveFTConfig, n_frequency=10),
    "osf": _on(peft.OSFConfig, effective_rank=4),
    "delora": _on(peft.DeloraConfig, r=2),
    "gralora": _on(peft.GraloraConfig, r=4),
    "gralora hybrid": _on(peft.GraloraConfig, r=4, hybrid_r=2),
    "tinylora": _on(peft.TinyLoraConfig, u=4),
    "tinylora without projection": _on(peft.TinyLoraConfig, u=4, save_projection=False),
    "tinylora weight_tying": _on(peft.TinyLoraConfig, u=4, weight_tying=1.0),
    "psoft": _on(peft.PsoftConfig, r=4),
    "peanut": _on(peft.PeanutConfig, r=2),
    "peanut depth": _on(peft.PeanutConfig, r=2, depth=2),
    "shadow": _of(peft.ShadowConfig, r=2),
    "supertuning": _on(peft.SupertuningConfig, sparsity=0.9),
    "supertuning without indices": _on(peft.SupertuningConfig, sparsity=0.9, save_precomputed_indices=False),
    "deft": _on(peft.DeftConfig, r=2),
    "deft para": _on(peft.DeftConfig, r=2, para=True),
    "deft qr": _on(peft.DeftConfig, r=2, decomposition_method="qr"),
    "prompt_tuning": _of(peft.PromptTuningConfig, num_virtual_tokens=3),
    "multitask_prompt_tuning": _of(peft.MultitaskPromptTuningConfig, num_virtual_tokens=3, num_tasks=2),
    "p_tuning": _of(peft.PromptEncoderConfig, num_virtual_tokens=3, encoder_hidden_size=8),
    "p_tuning lstm": _of(
        peft.PromptEncoderConfig, num_virtual_tokens=3, encoder_hidden_size=8, encoder_reparameterization_type="LSTM"
    ),
    "prefix_tuning": _of(peft.PrefixTuningConfig, num_virtual_tokens=3),
    "prefix_tuning projection": _of(
        peft.PrefixTuningConfig, num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8
    ),
    "cpt": _of(peft.CPTConfig, cpt_token_ids=[1, 2, 3], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]),
    "cartridge": _of(peft.CartridgeConfig, num_virtual_tokens=3),
}
