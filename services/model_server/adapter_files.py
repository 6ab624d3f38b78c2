"""From the files that PEFT wrote to an adapter as one engine takes it."""

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from services.common.lora.config import WEIGHTS_NAME, parse_lora_config, tensor_names
from services.engine.adapter import Adapter, AdapterError, Pair, Target
from services.engine.engine import EngineFacts


def read_adapter(config: bytes, weights: bytes, facts: EngineFacts) -> Any:
    """An adapter as the engine installs it. Any thread may call this.

    Raises AdapterError, or InvalidArgumentError for the config. The store has looked at the files already; what is
    checked again is that they fit this model.
    """
    if facts.packer is None:
        raise AdapterError("this engine takes no adapters")
    parsed = parse_lora_config(config, facts.max_adapter_rank)
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS_NAME}: {error}") from error
    pairs = {
        name: pair
        for name, target in facts.targets.items()
        if (pair := _take_pair(tensors, target, parsed.rank_of(name))) is not None
    }
    if tensors or not pairs:
        unknown = next(iter(tensors), "nothing")
        raise AdapterError(f"{WEIGHTS_NAME}: the model that runs here has no layer for {unknown}")
    scaling, rank = parsed.scaling_of(""), max(parsed.rank_of(name) for name in pairs)
    alike = {name: _alike(pair, rank, parsed.scaling_of(name) / scaling) for name, pair in pairs.items()}
    return facts.packer.pack(Adapter(rank, scaling, alike))


def _alike(pair: Pair, rank: int, factor: float) -> Pair:
    """The same change as a pair of this rank, by a scaling that is this factor smaller."""
    missing = rank - pair.down.shape[0]
    if not missing and factor == 1:
        return pair
    down = torch.nn.functional.pad(pair.down, (0, 0, 0, missing))
    return Pair(down, torch.nn.functional.pad(pair.up.float() * factor, (0, missing)))


def _take_pair(tensors: dict[str, torch.Tensor], target: Target, rank: int) -> Pair | None:
    """What the tensors have for a layer, which is taken out of them; None for nothing. Raises AdapterError."""
    down, up = (tensors.pop(name, None) for name in tensor_names(target.name))
    if down is None and up is None:
        return None
    shapes = [None if part is None else tuple(part.shape) for part in (down, up)]
    wanted = [(rank, target.in_features), (target.out_features, rank)]
    if down is None or up is None or shapes != wanted:
        raise AdapterError(
            f"{WEIGHTS_NAME}: {target.name} needs A {wanted[0]} and B {wanted[1]}, got {shapes[0]} and {shapes[1]}"
        )
    return Pair(down, up)
