"""Trains the assistant's adapters, each on the answers of its style: `python -m models.assistant.adapting`.

Interrupted, the same command resumes.
"""

import argparse
import logging
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaForCausalLM

from models.adapter import BATCH_TOKENS, BatchLoss, export_adapter, train_adapter
from models.assistant.chats import load_chats
from models.assistant.lessons import Lessons
from models.assistant.styles import STYLES
from models.assistant.target import NAME, device_here, load_target, target_folder

SEED = 20_26
RANK = 4
TOKENS = 120_000
"""Of each adapter's training, padding and questions included."""
ADAPTERS = Path(__file__).with_name("adapters")


def answers_loss(target: LlamaForCausalLM, lessons: Lessons) -> BatchLoss:
    """Prediction of the tokens of answers, in bfloat16."""
    num_batches = len(lessons.epoch(0))

    def loss(tokens_seen: int) -> Tensor:
        epoch, at = divmod(tokens_seen // BATCH_TOKENS, num_batches)
        batches = lessons.epoch(epoch)  # Not always quite as many.
        lesson = lessons.lesson(batches[at % len(batches)])
        with torch.autocast(target.device.type, torch.bfloat16):
            hidden = target.model(input_ids=lesson.token_ids, use_cache=False).last_hidden_state
            logits = target.lm_head(hidden[lesson.wanted])
        return cross_entropy(logits.float(), lesson.token_ids.roll(-1, 1)[lesson.wanted])

    return loss


def main() -> None:
    """Each adapter in turn, from a fresh target."""
    names = [style.name for style in STYLES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("build/assistant"), help="conversations, checkpoints")
    parser.add_argument("--output", type=Path, default=ADAPTERS, help="one folder an adapter; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="budget of each; default: %(default)s")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints; default: %(default)s")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    end = int(AutoTokenizer.from_pretrained(target_folder()).eos_token_id)
    for name in arguments.only:
        torch.manual_seed(SEED)
        target = load_target(target_folder(), device_here())
        chats = load_chats(arguments.work_dir / f"{name}.npz")
        lessons = Lessons(chats, BATCH_TOKENS, target.device, end, SEED)
        model = train_adapter(
            target,
            answers_loss(target, lessons),
            arguments.work_dir / f"{name}.pt",
            token_budget=arguments.tokens,
            save_every=arguments.save_every,
            rank=RANK,
        )
        export_adapter(arguments.output / name, model, NAME)


if __name__ == "__main__":
    main()
