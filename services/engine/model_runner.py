"""Runs one step: the flat batch of tokens of many sequences in, the target's picks for the wanted rows out."""

import logging
from collections.abc import Sequence as Ints
from typing import NamedTuple

import torch
from torch import nn

from services.common.sampling_params import SamplingParams
from services.engine.config import EngineConfig
from services.engine.cpu import small_decoder
from services.engine.cpu.decoder import FusedDecoder, fused_products
from services.engine.cpu.linear import pack_linears
from services.engine.cpu.plan import RowPlan
from services.engine.cpu.row_lora import RowLora
from services.engine.cpu.small_decoder import MAX_ROWS, SmallDecoder
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora, single_products, wrap_linears
from services.engine.model import LoadedModel, load_model
from services.engine.sampler import BROKEN, NonFiniteLogitsError, Picks, Row, RowLogprobs, RunnerUp, sample
from services.engine.scheduler import Work
from services.engine.sequence import NO_SLOT, Sequence
from services.engine.torch_forward.attention import AttentionPlan
from services.engine.torch_forward.stacked_lora import StackedLora

_log = logging.getLogger(__name__)
_PARALLEL_ELEMENTS = 32_768
"""Element-wise operations on fewer elements run on one thread (at::internal::GRAIN_SIZE)."""
_PROBE_TOKENS = 24
_PROBE_TOLERANCE = 0.02
_SMALL_PROBE_TOLERANCE = 0.5


class Result(NamedTuple):
    """What a step found out about a sequence: the pick after each of its wanted tokens.

    `token_ids[j]` is the pick for position `first + j`: the token that follows the tokens [0, first + j).
    """

    sequence: Sequence
    first: int
    token_ids: list[int]
    logprobs: list[RowLogprobs | None]
    runners_up: list[list[RunnerUp]]
    """For each pick the next likely tokens, when the sequence asks for them."""


class ModelRunner:
    """Owns the model and its KV. Used by one thread."""

    def __init__(self, config: EngineConfig) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.loaded: LoadedModel = load_model(config)
        shapes = [layer.kv_shape for layer in self.loaded.layers]
        per_block = KVCache.bytes_per_block(shapes, config.block_size, self.loaded.dtype)
        num_blocks = config.num_blocks or max(2, config.kv_bytes // per_block)
        self.kv_cache = KVCache(shapes, num_blocks, config.block_size, self.loaded.dtype, self.loaded.device)
        self._row_multiple = max(2, torch.get_num_threads()) if self.loaded.device.type == "cpu" else 1
        self._decoder: FusedDecoder | None = None
        self._small: SmallDecoder | None = None
        self.lora: Lora | None = None
        """Adds adapters; None where there are none to add."""
        self._adopt_decoders(is_draft=config.is_draft)
        if config.max_adapters:
            self.lora = self._make_lora(config)

    @property
    def is_fused(self) -> bool:
        """Whether the model runs through the fused forward."""
        return self._decoder is not None

    @property
    def is_small(self) -> bool:
        """Whether a few rows run as one compiled loop."""
        return self._small is not None

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
                    Row(
                        sequence.params,
                        position,
                        sequence.token_ids,
                        sequence.num_prompt_tokens,
                        sequence.num_runners_up,
                    )
                    for position in range(first + 1, end + 1)
                )
                results.append(Result(sequence, first + 1, [], [], []))
            token_ids.extend(sequence.token_ids[start:end])
            positions.extend(range(start, end))
        logits = self.forward(works, token_ids, positions, wanted)
        if not rows:
            return []
        split = _split(results, works, sample(logits, rows))
        # An adapter may be made to break the model, for its own sequences; without one it is the model that is broken.
        if any(BROKEN in result.token_ids and result.sequence.adapter_slot == NO_SLOT for result in split):
            raise NonFiniteLogitsError("the model produced logits that are not numbers")
        return split

    def forward(self, works: Ints[Work], token_ids: list[int], positions: list[int], wanted: list[int]) -> torch.Tensor:
        """Logits [len(wanted) or 1, vocab] of the wanted rows; stores the KV of all."""
        wanted = wanted or [0]
        # Rows are padded so that every thread's share of an element-wise operation starts at a whole row.
        multiple = self._row_multiple
        if self._decoder is not None and len(token_ids) * self._decoder.width < _PARALLEL_ELEMENTS:
            multiple = 1
        num_rows = -(-len(token_ids) // multiple) * multiple
        lora = self.lora if self.lora is not None and self.lora.select(works, num_rows) else None
        if self._small is not None and lora is None and len(token_ids) <= MAX_ROWS:
            return self._small.forward(RowPlan(works, len(token_ids), self.kv_cache), token_ids, wanted)
        device = self.loaded.device
        padding = [0] * (num_rows - len(token_ids))
        if self._decoder is not None:
            plan = RowPlan(works, num_rows, self.kv_cache)
            return self._decoder.forward(plan, self.kv_cache, token_ids + padding, wanted, lora)
        out = self.loaded.model(
            input_ids=torch.tensor([token_ids + padding], device=device),
            position_ids=torch.tensor([positions + padding], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, device=device),
            plan=AttentionPlan(works, num_rows, self.kv_cache, device, keep_finite=lora is not None),
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    def _adopt_decoders(self, *, is_draft: bool) -> None:
        """Takes faster forwards whose logits agree with those of the model's own, which is then let go of."""
        loaded = self.loaded
        if loaded.decoder is None:
            return
        count = min(_PROBE_TOKENS, (self.kv_cache.num_blocks - 1) * self.kv_cache.block_size)
        own = self._probe(count)
        self._decoder = loaded.decoder
        if not _agree(own, self._probe(count), _PROBE_TOLERANCE):
            _log.warning("the fused forward differs from the model's own, which is used")
            self._decoder = None
            pack_linears(loaded.model, getattr(torch, loaded.description.dtype))
            return
        # Weights asked for in float32 are not rounded to 8 bits.
        may_round = is_draft and loaded.description.dtype != "float32"
        if may_round and small_decoder.takes(loaded.model, loaded.layers):
            self._small = SmallDecoder(loaded.model, self._decoder, loaded.layers[0].scaling, self.kv_cache)
            if not _agree(own, self._probe(count), _SMALL_PROBE_TOLERANCE):
                _log.warning("the forward for small models differs from the model's own and is not used")
                self._small = None
        nn.Module.to(loaded.model, "meta")

    def _make_lora(self, config: EngineConfig) -> Lora:
        """What adds adapters to the forward that runs here."""
        loaded, (num_slots, max_rank) = self.loaded, (config.max_adapters or 0, config.max_adapter_rank)
        on_cpu = loaded.device.type == "cpu" and loaded.dtype == torch.float32
        products = single_products(loaded.targets)
        if self._decoder is not None:
            products = fused_products(loaded.targets, len(loaded.layers))
        lora: Lora
        if on_cpu:
            lora = RowLora(products, num_slots, max_rank, half=loaded.description.dtype != "float32")
        else:
            lora = StackedLora(products, num_slots, max_rank, loaded.dtype, loaded.device)
        if self._decoder is None:
            wrap_linears(loaded.model, products, lora)
        return lora

    @torch.inference_mode()
    def _probe(self, count: int) -> torch.Tensor:
        """Logits [count, vocab] of a fixed text, computed in the first blocks."""
        token_ids = [(7919 * i + 13) % self.loaded.description.vocab_size for i in range(count)]
        sequence = Sequence(token_ids, count, SamplingParams())
        sequence.block_table = list(range(1, -(-count // self.kv_cache.block_size) + 1))
        everything = list(range(count))
        return self.forward([Work(sequence, 0, count)], token_ids, everything, everything)


def _agree(expected: torch.Tensor, got: torch.Tensor, tolerance: float) -> bool:
    """Whether logits differ by less than a share of their spread, at most; False for NaN."""
    return bool((expected - got).abs().max() <= tolerance * expected.std())


def _split(results: list[Result], works: Ints[Work], picks: Picks) -> list[Result]:
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
