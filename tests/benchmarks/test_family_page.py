"""The page of the family: what it is held to, and that measured, limit and their ratio stand side by side."""

from pathlib import Path

import pytest

from benchmarks.family import page, runs
from benchmarks.family.page import Row, floors_of, run_family
from benchmarks.family.runs import Cell, Measured
from benchmarks.family.steps import measure_steps, seconds_of
from paceline.cli.bench.limit import Limit
from paceline.cli.bench.load import Run, Stream
from paceline.cli.bench.summary import Summary, summarize
from services.engine.config import Device, EngineConfig


def summary(ratio: float, num_streams: int = 1, *, differs: bool = False) -> Summary:
    """Speculation is so many times as fast."""

    def run(seconds: float, token: int) -> Run:
        return Run([Stream([1, 2, token], 0.1, [seconds / 2] * 2, [(3, 2)])] * num_streams, seconds)

    return summarize([run(1 / ratio, 3)], [run(1.0, 4 if differs else 3)])


def cell(ratio: float, num_streams: int = 1, limit: float = 2.0, *, differs: bool = False) -> Cell:
    return Cell(0.0, 128, ratio - 0.1, summary(ratio, num_streams, differs=differs), Limit(limit, 3))


def row(name: str, cost: float, *cells: Cell) -> Row:
    return Row(name, cost, 0.78, Measured(list(cells), {0.0: 0.77}))


def test_the_family_is_held_to_its_median_its_least_and_the_share_of_the_limit() -> None:
    rows = [row("6-78", 6.1, cell(1.8, 1), cell(1.5, 8)), row("4-50", 4.0, cell(0.9, 1, 3.0))]
    floors = {floor.name: floor for floor in floors_of(rows)}
    assert floors["on / off, median over pairs, streams, temperatures"].value == pytest.approx(1.5)
    assert floors["the same, the least"].value == pytest.approx(0.9)
    assert floors["the same, the least of the cold"].value == pytest.approx(0.8)
    assert floors["on / off, 6-78, 1 streams"].floor == 1.6
    assert floors["on / off, 6-78, 8 streams"].value == pytest.approx(1.5)
    # 4:1 is not held to the limit.
    assert floors["measured / limit, 1 streams, the least of 6:1 and more"].value == pytest.approx(0.9)


@pytest.mark.parametrize(("ratio", "differs", "holds"), [(1.9, False, True), (1.9, True, False), (1.0, False, False)])
def test_the_page_shows_measured_limit_and_ratio_and_fails_where_a_floor_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, differs: bool, holds: bool
) -> None:
    cells = [cell(ratio, count, differs=differs) for count in (1, 4, 8, 32)]
    monkeypatch.setattr(page, "_measure", lambda shape, *_: row(shape.name, shape.ratio, *cells))
    written, held = run_family(tmp_path, tmp_path, is_quick=True, seed=1)
    assert held is holds
    text = written.read_text()
    assert written.name == "family-quick.md"
    assert (
        f"| 6-78 | 0.77 | 1 | 3 / {3 * ratio:.0f} | **{ratio:.2f}** | {ratio - 0.1:.2f} | 2.00 (3) | {ratio / 2:.2f} |"
        in text
    )
    # Four pairs of one, four, eight and thirty-two streams.
    assert f"differed between on and off: **{4 * 45 if differs else 0}**" in text
    assert (tmp_path / "family-quick.png").stat().st_size > 1000


def test_a_run_that_is_ended_leaves_the_pairs_that_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [row("4-50", 4.0, cell(1.5, 1), cell(1.2, 8)), row("6-78", 6.1, cell(1.8, 1), cell(1.1, 8))]

    def measure(*_: object) -> Row:
        if not left:
            raise KeyboardInterrupt
        return left.pop(0)

    monkeypatch.setattr(page, "_measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run_family(tmp_path, tmp_path, is_quick=True, seed=1)
    text = (tmp_path / "family-quick.md").read_text()
    assert "one run, 2 of 4 pairs." in text
    assert "| 6-78 |" in text


async def test_prompts_are_fresh_for_who_is_first_and_for_both_where_the_system_is_cold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[bool, list[int]]] = []

    async def run_streams(_: object, prompts: list[list[int]], options: dict[str, object]) -> Run:
        asked.append((bool(options["speculation"]), [prompt[0] for prompt in prompts]))
        return Run([Stream([1] * 64, 0.1, [0.01] * 63, [])] * len(prompts), 1.0, float(len(asked)))

    monkeypatch.setattr(runs, "run_streams", run_streams)
    await runs._cell(None, iter([[number] for number in range(8)]), 2, 0.0, 2)
    assert asked == [
        (True, [0, 1]), (False, [2, 3]),
        (False, [4, 5]), (True, [4, 5]),
        (True, [6, 7]), (False, [6, 7]),
    ]  # fmt: skip


def test_steps_are_measured_with_as_many_rows_as_are_verified(target_folder: str) -> None:
    config = EngineConfig(
        model=target_folder, device=Device.CPU, num_threads=1, kv_bytes=1 << 24, max_context_tokens=256
    )
    times = measure_steps(config, [1, 4], is_draft=False)
    assert [rows for rows, _ in times[1]] == [1, 2, 3, 4, 5, 7, 9, 13, 17]
    assert [rows for rows, _ in times[4]][:3] == [4, 8, 12]
    assert all(seconds > 0 for points in times.values() for _, seconds in points)
    assert seconds_of(times, 4)(8) == dict(times[4])[8]
    assert [rows for rows, _ in measure_steps(config, [4], is_draft=True)[4]] == [4]
