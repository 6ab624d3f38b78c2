"""Peers beside Paceline: the same for all, each at its best; and whether speculation changed what was said."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest

from benchmarks.peers.contenders import Answer, Asked
from benchmarks.peers.page import Report, write_peers
from benchmarks.peers.runs import WHOLE, Changed, Speed, answers, differing, measure_prompt, measure_speed

PLAN = WHOLE._replace(repeats=2)
ORDER: list[tuple[str, int]] = []


class Scripted:
    """Takes a second for what it is asked, less with drafts, and least at one setting."""

    settings: Sequence[int] = (2, 3, 5)

    def __init__(self, name: str, best: int) -> None:
        self.name = name
        self.best = best
        self.asked: list[tuple[Asked, int]] = []

    async def ask(self, asked: Asked, num_drafted: int) -> Answer:
        self.asked.append((asked, num_drafted))
        ORDER.append((self.name, num_drafted))
        seconds = 1.0 if not num_drafted else 0.5 if num_drafted == self.best else 0.8
        return Answer([[num_drafted if asked.temperature else 7] * asked.num_tokens for _ in asked.prompts], seconds)


async def test_each_is_measured_at_its_best_setting_on_the_same_fresh_prompts_in_turns() -> None:
    ORDER.clear()
    one, other = Scripted("one", 3), Scripted("other", 5)
    prompts = ([number] for number in count())
    speeds = await measure_speed({"one": one, "other": other}, prompts, PLAN)
    assert set(speeds) == set(PLAN.streams)
    assert speeds[8] == {"one": Speed(8 * 128, 16 * 128, 3), "other": Speed(8 * 128, 16 * 128, 5)}
    assert speeds[32]["one"].plain == 32 * 64
    assert ORDER[8:16] == [("one", 0), ("one", 3), ("other", 0), ("other", 5)] * 2
    measured = [[prompt[0] for asked, _ in each.asked[4:8] for prompt in asked.prompts] for each in (one, other)]
    assert measured[0] == measured[1]
    assert len(set(measured[0])) == 4, "nobody is asked what it may still know"


async def test_a_long_prompt_is_asked_of_all_for_one_token() -> None:
    one = Scripted("one", 3)
    assert await measure_prompt({"one": one}, ([1] * 64 for _ in count()), 1) == {"one": 1.0}
    (asked, drafted) = one.asked[0]
    assert (len(asked.prompts[0]), asked.num_tokens, drafted) == (2000, 1, 0)


async def test_streams_that_speculation_changes_are_counted() -> None:
    one = Scripted("one", 3)
    plain = await answers(one, [[1], [2]], 1.0, 0)
    assert differing(plain, await answers(one, [[1], [2]], 1.0, 2)) == 2
    assert differing(plain, await answers(one, [[1], [2]], 1.0, 0)) == 0
    assert all(len(asked.prompts) == 1 for asked, _ in one.asked)


def test_the_page_has_speeds_bandwidth_and_what_changed(tmp_path: Path) -> None:
    speeds = {n: {"Paceline": Speed(100.0, 150.0, 1), "llama.cpp": Speed(80.0, 100.0, 3)} for n in PLAN.streams}
    changed = {"greedy": {"Paceline": Changed(0, 0, 8), "llama.cpp": Changed(2, 3, 8)}}
    prompts = {"bfloat16": {"Paceline": 1.5}}
    report = Report(PLAN, "6-78", {"llama.cpp": "1"}, 50e9, 500_000_000, {"bfloat16": speeds}, prompts, changed)
    text = write_peers(report, tmp_path).read_text()
    assert "**50.0 GB/s**" in text
    assert "would be 100 tokens/s" in " ".join(text.split())
    assert "| 1 | Paceline | 100 | 150 | 1.50 | its own choice |" in text
    assert "|  | llama.cpp | 80 | 100 | 1.25 | 3 |" in text
    assert "| greedy | llama.cpp | 2 of 8 | 3 of 8 |" in text
    assert "Paceline 1.50 s" in text
    assert (tmp_path / "peers.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["openvino_worker.py", "gguf_file.py"])
def test_what_runs_in_another_environment_imports_nothing_of_ours(repository: Path, name: str) -> None:
    source = (repository / "benchmarks" / "peers" / name).read_text()
    assert not [
        line for line in source.splitlines() if line.startswith(("from paceline", "from services", "from bench"))
    ]
