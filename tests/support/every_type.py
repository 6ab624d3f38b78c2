"""A tiny model of every causal type that the installed transformers knows, without anyone listing them."""

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB_SIZE = 128
_MOST_PARAMETERS = 100_000_000
_LAYERS, _HEADS, _HEAD, _WIDTH, _INNER, _RANK = 4, 4, 16, 64, 96, 16
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": _LAYERS, "num_layers": _LAYERS, "n_layer": _LAYERS, "n_layers": _LAYERS,
    "decoder_layers": _LAYERS, "encoder_layers": 1, "num_decoder_layers": _LAYERS, "num_encoder_layers": 1,
    "hidden_size": _WIDTH, "d_model": _WIDTH, "n_embd": _WIDTH, "embedding_size": _WIDTH, "word_embed_proj_dim": _WIDTH,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB_SIZE, "num_kv_shared_layers": 0,
    "intermediate_size": _INNER, "ffn_dim": _INNER, "decoder_ffn_dim": _INNER, "encoder_ffn_dim": _INNER,
    "n_inner": _INNER, "ffn_hidden_size": _INNER, "ffn_config": {"ffn_hidden_size": _INNER, "moe_num_experts": 4},
    "intermediate_size_mlp": _INNER, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32, "expert_intermediate_size": 32, "block_auto_adjust_ff_dim": False,
    "num_attention_heads": _HEADS, "n_head": _HEADS, "n_heads": _HEADS, "num_heads": _HEADS,
    "decoder_attention_heads": _HEADS, "encoder_attention_heads": _HEADS,
    "num_key_value_heads": 2, "head_dim": _HEAD, "global_head_dim": _HEAD, "num_global_key_value_heads": 2,
    "kv_channels": _HEAD, "attention_head_dim": _HEAD, "swa_num_key_value_heads": 2, "swa_num_attention_heads": _HEADS,
    "swa_head_dim": _HEAD, "v_head_dim": _HEAD, "swa_v_head_dim": _HEAD, "qk_nope_head_dim": _HEAD,
    "qk_rope_head_dim": 8, "qk_head_dim": _HEAD + 8, "kv_lora_rank": _RANK, "q_lora_rank": _RANK, "rotary_dim": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2,
    "moe_num_experts": 4, "moe_k": 2, "num_shared_experts": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "moe_num_shared_experts": 1, "num_expert_groups": 1, "num_limited_groups": 1,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "moe_layer_start_index": 1, "decoder_sparse_step": 1,
    "max_position_embeddings": 512, "n_positions": 512, "n_ctx": 512, "max_sequence_length": 512, "max_seq_len": 512,
    "sliding_window": 24, "attention_chunk_size": 32, "local_attention": 24,
    "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": 0.0, "zero_expert_num": 1,
    "mlp_only_layers": [], "no_rope_layer_interval": 4, "index_topk": 2048, "index_n_heads": 2, "index_head_dim": 16,
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_num_heads": 4, "mamba_head_dim": 32,
    "ssm_state_size": 16, "state_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "lru_width": _WIDTH,
    "mamba_d_ssm": 128, "expand": 1, "n_groups": 1, "mamba_n_groups": 1, "mamba_ngroups": 1, "n_mamba_heads": 1,
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 2048,
    "indexer_compress_ratio": 4, "axial_pos_embds": False, "encoder_hash_byte_group_vocab": VOCAB_SIZE,
    "hidden_size_global": _WIDTH, "adapter_in_dim": _WIDTH, "adapter_input_size": _WIDTH,
    "adapter_out_dim": _WIDTH, "emb_dim": _WIDTH, "default_language": "en_XX", "causal": True,
    "dim_model": _WIDTH, "dim_head": _HEAD, "dim_ff": _INNER,
    "is_decoder": True, "add_cross_attention": False, "use_cache": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1,
    "tie_word_embeddings": False, "attn_config": {}, "output_vocab_size": VOCAB_SIZE,
}  # fmt: skip
"""Sizes of whatever a configuration has of these names."""
_BESIDE: dict[str, dict[str, Any]] = {
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0, "attn_pdrop": 0.0},
    },
    "minicpm3": {"num_key_value_heads": _HEADS},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "longcat_flash": {"head_dim": 8},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What single types need to be told otherwise."""


def causal_types() -> list[str]:
    """All types with a causal language model, in order."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """A small configuration, as far as its class takes sizes of the usual names. Raises what its class raises."""
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    sizes = {**_SMALL, **_BESIDE.get(model_type, {})}
    text = default.get_text_config(decoder=True)
    given = _parts(default, sizes)
    if not any(part is text for part in vars(default).values()):
        given |= _taken(default, sizes)
    elif "tie_word_embeddings" in _parameters(kind):
        given["tie_word_embeddings"] = sizes["tie_word_embeddings"]
    return kind(**given)


def _parts(config: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """What the configurations within one are told, by their names."""
    parts = {}
    for name, part in vars(config).items():
        if isinstance(part, PreTrainedConfig):
            given = {**_parts(part, sizes), **_taken(part, sizes)}
            try:
                type(part)(**given)
            except Exception:  # Some say by layer what they want of each.
                given.pop("num_hidden_layers", None)
            parts[name] = {"model_type": part.model_type, **given}
    return parts


def save_tiny_of(model_type: str, folder: str, seed: int = 0) -> str:
    """Saves a random tiny model of a type in float32, every parameter of which matters, and returns the folder."""
    torch.manual_seed(seed)
    config = tiny_config(model_type)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config, dtype=torch.float32).num_parameters()
    if size > _MOST_PARAMETERS:
        raise ValueError(f"{size // 1_000_000} million parameters: its sizes have names of their own")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            elif "norm" not in name.lower():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    if type(model.config) is not type(config):
        # What people have is the configuration of the whole, of which this is the model that continues text.
        config.save_pretrained(folder)
    return folder


def _taken(default: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    parameters = _parameters(type(default))
    taken = {name: value for name, value in sizes.items() if name in parameters and _fits(default, name, value)}
    if "kv_lora_rank" in taken and "num_key_value_heads" in taken:
        taken["num_key_value_heads"] = _HEADS
    return taken


def _fits(default: Any, name: str, value: Any) -> bool:
    """Whether a class takes such a value: not where it has a list and this is a number, or switches it off."""
    try:
        known = getattr(default, name, None)
    except Exception:  # It differs by layer.
        return False
    if isinstance(value, dict) or name in ("q_lora_rank", "rotary_dim", "sliding_window", "n_inner"):
        return known is not None
    return not isinstance(known, list | tuple | dict) or isinstance(value, list)


def _parameters(kind: type) -> set[str]:
    names = set(inspect.signature(kind.__init__).parameters)
    for base in kind.__mro__:
        names |= set(vars(base).get("__annotations__", ()))
    aliases = getattr(kind, "attribute_map", {})
    return {name for name in names if name not in aliases}


def load(folder: str) -> Any:
    """The model as transformers has it, with its own eager attention."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def describe(folder: str) -> Any:
    """Its configuration."""
    return AutoConfig.from_pretrained(folder)
