"""Measures the family and writes its page: on / off, the limit of each pair, and their ratio."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import pyplot as plt

from benchmarks.family.build import build_pair
from benchmarks.family.runs import QUICK, WHOLE, Cell, Measured, Plan, measure_pair
from benchmarks.family.shape import FIXED, Shape, draw, find_shape
from benchmarks.page import machine, table, write_page
from services.local.pair import shipped_model

_QUICK_PAIRS = ("4-50", "6-78", "14-78", "40-78")
_NUM_DRAWN = 4
_MAIN = "6-78"
_MAIN_FLOORS = {1: 1.6, 4: 1.2, 8: 1.0, 32: 0.98}
_LEAST, _MEDIAN, _SHARE = 0.95, 0.98, 0.85
_SHARE_STREAMS = (1, 4, 8)
_SHARE_RATIO = 5.9
"""Pairs of this cost ratio and more are held to the limit."""
_SHIPPED_AGREEMENT = 0.774
"""See models/README.md."""


class Row(NamedTuple):
    """A pair and what was measured of it."""

    name: str
    ratio: float
    stated: float
    measured: Measured


class Floor(NamedTuple):
    """A measure that must reach something."""

    name: str
    value: float
    floor: float


def run_family(
    folder: Path, work_dir: Path, *, is_quick: bool, seed: int, draft_process: bool = False
) -> tuple[Path, bool]:
    """Measures the pairs, writes a page with a plot, and says whether all floors were reached.

    All of it takes some 80 minutes on two cores, the quick part, of four pairs, some 10. The page is written anew after
    each pair, so that a run that is ended early leaves what it measured.
    """
    plan = (QUICK if is_quick else WHOLE)._replace(draft_process=draft_process)
    shapes = [find_shape(name) for name in _QUICK_PAIRS] if is_quick else [*FIXED, *draw(seed, _NUM_DRAWN), None]
    name = "family-quick" if is_quick else "family"
    rows: list[Row] = []
    for place, shape in enumerate(shapes):
        rows.append(_measure(shape, work_dir, plan, seed + place))
        floors = floors_of(rows)
        mismatches = sum(cell.settled.num_differing for row in rows for cell in row.measured.cells)
        extent = f"{len(rows)} of {len(shapes)} pairs"
        page = write_page(folder, name, _page(rows, floors, mismatches, plan, extent, is_quick=is_quick, seed=seed))
        _plot(rows, folder / f"{name}.png")
    return page, not mismatches and all(floor.value >= floor.floor for floor in floors)


def _measure(shape: Shape | None, work_dir: Path, plan: Plan, seed: int) -> Row:
    """Of a pair of the family; of the one that ships where none is named."""
    if shape is None:
        shipped = measure_pair(shipped_model("target"), shipped_model("draft"), plan, seed)
        return Row("shipped", 10.6, _SHIPPED_AGREEMENT, shipped)
    built = build_pair(shape, work_dir / "family" / shape.name)
    measured = measure_pair(built.target, built.draft, plan, seed)
    return Row(shape.name, shape.ratio, shape.acceptance, measured)


def floors_of(rows: Sequence[Row]) -> list[Floor]:
    """What the family is held to, as far as these pairs go."""
    ratios = [cell.settled.ratio for row in rows for cell in row.measured.cells]
    cold = [cell.cold for row in rows for cell in row.measured.cells]
    floors = [
        Floor("on / off, median over pairs, streams, temperatures", statistics.median(ratios), _MEDIAN),
        Floor("the same, the least", min(ratios), _LEAST),
        Floor("the same, the least of the cold", min(cold), 0.0),
    ]
    for row in rows:
        if row.name == _MAIN:
            floors += [
                Floor(f"on / off, {_MAIN}, {cell.settled.num_streams} streams", cell.settled.ratio, floor)
                for cell in row.measured.cells
                if not cell.temperature and (floor := _MAIN_FLOORS.get(cell.settled.num_streams))
            ]
    held = [row for row in rows if row.ratio >= _SHARE_RATIO]
    for count in _SHARE_STREAMS:
        shares = [cell.share for row in held for cell in row.measured.cells if cell.settled.num_streams == count]
        if shares:
            floors.append(Floor(f"measured / limit, {count} streams, the least of 6:1 and more", min(shares), _SHARE))
    return floors


def _page(
    rows: Sequence[Row], floors: Sequence[Floor], mismatches: int, plan: Plan, extent: str, *, is_quick: bool, seed: int
) -> list[str]:
    drawn = "" if is_quick else f" Four pairs were drawn by seed {seed}."
    return [
        "# A family of pairs" + (", a quick part of it" if is_quick else ""),
        "",
        f"Written by `make bench`: {machine()}. All on this page comes from one run, {extent}.{drawn} Prompts of "
        "64 random tokens, each asked once with speculation and once without, up to 128 tokens produced (fewer where a "
        f"run would take longer than 1.75 seconds), prompt processing included; medians over {plan.pairs} pairs of "
        "runs in turns (on / off, off / on), after one that stands as *cold*: the system had not met that number of "
        "streams. Both ways are the same system, and who is asked second finds the prompts computed: each way's own "
        "figures are of runs in which it was first, and on / off is the geometric mean of the medians of both orders. "
        f"The draft runs in {'a process of its own' if plan.draft_process else 'the process of the verifier'} "
        "([both are measured](../decisions/own-draft.md)). Proposals come from the draft alone; those from the text "
        "itself have [a page of their own](repetition.md).",
        "",
        "A pair is called by its **cost ratio**, the bytes of weights that a step of the target reads relative to the "
        "draft's at equal precision, and the **acceptance per position** that it was made for: the probability that a "
        "proposed token is accepted, given that all before it were (`benchmarks/family/build.py`).",
        "",
        "The **limit** for n streams is the best over K ≥ 0 of (1 + a + ... + a^K) / (verify(n(K+1)) / verify(n) + "
        "K d(n)), where a is the acceptance measured in this run of one proposed token a round, to one stream (where "
        "more are proposed, or to more streams, it is those that are likelier), verify and d the step times of both "
        "models measured in this run with nothing else running, d(n) = draft step / target step at n rows. It counts "
        "no message, no wait and no prompt; what is compared with it leaves prompts out too.",
        "",
        *table(("measure", "value", "floor"), [(f.name, f"**{f.value:.2f}**", f.floor or "-") for f in floors]),
        f"Streams whose tokens differed between on and off: **{mismatches}**.",
        "",
        *_tables(rows, plan),
        f"![On / off and the limit](family{'-quick' if is_quick else ''}.png)",
        "",
    ]


def _tables(rows: Sequence[Row], plan: Plan) -> list[str]:
    header = (
        *("pair", "acceptance", "streams", "off / on, tokens/s", "on / off", "cold", "limit (K)", "measured / limit"),
        *("first token, on / off", "between tokens p95, on / off"),
    )
    lines: list[str] = []
    for temperature in plan.temperatures:
        cells = [_cells(row, cell) for row in rows for cell in row.measured.cells if cell.temperature == temperature]
        lines += [f"## Temperature {temperature:g}", "", *table(header, cells)]
    return lines


def _cells(row: Row, cell: Cell) -> tuple[str, ...]:
    settled = cell.settled
    on, off = settled.on, settled.off
    return (
        row.name,
        f"{row.measured.acceptance[cell.temperature]:.2f}",
        str(settled.num_streams),
        f"{off.tokens_per_second:.0f} / {on.tokens_per_second:.0f}",
        f"**{settled.ratio:.2f}**",
        f"{cell.cold:.2f}",
        f"{cell.limit.ratio:.2f} ({cell.limit.num_drafted})",
        f"{cell.share:.2f}",
        f"{on.first.p50 / off.first.p50:.2f}",
        f"{on.between.p95 / off.between.p95:.2f}",
    )


def _plot(rows: Sequence[Row], path: Path) -> None:
    counts = sorted({cell.settled.num_streams for row in rows for cell in row.measured.cells})
    figure, all_axes = plt.subplots(1, len(counts), figsize=(3.2 * len(counts), 0.3 * len(rows) + 1.4), sharey=True)
    names = [row.name for row in rows][::-1]
    for axes, count in zip(all_axes, counts, strict=True):
        for row in rows:
            for cell in row.measured.cells:
                if cell.settled.num_streams == count:
                    place = names.index(row.name) + (0.2 if cell.temperature else 0)
                    colour = "#cc6677" if cell.temperature else "#4477aa"
                    axes.plot(cell.settled.ratio, place, "o", color=colour, markersize=5)
                    axes.plot(cell.limit.ratio, place, "|", color=colour, markersize=9)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(f"{count} streams")
        axes.set_xlabel("on / off; bar: limit")
    all_axes[0].set_yticks(range(len(names)), names)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
