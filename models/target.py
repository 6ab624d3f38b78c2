"""Trains the target: next-token prediction over the corpus."""

import logging
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from models.architecture import MAX_LENGTH, new_target, num_parameters
from models.checkpoint import load_checkpoint, save_checkpoint
from models.corpus import Windows
from models.optimizer import ScheduledOptimizers

BATCH_TOKENS = 6144
SHORT_LENGTH = 512
LONG_SHARE = 0.15  # of the budget, at the end, in windows as long as the context

logger = logging.getLogger(__name__)


def train_target(
    windows: Windows, checkpoint: Path, *, token_budget: int, save_every: int, device: torch.device
) -> LlamaForCausalLM:
    """Train until `token_budget` tokens have been seen, resuming from `checkpoint` where it exists."""
    model = new_target(device)
    optimizers = ScheduledOptimizers(model, matrix_lr=0.02, other_lr=3e-3, weight_decay=0.1, warmup=0.03)
    tokens_seen = load_checkpoint(checkpoint, model, optimizers)
    logger.info("target: %d parameters, %d of %d tokens seen", num_parameters(model), tokens_seen, token_budget)
    started, first = time.monotonic(), tokens_seen
    while tokens_seen < token_budget:
        length = SHORT_LENGTH if tokens_seen < (1 - LONG_SHARE) * token_budget else MAX_LENGTH
        batch = torch.from_numpy(windows.batch(tokens_seen, BATCH_TOKENS // length, length)).to(device)
        loss = language_model_loss(model, batch)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        tokens_seen += BATCH_TOKENS
        optimizers.step(min(1.0, tokens_seen / token_budget))
        step = tokens_seen // BATCH_TOKENS
        if step % 10 == 0:
            rate = (tokens_seen - first) / (time.monotonic() - started)
            logger.info("step %d  tokens %d  loss %.4f  %.0f tokens/s", step, tokens_seen, loss.item(), rate)
        if step % save_every == 0 or tokens_seen >= token_budget:
            save_checkpoint(checkpoint, model, optimizers, tokens_seen)
    model.train(False)
    return model


def language_model_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Mean cross entropy in nats over a batch of windows, [windows, length + 1]."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
