"""Trains the pair that ships: `python -m models.train`. Interrupted, the same command resumes."""

import argparse
import logging
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from models.architecture import MAX_LENGTH
from models.checkpoint import export
from models.corpus import Windows, encode_stream, load_corpus
from models.distill import speak, train_draft
from models.target import train_target
from models.tokenizer import train_tokenizer

SEED = 20_24
TARGET_TOKENS = 2_400_000
DRAFT_TOKENS = 1_600_000
SPOKEN_ROWS = 1024

logger = logging.getLogger(__name__)


def main() -> None:
    """Tokenizer, target and draft, in this order."""
    arguments = _parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(SEED)
    corpus = load_corpus()
    folder = arguments.work_dir / "tokenizer"
    if not folder.exists():
        train_tokenizer((document.text for document in corpus.train), MAX_LENGTH).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    stream = encode_stream(corpus.train, tokenizer, SEED)
    logger.info("%d files, %d tokens; %d files held out", len(corpus.train), len(stream), len(corpus.held_out))
    windows = Windows(stream, SEED)
    target = train_target(
        windows,
        arguments.work_dir / "target.pt",
        token_budget=arguments.target_tokens,
        save_every=arguments.save_every,
        device=arguments.device,
    )
    export(arguments.output_dir / "target", target, tokenizer)
    spoken = speak(target, windows, arguments.work_dir / "spoken.pt", num_rows=arguments.spoken_rows, seed=SEED)
    draft = train_draft(
        target,
        windows,
        spoken,
        arguments.work_dir / "draft.pt",
        token_budget=arguments.draft_tokens,
        save_every=arguments.save_every,
        device=arguments.device,
    )
    export(arguments.output_dir / "draft", draft, tokenizer)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work-dir", type=Path, default=Path("build/models"), help="checkpoints (default: %(default)s)"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("models"), help="where target/ and draft/ are written")
    parser.add_argument(
        "--target-tokens", type=int, default=TARGET_TOKENS, help="training budget (default: %(default)s)"
    )
    parser.add_argument("--draft-tokens", type=int, default=DRAFT_TOKENS, help="training budget (default: %(default)s)")
    parser.add_argument(
        "--spoken-rows", type=int, default=SPOKEN_ROWS, help="target continuations (default: %(default)s)"
    )
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
