"""Chooses what computes a model: the fastest forward there is for it whose logits agree with those of its own modules.

No forward is trusted because of a model's name. Each is compared with the model's own on a fixed text first.
"""

import logging

import torch
from torch import nn

from services.common.checkpoint import CheckpointError
from services.common.sampling_params import SamplingParams
from services.engine.config import EngineConfig, Weights
from services.engine.cpu.decoder import FusedDecoder, fused_products
from services.engine.cpu.decoder_shape import fits
from services.engine.cpu.forward import CpuForward
from services.engine.cpu.kinds import Kind
from services.engine.cpu.linear import pack_linears
from services.engine.cpu.llvm import LANES
from services.engine.cpu.packed import kind_for
from services.engine.cpu.row_lora import RowLora
from services.engine.forward import Batch, Forward
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora, Product, single_products, wrap_linears
from services.engine.model import LoadedModel
from services.engine.probe import check_model_agrees
from services.engine.scheduler import Work
from services.engine.sequence import Sequence
from services.engine.torch_forward.own import own_forward
from services.engine.torch_forward.stacked_lora import StackedLora

_log = logging.getLogger(__name__)
_PROBE_TOKENS = 24
_TOLERANCE = 0.002
_TOLERANCE_OF_ROUNDED = {
    Kind.BFLOAT16_AVX512: 0.03, Kind.BFLOAT16_AMX: 0.03, Kind.INT8: 0.15, Kind.INT8_AVX512: 0.15, Kind.INT8_AMX: 0.15
}  # fmt: skip
"""Logits may differ by such a share of their spread where a product rounds its rows to bfloat16 or 8 bits."""
_ROUNDED = frozenset({Kind.INT8, Kind.INT8_AVX512, Kind.INT8_AMX})
_TOLERANCE_OF_DRAFTS = 0.4
"""The same for drafts in 8 bits, whose guesses another model checks: one that was off by 0.2 guessed as well as in
bfloat16, in a third of the time."""
_TOLERANCE_OF_PACKED = 0.05
"""The same where weights were packed: an expert may be chosen otherwise."""


def choose_forward(loaded: LoadedModel, kv_cache: KVCache, config: EngineConfig) -> Forward:
    """The forward for a model that was just loaded. What of the model it does not need is let go of.

    Raises CheckpointError when none computes what the model does by itself.
    """
    check_model_agrees(loaded)
    if loaded.attends_itself:
        how = (
            "a token at a time"
            if loaded.layers
            else "from their beginning for every token, for it keeps no keys and values"
        )
        _log.warning("%s attends in its own way: texts are computed %s", type(loaded.model).__name__, how)
    packs = loaded.device.type == "cpu" and not loaded.is_quantized
    if packs:
        fused = _fused(loaded, kv_cache, config)
        if fused is not None:
            nn.Module.to(loaded.model, "meta")
            return fused
    if config.weights is Weights.INT8:
        raise ValueError(
            f"{loaded.description.architecture} on {loaded.device}: weights cannot be int8, only dtype: "
            "no forward here has a way of its own for this model"
        )
    if packs:
        _pack(loaded, kv_cache)
    products = single_products(loaded.targets)
    adapters = _adapters(loaded, products, config)
    if adapters is not None:
        wrap_linears(loaded.model, products, adapters)
    return own_forward(loaded, kv_cache, adapters)


def _pack(loaded: LoadedModel, kv_cache: KVCache) -> None:
    """Packs linear layers. Raises CheckpointError where the model computes something else with them."""
    probes: list[torch.Tensor] = []
    forward = own_forward(loaded, kv_cache)
    pack_linears(loaded.model, loaded.weights, lambda: probes.append(_probe(forward, loaded, kv_cache)))
    if not _agree(probes[0], _probe(forward, loaded, kv_cache), _TOLERANCE_OF_PACKED):
        name = type(loaded.model).__name__
        raise CheckpointError(f"{name} reads weights in a way that packed layers do not have, so it cannot be served")


def _fused(loaded: LoadedModel, kv_cache: KVCache, config: EngineConfig) -> Forward | None:
    """The CPU's own forward of a model, or None where it takes no such model or does not agree."""
    is_plain = not loaded.attends_itself and all(layer.is_plain for layer in loaded.layers)
    if kv_cache.block_size % LANES or not is_plain:
        return None
    rounds = _rounds(loaded, config)
    own = _probe(own_forward(loaded, kv_cache), loaded, kv_cache)
    # A draft whose weights do not bear rounding is served in their own type.
    for is_rounded in (True, False) if rounds and config.is_draft else (rounds,):
        kind = kind_for(loaded.weights, config.instructions, round_to_int8=is_rounded)
        decoder = _decoder(loaded, kind, kv_cache)
        if decoder is None:
            return None
        got = _probe(CpuForward(loaded, kv_cache, kind, decoder), loaded, kv_cache)
        if _agree(own, got, tolerance := _tolerance(kind, config)):
            products = fused_products(loaded.targets, len(loaded.layers)) if config.max_adapters else []
            return CpuForward(loaded, kv_cache, kind, decoder, _adapters(loaded, products, config))
        if is_rounded and not config.is_draft:
            raise ValueError(
                f"{loaded.description.architecture} does not bear weights of 8 bits: logits of a text differ by "
                f"{_difference(own, got):.2f} of their spread, where {tolerance:g} may be; leave weights at dtype"
            )
    _log.warning("the fused forward differs from the model's own, which is used")
    return None


def _tolerance(kind: Kind, config: EngineConfig) -> float:
    """By how much logits may differ, as a share of their spread."""
    if config.is_draft and kind in _ROUNDED:
        return _TOLERANCE_OF_DRAFTS
    return _TOLERANCE_OF_ROUNDED.get(kind, _TOLERANCE)


def _decoder(loaded: LoadedModel, kind: Kind, kv_cache: KVCache) -> FusedDecoder | None:
    """The fused decoder of a model; None for one that has other parts, whatever looking for them runs into."""
    try:
        return FusedDecoder(loaded.model, kind, loaded.layers, kv_cache) if fits(loaded.model, loaded.layers) else None
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        _log.info("%s has parts that no fused forward knows: %s", type(loaded.model).__name__, error)
        return None


def _rounds(loaded: LoadedModel, config: EngineConfig) -> bool:
    """Whether weights are rounded to 8 bits. Those of a draft are, unless they are asked for in float32."""
    if config.weights is Weights.AUTO:
        return config.is_draft and loaded.weights != torch.float32
    return config.weights is Weights.INT8


def _adapters(loaded: LoadedModel, products: list[Product], config: EngineConfig) -> Lora | None:
    """What adds adapters to these products; None for an engine that takes no adapters."""
    if not config.max_adapters:
        return None
    num_slots, max_rank = config.max_adapters, config.max_adapter_rank
    if loaded.device.type == "cpu" and loaded.dtype == torch.float32:
        return RowLora(products, num_slots, max_rank, half=loaded.weights != torch.float32)
    return StackedLora(products, num_slots, max_rank, loaded.dtype, loaded.device)


@torch.inference_mode()
def _probe(forward: Forward, loaded: LoadedModel, kv_cache: KVCache) -> torch.Tensor:
    """Logits [tokens, vocab] of a fixed text, computed in the first blocks."""
    count = min(_PROBE_TOKENS, (kv_cache.num_blocks - 1) * kv_cache.block_size)
    token_ids = [(7919 * i + 13) % loaded.description.vocab_size for i in range(count)]
    sequence = Sequence(token_ids, count, SamplingParams())
    sequence.block_table = list(range(1, -(-count // kv_cache.block_size) + 1))
    rows = list(range(count))
    return forward.run(Batch([Work(sequence, 0, count)], token_ids, rows, rows))


def _agree(expected: torch.Tensor, got: torch.Tensor, tolerance: float) -> bool:
    """Whether logits differ by less than a share of their spread; False for NaN."""
    return _difference(expected, got) <= tolerance


def _difference(expected: torch.Tensor, got: torch.Tensor) -> float:
    """Of logits, as a share of their spread, both as root mean squares."""
    return float((expected - got).square().mean().sqrt() / expected.std())
