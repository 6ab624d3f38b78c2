"""How what was measured is shown: tables and bars in a terminal, the same as an SVG, or JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from paceline.cli.bench.summary import Spread, Summary, Way

_COLOURS = {"on": "green", "off": "blue"}
_BAR_WIDTH = 48
_PLOT_WIDTH = 84
_MOST_POSITIONS = 8


def tables(summaries: Sequence[Summary]) -> Group:
    """Speed and latency of both ways, then the two beside each other."""
    ways = Table("streams", "speculation", "tokens/s", "first token, ms", "between tokens, ms", box=None)
    beside = Table("streams", "on / off", "acceptance", "by position", "limit", "share of it", box=None)
    for summary in summaries:
        for name, way in (("on", summary.on), ("off", summary.off)):
            first, between = _in_ms(way.first), _in_ms(way.between, 1)
            ways.add_row(str(summary.num_streams), name, f"{way.tokens_per_second:.1f}", first, between)
        limit = f"{summary.limit.ratio:.2f} at {summary.limit.num_drafted}" if summary.limit else "unknown"
        beside.add_row(
            str(summary.num_streams),
            f"{summary.ratio:.2f}",
            "nothing proposed" if summary.acceptance is None else f"{summary.acceptance:.2f}",
            " ".join(f"{position.acceptance:.2f}" for position in summary.positions[:_MOST_POSITIONS]),
            limit,
            "" if summary.share is None else f"{summary.share:.0%}",
        )
    notes = [
        "Times are p50 / p95 / p99. Acceptance is per position: given that all before it were accepted. To more "
        "streams only what is likelier is proposed, so that limits are those of the acceptance at the fewest.",
    ]
    if differing := sum(summary.num_differing for summary in summaries):
        notes.append(f"{differing} streams had other tokens with speculation than without.")
    return Group(ways, Text(), beside, Text("\n".join(notes), "dim"))


def plot(summaries: Sequence[Summary]) -> Table:
    """Tokens a second as bars."""
    most = max(way.tokens_per_second for summary in summaries for way in (summary.on, summary.off))
    bars = Table.grid(padding=(0, 1))
    for summary in summaries:
        for name, way in (("on", summary.on), ("off", summary.off)):
            label = f"{summary.num_streams} streams, {name}" if summary.num_streams > 1 else f"1 stream, {name}"
            bar = Bar(most, 0, way.tokens_per_second, width=_BAR_WIDTH, color=_COLOURS[name])
            bars.add_row(Text(label, justify="right"), bar, f"{way.tokens_per_second:.0f}")
    return bars


def save_plot(summaries: Sequence[Summary], path: Path) -> None:
    """Writes the bars as an SVG file. Raises OSError where that cannot be written."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=_PLOT_WIDTH, file=nowhere, force_terminal=True)
        console.print(plot(summaries))
        path.write_text(console.export_svg(title="tokens a second"))


def as_json(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The same for programs. Times are in seconds."""
    return [
        {
            "streams": summary.num_streams,
            "on": _way(summary.on),
            "off": _way(summary.off),
            "ratio": summary.ratio,
            "decoding_ratio": summary.decoding_ratio,
            "acceptance": summary.acceptance,
            "acceptance_by_position": [position._asdict() for position in summary.positions],
            "limit": summary.limit._asdict() if summary.limit else None,
            "share_of_limit": summary.share,
            "differing_streams": summary.num_differing,
        }
        for summary in summaries
    ]


def _way(way: Way) -> dict[str, Any]:
    return {
        "tokens_per_second": way.tokens_per_second,
        "time_to_first_token": way.first._asdict(),
        "time_between_tokens": way.between._asdict(),
    }


def _in_ms(spread: Spread, digits: int = 0) -> str:
    return " / ".join(f"{seconds * 1e3:.{digits}f}" for seconds in spread)
