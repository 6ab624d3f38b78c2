"""Replaces small module trees by fewer, larger operations where both are seen to compute the same function.

Nothing is assumed from a name: a candidate runs on random input beside the original and is taken only when the results
agree to float32 accuracy.
"""

import torch
from torch import nn
from torch.nn.functional import rms_norm

_TOLERANCE = 1e-4


class FusedRMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension in one operation."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._shape = [weight.shape[-1]]
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self._shape, self.weight, self._eps)


class FusedGatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` with gate and up as one linear layer."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear, act: nn.Module) -> None:
        super().__init__()
        self.gate_up = nn.Linear(gate.in_features, 2 * gate.out_features, bias=gate.bias is not None, device="meta")
        self.gate_up.weight = nn.Parameter(torch.cat([gate.weight, up.weight]), requires_grad=False)
        if gate.bias is not None:
            self.gate_up.bias = nn.Parameter(torch.cat([gate.bias, up.bias]), requires_grad=False)
        self.down = down
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: torch.Tensor = self.down(self.act(gate) * up)
        return out


def fuse(model: nn.Module) -> None:
    """Fuses normalisations and gated MLPs of a model in place. Weights must be plain tensors on one device."""
    with torch.no_grad():
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                fused = _candidate(child)
                if fused is not None:
                    setattr(parent, name, fused)


def _candidate(module: nn.Module) -> nn.Module | None:
    kind = type(module).__name__
    weight = getattr(module, "weight", None)
    if kind.endswith("RMSNorm") and isinstance(weight, nn.Parameter):
        eps: float = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
        for candidate in (FusedRMSNorm(weight.clone(), eps), FusedRMSNorm(1 + weight, eps)):
            if _same(module, candidate, weight.shape[-1], weight):
                return candidate
    if kind.endswith("MLP") and all(type(getattr(module, n, None)) is nn.Linear for n in _MLP_PARTS):
        gate, up, down = (getattr(module, n) for n in _MLP_PARTS)
        act = getattr(module, "act_fn", None)
        if isinstance(act, nn.Module) and (gate.bias is None) == (up.bias is None):
            mlp = FusedGatedMLP(gate, up, down, act)
            if _same(module, mlp, gate.in_features, gate.weight):
                return mlp
    return None


_MLP_PARTS = ("gate_proj", "up_proj", "down_proj")


def _same(original: nn.Module, candidate: nn.Module, width: int, like: torch.Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, width, generator=generator).to(like)
    expected, got = original(x).float(), candidate(x).float()
    tolerance = _TOLERANCE if like.dtype is torch.float32 else 2e-2
    return bool((expected - got).abs().max() <= tolerance * (1 + expected.abs().max()))
