"""Linear layers with weights packed once for the CPU, whose bits for a row do not depend on the rows beside it.

Two packings, chosen by the dtype of the weights:

- float32: oneDNN's blocked layout. Equal bits from 2 rows on, so a single row is computed twice.
- bfloat16 and float16: half-precision weights in FBGEMM's layout, float32 activations and sums. A step reads two bytes
  a weight, needs no bfloat16 instructions, and costs at 8 rows about what it costs at one. bfloat16 weights survive the
  change to float16 exactly from 2^-14 up; below, they are rounded to a multiple of 2^-24; a layer with a weight that
  does not fit into float16 keeps float32. FBGEMM divides rows among kernels of up to 14 rows with AVX-512 and of up to
  6 with AVX2, where those of one and two rows round otherwise than the larger ones: numbers of rows that come to such a
  kernel are filled up to one that does not.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

_FLOAT16_MAX = torch.finfo(torch.float16).max
_FBGEMM_ROWS = 120
"""Rows that FBGEMM divides among its kernels at once."""
_MOST_FILLING = 4


class PackedFloat32(nn.Module):
    """`x @ weight.T + bias` through oneDNN. x: [..., in_features], float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.float().contiguous(), 8)
        self._bias = None if bias is None else bias.float().contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] == 1:
            out = _onednn_linear(rows.expand(2, -1).contiguous(), self._packed, self._bias)[:1]
        else:
            out = _onednn_linear(rows, self._packed, self._bias)
        return out.view(*x.shape[:-1], self.out_features)


class PackedHalf(nn.Module):
    """`x @ weight.T + bias` with float16 weights and float32 sums through FBGEMM. x: [..., in_features], float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        bias = None if bias is None else bias.float().contiguous()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.numel() // self.in_features
        filling = _filling()[count % _FBGEMM_ROWS]
        if not filling:
            out: torch.Tensor = _fbgemm_linear(x, self._packed)
            return out
        rows = torch.cat([x.reshape(count, self.in_features), x.new_zeros(filling, self.in_features)])
        out = _fbgemm_linear(rows, self._packed)
        return out[:count].view(*x.shape[:-1], self.out_features)


def pack_linears(model: nn.Module, dtype: torch.dtype, run: Callable[[], object]) -> None:
    """Replaces every plain linear layer of a float32 model on the CPU by a packed one of the given weight dtype.

    `run` computes something with the model: it shows which layers are not called, because others read their weights.
    """
    from transformers.pytorch_utils import Conv1D

    read = _read_by_others(model, run)
    half = dtype in (torch.bfloat16, torch.float16) and "fbgemm" in torch.backends.quantized.supported_engines
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in read:
                continue
            if type(child) is nn.Linear:
                packed = pack(child.weight, child.bias, half=half)
            elif type(child) is Conv1D:
                packed = pack(child.weight.t(), child.bias, half=half)
            else:
                continue
            # Some models look at a weight's type or shape.
            packed.weight = child.weight.detach().to("meta")
            setattr(parent, name, packed)


def _read_by_others(model: nn.Module, run: Callable[[], object]) -> set[nn.Module]:
    """Parts that a run does not call, though it calls the module that has them: a router's layer, often."""
    called: set[nn.Module] = set()
    hooks = [part.register_forward_hook(lambda part, *_: called.add(part)) for part in model.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {part for parent in called for part in parent.children()} - called


def pack(weight: torch.Tensor, bias: torch.Tensor | None, *, half: bool) -> nn.Module:
    """A packed layer for a weight [out_features, in_features]."""
    with torch.no_grad():
        if half and _filling() and bool(weight.abs().max() <= _FLOAT16_MAX):
            return PackedHalf(weight, bias)
        return PackedFloat32(weight, bias)


@cache
def _filling() -> tuple[int, ...]:
    """How many more rows than 0, 1, 2, ... make FBGEMM give every row the bits that it has among many, on this CPU.

    Empty when a number of rows needs too many more.
    """
    features = 64
    generator = torch.Generator().manual_seed(0)
    weight, row = torch.randn(features, features, generator=generator), torch.randn(features, generator=generator)
    packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
    same = row.expand(_FBGEMM_ROWS + _MOST_FILLING, features).contiguous()
    usual = _fbgemm_linear(same[:_FBGEMM_ROWS], packed)[0]
    steady = [torch.equal(_fbgemm_linear(same[:n], packed), usual.expand(n, -1)) for n in range(1, len(same) + 1)]
    choices = [[more for more in range(_MOST_FILLING) if steady[n + more - 1]] for n in range(1, _FBGEMM_ROWS)]
    return (0, *(min(fitting) for fitting in choices)) if all(choices) else ()


def _onednn_linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


_fbgemm_linear = torch.ops.quantized.linear_dynamic_fp16
