"""The assistant and its draft: acceptance on held-out questions, on and off in speed, and whether answers differ."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer

from benchmarks.page import machine, table, write_page
from benchmarks.peers.assistant import LLAMA, Plain, beside_llama
from models.assistant.evaluation import (
    NUM_TOKENS,
    PROPOSED,
    TEMPERATURES,
    Positions,
    agreements,
    answers,
    engines,
    positions_of,
)
from models.assistant.held_out import Question, held_out, held_out_prompts
from models.assistant.openings import KINDS
from models.assistant.target import target_folder
from paceline import Client
from services.local.launcher import running
from services.local.model_files import shipped_draft
from services.local.pair import ASSISTANT, Pair
from services.local.system import SystemSettings

_FIRST_FLOOR = 0.55
_ASKED = 96
"""Questions on which acceptance is measured."""
_TIMED = 16
_WARM_UP = 2
_BESIDE = 9
"""Questions that llama.cpp answers too."""
_AT_ONCE = 8
_SPEED_FLOORS = {0.0: 1.3, 0.7: 1.15}
"""On / off, one stream, by temperature."""
_MAX_DIFFERENT = 0


class Acceptance(NamedTuple):
    """Acceptance at a temperature, over all questions and by kind."""

    temperature: float
    all: Positions
    kinds: dict[str, Positions]


class Speed(NamedTuple):
    """One stream at a temperature."""

    temperature: float
    ratio: float
    """Median of the ratios of answers with speculation and without."""
    on: float
    off: float
    """Medians of tokens a second, prompt included."""
    accepted: float
    """Share of the proposed tokens."""

    @property
    def floor(self) -> float:
        """What the ratio is to be at least."""
        return _SPEED_FLOORS[self.temperature]


class Report(NamedTuple):
    """Everything that one run measured."""

    acceptance: list[Acceptance]
    speeds: list[Speed]
    num_chats: int
    num_different: int
    plain: list[Plain]
    """Beside llama.cpp; empty where it is not installed."""

    @property
    def holds(self) -> bool:
        """Whether every floor is reached."""
        first = self.acceptance[0].all.rates[0]
        fast = all(speed.ratio >= speed.floor for speed in self.speeds)
        return first >= _FIRST_FLOOR and fast and self.num_different <= _MAX_DIFFERENT


class _Answered(NamedTuple):
    token_ids: list[int]
    tokens_per_second: float
    drafted: int
    accepted: int


def run() -> Report:
    """Measures everything. Takes some four minutes on two cores."""
    graft = shipped_draft(ASSISTANT)
    if graft is None:
        raise FileNotFoundError("the assistant's draft is not there: `python -m models.assistant.exporting` writes it")
    questions = held_out()
    acceptance = _acceptance(questions[:_ASKED], Path(graft))
    speeds, num_different = asyncio.run(_compare(questions, graft))
    prompts = held_out_prompts(AutoTokenizer.from_pretrained(target_folder()))
    plain = asyncio.run(beside_llama(prompts[: 1 + _BESIDE], NUM_TOKENS))
    return Report(acceptance, speeds, len(questions), num_different, plain)


def _acceptance(questions: Sequence[Question], graft: Path) -> list[Acceptance]:
    target, draft = engines(graft)
    prompts = held_out_prompts(AutoTokenizer.from_pretrained(target_folder()))[: len(questions)]
    found = []
    for temperature in TEMPERATURES:
        agreed = agreements(draft, prompts, answers(target, prompts, temperature), temperature)
        by_kind = {
            kind: positions_of([a for q, a in zip(questions, agreed, strict=True) if q.kind == kind]) for kind in KINDS
        }
        found.append(Acceptance(temperature, positions_of(agreed), by_kind))
    return found


async def _compare(questions: Sequence[Question], graft: str) -> tuple[list[Speed], int]:
    """Both systems beside each other; "off" has no draft, so every core is the verifier's."""
    async with AsyncExitStack() as resources:
        clients: dict[bool, Client] = {}
        for speculation in (True, False):
            pair = Pair(model=ASSISTANT, draft=graft if speculation else None)
            launcher = await resources.enter_async_context(running(SystemSettings((pair,), log_level="WARNING")))
            clients[speculation] = await resources.enter_async_context(Client(launcher.address()))
        speeds = [await _speed(clients, questions, temperature) for temperature in _SPEED_FLOORS]
        num_different = 0
        for first in range(0, len(questions), _AT_ONCE):
            some = questions[first : first + _AT_ONCE]
            heats = [(0.0, 0.7)[(first + at) % 2] for at in range(len(some))]
            on, off = [
                await asyncio.gather(*(_ask(clients[mode], q, heat) for q, heat in zip(some, heats, strict=True)))
                for mode in (True, False)
            ]
            num_different += sum(a.token_ids != b.token_ids for a, b in zip(on, off, strict=True))
        return speeds, num_different


async def _speed(clients: dict[bool, Client], questions: Sequence[Question], temperature: float) -> Speed:
    """Questions one after the other, each with and without; the first are to warm up."""
    runs: dict[bool, list[_Answered]] = {True: [], False: []}
    for number, question in enumerate(questions[: _WARM_UP + _TIMED]):
        for mode in (True, False) if number % 2 else (False, True):
            answered = await _ask(clients[mode], question, temperature)
            if number >= _WARM_UP and len(answered.token_ids) > NUM_TOKENS // 4:
                runs[mode].append(answered)
    on, off = runs[True], runs[False]
    ratio = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in zip(on, off, strict=True))
    medians = [statistics.median(answered.tokens_per_second for answered in each) for each in (on, off)]
    accepted = sum(each.accepted for each in on) / max(1, sum(each.drafted for each in on))
    return Speed(temperature, ratio, medians[0], medians[1], accepted)


async def _ask(client: Client, question: Question, temperature: float) -> _Answered:
    token_ids: list[int] = []
    drafted = accepted = 0
    began = time.perf_counter()
    async for event in client.chat(question.messages, temperature=temperature, seed=7, max_tokens=NUM_TOKENS):
        token_ids.extend(event.delta.token_ids)
        if event.HasField("usage"):
            drafted, accepted = event.usage.num_drafted_tokens, event.usage.num_accepted_tokens
    return _Answered(token_ids, len(token_ids) / (time.perf_counter() - began), drafted, accepted)


def _missed(value: float, floor: float) -> str:
    return "" if value >= floor else " (missed)"


def write_assistant(report: Report, folder: Path) -> Path:
    """Writes assistant.md into a folder and returns its path."""
    positions = [f"position {at + 1}" for at in range(PROPOSED)]
    by_kind = [
        (kind, *(f"{each.kinds[kind].rates[0]:.2f}" for each in report.acceptance))
        for kind in KINDS
        if all(each.kinds[kind].num_rounds for each in report.acceptance)
    ]
    lines = [
        "# The assistant and its draft",
        "",
        f"Written by `python -m benchmarks assistant`: {machine()}. SmolLM2-135M-Instruct in bfloat16, with the draft "
        f"that ships ([card](../../models/assistant/README.md)), on {report.num_chats} held-out questions, up to "
        f"{NUM_TOKENS} tokens each.",
        "",
        "## Acceptance",
        "",
        f"Share of a position's tokens that were accepted, given that all before it were, on {_ASKED} questions; as "
        f"the draft is served, in 8 bits. The floor of the first position, greedy, is {_FIRST_FLOOR}"
        f"{_missed(report.acceptance[0].all.rates[0], _FIRST_FLOOR)}.",
        "",
        *table(
            ("temperature", *positions),
            [(f"{each.temperature:g}", *(f"{rate:.2f}" for rate in each.all.rates)) for each in report.acceptance],
        ),
        "First position by kind of question:",
        "",
        *table(("kind", *(f"temperature {each.temperature:g}" for each in report.acceptance)), by_kind),
        "## Speed",
        "",
        f"One stream through gateway and gRPC, prompt included, medians over {_TIMED} questions, each answered with "
        'and without, in turns. "Off" has no draft process.',
        "",
        *table(
            ("temperature", "on / off", "floor", "tokens/s on", "tokens/s off", "accepted of proposed"),
            [
                (
                    f"{speed.temperature:g}", f"**{speed.ratio:.2f}**{_missed(speed.ratio, speed.floor)}",
                    f"{speed.floor:g}", f"{speed.on:.0f}",
                    f"{speed.off:.0f}", f"{speed.accepted:.0%}",
                )
                for speed in report.speeds
            ],
        ),
        f"Answers that differ on and off, of {report.num_chats}, half greedy and half at temperature 0.7, {_AT_ONCE} "
        f"at once: **{report.num_different}**.",
        "",
        "## Beside llama.cpp",
        "",
        *_beside(report.plain),
    ]  # fmt: skip
    return write_page(folder, "assistant", lines)


def _beside(plain: Sequence[Plain]) -> list[str]:
    if not plain:
        return ["Not measured: `make bench-peers` installs llama.cpp.", ""]
    return [
        f"One stream without speculation, prompt included, {NUM_TOKENS} tokens behind each of {_BESIDE} questions, in "
        "turns, medians. llama.cpp multiplies with the file's 4 bits as they are.",
        "",
        *table(
            ("", "tokens/s", f"relative to {LLAMA}"),
            [(each.name, f"{each.tokens_per_second:.0f}", f"{each.relative:.2f}") for each in plain],
        ),
    ]
