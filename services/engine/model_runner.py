"""Runs one step: the flat batch of tokens of many sequences in, the target's picks for the wanted rows out."""

from collections import abc
from typing import NamedTuple

import torch

from services.engine.config import EngineConfig
from services.engine.forward import Batch
from services.engine.forwards import choose_forward
from services.engine.kv_cache import KVCache
from services.engine.loading import Phase, Progress, Report
from services.engine.model import load_model
from services.engine.outbox import NO_BELL
from services.engine.sampler import BROKEN, Picks, Row, RowLogprobs, RunnerUp, sample
from services.engine.scheduler import Work
from services.engine.sequence import Sequence


class Result(NamedTuple):
    """What a step found out about a sequence: the pick after each of its wanted tokens.

    `token_ids[j]` is the pick for position `first + j`: the token that follows the tokens [0, first + j). It is BROKEN
    where the model's numbers are not finite.
    """

    sequence: Sequence
    first: int
    token_ids: list[int]
    logprobs: list[RowLogprobs | None]
    runners_up: list[list[RunnerUp]]
    """Runners-up are the next likely tokens for each pick, when the sequence asks for them."""


class ModelRunner:
    """Owns the model and its KV. Used by one thread."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.loaded = load_model(config, report)
        shapes = self.loaded.kv_shapes
        per_block = KVCache.bytes_per_block(shapes, config.block_size, self.loaded.dtype)
        num_blocks = config.num_blocks or max(2, config.kv_bytes // per_block)
        self.kv_cache = KVCache(shapes, num_blocks, config.block_size, self.loaded.dtype, self.loaded.device)
        report(Progress(Phase.FORWARD, 0.0))
        self.forward = choose_forward(self.loaded, self.kv_cache, config)

    @torch.inference_mode()
    def run(self, works: abc.Sequence[Work], bell: int = NO_BELL) -> list[Result]:
        """Computes the scheduled tokens and picks a token after each wanted one. Raises InterruptedStepError.

        `bell` is rung once computing has begun.
        """
        token_ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        rows: list[Row] = []
        results: list[Result] = []
        for sequence, start, count in works:
            end = start + count
            # The last row tells whether a text's numbers are finite, even where no pick is wanted yet.
            first = max(start, min(sequence.first_logits, end - 1))
            wanted.extend(range(len(token_ids) + first - start, len(token_ids) + count))
            rows.extend(
                Row(sequence.params, position, sequence.token_ids, sequence.num_prompt_tokens, sequence.num_runners_up)
                for position in range(first + 1, end + 1)
            )
            results.append(Result(sequence, first + 1, [], [], []))
            token_ids.extend(sequence.token_ids[start:end])
            positions.extend(range(start, end))
        can_wait = all(work.sequence.is_background for work in works)
        logits = self.forward.run(Batch(works, token_ids, positions, wanted, can_wait, bell))
        split = _split(results, works, sample(logits, rows, self.loaded.head))
        return [result for result in split if result.first > result.sequence.first_logits or BROKEN in result.token_ids]


def _split(results: list[Result], works: abc.Sequence[Work], picks: Picks) -> list[Result]:
    """Hands each result its share of the picks, in order."""
    ends = {id(work.sequence): work.start + work.num_tokens for work in works}
    split: list[Result] = []
    at = 0
    for sequence, first, *_ in results:
        until = at + ends[id(sequence)] - first + 1
        share = slice(at, until)
        split.append(Result(sequence, first, picks.token_ids[share], picks.logprobs[share], picks.runners_up[share]))
        at = until
    return split
