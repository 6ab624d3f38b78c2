"""A decoder step on the CPU as one compiled function over all layers.

It computes what `transformers` computes for the commonest shape of model: embedding, layers of (RMSNorm, rotary
attention, RMSNorm, gated SiLU MLP) with residuals, RMSNorm, output layer (Llama, Mistral, Qwen and their like).
Nothing is trusted because of a name: a model is taken only when its modules are exactly these and its logits on random
tokens agree with those of its own forward. Every other model runs through its own forward.
"""

import copy
from collections import abc
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from services.engine.adapter import Target
from services.engine.attention_layers import AttentionLayer
from services.engine.cpu import parallel
from services.engine.cpu.decoder_shape import HEAD_NORMS, norm_eps
from services.engine.cpu.kernels import Floats
from services.engine.cpu.kinds import Kind, tile_configuration
from services.engine.cpu.layers import (
    ARGUMENTS,
    CLAIM_BYTES,
    LAYER,
    PHASES,
    PRODUCT,
    PRODUCT_PHASES,
    PRODUCTS,
    run_phases,
)
from services.engine.cpu.packed import Packed, aligned, pack, row_bytes
from services.engine.cpu.plan import RowPlan
from services.engine.cpu.product import MOST_ROWS, ROOM_BYTES
from services.engine.errors import InterruptedStepError
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora, Product, product_of
from services.engine.outbox import NO_BELL

_EVERYTHING = 1 << 40
_SMALL_BYTES, _FEW_ROWS = 4 << 20, 32
"""A step of so few rows through so few weights stays on one thread: 0.18 ms where two take 0.15, and the other core is
worth more to the model beside it.
"""


class FusedDecoder:
    """The forward of one model. Used by one thread."""

    def __init__(self, model: Any, kind: Kind, layers: list[AttentionLayer], kv_cache: KVCache) -> None:
        body = model.model
        half = kind not in (Kind.FLOAT32, Kind.FLOAT16)
        # Gathered by rows: it is kept apart from an output layer that it is tied to.
        embedding = body.embed_tokens.weight.to(torch.bfloat16 if half else torch.float32).contiguous()
        packed = [weight for layer in body.layers for weight in _pack_layer(layer, kind)]
        packed.append(pack(kind, model.lm_head.weight, model.lm_head.bias))
        norms = [_norms(layer) for layer in body.layers]
        self._final_norm = body.norm.weight.numpy()
        self._products = np.zeros(len(packed), PRODUCT)
        for product, weight in zip(self._products, packed, strict=True):
            _describe(weight, kind, product)
        self._layers = np.zeros(len(layers), LAYER)
        for index, (described, layer) in enumerate(zip(self._layers, layers, strict=True)):
            _fill(described, **norms[index], window=layer.window or _EVERYTHING, scaling=layer.scaling)
            _fill(described, keys=kv_cache.keys[index].data_ptr(), values=kv_cache.values[index].data_ptr())
        self._tiles = tile_configuration()
        self.hurry = np.zeros(1, np.int64)
        """Set by any thread: a step that can wait is given up at its next phase."""
        self._calm = np.zeros(1, np.int64)
        self._threads = torch.get_num_threads()
        self._given_up = np.zeros(PHASES * len(layers) + 2, np.int64)
        self._claimed = aligned((len(packed), self._threads, CLAIM_BYTES), np.uint8)
        self._kept = packed, norms, embedding, kv_cache  # The tables hold addresses only.
        shape = layers[0].kv_shape
        self._num_layers = len(layers)
        self._joint_width = packed[0].out_features
        self._heads = self._joint_width // shape.key_dim - 2 * shape.num_kv_heads
        self._dim, self._inner, self._vocab = shape.key_dim, packed[3].in_features, packed[-1].out_features
        self._width = embedding.shape[1]
        self._row_bytes = int(self._products["row_bytes"].max())
        self._is_small = sum(weight.blocks.nbytes for weight in packed) <= _SMALL_BYTES
        self._rotary = copy.deepcopy(body.rotary_emb)  # The model is let go of; longer texts need more angles.
        self._cos, self._sin = self._angles(0, 1024)
        self._arguments = np.zeros((), ARGUMENTS)
        _fill(
            self._arguments, kind=kind, layers=len(layers), width=self._width, inner=self._inner, vocab=self._vocab,
            heads=self._heads, kv_heads=shape.num_kv_heads, dim=self._dim, rotated=self._cos.shape[1],
            slots_in_all=kv_cache.keys[0].shape[0], block_size=kv_cache.block_size, half_embedding=half,
            in_tiles=kind.in_tiles, layer_table=self._layers, product_table=self._products,
            final_norm=self._final_norm, embedding=embedding.data_ptr(), tiles=self._tiles, eps=norm_eps(body.norm),
        )  # fmt: skip
        self._capacity, self._rooms = 0, dict[str, NDArray[Any]]()

    def forward(
        self,
        plan: RowPlan,
        token_ids: list[int],
        wanted: list[int],
        lora: Lora | None,
        bell: int = NO_BELL,
        *,
        can_wait: bool = False,
    ) -> torch.Tensor:
        """Logits [wanted, vocab] for rows of tokens, valid until the next call; KV goes where the plan says.

        `lora` adds what adapters of rows add; None when no row has any. `bell` is rung. Raises InterruptedStepError.
        """
        rows = len(token_ids)
        self._make_room(rows)
        cos, sin = self._reach(int(plan.positions.max()))
        tokens, wanted_rows = np.array(token_ids, np.int64), np.array(wanted, np.int64)
        _fill(
            self._arguments, rows=rows, wanted_rows=len(wanted), sequences=plan.tables.shape[0],
            blocks=plan.tables.shape[1], angles=len(cos), cos=cos, sin=sin, token_ids=tokens,
            positions=plan.positions, slots=plan.slots, owners=plan.owners, tables=plan.tables, wanted=wanted_rows,
            hurry=self.hurry if can_wait else self._calm, given_up=self._given_up,
            claimed=self._claimed, shares=self._threads, bell=bell,
        )  # fmt: skip
        self._claimed[:] = 0
        end = PHASES * self._num_layers + 2
        if lora is None:
            self._run(0, end)
        else:
            self._run_with(lora, rows, end)
        return torch.from_numpy(self._rooms["logits"][: len(wanted)])

    def _run(self, first: int, last: int) -> None:
        self._arguments["first"], self._arguments["last"] = first, last
        self._given_up[:] = 0
        threads = 1 if self._is_small and self._arguments["rows"] <= _FEW_ROWS else self._threads
        parallel.run(run_phases, self._arguments.ctypes.data, threads)
        self._arguments["bell"] = NO_BELL
        if self._given_up.any():
            raise InterruptedStepError

    def _run_with(self, lora: Lora, rows: int, end: int) -> None:
        """Stops behind each product of the layers for what adapters add to it."""
        views = {name: torch.from_numpy(room[:rows]) for name, room in self._rooms.items() if name != "logits"}
        ends = [("normed", "joint"), ("attended", "delta"), ("normed", "gates"), ("active", "delta")]
        first = 0
        for layer in range(self._num_layers):
            for index, (phase, (x, y)) in enumerate(zip(PRODUCT_PHASES, ends, strict=True)):
                last = PHASES * layer + phase + 1
                self._run(first, last)
                lora.add(PRODUCTS * layer + index, views[x], views[y])
                first = last
        self._run(first, end)

    def _make_room(self, rows: int) -> None:
        """Has rooms for so many rows between phases; they are kept, because fresh memory costs more than the work."""
        rows = -(-rows // MOST_ROWS) * MOST_ROWS
        if rows <= self._capacity:
            return
        widths = {
            "hidden": self._width, "normed": self._width, "joint": self._joint_width, "gates": 2 * self._inner,
            "queries": self._heads * self._dim, "attended": self._heads * self._dim, "active": self._inner,
            "delta": self._width, "logits": self._vocab,
        }  # fmt: skip
        self._rooms = {name: aligned((rows, width), np.float32) for name, width in widths.items()}
        self._capacity = rows
        self._fixed = {
            "units": aligned((rows, self._row_bytes), np.uint8), "row_scales": np.zeros(rows, np.float32),
            "room": aligned((self._threads, ROOM_BYTES), np.uint8), "broken": np.zeros(rows, np.bool_),
        }  # fmt: skip
        _fill(self._arguments, **self._rooms, **self._fixed)

    def _reach(self, position: int) -> tuple[Floats, Floats]:
        """Cosines and sines [positions, rotated dimensions] of all positions up to this one, at least."""
        while position >= len(self._cos):
            cos, sin = self._angles(len(self._cos), 2 * len(self._cos))
            self._cos, self._sin = np.concatenate([self._cos, cos]), np.concatenate([self._sin, sin])
        return self._cos, self._sin

    def _angles(self, start: int, end: int) -> tuple[Floats, Floats]:
        """Cosines and sines [end - start, rotated dimensions] of positions from `start` on."""
        cos, sin = self._rotary(torch.zeros(1), torch.arange(start, end).unsqueeze(0))
        return cos[0].float().contiguous().numpy(), sin[0].float().contiguous().numpy()


def _pack_layer(layer: Any, kind: Kind) -> list[Packed]:
    """A layer's products; layers that read the same input are one."""
    attention, mlp = layer.self_attn, layer.mlp
    joint = [attention.q_proj, attention.k_proj, attention.v_proj]
    return [_join(parts, kind) for parts in (joint, [attention.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj])]


def _join(parts: list[nn.Linear], kind: Kind) -> Packed:
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat([torch.zeros(p.out_features) if p.bias is None else p.bias for p in parts])
    return pack(kind, torch.cat([part.weight for part in parts]), bias)


def _norms(layer: Any) -> dict[str, Floats]:
    """Weights by field; none where heads are not normalised."""
    norms = {"input_norm": layer.input_layernorm, "mlp_norm": layer.post_attention_layernorm}
    norms |= {f: n for f, name in HEAD_NORMS.items() if (n := getattr(layer.self_attn, name, None)) is not None}
    return {field: norm.weight.numpy() for field, norm in norms.items()}


def _describe(weight: Packed, kind: Kind, product: Any) -> None:
    _fill(
        product, weights=weight.blocks, scales=weight.scales, offsets=weight.sums, bias=weight.bias,
        units=weight.blocks.shape[1], row_bytes=row_bytes(kind, weight.in_features), outputs=weight.out_features,
    )  # fmt: skip


def _fill(record: Any, **values: Any) -> None:
    """Sets fields of a record: of an array, its address; 0 for one without elements."""
    for name, value in values.items():
        is_array = isinstance(value, np.ndarray)
        record[name] = (value.ctypes.data if value.size else 0) if is_array else value


def fused_products(targets: abc.Mapping[str, Target], num_layers: int) -> list[Product]:
    """What the fused forward computes as one: four products a layer, in the order in which it adds to them."""
    products: list[Product] = []
    for index in range(num_layers):
        attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
        products += [
            product_of(*(targets[f"{attention}.{name}_proj"] for name in "qkv")),
            product_of(targets[f"{attention}.o_proj"]),
            product_of(targets[f"{mlp}.gate_proj"], targets[f"{mlp}.up_proj"]),
            product_of(targets[f"{mlp}.down_proj"]),
        ]
    return products
