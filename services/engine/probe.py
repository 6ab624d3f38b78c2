"""Whether a model computes the same in this engine as by itself: tried on its first layers before it is served.

Nothing is concluded from a model's name. A text goes through the engine in two pieces and then token by token, beside
another text and a long neighbour; what comes out is compared with the model's own eager forward of the text alone.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
from collections import abc
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from services.common.checkpoint import CheckpointError
from services.common.folders import cache_folder
from services.common.sampling_params import SamplingParams
from services.engine.attention_layers import use_own_attention
from services.engine.forward import Batch, Forward
from services.engine.kv_cache import KVCache
from services.engine.model import LoadedModel
from services.engine.scheduler import Work
from services.engine.sequence import Sequence
from services.engine.torch_forward.own import own_forward

_TEXT, _OTHER, _NEIGHBOUR = 40, 27, 300
"""Tokens of the text, of the one beside it, and of the long one."""
_CUTS = (0, 13, 30, *range(31, _TEXT + 1))
_TOLERANCE, _ROUGH_TOLERANCE = 1e-3, 0.05
"""Largest difference of logits, as a share of their spread: in float32, and where weights are quantized."""
_BLOCK_SIZE = 16
_MAX_ID = 1000
_SOURCES = ("attention_layers.py", "kv_cache.py", "model.py", "probe.py", "quantized.py", "reach.py", "rope.py")
"""What a verdict holds for, beside the forward itself."""


def check_model_agrees(loaded: LoadedModel) -> None:
    """Raises CheckpointError when the engine would compute something else than the model by itself.

    A verdict is kept by configuration and versions: a model that was found equal is not tried again.
    """
    kept = _kept(loaded)
    if kept.exists():
        return
    name = type(loaded.model).__name__
    try:
        off = _try_first_layers(loaded)
    except Exception as error:  # It is the model's own code that runs, in a way that it may not be made for.
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{name} cannot be computed in pieces, several texts at once ({problem})") from error
    if not off <= (_ROUGH_TOLERANCE if loaded.is_quantized else _TOLERANCE):
        raise CheckpointError(
            f"{name} computes something else in pieces and beside other texts than by itself (logits differ by "
            f"{off:.2g} of their spread), so it cannot be served"
        )
    with contextlib.suppress(OSError):  # Where nothing can be kept it is tried every time.
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()


def _try_first_layers(loaded: LoadedModel) -> float:
    """See _largest_difference; of the whole model where its code does not take fewer layers."""
    with torch.no_grad():
        if (first := _first_layers(loaded)) is not None:
            with contextlib.suppress(IndexError, KeyError, AttributeError), first as part, _in_float32(part):
                return _largest_difference(part)
        with _in_float32(loaded):
            return _largest_difference(loaded)


def _largest_difference(loaded: LoadedModel) -> float:
    """Between the engine's logits and the model's own, as a share of their spread; infinity for what is no number."""
    context = loaded.description.max_context_tokens
    text, other, neighbour = (
        _tokens(loaded, min(count, context - 1), seed) for seed, count in enumerate((_TEXT, _OTHER, _NEIGHBOUR))
    )
    use_own_attention(loaded.model)
    expected = torch.cat([_own_logits(loaded, text), _own_logits(loaded, other)])
    got = _paged_logits(loaded, text, other, neighbour)
    off = (expected - got).abs().max() / expected.std()
    return float(off.nan_to_num(torch.inf))


def _own_logits(loaded: LoadedModel, token_ids: list[int]) -> torch.Tensor:
    """Logits [tokens, vocab] of a text alone."""
    ids = torch.tensor([token_ids], device=loaded.device)
    logits: torch.Tensor = loaded.model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


def _paged_logits(loaded: LoadedModel, text: list[int], other: list[int], neighbour: list[int]) -> torch.Tensor:
    """Logits of all rows of the text and of the other one, computed step by step beside a neighbour."""
    shapes = loaded.kv_shapes
    lengths = [len(text), len(other), len(neighbour)]
    num_blocks = 1 + sum(-(-length // _BLOCK_SIZE) for length in lengths)
    dtype = next(p.dtype for p in loaded.model.parameters() if p.is_floating_point())
    forward = own_forward(loaded, KVCache(shapes, num_blocks, _BLOCK_SIZE, dtype, loaded.device))
    sequences = [Sequence(ids, len(ids), SamplingParams()) for ids in (text, other, neighbour)]
    first = 1
    for sequence in sequences:
        count = -(-len(sequence) // _BLOCK_SIZE)
        sequence.block_table = list(range(first, first + count))
        first += count
    main, beside, long = sequences
    half = len(long) // 2
    company = {0: [Work(long, 0, half), Work(beside, 0, len(beside))], 1: [Work(long, half, len(long) - half)]}
    cuts = [cut for cut in _CUTS if cut < len(main)] + [len(main)]
    rows: list[torch.Tensor] = []
    others = torch.empty(0)
    for number, (start, end) in enumerate(pairwise(cuts)):
        works = [*company.get(number, []), Work(main, start, end - start)]
        logits = _run(forward, works)
        if number == 0:
            others = logits[half : half + len(beside)]
        rows.append(logits[-(end - start) :])
    return torch.cat([*rows, others]).float()


def _run(forward: Forward, works: list[Work]) -> torch.Tensor:
    """Logits of all rows of a step."""
    token_ids: list[int] = []
    positions: list[int] = []
    for sequence, start, count in works:
        token_ids.extend(sequence.token_ids[start : start + count])
        positions.extend(range(start, start + count))
    return forward.run(Batch(works, token_ids, positions, list(range(len(token_ids)))))


def _tokens(loaded: LoadedModel, count: int, seed: int) -> list[int]:
    most = min(loaded.description.vocab_size, _MAX_ID)
    return [((7919 + 104_729 * seed) * at + 13 * (seed + 1)) % most for at in range(count)]


def _first_layers(loaded: LoadedModel) -> AbstractContextManager[LoadedModel] | None:
    """The model with its first layers alone, in which all kinds are; None where layers cannot be told apart."""
    total = len(loaded.layers)
    lists = [
        (parent, name, part)
        for parent in loaded.model.modules()
        for name, part in parent.named_children()
        if isinstance(part, nn.ModuleList) and len(part) == total
    ]
    if not total or len(lists) != 1:
        return None
    kinds = [_kind(layer, asked) for layer, asked in zip(lists[0][2], loaded.layers, strict=True)]
    count = next(n for n in range(1, total + 1) if set(kinds[:n]) == set(kinds))
    return _cut(loaded, *lists[0], count)


@contextmanager
def _cut(
    loaded: LoadedModel, parent: nn.Module, name: str, layers: nn.ModuleList, count: int
) -> abc.Iterator[LoadedModel]:
    """The model with so many of its layers."""
    try:
        setattr(parent, name, nn.ModuleList(list(layers)[:count]))
        yield dataclasses.replace(loaded, layers=loaded.layers[:count], attention=loaded.attention[:count])
    finally:
        setattr(parent, name, layers)


def _kind(layer: nn.Module, asked: Any) -> tuple[Any, ...]:
    """What has to be equal for two layers to do the same with other weights."""
    plain = {name: value for name, value in vars(layer).items() if isinstance(value, str | int | float | bool)}
    plain.pop("layer_idx", None)
    parts = tuple((name, type(part).__name__) for name, part in layer.named_modules())
    return asked, parts, tuple(sorted(plain.items(), key=str))


@contextmanager
def _in_float32(loaded: LoadedModel) -> abc.Iterator[None]:
    """Weights in float32 for a while, so that rounding does not hide what differs. Quantized ones stay as they are."""
    parts = [*loaded.model.parameters(), *loaded.model.buffers()]
    halves = [part for part in parts if part.dtype in (torch.bfloat16, torch.float16)]
    if loaded.is_quantized or not halves:
        yield
        return
    before = [part.data for part in halves]
    try:
        for part in halves:
            part.data = part.data.float()
        yield
    finally:
        for part, data in zip(halves, before, strict=True):
            part.data = data


def _kept(loaded: LoadedModel) -> Path:
    """Where it is kept that such a model was found equal."""
    cache = cache_folder() / "probes"
    config = loaded.model.config.to_dict()
    config.pop("_name_or_path", None)
    here = Path(__file__).parent
    sources = (*sorted((here / "torch_forward").glob("*.py")), *(here / name for name in _SOURCES))
    what = {
        "config": config,
        "class": type(loaded.model).__qualname__,
        "context": loaded.description.max_context_tokens,
        "device": loaded.device.type,
        "versions": [torch.__version__, importlib.metadata.version("transformers")],
        "code": [blake3(source.read_bytes()).hexdigest() for source in sources],
    }
    return cache / blake3(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
