"""Adapters that PEFT wrote, and what transformers says with them."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME, adapter_digest

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ADAPTERS = [
    (1, ["q_proj"]), (2, ["v_proj", "q_proj"]), (3, ATTENTION), (4, MLP), (5, ["down_proj"]), (8, ATTENTION + MLP),
    (13, ["k_proj", "gate_proj"]), (16, ATTENTION + MLP),
]  # fmt: skip
"""Ranks and layers of eight adapters that have little in common."""
PEFT_WARNING = "ignore:`is_gradient_checkpointing`:FutureWarning"


def save_adapter(model: str, folder: Path, rank: int, modules: list[str], seed: int, **more: object) -> Path:
    """A random adapter, strong enough to change tokens."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM", **more
    )
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.mul_(2.0)
    peft.save_pretrained(folder)
    return folder


def save_adapters(model: str, folder: Path) -> list[Path]:
    """All of ADAPTERS, every other one with rank-stabilised scaling, two with ranks and alphas by pattern."""
    patterns = {"rank_pattern": {"layers.1.mlp.down_proj": 12, "q_proj": 3}, "alpha_pattern": {"v_proj": 20}}
    saved = []
    for seed, (rank, modules) in enumerate(ADAPTERS):
        more = {"use_rslora": bool(seed % 2), **(patterns if rank in (8, 16) else {})}
        saved.append(save_adapter(model, folder / str(seed), rank, modules, seed, **more))
    return saved


def read_files(folder: Path) -> tuple[bytes, bytes]:
    """Configuration and weights."""
    return (folder / CONFIG_NAME).read_bytes(), (folder / WEIGHTS_NAME).read_bytes()


def digest_of(folder: Path) -> str:
    """The digest of an adapter in a folder."""
    return adapter_digest(*read_files(folder))


def continue_with_peft(model: str, adapter: Path | None, prompt: list[int], num_tokens: int) -> list[int]:
    """What transformers says, greedily, with an adapter of PEFT's or without one."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = loaded.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return out[0, len(prompt) :].tolist()
