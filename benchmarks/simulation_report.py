"""Writes the simulated curves as a page with a plot."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.page import table, write_page
from benchmarks.simulation import LOADS, ROUND_TRIPS_MS, SERIAL_TOKENS, Point, draft_seconds, target_seconds


def write_simulation(points: Sequence[Point], folder: Path) -> Path:
    """Writes simulation.md and simulation.png into a folder and returns the page's path."""
    by_place = {(point.num_streams, point.round_trip_ms): point for point in points}
    rows: list[Sequence[object]] = []
    for load in LOADS:
        row = [by_place[load, ms] for ms in ROUND_TRIPS_MS]
        rows.append((load, "ahead", *(f"{p.ahead / p.plain:.2f}" for p in row)))
        rows.append(("", "serial", *(f"{p.serial / p.plain:.2f}" for p in row)))
    lines = [
        "# Large models: simulated",
        "",
        "**Nothing on this page was measured.** Models of this size do not run here, so their times are given: "
        f"a target of 70B parameters on eight GPUs whose step takes {target_seconds(1) * 1e3:.0f} ms at one row and "
        f"{target_seconds(1024) * 1e3:.0f} ms at 1,024, a draft of 8B on one GPU whose step takes "
        f"{draft_seconds(1) * 1e3:.0f} ms at one row and {draft_seconds(1024) * 1e3:.0f} ms at 1,024. Acceptance is "
        "that of [the measured table](recovered.md), greedy. The choices are made by the code that serves.",
        "",
        "Tokens a second relative to none, by round trip between draft and verifier. *Ahead* drafts while "
        f"the target verifies, with branches and the governor; *serial* drafts {SERIAL_TOKENS} tokens, sends, waits.",
        "",
        *table(("streams", "", *(f"{ms} ms" for ms in ROUND_TRIPS_MS)), rows),
        "What is left out: attention that grows with the context, prompts, jitter, and that a sequence's acceptance "
        "differs from another's.",
        "",
        "![By round trip](simulation.png)",
        "",
    ]
    page = write_page(folder, "simulation", lines)
    _plot(points, folder / "simulation.png")
    return page


def _plot(points: Sequence[Point], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for load in LOADS:
        row = [point for point in points if point.num_streams == load]
        places = [point.round_trip_ms for point in row]
        (line,) = axes.plot(places, [p.ahead / p.plain for p in row], marker="o", label=f"{load} streams")
        axes.plot(places, [p.serial / p.plain for p in row], linestyle="--", color=line.get_color())
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel("round trip, ms")
    axes.set_ylabel("tokens/s relative to none (dashed: serial)")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
