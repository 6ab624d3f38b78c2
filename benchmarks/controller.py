"""The decision whether to speculate, in a simulation: never slower than off, whatever the draft.

The code that decides and the code that sizes proposals are those that serve; rounds take the time that a machine of
given numbers would take. A round is an event: the draft drafts (before the verifier's step, or during it where it has
cores of its own), messages travel, the target verifies. Beside noise there are stalls, changes in mid-run, and streams
that come and go. Times are in plain steps of one row.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from services.verifier.decision import Decider
from services.verifier.governor import Drafting, allocate
from services.verifier.load import NOT_KNOWN, TOPS, Load, Prospect, Way, bucket
from services.verifier.rate import Ratio

ROUNDS = 10_000
SETTLED = 100
"""Rounds after which the better way has to be gone."""
MOST_LOST, LEAST_SETTLED = 0.01, 0.98
"""Of the better way's tokens over all rounds, and of its rate once that is settled."""
_MAX_DRAFT_TOKENS = 8
_STALL_EVERY, _STALL = 200, 5.0
_OPENING_ROUNDS = 2
"""Rounds that a draft takes to come with its first proposals."""
_CONTENTION = 1.3
"""A plain step takes so much longer while a draft on the same cores begins."""


class Pair(NamedTuple):
    """A draft and a target, and what is between them."""

    draft: float
    """Time of a draft's step."""
    acceptance: float
    """Of each token, given that all before it were accepted."""
    delay: float = 0.1
    """Time of a round trip."""
    row: float = 0.05
    """Time of a further row of the verifier's step."""
    shares: bool = True
    """Whether draft and target have the same cores; else drafting goes on during the step."""
    noise: float = 0.1
    """Standard deviation of a round's time, relative to it."""


class Change(NamedTuple):
    """Another pair, or another number of streams, from a round on."""

    at: int
    pair: Pair
    streams: int


class Outcome(NamedTuple):
    """A run, beside the better of both ways at every moment."""

    loss: float
    """Share of the better way's tokens that were not made in the same time, over all rounds."""
    settled: float
    """Rate relative to the better way's, without the first SETTLED rounds and those after a change."""
    ratio: float
    """On, relative to off, as the numbers have it, in the end."""
    way: Way


class _Machine:
    """What a pair makes of a round."""

    def __init__(self, pair: Pair, streams: int) -> None:
        self.pair = pair
        self.streams = streams
        survival = list(accumulate([pair.acceptance] * _MAX_DRAFT_TOKENS, mul))
        exposed = pair.draft / streams if pair.shares else self._exposed() * pair.draft / streams
        allocation = allocate([survival] * streams, self.curve, 0, Drafting(pair.delay, exposed), least=streams)
        self.taken = allocation.num_tokens
        self.tokens = allocation.tokens / streams
        rows = streams + sum(self.taken)
        drafting = max(self.taken) * pair.draft + pair.delay
        self.on_seconds = self.plain(rows) + drafting * (1.0 if pair.shares else self._exposed())
        self.off_seconds = self.plain(streams)

    @property
    def ratio(self) -> float:
        return self.tokens / self.on_seconds * self.off_seconds

    def plain(self, rows: int) -> float:
        return 1 + self.pair.row * (rows - 1)

    def curve(self, first: int, last: int) -> NDArray[np.float64]:
        return 1 + self.pair.row * np.arange(first - 1, last, dtype=np.float64)

    def commit(self, rng: random.Random) -> int:
        """Tokens that a round with proposals commits."""
        committed = self.streams
        for count in self.taken:
            for _ in range(count):
                if rng.random() >= self.pair.acceptance:
                    break
                committed += 1
        return committed

    def _exposed(self) -> float:
        """Share of rounds whose proposals are not there in time: the target went another way."""
        return 1 - self.pair.acceptance**4


def simulate(
    pair: Pair,
    streams: int,
    seed: int,
    rounds: int = ROUNDS,
    changes: Sequence[Change] = (),
    expected: float | None = None,
) -> Outcome:
    """One run of the decision from nothing known; or, with `expected`, where the draft lost at another load, and that
    share of what it gives is expected of it.
    """
    rng = random.Random(seed)
    elsewhere = Load(TOPS[-1], "draft", Way.OFF, {Way.DRAFT: Ratio(mean=-0.5, weight=900.0)})
    decider, machine = Decider([] if expected is None else [elsewhere]), _Machine(pair, streams)

    def prospect() -> Prospect:
        return NOT_KNOWN if expected is None else Prospect(0.0, machine.ratio * expected)

    due = {change.at: change for change in changes}
    used, better, since, on = [0.0, 0.0], [0.0, 0.0], 0, 0
    for number in range(rounds):
        if change := due.get(number):
            machine, since, on = _Machine(change.pair, change.streams), 0, 0
        n = machine.streams
        way = decider.decide(n, "draft", (Way.DRAFT,), prospect)
        on = on + 1 if way is Way.DRAFT else 0
        drafted = on > _OPENING_ROUNDS
        seconds, tokens, made = machine.off_seconds, float(n), n
        if drafted:
            seconds, tokens, made = machine.on_seconds, machine.tokens * n, machine.commit(rng)
        elif on and machine.pair.shares:
            seconds *= _CONTENTION
        stall = _STALL if number % _STALL_EVERY == _STALL_EVERY - 1 else 1.0
        noise = max(0.3, rng.gauss(1, machine.pair.noise)) * stall
        decider.record(n, made, seconds * noise, machine.plain, drafted=drafted)
        best = tokens / n * machine.off_seconds / max(1.0, machine.ratio)
        since += 1
        for part in (0, 1) if since > SETTLED else (0,):
            used[part] += seconds
            better[part] += best
    load = decider.loads[bucket(machine.streams), "draft"]
    return Outcome(1 - better[0] / used[0], better[1] / used[1], machine.ratio, load.way)


def grid() -> Iterator[tuple[Pair, int]]:
    """Every kind of draft, network and load."""
    drafts = (0.0, 0.02, 0.07, 0.17, 0.35, 0.7, 1.3, 2.0)
    acceptances = (0.05, 0.3, 0.5, 0.63, 0.78, 0.9, 0.97)
    for draft, acceptance, delay, shares, streams in product(
        drafts, acceptances, (0.0, 0.2, 1.0), (True, False), (1, 4, 16)
    ):
        yield Pair(draft, acceptance, delay, shares=shares, row=0.01 if streams > 8 else 0.05), streams


def main() -> int:
    """The whole grid. Exit code 1 when a pair lost more than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller", description=__doc__)
    parser.add_argument("--expected", type=float, help="this share of what a draft gives is expected; every third pair")
    arguments = parser.parse_args()
    out = Console(highlight=False)
    missed, worst, lowest = 0, 0.0, 1.0
    cells = list(enumerate(grid()))[:: 1 if arguments.expected is None else 3]
    for seed, (pair, streams) in cells:
        outcome = simulate(pair, streams, seed, expected=arguments.expected)
        worst, lowest = max(worst, outcome.loss), min(lowest, outcome.settled)
        if outcome.loss > MOST_LOST or outcome.settled < LEAST_SETTLED:
            missed += 1
            out.print(f"{pair}, {streams} streams: on / off {outcome.ratio:.3f}, {outcome.loss:.2%} lost, "
                      f"{outcome.settled:.3f} of the better way")  # fmt: skip
    out.print(
        f"{len(cells)} pairs: at most {worst:.2%} lost, at least {lowest:.3f} of the better way, {missed:.0f} missed"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
