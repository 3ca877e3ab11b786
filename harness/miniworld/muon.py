"""Muon for small models on a CPU: torch's algorithm in float32, all matrices of one shape at once.

torch.optim.Muon orthogonalises in bfloat16, one matrix after another, which took half of every step where bfloat16
is emulated.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

STEPS: Final = 5
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of Newton-Schulz's quintic iteration, as Keller Jordan's Muon has them."""


class Muon(Optimizer):
    """Momentum whose direction is orthogonalised (Keller Jordan et al. 2024), with Nesterov's look ahead."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, *, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every matrix that has a gradient; `closure` is not called."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[tuple(matrix.shape)].append(matrix)
            for matrices in by_shape.values():
                self._move(matrices, group["lr"], group["weight_decay"], group["momentum"])

    def _move(self, matrices: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        ahead = [self._ahead(matrix, momentum) for matrix in matrices]
        rows, columns = matrices[0].shape
        rate = lr * math.sqrt(max(1, rows / columns))
        for matrix, direction in zip(matrices, orthogonal(torch.stack(ahead)), strict=True):
            matrix.mul_(1 - lr * weight_decay).add_(direction, alpha=-rate)

    def _ahead(self, matrix: Tensor, momentum: float) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        assert matrix.grad is not None
        state["momentum"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(state["momentum"], momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors and singular values near one, (n, rows, columns)."""
    if matrices.shape[1] > matrices.shape[2]:
        turned: Tensor = orthogonal(matrices.mT).mT
        return turned
    a, b, c = COEFFICIENTS
    found: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found
