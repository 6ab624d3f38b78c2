"""What is written to disk: resumable checkpoints while training, plain transformers folders at the end."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.optimizer import ScheduledOptimizers

MAX_SHARD_SIZE = "15MB"


def save_checkpoint(path: Path, model: LlamaForCausalLM, optimizers: ScheduledOptimizers, tokens_seen: int) -> None:
    """Replace the checkpoint at `path` in one move, so that an interrupted write leaves the earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {"model": model.state_dict(), "optimizers": optimizers.state_dict(), "tokens_seen": tokens_seen}
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path, model: LlamaForCausalLM, optimizers: ScheduledOptimizers) -> int:
    """Restore the state saved at `path` and return the tokens seen so far; 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    return int(state["tokens_seen"])


def export(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write `model` in bfloat16, with its tokenizer, as a folder that `from_pretrained` loads. `model` is unchanged."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    nn.Module.to(copy, torch.bfloat16)
    copy.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    tokenizer.save_pretrained(folder)
