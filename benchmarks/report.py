"""Writes what was measured as a page with a plot."""

from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.heavy import INTERMEDIATE_SIZE, NUM_LAYERS
from benchmarks.page import machine, table, write_page
from benchmarks.speculation import BATCH_REPEATS, NUM_STREAMS, NUM_TOKENS, PROMPT_TOKENS, REPEATS, Report


def write(report: Report, folder: Path) -> Path:
    """Writes speculation.md and speculation.png into a folder and returns the page's path."""
    page = write_page(folder, "speculation", _page(report))
    _plot(report, folder / "speculation.png")
    return page


def _page(report: Report) -> list[str]:
    return [
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
        *table(
            ("measure", "ratio", "floor", ""),
            [(r.name, f"**{r.value:.2f}**", f"{r.floor:g}" if r.floor else "-", r.detail) for r in report.ratios],
        ),
        f"Outputs that should have been identical (on, off, in process) and were not: **{report.mismatches}**.",
        "",
        *table(
            ("system", "tokens/s", "first token p50 / p95, ms", "between tokens p50 / p95, ms", "acceptance"),
            [
                (
                    row.name,
                    f"{row.tokens_per_second:.1f}",
                    f"{row.first_p50:.0f} / {row.first_p95:.0f}",
                    f"{row.gap_p50:.1f} / {row.gap_p95:.1f}",
                    f"{row.acceptance:.2f}" if row.acceptance is not None else "-",
                )
                for row in report.latencies
            ],
        ),
        "![Ratios](speculation.png)",
        "",
    ]


def _plot(report: Report, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(report.ratios) + 1))
    names = [ratio.name for ratio in report.ratios][::-1]
    axes.barh(names, [ratio.value for ratio in report.ratios][::-1], color="#4477aa")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("ratio of tokens per second")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
