"""Writes what was measured of delays, loads and runners-up as pages with plots."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.ahead import DELAY_REPEATS, LOAD_REPEATS, AheadReport
from benchmarks.page import machine, table, write_page
from benchmarks.recovered import MARGINS, RANKS, Recovered


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
        *table(
            ("delay each way", "relative to none", "tokens/s", "rounds that began with a proposal there"),
            [
                (f"{d.delay_ms} ms", f"**{d.relative:.2f}**", f"{d.tokens_per_second:.1f}", f"{d.ready:.2f}")
                for d in report.delays
            ],
        ),
        f"Speculation on / off by load, cores shared as `paceline up` shares them; medians of {LOAD_REPEATS} pairs. "
        "Floor: 0.97 at every point.",
        "",
        *table(
            ("streams", "on / off", "tokens/s", "proposed tokens a round"),
            [
                (x.num_streams, f"**{x.ratio:.2f}**", f"{x.on:.1f} / {x.off:.1f}", f"{x.drafted:.2f}")
                for x in report.loads
            ],
        ),
        f"Outputs that should have been identical and were not: **{report.mismatches}**.",
        "",
        "![On / off by load](ahead.png)",
        "",
    ]
    return write_page(folder, "ahead", lines)


def write_recovered(measured: Sequence[Recovered], folder: Path) -> Path:
    """Writes recovered.md into a folder and returns its path."""
    shares: list[Sequence[object]] = []
    for m in measured:
        names = ("logits + noise", "logits alone") if m.temperature else ("logits",)
        for name, found in zip(names, (m.with_noise, m.without_noise), strict=False):
            rejected = f"{m.num_rejected} / {m.num_tokens}"
            shares.append((f"{m.temperature:g}", name, rejected, *(f"{share:.2f}" for share in found)))
    bounds = ["below " + f"{MARGINS[0]:g}", *(f"{bound:g} and more" for bound in MARGINS)]
    lines = [
        "# What the draft's scores say about the target's pick",
        "",
        "The shipped pair, texts that the target continued itself from held-out files, the draft on the same text. "
        "A rejection is a position at which the two picks differ. Nothing is timed here.",
        "",
        "Share of rejections in which the target's pick is among the draft's first runners-up:",
        "",
        *table(("temperature", "ranked by", "rejected / tokens", *(f"first {r}" for r in RANKS)), shares),
        "Share of the draft's picks that the target picks too, by the margin over the first runner-up (in nats, noise "
        "included), up to the next bound:",
        "",
        *table(
            ("temperature", *bounds),
            [
                (f"{m.temperature:g}", *(f"{share:.2f} of {count}" for count, share in m.accepted_by_margin))
                for m in measured
            ],
        ),
    ]
    return write_page(folder, "recovered", lines)
