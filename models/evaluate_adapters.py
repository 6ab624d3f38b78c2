"""Measures the adapters on held-out files: `python -m models.evaluate_adapters`. adapters/README.md has its output."""

import argparse
import logging
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.adapter import load_adapter
from models.adapter_corpus import TRANSFORMATIONS, transform
from models.continuation import continue_prompts, gumbel_noise
from models.corpus import Document, encode_stream, load_corpus
from models.evaluate import held_out_loss

SEED = 7
TEMPERATURE = 0.6
OPENING = "import os\n\n\n"  # before the first line of a held-out function or class: a prompt that shows no style
SAMPLE = OPENING + "class TemporaryFolder:"

_HEADER = re.compile(r"^ *(?:async )?(?:def|class)\b.*:$")
_DOCSTRING = re.compile(r"""^ *[rR]?(?:\"|')""")

logger = logging.getLogger(__name__)


class Style(NamedTuple):
    """Shares of what a reader sees; NaN where a text has no such line."""

    two_mod_four: float
    """Of the indented lines: those indented by 2, 6, 10 ... columns."""
    double_quoted: float
    """Of the quotation marks: the double ones."""
    documented: float
    """Of the lines that begin a function or a class, with a line after them: those with a docstring after them."""


class Judge(NamedTuple):
    """What a model is measured on."""

    tokenizer: PreTrainedTokenizerFast
    held_out: dict[str, list[Document]]
    prompts: list[str]
    num_tokens: int


def main() -> None:
    """Print loss, style and a sample of the target alone and with each adapter."""
    arguments = _parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    held_out = load_corpus().held_out
    judge = Judge(
        PreTrainedTokenizerFast.from_pretrained(arguments.target),
        {name: transform(held_out, transformation) for name, transformation in TRANSFORMATIONS.items()},
        _prompts(held_out, arguments.num_prompts),
        arguments.num_tokens,
    )
    for name, documents in judge.held_out.items():
        logger.info("held out, %s: %d files, %s", name, len(documents), style(document.text for document in documents))
    target = LlamaForCausalLM.from_pretrained(arguments.target, dtype=torch.float32).to(arguments.device)
    target.train(False)
    _measure("target alone", target, judge, list(TRANSFORMATIONS))
    for name in TRANSFORMATIONS:
        adapted = LlamaForCausalLM.from_pretrained(arguments.target, dtype=torch.float32).to(arguments.device)
        load_adapter(adapted, arguments.adapters_dir / name)
        _measure(name, adapted, judge, [name])


def style(texts: Iterator[str]) -> Style:
    """Of all texts together."""
    two_mod_four: list[bool] = []
    double: list[bool] = []
    documented: list[bool] = []
    for text in texts:
        lines = [line for line in text.split("\n") if line.strip()]
        margins = [len(line) - len(line.lstrip(" ")) for line in lines]
        two_mod_four += [margin % 4 == 2 for margin in margins if margin]
        double += [character == '"' for character in text if character in "\"'"]
        documented += [bool(_DOCSTRING.match(after)) for line, after in pairwise(lines) if _HEADER.match(line)]
    return Style(_share(two_mod_four), _share(double), _share(documented))


def _measure(title: str, model: LlamaForCausalLM, judge: Judge, names: list[str]) -> None:
    logger.info("%s:", title)
    for name in names:
        documents = judge.held_out[name]
        stream = torch.from_numpy(encode_stream(documents, judge.tokenizer, SEED).astype(np.int64)).to(model.device)
        loss = held_out_loss(model, stream, sum(len(document.text.encode()) for document in documents))
        logger.info("  held-out loss, %s: %.3f nats/token over %d tokens", name, loss.nats_per_token, len(stream))
    for temperature in (0.0, TEMPERATURE):
        generator = torch.Generator().manual_seed(SEED)
        texts = [_continue(model, judge, prompt, temperature, generator) for prompt in judge.prompts]
        logger.info("  temperature %.1f, %d prompts: %s", temperature, len(texts), style(iter(texts)))
        generator.manual_seed(SEED)
        logger.info("%s\n", _continue(model, judge, SAMPLE, temperature, generator))


def _continue(
    model: LlamaForCausalLM, judge: Judge, prompt: str, temperature: float, generator: torch.Generator
) -> str:
    """The prompt and its continuation."""
    text = judge.tokenizer.bos_token + prompt
    ids: Tensor = judge.tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
    noise = gumbel_noise(1, judge.num_tokens, model.config.vocab_size, generator)
    tokens = continue_prompts(model, ids, (draw * temperature for draw in noise))
    return str(judge.tokenizer.decode(tokens[0], skip_special_tokens=True))


def _prompts(documents: list[Document], count: int) -> list[str]:
    """First lines of functions and classes at even distances over the documents."""
    headers = [line for document in documents for line in document.text.split("\n") if _HEADER.match(line)]
    headers = [line for line in headers if not line.startswith(" ")]
    chosen = np.linspace(0, len(headers) - 1, count).astype(int)
    return [OPENING + headers[index] for index in chosen]


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else float("nan")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=Path("models/target"), help="the base (default: %(default)s)")
    parser.add_argument("--adapters-dir", type=Path, default=Path("models/adapters"), help="one folder an adapter")
    parser.add_argument("--num-prompts", type=int, default=48, help="prompts continued (default: %(default)s)")
    parser.add_argument("--num-tokens", type=int, default=96, help="tokens continued per prompt (default: %(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
