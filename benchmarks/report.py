"""Writes what was measured as a page with a plot."""

import platform
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
import torch
import transformers

from benchmarks.heavy import INTERMEDIATE_SIZE, NUM_LAYERS
from benchmarks.speculation import BATCH_REPEATS, NUM_STREAMS, NUM_TOKENS, PROMPT_TOKENS, REPEATS, Report

mpl.use("Agg")
from matplotlib import pyplot as plt


def write(report: Report, folder: Path) -> Path:
    """Writes speculation.md and speculation.png into a folder and returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    _plot(report, folder / "speculation.png")
    page = folder / "speculation.md"
    page.write_text(_page(report))
    return page


def _page(report: Report) -> str:
    lines = [
        "# Speculation on and off, and beside transformers",
        "",
        f"Written by `make bench`: {machine()}. Everything on this page comes from one run. Greedy, prompts of "
        f"{PROMPT_TOKENS} tokens from held-out files, each seen once, {NUM_TOKENS} tokens produced, prompt processing "
        f"included, all systems in turns, medians of the ratios of {REPEATS} pairs of runs ({BATCH_REPEATS} of "
        f'{NUM_STREAMS} streams). "Off" has no draft process, so that the verifier has every core. '
        '"On" proposes from the draft, from the text itself and from recent outputs, as it does by default.',
        "",
        "The **heavy target** computes the shipped target's function at the cost of a larger model: more MLP neurons "
        f"whose output weights are zero, and layers that change nothing ({NUM_LAYERS} layers, {INTERMEDIATE_SIZE} "
        "neurons each). Its tokens, and so its acceptance, are the shipped target's; its cost is that of its size.",
        "",
        "| measure | ratio | floor | |",
        "|---|---|---|---|",
    ]
    for ratio in report.ratios:
        floor = f"{ratio.floor:g}" if ratio.floor else "-"
        lines.append(f"| {ratio.name} | **{ratio.value:.2f}** | {floor} | {ratio.detail} |")
    lines += [
        "",
        f"Outputs that should have been identical (on, off, in process) and were not: **{report.mismatches}**.",
        "",
        "| system | tokens/s | first token p50 / p95, ms | between tokens p50 / p95, ms | acceptance |",
        "|---|---|---|---|---|",
    ]
    for row in report.latencies:
        acceptance = f"{row.acceptance:.2f}" if row.acceptance is not None else "-"
        lines.append(
            f"| {row.name} | {row.tokens_per_second:.1f} | {row.first_p50:.0f} / {row.first_p95:.0f} "
            f"| {row.gap_p50:.1f} / {row.gap_p95:.1f} | {acceptance} |"
        )
    return "\n".join([*lines, "", "![Ratios](speculation.png)", ""])


def _plot(report: Report, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(report.ratios) + 1))
    names = [ratio.name for ratio in report.ratios][::-1]
    axes.barh(names, [ratio.value for ratio in report.ratios][::-1], color="#4477aa")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("ratio of tokens per second")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def machine() -> str:
    """When and on what a page was measured."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {versions}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {torch.get_num_threads()} cores"
    return platform.processor()
