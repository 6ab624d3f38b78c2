"""Trains the draft on the target's distribution: forward KL over corpus text and over what the target says itself.

Acceptance is measured on the target's words, so half of the batches are its own continuations of corpus prompts,
greedy and at temperature 1 in equal parts.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from models.architecture import MAX_LENGTH, new_draft, num_parameters
from models.checkpoint import load_checkpoint, save_checkpoint
from models.continuation import continue_prompts, gumbel_noise
from models.corpus import Windows
from models.optimizer import ScheduledOptimizers

BATCH_TOKENS = 4096
SHORT_LENGTH = 512
LONG_SHARE = 0.15  # of the budget, at the end, with corpus windows as long as the context
PROMPT_LENGTH = 64
SPOKEN_LENGTH = 256  # a prompt and its continuation
ROWS_AT_ONCE = 64

logger = logging.getLogger(__name__)


def train_draft(
    target: LlamaForCausalLM,
    windows: Windows,
    spoken: Tensor,
    checkpoint: Path,
    *,
    token_budget: int,
    save_every: int,
    device: torch.device,
) -> LlamaForCausalLM:
    """Train until `token_budget` tokens have been seen, resuming from `checkpoint`; `spoken` is from `speak`."""
    model = new_draft(device)
    _take_embedding(model, target)
    optimizers = ScheduledOptimizers(model, matrix_lr=0.02, other_lr=3e-3, weight_decay=0.0, warmup=0.03)
    tokens_seen = load_checkpoint(checkpoint, model, optimizers)
    logger.info("draft: %d parameters, %d of %d tokens seen", num_parameters(model), tokens_seen, token_budget)
    started, first = time.monotonic(), tokens_seen
    while tokens_seen < token_budget:
        step = tokens_seen // BATCH_TOKENS
        length = SHORT_LENGTH if tokens_seen < (1 - LONG_SHARE) * token_budget else MAX_LENGTH
        if step % 2:
            batch = _spoken_batch(spoken, step // 2)
        else:
            batch = torch.from_numpy(windows.batch(tokens_seen // 2, BATCH_TOKENS // length, length))[:, :-1]
        loss = distillation_loss(model, target, batch.to(device))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        tokens_seen += BATCH_TOKENS
        optimizers.step(min(1.0, tokens_seen / token_budget))
        if step % 20 < 2:
            rate = (tokens_seen - first) / (time.monotonic() - started)
            logger.info("step %d  tokens %d  KL %.4f  %.0f tokens/s", step, tokens_seen, loss.item(), rate)
        if (step + 1) % save_every == 0 or tokens_seen >= token_budget:
            save_checkpoint(checkpoint, model, optimizers, tokens_seen)
    model.train(False)
    return model


def distillation_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Mean KL(target || draft) in nats over the positions of a batch, [windows, length]."""
    with torch.no_grad():
        wanted = target(input_ids=batch, use_cache=False).logits.log_softmax(-1).flatten(0, 1)
    predicted = draft(input_ids=batch, use_cache=False).logits.log_softmax(-1).flatten(0, 1)
    return nn.functional.kl_div(predicted, wanted, reduction="batchmean", log_target=True)


def speak(target: LlamaForCausalLM, windows: Windows, path: Path, *, num_rows: int, seed: int) -> Tensor:
    """Corpus prompts with the target's continuations, [num_rows, SPOKEN_LENGTH]; kept at `path` for a resumed run."""
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    generator = torch.Generator().manual_seed(seed)
    num_new = SPOKEN_LENGTH - PROMPT_LENGTH
    blocks: list[Tensor] = []
    for first_row in range(0, num_rows, ROWS_AT_ONCE):
        rows = torch.from_numpy(windows.batch(first_row * SPOKEN_LENGTH, ROWS_AT_ONCE, SPOKEN_LENGTH))
        noise = _half_greedy(gumbel_noise(ROWS_AT_ONCE, num_new, target.config.vocab_size, generator))
        blocks.append(continue_prompts(target, rows[:, :PROMPT_LENGTH].to(target.device), noise).cpu())
        logger.info("target continuations: %d of %d rows", first_row + ROWS_AT_ONCE, num_rows)
    spoken = torch.cat(blocks)[torch.randperm(len(blocks) * ROWS_AT_ONCE, generator=generator)]
    torch.save(spoken, path)
    return spoken


def _half_greedy(noise: Iterator[Tensor]) -> Iterator[Tensor]:
    for draw in noise:
        draw[::2] = 0
        yield draw


def _spoken_batch(spoken: Tensor, index: int) -> Tensor:
    rows = torch.arange(BATCH_TOKENS // SPOKEN_LENGTH) + index * (BATCH_TOKENS // SPOKEN_LENGTH)
    return spoken[rows % len(spoken)]


def _take_embedding(draft: LlamaForCausalLM, target: LlamaForCausalLM) -> None:
    """Start from the target's embedding on its leading principal directions, at the spread of a fresh one."""
    embedding = target.model.embed_tokens.weight.detach()
    directions = torch.linalg.svd(embedding, full_matrices=False).Vh[: draft.config.hidden_size]
    projected = embedding @ directions.T
    with torch.no_grad():
        draft.model.embed_tokens.weight.copy_(projected * (draft.config.initializer_range / projected.std()))
