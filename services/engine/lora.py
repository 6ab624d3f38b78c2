"""Adapters in a forward: which rows of a step use which, and what that adds to the output of each product.

A product is one matrix multiplication of the forward: a linear layer, or several that read the same input and are
computed as one. An adapter sits in a slot; slots are filled between two steps while other sequences run on.
"""

from collections import abc
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from services.engine.adapter import AdapterError, Packer, Target
from services.engine.scheduler import Work
from services.engine.sequence import NO_SLOT


class Part(NamedTuple):
    """A layer's share of a product's output."""

    target: Target
    first_output: int


class Product(NamedTuple):
    """Layers that are computed as one multiplication."""

    in_features: int
    out_features: int
    parts: tuple[Part, ...]


class Lora(Protocol):
    """Adapters of one forward. All but its packer belongs to the engine's thread."""

    @property
    def packer(self) -> Packer:
        """What makes of an adapter what `install` takes."""

    def install(self, slot: int, packed: Any) -> None:
        """Puts an adapter into a slot, in place of what was there."""

    def select(self, works: abc.Sequence[Work], num_rows: int) -> bool:
        """Notes which rows of the coming step use which slot; whether any does."""

    def add(self, product: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Adds to y [..., out_features] what the selected adapters add for x [..., in_features]."""


def product_of(*targets: Target) -> Product:
    """Layers that read the same input, one behind the other."""
    parts: list[Part] = []
    first = 0
    for target in targets:
        parts.append(Part(target, first))
        first += target.out_features
    return Product(targets[0].in_features, first, tuple(parts))


def rows_with_adapters(works: abc.Iterable[Work]) -> tuple[list[int], list[int]]:
    """Rows of a step that use adapters and their slots, rows of equal slots one behind the other."""
    found: list[tuple[int, int]] = []
    row = 0
    for sequence, _, count in works:
        if sequence.adapter_slot != NO_SLOT:
            found.extend((sequence.adapter_slot, at) for at in range(row, row + count))
        row += count
    found.sort()
    return [at for _, at in found], [slot for slot, _ in found]


def check_finite(*, all_finite: bool) -> None:
    """Raises AdapterError unless a matrix is finite in the type that it is computed in."""
    if not all_finite:
        raise AdapterError("the weights hold numbers that are too large for the type that they are computed in")


class LoraLinear(nn.Module):
    """A linear layer of any kind with what the adapters of a step add to it."""

    def __init__(self, layer: nn.Module, lora: Lora, product: int) -> None:
        super().__init__()
        self._layer = layer
        self._lora = lora
        self._product = product

    @property
    def weight(self) -> torch.Tensor:
        """That of the layer, whose type or shape some models look at."""
        weight: torch.Tensor = self._layer.weight  # type: ignore[assignment]
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._layer(x)
        self._lora.add(self._product, x, out)
        return out


def wrap_linears(model: nn.Module, products: abc.Sequence[Product], lora: Lora) -> None:
    """Has every layer that is a product of its own add what adapters add."""
    for index, product in enumerate(products):
        parent_name, _, name = product.parts[0].target.name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, name, LoraLinear(getattr(parent, name), lora, index))


def single_products(targets: abc.Mapping[str, Target]) -> list[Product]:
    """Every layer as a product of its own."""
    return [product_of(target) for target in targets.values()]
