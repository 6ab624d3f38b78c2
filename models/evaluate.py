"""Measures the pair on held-out files: `python -m models.evaluate`. The numbers in README.md are its output."""

import argparse
import logging
import math
from itertools import pairwise, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.architecture import MAX_LENGTH, num_parameters
from models.continuation import continue_prompts, gumbel_noise
from models.corpus import Document, encode_stream, load_corpus

SEED = 7
PROMPT_LENGTH = 128
LENGTH_BORDERS = (0, 256, 512, 1024, MAX_LENGTH)
SAMPLES = (
    "def read_json(path):",
    "class Stack:\n    def __init__(self):\n        self._items = []\n\n    def push(self, item):",
    "    try:\n        value = int(text)\n    except",
)

logger = logging.getLogger(__name__)


class HeldOutLoss(NamedTuple):
    """Loss over the held-out files, and over their tokens by position in the context."""

    nats_per_token: float
    bits_per_byte: float
    by_position: list[float]


def main() -> None:
    """Print size, loss, acceptance and samples of the pair."""
    arguments = _parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.models_dir / "target")
    target = _load(arguments.models_dir / "target", arguments.device)
    draft = _load(arguments.models_dir / "draft", arguments.device)
    held_out = load_corpus().held_out
    num_bytes = sum(len(document.text.encode()) for document in held_out)
    stream = torch.from_numpy(encode_stream(held_out, tokenizer, SEED).astype(np.int64)).to(arguments.device)
    _check_round_trip(tokenizer, held_out)
    logger.info("held out: %d files, %d bytes, %d tokens", len(held_out), num_bytes, len(stream))
    for name, model in (("target", target), ("draft", draft)):
        loss = held_out_loss(model, stream, num_bytes)
        logger.info("%s: %d parameters", name, num_parameters(model))
        logger.info("  held-out loss: %.3f nats/token, %.3f bits/byte", loss.nats_per_token, loss.bits_per_byte)
        for (begin, end), value in zip(pairwise(LENGTH_BORDERS), loss.by_position, strict=True):
            logger.info("  at positions %d to %d: %.3f nats/token", begin, end - 1, value)
    prompts = _prompts(stream, arguments.num_prompts)
    shape = (len(prompts), target.config.vocab_size)
    greedy = acceptance(target, draft, prompts, [torch.zeros(shape)] * arguments.num_tokens)
    generator = torch.Generator().manual_seed(SEED)
    sampled = acceptance(
        target, draft, prompts, list(gumbel_noise(*shape[:1], arguments.num_tokens, shape[1], generator))
    )
    logger.info("acceptance over %d prompts of %d tokens:", *prompts.shape)
    logger.info(
        "  greedy %.3f, temperature 1 %.3f (%d positions each)", greedy, sampled, len(prompts) * arguments.num_tokens
    )
    for text in SAMPLES:
        ids = tokenizer(tokenizer.bos_token + text, return_tensors="pt")["input_ids"].to(arguments.device)
        tokens = continue_prompts(target, ids, repeat(torch.zeros(1, shape[1]), 64))
        logger.info("sample, greedy:\n%s\n", tokenizer.decode(tokens[0], skip_special_tokens=True))


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, stream: Tensor, num_bytes: int) -> HeldOutLoss:
    """Loss over `stream` in consecutive windows of the whole context; the first token of a window has no prediction."""
    windows = stream[: (len(stream) - 1) // MAX_LENGTH * MAX_LENGTH].view(-1, MAX_LENGTH)
    losses = torch.stack([_token_losses(model, window) for window in windows])  # [windows, length - 1]
    mean = losses.mean().item()
    by_position = [losses[:, a:b].mean().item() for a, b in pairwise(LENGTH_BORDERS)]
    return HeldOutLoss(mean, mean * len(stream) / num_bytes / math.log(2), by_position)


@torch.inference_mode()
def acceptance(target: LlamaForCausalLM, draft: LlamaForCausalLM, prompts: Tensor, noise: list[Tensor]) -> float:
    """Share of the target's own tokens that the draft picks too, given the same text and the same noise."""
    tokens = continue_prompts(target, prompts, iter(noise))
    accepted = 0
    for row, said in enumerate(tokens):
        logits = draft(input_ids=said[None, :-1], use_cache=False).logits[0, -len(noise) :]
        draws = torch.stack([draw[row] for draw in noise]).to(logits.device)
        accepted += int(((logits + draws).argmax(-1) == said[-len(noise) :]).sum())
    return accepted / (len(prompts) * len(noise))


def _token_losses(model: LlamaForCausalLM, window: Tensor) -> Tensor:
    logits = model(input_ids=window[None, :-1], use_cache=False).logits[0]
    return nn.functional.cross_entropy(logits, window[1:], reduction="none")


def _prompts(stream: Tensor, count: int) -> Tensor:
    """Prompts at even distances over the held-out files, [count, PROMPT_LENGTH]."""
    starts = torch.linspace(0, len(stream) - PROMPT_LENGTH, count).long()
    return torch.stack([stream[start : start + PROMPT_LENGTH] for start in starts])


def _check_round_trip(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> None:
    for document in documents:
        if tokenizer.decode(tokenizer(document.text)["input_ids"]) != document.text:
            raise ValueError(f"{document.path} does not survive the tokenizer")


def _load(folder: Path, device: torch.device) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nn.Module.to(model, device)
    model.train(False)
    return model


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="holds target/ and draft/")
    parser.add_argument("--num-prompts", type=int, default=128, help="prompts for acceptance (default: %(default)s)")
    parser.add_argument("--num-tokens", type=int, default=64, help="tokens continued per prompt (default: %(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
