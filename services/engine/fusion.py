"""Replaces modules by fewer, larger operations that compute the same function.

Nothing is trusted because of a name: a normalisation is taken only when it agrees with the original on random input,
and joined linear layers check with every call that they were given the same input.
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


class _Joint(nn.Module):
    """Several linear layers that read the same input, computed as one and remembered until the input changes."""

    def __init__(self, parts: list[nn.Linear]) -> None:
        super().__init__()
        bias = parts[0].bias is not None
        sizes = [part.out_features for part in parts]
        self.linear = nn.Linear(parts[0].in_features, sum(sizes), bias=bias, device="meta")
        self.linear.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        if bias:
            self.linear.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
        self._sizes = sizes
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def output(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The index-th layer's output for an input that is usually the very tensor of the call before."""
        if self._input is not x:
            self._outputs = self.linear(x).split(self._sizes, dim=-1)
            self._input = x
        return self._outputs[index]


class JointLinear(nn.Module):
    """One of several linear layers that read the same input."""

    def __init__(self, joint: _Joint, index: int) -> None:
        super().__init__()
        if index == 0:
            self.joint = joint  # A submodule once only, so that it is packed and moved with the model.
        self._output = joint.output
        self._index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._output(self._index, x)


def fuse(model: nn.Module) -> None:
    """Fuses normalisations and linear layers of a model in place. Weights must be plain tensors on one device."""
    with torch.no_grad():
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                fused = _candidate(child)
                if fused is not None:
                    setattr(parent, name, fused)
            for names in _READ_THE_SAME:
                _join(parent, names)


_READ_THE_SAME = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def _join(parent: nn.Module, names: tuple[str, ...]) -> None:
    """Joins linear layers of these names; one that is given another input is still right, only slower."""
    parts = [getattr(parent, name, None) for name in names]
    linears = [part for part in parts if type(part) is nn.Linear]
    if len(linears) != len(names) or len({(p.in_features, p.bias is None, p.weight.dtype) for p in linears}) > 1:
        return
    joint = _Joint(linears)
    for index, name in enumerate(names):
        setattr(parent, name, JointLinear(joint, index))


def _candidate(module: nn.Module) -> nn.Module | None:
    kind = type(module).__name__
    weight = getattr(module, "weight", None)
    if kind.endswith("RMSNorm") and isinstance(weight, nn.Parameter):
        eps: float = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
        for candidate in (FusedRMSNorm(weight.clone(), eps), FusedRMSNorm(1 + weight, eps)):
            if _same(module, candidate, weight.shape[-1], weight):
                return candidate
    return None


def _same(original: nn.Module, candidate: nn.Module, width: int, like: torch.Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, width, generator=generator).to(like)
    expected, got = original(x).float(), candidate(x).float()
    tolerance = _TOLERANCE if like.dtype is torch.float32 else 2e-2
    return bool((expected - got).abs().max() <= tolerance * (1 + expected.abs().max()))
