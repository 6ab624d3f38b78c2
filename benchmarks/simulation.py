"""What the policies give for models that do not fit here: no model runs, times and acceptance are given as numbers.

The choices are made by the code that serves: `governor.allocate`, `best_start` and `worth_waiting` of the verifier,
`outcomes` and `affordable_rows` of the draft. Acceptance follows the measured table of margins (recovered.md): every
proposed token has one of its classes, and is accepted as often as that class was.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.draft.branching import affordable_rows, outcomes
from services.draft.confidence import Guess
from services.verifier.governor import Allocation, Pending, allocate, best_start, worth_waiting

ROUND_TRIPS_MS = (0, 5, 10, 20, 30, 40, 50)
LOADS = (1, 4, 16, 64, 256)
ROUNDS = 200
SERIAL_TOKENS = 4
_CLASSES = (0.35, 0.51, 0.74, 0.87, 0.985, 0.997)
_WEIGHTS = (653, 367, 694, 1306, 1373, 215)
_RANKS = (0.52, 0.12, 0.06, 0.03, 0.03, 0.02, 0.02, 0.01)
_MAX_TOKENS = 8
_BRANCH_TOKENS = 4
_MAX_BRANCHES = 16

StepSeconds = Callable[[int], float]


def target_seconds(rows: int) -> float:
    """70B weights over eight GPUs: 25 ms to read them, compute-bound beyond some 400 rows."""
    return max(0.025, 0.0000625 * rows) + 0.000005 * rows


def draft_seconds(rows: int) -> float:
    """8B weights on one GPU: 7 ms to read them, compute-bound beyond some 350 rows."""
    return max(0.007, 0.00002 * rows)


def _target_curve(first: int, last: int) -> NDArray[np.float64]:
    return np.array([target_seconds(rows) for rows in range(first, last + 1)])


class Point(NamedTuple):
    """Tokens a second at one round trip and load."""

    round_trip_ms: int
    num_streams: int
    plain: float
    serial: float
    ahead: float


@dataclass(slots=True)
class _Stream:
    confidences: list[float]
    """Of the proposed tokens that it has, or is going to have."""
    arrives: float
    committed_at: float = 0.0


def simulate() -> list[Point]:
    """All points of the grid; the same numbers every time."""
    return [
        Point(ms, load, load / target_seconds(load), _serial(ms / 1e3, load), _ahead(ms / 1e3, load))
        for load in LOADS
        for ms in ROUND_TRIPS_MS
    ]


def _serial(round_trip: float, load: int) -> float:
    """Draft, send, verify, return: a fixed number of tokens, nothing overlaps."""
    rng = random.Random(load)
    committed = sum(_verify(rng, _draw(rng, SERIAL_TOKENS)) + 1 for _ in range(ROUNDS * load))
    rounds = SERIAL_TOKENS * draft_seconds(load) + round_trip + target_seconds(load * (1 + SERIAL_TOKENS))
    return committed / (ROUNDS * rounds)


def _ahead(round_trip: float, load: int) -> float:
    rng = random.Random(load)
    now, committed = 0.0, 0
    streams = [_Stream(_draw(rng, _MAX_TOKENS), round_trip) for _ in range(load)]
    for _ in range(ROUNDS):
        stepped, allocation, start = _next_step(streams, now, load)
        now = start + allocation.seconds
        for stream, count in zip(stepped, allocation.num_tokens, strict=True):
            late = _BRANCH_TOKENS * draft_seconds(load) + round_trip
            if stream.arrives > start and rng.random() < stream.confidences[0]:
                # A plain step that picked what was proposed: the rest of it is as good as before.
                committed += 1
                stream.confidences = [*stream.confidences[1:], *_draw(rng, 1)]
                continue
            confidences = stream.confidences[:count]
            accepted = _verify(rng, confidences)
            committed += accepted + 1
            # Pushed while the block was verified, or begun when the commit has come.
            hit = count > 0 and _prepared(rng, confidences, accepted, allocation.seconds, load)
            stream.arrives = start + late if hit else now + late
            stream.confidences, stream.committed_at = _draw(rng, _MAX_TOKENS), now
    return committed / now


def _next_step(streams: Sequence[_Stream], now: float, load: int) -> tuple[list[_Stream], Allocation, float]:
    """Who steps, with how many proposed tokens, and when: as the verifier's role decides it."""
    typical = sum(c * w for c, w in zip(_CLASSES, _WEIGHTS, strict=True)) / sum(_WEIGHTS)
    wanted = allocate([_survival([typical] * _MAX_TOKENS)] * load, _target_curve)
    tokens = wanted.tokens / load
    worth = worth_waiting(tokens, typical, wanted.seconds) if any(wanted.num_tokens) else 0.0
    waits = [s for s in streams if now < s.arrives <= s.committed_at + worth]
    ready = [s for s in streams if s not in waits] if waits else list(streams)
    if not ready:
        now = min(s.arrives for s in waits)
        return _next_step(streams, now, load)
    allocation = _allocate(ready, now)
    rows = len(ready) + sum(allocation.num_tokens)
    pending = [Pending(s.arrives, tokens, 1 + max(wanted.num_tokens)) for s in waits]
    start = best_start(now, allocation, rows, pending, target_seconds)
    if start > now:
        ready += [s for s in waits if s.arrives <= start]
        allocation = _allocate(ready, start)
    return ready, allocation, start


def _allocate(streams: Sequence[_Stream], now: float) -> Allocation:
    return allocate([_survival(s.confidences) if s.arrives <= now else [] for s in streams], _target_curve)


def _prepared(rng: random.Random, confidences: Sequence[float], accepted: int, seconds: float, load: int) -> bool:
    """Whether the draft had prepared for what the target picked after the accepted tokens."""
    rows = affordable_rows(lambda n: draft_seconds(load * (1 + n)), seconds / _BRANCH_TOKENS, _MAX_BRANCHES)
    bonus = _draw(rng, 1)[0]
    guesses = [Guess(0, 0.0, confidence, list(range(len(_RANKS)))) for confidence in (*confidences, bonus)]
    if accepted == len(confidences) and rng.random() < bonus:
        return True
    rank = rng.choices(range(len(_RANKS) + 1), [*_RANKS, max(0.0, 1 - sum(_RANKS))])[0]
    prepared = outcomes(guesses, 0, 1.0, lambda r: _RANKS[r])[:rows]
    return any((outcome.position, outcome.token_id) == (accepted, rank) for outcome in prepared)


def _draw(rng: random.Random, count: int) -> list[float]:
    return rng.choices(_CLASSES, _WEIGHTS, k=count)


def _verify(rng: random.Random, confidences: Sequence[float]) -> int:
    """How many tokens are accepted."""
    return next((index for index, confidence in enumerate(confidences) if rng.random() >= confidence), len(confidences))


def _survival(confidences: Sequence[float]) -> list[float]:
    return list(accumulate(confidences, mul))
