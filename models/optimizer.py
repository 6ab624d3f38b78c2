"""Muon for the hidden matrices, AdamW for the embedding and the norms, one learning-rate schedule for both.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
orthogonal matrix. `torch.optim.Muon` does that in bfloat16, which is slow on CPUs without it; here it is float32.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(Optimizer):
    """Nesterov momentum, orthogonalized; `lr` is the spectral norm of an update of a square matrix."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; closures are not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group)
        return None

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        rows, columns = matrices[0].shape
        updates = orthogonalize(torch.stack([self._direction(matrix, group["momentum"]) for matrix in matrices]))
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _direction(self, matrix: Tensor, momentum: float) -> Tensor:
        if matrix.grad is None:
            raise ValueError("every matrix needs a gradient")
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        average: Tensor = state["momentum"]
        average.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrix to each of [count, rows, columns], by a Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class ScheduledOptimizers:
    """Both optimizers behind one `step`, which warms up and then decays linearly to zero at the end of the budget."""

    def __init__(
        self, model: nn.Module, *, matrix_lr: float, other_lr: float, weight_decay: float, warmup: float
    ) -> None:
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
        self._warmup = warmup
        self._peaks = (matrix_lr, other_lr)
        self._optimizers: tuple[Optimizer, Optimizer] = (
            Muon(matrices, lr=matrix_lr, weight_decay=weight_decay),
            torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.95), weight_decay=0.0),
        )

    def step(self, progress: float) -> None:
        """Update all parameters; `progress` is the share of the budget that has been used, in [0, 1]."""
        scale = min(1.0, progress / self._warmup, (1 - progress) / (1 - self._warmup))
        for optimizer, peak in zip(self._optimizers, self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of both, for a checkpoint."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Resume from a checkpoint."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
