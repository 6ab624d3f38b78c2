"""`paceline bench`: what it makes of a system whose every answer is known, and the limit of known pairs."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from paceline.cli.app import app
from paceline.cli.bench.limit import Limit, best_ratio, interpolated
from paceline.cli.bench.load import Position, Run, Stream, by_position, overall
from paceline.cli.bench.prompts import PromptsError, made_up, read_prompts
from paceline.cli.bench.summary import acceptance_of, summarize
from paceline.errors import UnavailableError
from paceline.v1 import inference_pb2, model_pb2
from support.gateway import FakeGateway, serve_gateway

STEPS = [model_pb2.StepTime(num_rows=1, seconds=0.006), model_pb2.StepTime(num_rows=64, seconds=0.006)]
DRAFT_STEPS = [model_pb2.StepTime(num_rows=1, seconds=0.001)]


class SpeculatingGateway(FakeGateway):
    """With speculation every delta has three tokens, of which two were accepted of four; without it has one."""

    has_step_times = True
    differs = False
    is_away = False

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: object
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.requests.append(request)
        if self.is_away:
            raise UnavailableError("no verifier has answered yet", retry_after_seconds=3)
        on = request.speculation.mode == inference_pb2.Speculation.MODE_AUTO
        size = 3 if on else 1
        for start in range(0, request.sampling.max_tokens, size):
            delta = inference_pb2.Delta(token_ids=range(start, min(start + size, request.sampling.max_tokens)))
            if on:
                delta.num_drafted_tokens, delta.num_accepted_tokens = 4, 2
                delta.token_ids[0] += self.differs
            yield inference_pb2.GenerateResponse(delta=delta)
        yield inference_pb2.GenerateResponse(usage={"num_completion_tokens": request.sampling.max_tokens})

    async def ListModels(self, request: object, context: object) -> model_pb2.ListModelsResponse:
        target = model_pb2.ModelInfo(id="scripted", vocab_size=50)
        draft = model_pb2.ModelInfo(id="little", vocab_size=50)
        if self.has_step_times:
            target.step_times.extend(STEPS)
            draft.step_times.extend(DRAFT_STEPS)
        return model_pb2.ListModelsResponse(models=[{"target": target, "draft": draft}])


@pytest.fixture
async def gateway() -> SpeculatingGateway:
    return SpeculatingGateway()


async def run(gateway: FakeGateway, *arguments: str) -> Result:
    """The command against this gateway."""
    async with serve_gateway(gateway) as address:
        return await asyncio.to_thread(CliRunner().invoke, app, ["bench", "--address", address, *arguments])


async def measured(gateway: FakeGateway, *arguments: str) -> dict[str, Any]:
    result = await run(gateway, "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


async def test_every_prompt_is_asked_once_a_way_in_turns(gateway: SpeculatingGateway) -> None:
    found = await measured(gateway, "--streams", "1,3", "--repeats", "2", "--max-tokens", "9", "--prompt-tokens", "5")
    assert [cell["streams"] for cell in found["runs"]] == [1, 3]
    _warm_up, *requests = gateway.requests
    modes = [request.speculation.mode == inference_pb2.Speculation.MODE_AUTO for request in requests]
    assert modes == [True, False, False, True, *[True] * 3, *[False] * 6, *[True] * 3]
    asked = {
        way: [tuple(r.token_ids.ids) for r, m in zip(requests, modes, strict=True) if m == way] for way in (True, False)
    }
    assert sorted(asked[True]) == sorted(asked[False])
    assert len(set(asked[True])) == 8
    assert all(len(prompt) == 5 and all(1 <= token < 50 for token in prompt) for prompt in asked[True])
    assert all(request.sampling.ignore_eos and request.sampling.max_tokens == 9 for request in requests)


async def test_acceptance_is_per_position_and_the_limit_follows_from_it(gateway: SpeculatingGateway) -> None:
    found = await measured(gateway, "--streams", "1", "--repeats", "1", "--max-tokens", "9")
    (cell,) = found["runs"]
    # Three rounds of four proposed tokens, of which two were accepted: the fourth was never judged.
    assert cell["acceptance_by_position"] == [
        {"num_judged": 3, "num_accepted": 3},
        {"num_judged": 3, "num_accepted": 3},
        {"num_judged": 3, "num_accepted": 0},
    ]
    assert cell["acceptance"] == pytest.approx(2 / 3)
    expected = best_ratio(2 / 3, 1, lambda rows: 0.006, lambda rows: 0.001)
    assert cell["limit"]["ratio"] == pytest.approx(expected.ratio)
    assert cell["limit"]["num_drafted"] == expected.num_drafted
    assert cell["share_of_limit"] == pytest.approx(cell["decoding_ratio"] / expected.ratio)
    assert cell["differing_streams"] == 0
    assert set(cell["on"]["time_between_tokens"]) == {"p50", "p95", "p99"}


async def test_without_step_times_there_is_no_limit_and_all_else(gateway: SpeculatingGateway) -> None:
    gateway.has_step_times = False
    (cell,) = (await measured(gateway, "--streams", "2", "--repeats", "1", "--max-tokens", "6"))["runs"]
    assert cell["limit"] is None
    assert cell["share_of_limit"] is None
    assert cell["acceptance"] == pytest.approx(2 / 3)
    assert cell["ratio"] > 0


async def test_it_prints_tables_and_bars_and_writes_the_bars(gateway: SpeculatingGateway, tmp_path: Path) -> None:
    gateway.differs = True
    plot = tmp_path / "plot.svg"
    result = await run(gateway, "--streams", "2", "--repeats", "1", "--max-tokens", "6", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    assert "on / off" in result.stdout
    assert "0.67" in result.stdout
    assert "2 streams, off" in result.stdout
    assert "2 streams had other tokens with speculation than without" in result.stdout
    assert plot.read_text().lstrip().startswith("<svg")
    assert "2&#160;streams,&#160;on" in plot.read_text()


async def test_prompts_of_a_file_are_asked_as_they_stand(gateway: SpeculatingGateway, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('plain text\n\n{"prompt": "said in JSON"}\n{"prompt": [7, 8]}\n')
    await measured(gateway, "--streams", "2", "--repeats", "1", "--prompts", str(path), "--max-tokens", "3")
    asked = {request.prompt or tuple(request.token_ids.ids) for request in gateway.requests}
    assert asked == {"plain text", "said in JSON", (7, 8)}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{no", "line 2 is no JSON"),
        ('{"text": "x"}', "line 2 has no"),
        ('{"prompt": [1, -1]}', "line 2 has no"),
        ('{"prompt": []}', "line 2 has no"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"fine\n{line}\n")
    with pytest.raises(PromptsError, match=said):
        read_prompts(path)


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_a_file_without_prompts_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptsError, match=r"prompts\.txt"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--streams", "0"], "--streams takes numbers"),
        (["--streams", "1,x"], "--streams takes numbers"),
        (["--model", "other"], "no model 'other'"),
        (["--prompts", "/nowhere/at/all"], "cannot be read"),
    ],
)
async def test_what_cannot_be_measured_is_said_in_a_line(
    gateway: SpeculatingGateway, arguments: list[str], said: str
) -> None:
    result = await run(gateway, *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert isinstance(result.exception, SystemExit)


async def test_a_system_that_fails_is_said_in_a_line(gateway: SpeculatingGateway) -> None:
    gateway.is_away = True
    result = await run(gateway, "--streams", "2")
    assert result.exit_code == 1
    assert "no verifier has answered yet; try again in 3 s" in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_the_limit_is_that_of_the_formula() -> None:
    # Draft steps of a sixth, verification at the cost of a plain step: (1 + a + ... + a^4) / (1 + 4 / 6).
    limit = best_ratio(0.78, 1, lambda rows: 6.0, lambda rows: 1.0)
    assert limit.num_drafted == 4
    assert limit.ratio == pytest.approx((1 + 0.78 + 0.78**2 + 0.78**3 + 0.78**4) / (1 + 4 / 6))
    # Every row costs the same, as in a full batch: nothing is to be had.
    assert best_ratio(0.9, 8, float, lambda rows: 0.1) == Limit(1.0, 0)
    assert best_ratio(0.0, 1, lambda rows: 1.0, lambda rows: 0.01) == Limit(1.0, 0)
    assert best_ratio(1.0, 1, lambda rows: 1.0, lambda rows: 0.0) == Limit(17.0, 16)
    # Eight streams of two tokens each are a step of sixteen rows, which costs half as much again.
    eight = best_ratio(0.5, 8, lambda rows: 1.0 if rows <= 8 else rows / 16 * 1.5, lambda rows: 0.0, 1)
    assert eight == Limit(1.0, 0)


def test_times_between_measured_ones_are_interpolated() -> None:
    at = interpolated([(1, 1.0), (4, 4.0), (8, 6.0)])
    assert [at(rows) for rows in (1, 2, 4, 6, 8, 12)] == [1.0, 2.0, 4.0, 5.0, 6.0, 8.0]
    assert interpolated([(1, 2.0)])(9) == 2.0


def test_positions_count_what_was_judged_alone() -> None:
    assert by_position([(3, 3), (3, 1), (0, 0), (1, 0)]) == [Position(3, 2), Position(2, 1), Position(1, 1)]
    assert overall(by_position([(3, 3), (3, 1), (0, 0), (1, 0)])) == pytest.approx(4 / 6)
    assert overall(by_position([(0, 0)])) is None


def test_ratios_are_medians_over_pairs_and_leave_prompts_out_where_they_say_so() -> None:
    def one(seconds: float, gap: float) -> Run:
        return Run([Stream([1, 2, 3], 0.5, [gap, gap], [(0, 0)] * 3)], seconds)

    summary = summarize([one(1, 0.1), one(2, 0.1), one(1, 0.1)], [one(2, 0.3), one(2, 0.2), one(3, 0.3)])
    assert summary.ratio == pytest.approx(2.0)
    assert summary.decoding_ratio == pytest.approx(3.0)
    assert (summary.acceptance, summary.limit, summary.share) == (None, None, None)
    assert summary.on.between == pytest.approx((0.1, 0.1, 0.1))


def test_the_limit_is_that_of_the_acceptance_that_is_told() -> None:
    runs = [Run([Stream([1, 2], 0.1, [0.1], [(4, 4)])], 1.0)]
    assert acceptance_of(runs) == 1.0
    limits = [summarize(runs, runs, lambda _: 1.0, lambda _: 0.1, share).limit for share in (None, 0.5, 0.9)]
    assert limits[0] is None
    assert limits[1:] == [best_ratio(share, 1, lambda _: 1.0, lambda _: 0.1) for share in (0.5, 0.9)]


def test_who_is_asked_second_has_nothing_of_it() -> None:
    """Prompts take a second, and none where the other way has computed them: off takes twice as long for the rest."""

    def pair(number: int) -> tuple[Run, Run]:
        on_first = number % 2 == 0
        seconds = (2.0, 2.0) if on_first else (1.0, 3.0)
        on, off = (
            Run([Stream([1, 2, 3], taken - each, [each / 2] * 2, [(0, 0)])], taken, began)
            for taken, each, began in zip(seconds, (1.0, 2.0), (0, 1) if on_first else (1, 0), strict=True)
        )
        return on, off

    for count in (2, 3, 8):
        on, off = zip(*map(pair, range(count)), strict=True)
        summary = summarize(on, off)
        assert summary.ratio == pytest.approx(3**0.5), "1 where on was first, 3 where off was"
        assert summary.decoding_ratio == pytest.approx(2.0)
        assert (summary.on.first.p50, summary.off.first.p50) == (1.0, 1.0)
        assert (summary.on.tokens_per_second, summary.off.tokens_per_second) == (3 / 2, 3 / 3)


def test_made_up_prompts_are_the_same_for_a_seed() -> None:
    assert made_up(3, 4, 50, 1) == made_up(3, 4, 50, 1)
    assert made_up(3, 4, 50, 1) != made_up(3, 4, 50, 2)
