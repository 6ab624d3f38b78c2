"""Trains the adapters that ship: `python -m models.train_adapters`. Interrupted, the same command resumes."""

import argparse
import logging
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.adapter import export_adapter, train_adapter, windows_loss
from models.adapter_corpus import TRANSFORMATIONS, transform
from models.corpus import Windows, encode_stream, load_corpus

SEED = 20_26
TOKENS = 800_000

logger = logging.getLogger(__name__)


def main() -> None:
    """Each adapter in turn, from a fresh target."""
    arguments = _parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.target)
    corpus = load_corpus()
    for name in arguments.only:
        torch.manual_seed(SEED)
        documents = transform(corpus.train, TRANSFORMATIONS[name])
        stream = encode_stream(documents, tokenizer, SEED)
        logger.info("%s: %d files of %d, %d tokens", name, len(documents), len(corpus.train), len(stream))
        target = LlamaForCausalLM.from_pretrained(arguments.target, dtype=torch.float32).to(arguments.device)
        model = train_adapter(
            target,
            windows_loss(target, Windows(stream, SEED)),
            arguments.work_dir / f"{name}.pt",
            token_budget=arguments.tokens,
            save_every=arguments.save_every,
        )
        export_adapter(arguments.output_dir / name, model)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=Path("models/target"), help="the base (default: %(default)s)")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("build/models"), help="checkpoints (default: %(default)s)"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("models/adapters"), help="one folder an adapter")
    parser.add_argument(
        "--only", nargs="+", choices=TRANSFORMATIONS, default=list(TRANSFORMATIONS), help="names (default: all)"
    )
    parser.add_argument("--tokens", type=int, default=TOKENS, help="budget of each (default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
