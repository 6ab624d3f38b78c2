"""Where the target's recovered token stands among the draft's own candidates, and what the draft's margin says.

For every token of texts that the target continued itself, the draft's scores on the same text before it: a rejection is
a position at which the two picks differ. Counted is the rank of the target's pick among the draft's tokens other than
its own pick, by the scores that it draws with (logits / temperature + shared noise) and by its logits alone.
"""

from collections import Counter, abc
from typing import NamedTuple

import torch

from benchmarks.systems import InProcess
from services.common.sampling_params import SamplingParams
from services.engine.config import Device, Dtype, EngineConfig
from services.engine.engine import Engine
from services.engine.forward import Batch
from services.engine.noise import gumbel, row_state, signed
from services.engine.scheduler import Work
from services.engine.sequence import Sequence

RANKS = (1, 2, 3, 4)
MARGINS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bounds between bins of the margin: score of the draft's pick minus that of its runner-up."""


class Recovered(NamedTuple):
    """Counts at one temperature."""

    temperature: float
    num_tokens: int
    num_rejected: int
    with_noise: list[float]
    """Share of rejections whose recovered token is among the first 1, 2, 3, 4, ranked with the noise."""
    without_noise: list[float]
    accepted_by_margin: list[tuple[int, float]]
    """(tokens, share accepted) for each bin of the margin."""


def measure(target: str, draft: str, prompts: abc.Sequence[abc.Sequence[int]], num_tokens: int) -> list[Recovered]:
    """Greedy and at temperature 1."""
    configs = [EngineConfig(model=model, device=Device.CPU, dtype=Dtype.BFLOAT16) for model in (target, draft)]
    author, reader = InProcess(configs[0]), Engine(configs[1])
    return [_measure(author, reader, prompts, num_tokens, temperature) for temperature in (0.0, 1.0)]


def _measure(
    target: InProcess, draft: Engine, prompts: abc.Sequence[abc.Sequence[int]], num_tokens: int, temperature: float
) -> Recovered:
    ranks: dict[bool, list[int]] = {True: [], False: []}
    bins = [Counter[bool]() for _ in range(len(MARGINS) + 1)]
    for index, continuation in enumerate(target.generate(prompts, num_tokens, temperature).token_ids):
        start = len(prompts[index])
        logits = _logits(draft, [*prompts[index], *continuation[:-1]])[start - 1 :]
        picks = torch.tensor(continuation)
        noisy = _noisy(logits, temperature, index, start)
        best = noisy.topk(2, dim=-1)
        margins = best.values[:, 0] - best.values[:, 1]
        accepted = best.indices[:, 0] == picks
        for margin, right in zip(margins.tolist(), accepted.tolist(), strict=True):
            bins[sum(margin >= bound for bound in MARGINS)][right] += 1
        for scores, with_noise in ((noisy, True), (logits.double(), False)):
            others = scores.scatter(1, best.indices[:, :1], -torch.inf)
            rank = (others > others.gather(1, picks[:, None])).sum(dim=-1) + 1
            ranks[with_noise] += rank[~accepted].tolist()
    total = sum(sum(counts.values()) for counts in bins)
    rejected = len(ranks[True])
    shares = [[sum(rank <= r for rank in ranks[noise]) / max(1, rejected) for r in RANKS] for noise in (True, False)]
    by_margin = [(sum(c.values()), c[True] / max(1, sum(c.values()))) for c in bins]
    return Recovered(temperature, total, rejected, shares[0], shares[1], by_margin)


@torch.inference_mode()
def _logits(engine: Engine, token_ids: abc.Sequence[int]) -> torch.Tensor:
    """Logits [tokens, vocab] of a text, computed in one step."""
    count = len(token_ids)
    sequence = Sequence(token_ids, count, SamplingParams())
    sequence.block_table = list(range(1, -(-count // engine.config.block_size) + 1))
    everything = list(range(count))
    return engine.runner.forward.run(Batch([Work(sequence, 0, count)], list(token_ids), everything, everything))


def _noisy(logits: torch.Tensor, temperature: float, seed: int, start: int) -> torch.Tensor:
    """The scores [tokens, vocab] that picks are drawn by."""
    if not temperature:
        return logits.double()
    states = torch.tensor([signed(row_state(seed, start + index)) for index in range(len(logits))])
    return logits.double() / temperature + gumbel(states, logits.shape[-1])
