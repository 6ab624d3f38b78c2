"""One LoRA adapter of the target: made, trained, written and read as `peft` does it.

Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685) of the seven linear layers of every block; the
target itself stays as it is.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from models.corpus import Windows
from models.target import language_model_loss

RANK = 8
ALPHA_OF_RANK = 2
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASE_NAME = "target"
BatchLoss = Callable[[int], Tensor]
"""Mean loss in nats of the batch of BATCH_TOKENS tokens that begins behind so many."""

BATCH_TOKENS = 2048
LENGTH = 512
LEARNING_RATE = 2e-3
WARMUP = 0.05  # of the budget

logger = logging.getLogger(__name__)


def windows_loss(target: LlamaForCausalLM, windows: Windows) -> BatchLoss:
    """Next-token prediction over windows of a stream."""

    def loss(tokens_seen: int) -> Tensor:
        batch = torch.from_numpy(windows.batch(tokens_seen, BATCH_TOKENS // LENGTH, LENGTH)).to(target.device)
        return language_model_loss(target, batch)

    return loss


def train_adapter(
    target: LlamaForCausalLM,
    batch_loss: BatchLoss,
    checkpoint: Path,
    *,
    token_budget: int,
    save_every: int,
    rank: int = RANK,
) -> PeftModel:
    """Train until `token_budget` tokens have been seen, resuming from `checkpoint` where it exists.

    The adapter's layers are put into `target`, which is not to be used on its own afterwards; `batch_loss` is computed
    with it.
    """
    alpha = ALPHA_OF_RANK * rank
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LAYERS, bias="none", task_type="CAUSAL_LM")
    model = get_peft_model(target, config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    tokens_seen = _load_checkpoint(checkpoint, model, optimizer)
    size = sum(parameter.numel() for parameter in parameters)
    logger.info("adapter: %d parameters, %d of %d tokens seen", size, tokens_seen, token_budget)
    started, first = time.monotonic(), tokens_seen
    while tokens_seen < token_budget:
        loss = batch_loss(tokens_seen)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        tokens_seen += BATCH_TOKENS
        _step(optimizer, min(1.0, tokens_seen / token_budget))
        step = tokens_seen // BATCH_TOKENS
        if step % 10 == 0:
            rate = (tokens_seen - first) / (time.monotonic() - started)
            logger.info("step %d  tokens %d  loss %.4f  %.0f tokens/s", step, tokens_seen, loss.item(), rate)
        if step % save_every == 0 or tokens_seen >= token_budget:
            _save_checkpoint(checkpoint, model, optimizer, tokens_seen)
    model.train(False)
    return model


def export_adapter(folder: Path, model: PeftModel, base_name: str = BASE_NAME) -> None:
    """Write the adapter in bfloat16 as `peft` reads it. It stays in bfloat16: read it again to use it."""
    model.peft_config["default"].base_model_name_or_path = base_name
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def load_adapter(target: LlamaForCausalLM, folder: Path) -> PeftModel:
    """Put the adapter in `folder` into the layers of `target`, in float32."""
    model = PeftModel.from_pretrained(target, str(folder))
    model.train(False)
    return model


def _step(optimizer: torch.optim.AdamW, progress: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * min(1.0, progress / WARMUP, (1 - progress) / (1 - WARMUP))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _save_checkpoint(path: Path, model: PeftModel, optimizer: torch.optim.AdamW, tokens_seen: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    torch.save({"adapter": adapter, "optimizer": optimizer.state_dict(), "tokens_seen": tokens_seen}, partial)
    partial.replace(path)


def _load_checkpoint(path: Path, model: PeftModel, optimizer: torch.optim.AdamW) -> int:
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    set_peft_model_state_dict(model, state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["tokens_seen"])
