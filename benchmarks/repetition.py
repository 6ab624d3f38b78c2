"""Answers that repeat their prompt: what drafting without a model adds to a draft, and what it does alone."""

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer

from benchmarks.copyist import build_copyist
from benchmarks.page import machine, table, write_page
from benchmarks.systems import Measured, median, through_gateway
from models.corpus import load_corpus
from paceline import Client
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings

FLOOR = 1.3
_FILE_TOKENS = 600
_BEGUN_TOKENS = 16
_NUM_TOKENS = 128
_NUM_PROMPTS = 7
_OFF = "none"
_DRAFT = "draft alone"
_SUFFIX = "model-free alone"
_BOTH = "model-free + draft"


class Report(NamedTuple):
    """One run."""

    tokens_per_second: dict[str, float]
    """By drafting; medians."""
    ratios: dict[str, float]
    """Relative to the draft alone; medians of pairs on the same prompt."""
    copied: float
    """Share of the answers' tokens that are those of the prompt."""
    mismatches: int


def run(shipped: str, draft: str, work_dir: Path) -> Report:
    """Measures everything. Takes some three minutes on two cores."""
    copyist = build_copyist(shipped, work_dir / "copyist")
    texts = _texts(shipped)
    prompts = [text[:_FILE_TOKENS] + text[:_BEGUN_TOKENS] for text in texts]
    runs = asyncio.run(_measure(copyist, draft, prompts))
    answers = [run.token_ids[0] for run in runs[_OFF]]
    copied = sum(
        token == own
        for answer, text in zip(answers, texts[1:], strict=True)
        for token, own in zip(answer, text[_BEGUN_TOKENS:], strict=False)
    )
    return Report(
        {name: median(measured) for name, measured in runs.items()},
        {name: _relative(measured, runs[_DRAFT]) for name, measured in runs.items()},
        copied / (len(answers) * _NUM_TOKENS),
        sum(
            run.token_ids[0] != answer
            for measured in runs.values()
            for run, answer in zip(measured, answers, strict=True)
        ),
    )


def holds(report: Report) -> bool:
    """Whether the floor was reached and no output differed."""
    return report.ratios[_BOTH] >= FLOOR and not report.mismatches


def write_repetition(report: Report, folder: Path) -> Path:
    """Writes repetition.md into a folder and returns its path."""
    lines = [
        "# Answers that repeat their prompt",
        "",
        f"Written by `make bench`: {machine()}. One stream, greedy; prompts: {_FILE_TOKENS} tokens of a held-out file "
        f"and the file's first {_BEGUN_TOKENS} again; {_NUM_TOKENS} tokens produced, prompt processing included; "
        f"{_NUM_PROMPTS} prompts, all systems in turns. Floor for both, relative to the draft alone: {FLOOR:g}.",
        "",
        "The target is **set by hand to copy** (`benchmarks/copyist.py`), at the cost of the heavy target: the shipped "
        f"one is too small to copy. {report.copied:.0%} of its answers' tokens are those of the prompt at their place. "
        "The draft is the shipped one, which does not copy either; one that does would leave less to gain.",
        "",
        *table(
            ("drafting", "tokens/s", "relative to the draft alone"),
            [
                (name, f"{report.tokens_per_second[name]:.1f}", f"**{report.ratios[name]:.2f}**")
                for name in (_OFF, _DRAFT, _SUFFIX, _BOTH)
            ],
        ),
        f"Outputs that should have been identical and were not: **{report.mismatches}**.",
        "",
    ]
    return write_page(folder, "repetition", lines)


async def _measure(model: str, draft: str, prompts: Sequence[Sequence[int]]) -> dict[str, list[Measured]]:
    """The first prompt is to warm up."""
    runs: dict[str, list[Measured]] = {}
    async with AsyncExitStack() as resources:
        clients = {}
        for name in (_OFF, _DRAFT, _SUFFIX, _BOTH):
            settings = SystemSettings(
                (Pair(model=model, draft=draft if name in (_DRAFT, _BOTH) else None, dtype="bfloat16"),),
                log_level="WARNING",
                overrides={"verifier": {"suffix_drafting": name != _DRAFT}},
            )
            launcher = await resources.enter_async_context(running(settings))
            clients[name] = await resources.enter_async_context(Client(launcher.address()))
            runs[name] = []
        for index, prompt in enumerate(prompts):
            for name, client in clients.items():
                result = await through_gateway(client, [prompt], _NUM_TOKENS, speculation=name != _OFF)
                if index:
                    runs[name].append(result)
    return runs


def _texts(tokenizer_folder: str) -> list[list[int]]:
    """The beginnings of held-out files."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    texts = [tokenizer(document.text[: 1 << 13])["input_ids"][:_FILE_TOKENS] for document in load_corpus().held_out]
    return [text for text in texts if len(text) == _FILE_TOKENS][: 1 + _NUM_PROMPTS]


def _relative(runs: Sequence[Measured], base: Sequence[Measured]) -> float:
    return statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in zip(runs, base, strict=True))
