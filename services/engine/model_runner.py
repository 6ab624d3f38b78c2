"""Runs one step: the flat batch of tokens of many sequences in, the target's picks for the wanted rows out."""

import logging
from collections.abc import Sequence as Ints
from typing import NamedTuple

import torch
from torch import nn

from services.common.sampling_params import SamplingParams
from services.engine.attention import AttentionPlan
from services.engine.config import EngineConfig
from services.engine.decoder import FusedDecoder
from services.engine.kv_cache import KVCache
from services.engine.linear import pack_linears
from services.engine.model import LoadedModel, load_model
from services.engine.sampler import Row, RowLogprobs, sample
from services.engine.scheduler import Work
from services.engine.sequence import Sequence

_log = logging.getLogger(__name__)
_PROBE_TOKENS = 24
_PROBE_TOLERANCE = 0.02


class Result(NamedTuple):
    """What a step found out about a sequence: the pick after each of its wanted tokens.

    `token_ids[j]` is the pick for position `first + j`: the token that follows the tokens [0, first + j).
    """

    sequence: Sequence
    first: int
    token_ids: list[int]
    logprobs: list[RowLogprobs | None]


class ModelRunner:
    """Owns the model and its KV. Used by one thread."""

    def __init__(self, config: EngineConfig) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.loaded: LoadedModel = load_model(config)
        per_block = KVCache.bytes_per_block(self.loaded.kv_shapes, config.block_size, self.loaded.dtype)
        num_blocks = config.num_blocks or max(2, config.kv_bytes // per_block)
        self.kv_cache = KVCache(
            self.loaded.kv_shapes, num_blocks, config.block_size, self.loaded.dtype, self.loaded.device
        )
        self._row_multiple = max(2, torch.get_num_threads()) if self.loaded.device.type == "cpu" else 1
        self._decoder = self._checked_decoder()

    @property
    def is_fused(self) -> bool:
        """Whether the model runs through the fused forward."""
        return self._decoder is not None

    @torch.inference_mode()
    def run(self, works: Ints[Work]) -> list[Result]:
        """Computes the scheduled tokens and picks a token after each wanted one."""
        token_ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        rows: list[Row] = []
        results: list[Result] = []
        for sequence, start, count in works:
            end = start + count
            first = max(start, sequence.first_logits)
            if first < end:
                wanted.extend(range(len(token_ids) + first - start, len(token_ids) + count))
                rows.extend(
                    Row(sequence.params, position, sequence.token_ids, sequence.num_prompt_tokens)
                    for position in range(first + 1, end + 1)
                )
                results.append(Result(sequence, first + 1, [], []))
            token_ids.extend(sequence.token_ids[start:end])
            positions.extend(range(start, end))
        logits = self.forward(works, token_ids, positions, wanted)
        if not rows:
            return []
        picks = sample(logits, rows)
        return _split(results, works, picks.token_ids, picks.logprobs)

    def forward(self, works: Ints[Work], token_ids: list[int], positions: list[int], wanted: list[int]) -> torch.Tensor:
        """Logits [len(wanted) or 1, vocab] of the wanted rows; stores the KV of all."""
        device = self.loaded.device
        # Rows are padded so that every thread's share of an element-wise operation starts at a whole row.
        num_rows = -(-len(token_ids) // self._row_multiple) * self._row_multiple
        padding = [0] * (num_rows - len(token_ids))
        plan = AttentionPlan(works, num_rows, self.kv_cache, device)
        kept = torch.tensor(wanted or [0], device=device)
        if self._decoder is not None:
            return self._decoder.forward(plan, token_ids + padding, positions + padding, kept)
        out = self.loaded.model(
            input_ids=torch.tensor([token_ids + padding], device=device),
            position_ids=torch.tensor([positions + padding], device=device),
            use_cache=False,
            logits_to_keep=kept,
            plan=plan,
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    def _checked_decoder(self) -> FusedDecoder | None:
        """The fused decoder if its logits agree with those of the model's own forward, which is then let go of."""
        decoder, self._decoder = self.loaded.decoder, None
        if decoder is None:
            return None
        count = min(_PROBE_TOKENS, (self.kv_cache.num_blocks - 1) * self.kv_cache.block_size)
        token_ids = [(7919 * i + 13) % self.loaded.description.vocab_size for i in range(count)]
        probe = Sequence(token_ids, count, SamplingParams())
        probe.block_table = list(range(1, -(-count // self.kv_cache.block_size) + 1))
        logits = []
        for candidate in (None, decoder):
            self._decoder = candidate
            with torch.inference_mode():
                logits.append(self.forward([Work(probe, 0, count)], token_ids, list(range(count)), list(range(count))))
        error, scale = (logits[0] - logits[1]).abs().max(), logits[0].std()
        if not error <= _PROBE_TOLERANCE * scale:
            _log.warning("the fused forward differs by %.2g (spread %.2g); the model's own is used", error, scale)
            pack_linears(self.loaded.model, getattr(torch, self.loaded.description.dtype))
            return None
        nn.Module.to(self.loaded.model, "meta")
        return decoder


def _split(
    results: list[Result], works: Ints[Work], token_ids: list[int], logprobs: list[RowLogprobs | None]
) -> list[Result]:
    """Hands each result its share of the picks, in order."""
    ends = {id(work.sequence): work.start + work.num_tokens for work in works}
    split: list[Result] = []
    at = 0
    for result in results:
        until = at + ends[id(result.sequence)] - result.first + 1
        split.append(result._replace(token_ids=token_ids[at:until], logprobs=logprobs[at:until]))
        at = until
    return split
