"""Writes what was measured of delays, loads and runners-up as pages with plots."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.ahead import DELAY_REPEATS, LOAD_REPEATS, AheadReport
from benchmarks.recovered import MARGINS, RANKS, Recovered
from benchmarks.report import machine


def write_ahead(report: AheadReport, folder: Path) -> Path:
    """Writes ahead.md and ahead.png into a folder and returns the page's path."""
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot([load.num_streams for load in report.loads], [load.ratio for load in report.loads], marker="o")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("streams")
    axes.set_ylabel("tokens/s, speculation on / off")
    axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(folder / "ahead.png", dpi=110)
    plt.close(figure)
    lines = [
        "# The network hidden, never slower",
        "",
        f"Written by `make bench`: {machine()}. Measured, greedy, heavy target (see [speculation](speculation.md)), "
        "prompts of 128 tokens, 128 tokens produced, prompt processing included.",
        "",
        f"A delay each way between gateway and draft, one stream, a core each for verifier and draft; medians of "
        f"{DELAY_REPEATS} pairs. Floor: 0.9 of the speed without delay.",
        "",
        "| delay each way | relative to none | tokens/s | rounds that began with a proposal there |",
        "|---|---|---|---|",
        *(
            f"| {d.delay_ms} ms | **{d.relative:.2f}** | {d.tokens_per_second:.1f} | {d.ready:.2f} |"
            for d in report.delays
        ),
        "",
        f"Speculation on / off by load, cores shared as `paceline up` shares them; medians of {LOAD_REPEATS} pairs. "
        "Floor: 0.97 at every point.",
        "",
        "| streams | on / off | tokens/s | proposed tokens a round |",
        "|---|---|---|---|",
        *(
            f"| {x.num_streams} | **{x.ratio:.2f}** | {x.on:.1f} / {x.off:.1f} | {x.drafted:.2f} |"
            for x in report.loads
        ),
        "",
        f"Outputs that should have been identical and were not: **{report.mismatches}**.",
        "",
        "![On / off by load](ahead.png)",
        "",
    ]
    page = folder / "ahead.md"
    page.write_text("\n".join(lines))
    return page


def write_recovered(measured: Sequence[Recovered], folder: Path) -> Path:
    """Writes recovered.md into a folder and returns its path."""
    lines = [
        "# What the draft's scores say about the target's pick",
        "",
        "The shipped pair, texts that the target continued itself from held-out files, the draft on the same text. "
        "A rejection is a position at which the two picks differ. Nothing is timed here.",
        "",
        "Share of rejections in which the target's pick is among the draft's first runners-up:",
        "",
        "| temperature | ranked by | rejected / tokens | " + " | ".join(f"first {r}" for r in RANKS) + " |",
        "|---" * (3 + len(RANKS)) + "|",
    ]
    for m in measured:
        names = ("logits + noise", "logits alone") if m.temperature else ("logits",)
        for name, shares in zip(names, (m.with_noise, m.without_noise), strict=False):
            cells = " | ".join(f"{share:.2f}" for share in shares)
            lines.append(f"| {m.temperature:g} | {name} | {m.num_rejected} / {m.num_tokens} | {cells} |")
    bounds = ["below " + f"{MARGINS[0]:g}", *(f"{bound:g} and more" for bound in MARGINS)]
    lines += [
        "",
        "Share of the draft's picks that the target picks too, by the margin over the first runner-up (in nats, noise "
        "included), up to the next bound:",
        "",
        "| temperature | " + " | ".join(bounds) + " |",
        "|---" * (1 + len(bounds)) + "|",
        *(
            f"| {m.temperature:g} | "
            + " | ".join(f"{share:.2f} of {count}" for count, share in m.accepted_by_margin)
            + " |"
            for m in measured
        ),
        "",
    ]
    page = folder / "recovered.md"
    page.write_text("\n".join(lines))
    return page
