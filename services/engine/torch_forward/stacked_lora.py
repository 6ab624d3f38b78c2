"""Adapters on a GPU: those of all slots side by side, two products a layer whatever their number.

x @ A.T for all slots at once gives each row the products with every adapter; all but its own are left out
of the second product. Shapes depend on the slots alone and not on which are in use.
"""

from collections import abc
from dataclasses import dataclass
from functools import partial

import torch

from services.engine.adapter import Adapter
from services.engine.lora import Product, check_finite, rows_with_adapters
from services.engine.scheduler import Work


@dataclass(frozen=True, slots=True)
class StackedPacker:
    """Leaves adapters as they are, once they are known to be finite in the type that they are computed in."""

    dtype: torch.dtype

    def pack(self, adapter: Adapter) -> Adapter:
        """See Packer."""
        for pair in adapter.pairs.values():
            for part in pair:
                check_finite(all_finite=bool(torch.isfinite(part.to(self.dtype)).all()))
        return adapter


class StackedLora:
    """See Lora. Ranks below the largest are filled up with zeros."""

    def __init__(
        self, products: abc.Sequence[Product], num_slots: int, max_rank: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.packer = StackedPacker(dtype)
        self._products = products
        self._rank = max_rank
        self._zeros = partial(torch.zeros, dtype=dtype, device=device)
        width = num_slots * max_rank
        self._down = [self._zeros((width, product.in_features)) for product in products]
        self._up = [self._zeros((width, product.out_features)) for product in products]
        self._scalings = self._zeros((num_slots,))
        self._mask: tuple[torch.Tensor, torch.Tensor] | None = None
        """Which of [rows, slots * max_rank] are a row's own, and scalings [rows, 1]; None while no row has any."""

    def install(self, slot: int, packed: Adapter) -> None:
        """See Lora."""
        lines = slice(slot * self._rank, slot * self._rank + packed.rank)
        for product, down, up in zip(self._products, self._down, self._up, strict=True):
            for part in (down, up):
                part[slot * self._rank : (slot + 1) * self._rank].zero_()
            (target, _), *_ = product.parts
            pair = packed.pairs.get(target.name)
            if pair is not None:
                down[lines].copy_(pair.down)
                up[lines].copy_(pair.up.t())
        self._scalings[slot] = packed.scaling

    def select(self, works: abc.Sequence[Work], num_rows: int) -> bool:
        """See Lora."""
        rows, slots = rows_with_adapters(works)
        self._mask = None
        if rows:
            chosen = torch.tensor(slots, device=self._scalings.device)
            at = torch.tensor(rows, device=chosen.device)
            own = torch.zeros(num_rows, len(self._scalings), dtype=torch.bool, device=chosen.device)
            own[at, chosen] = True
            scalings = self._zeros((num_rows, 1))
            scalings[at, 0] = self._scalings[chosen]
            self._mask = own.repeat_interleave(self._rank, dim=1), scalings
        return bool(rows)

    def add(self, product: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """See Lora."""
        if self._mask is not None:
            own, scalings = self._mask
            # Chosen and not multiplied by 0: whatever another's adapter makes of a row, infinity too, is left out.
            hidden = torch.where(own, x.flatten(0, -2) @ self._down[product].t() * scalings, 0.0)
            y.flatten(0, -2).addmm_(hidden, self._up[product])
