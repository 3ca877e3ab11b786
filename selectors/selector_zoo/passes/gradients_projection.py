"""Random projection of gradients: a matrix of signs that is never stored, only made again, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.keys import seed64

BLOCK: Final = 2**24
"""Signs in memory at once."""
WORD: Final = 64
_GAMMA: Final = 0x9E3779B97F4A7C15
_MIX: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SIGNS: Final = torch.tensor([[1.0 if byte >> bit & 1 else -1.0 for bit in range(8)] for byte in range(256)])
"""The eight signs of each byte, lowest bit first."""


class Projection(Protocol):
    """A linear map of whole gradients, given in parts."""

    @property
    def width(self) -> int:
        """Numbers of a projected gradient."""

    def add(self, out: Tensor, name: str, start: int, values: Tensor) -> None:
        """Add to `out` (k, width) what entries [start, start + m) of parameter `name`, (k, m), contribute."""


@dataclass(frozen=True, slots=True)
class Signs:
    """A Rademacher projection, scaled to keep lengths: entries of plus or minus one over the root of `width`.

    Entry j of row i of a parameter is bit `j % 64` of a hash of seed, name, i and `j // 64`: whole numbers only,
    so the matrix is the same on every device and whatever the blocks. `width` is a multiple of 64.
    """

    width: int
    seed: int

    def add(self, out: Tensor, name: str, start: int, values: Tensor) -> None:
        """Project one part; memory is bounded by `BLOCK`."""
        rows = max(1, BLOCK // self.width)
        for at in range(0, values.shape[1], rows):
            part = values[:, at : at + rows]
            signs = self.block(name, start + at, start + at + part.shape[1], values.device)
            out.addmm_(part, signs, alpha=self.width**-0.5)

    def block(self, name: str, start: int, stop: int, device: torch.device) -> Tensor:
        """Signs of rows [start, stop) of a parameter, float32 (stop - start, width)."""
        words = self.width // WORD
        counter = torch.arange(start * words, stop * words, dtype=torch.int64, device=device)
        mixed = mix64(counter, seed64("projection", self.seed, name))
        signs = F.embedding(mixed.view(torch.uint8).int(), _SIGNS.to(device))
        return signs.view(stop - start, self.width)


def mix64(values: Tensor, seed: int) -> Tensor:
    """`harness.keys.mix64` on int64 tensors, which hold the same bits."""
    z: Tensor = (values ^ _signed(seed)) + _signed(_GAMMA)
    z = (z ^ _shifted(z, 30)) * _signed(_MIX[0])
    z = (z ^ _shifted(z, 27)) * _signed(_MIX[1])
    mixed: Tensor = z ^ _shifted(z, 31)
    return mixed


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shifted(values: Tensor, by: int) -> Tensor:
    """Shift right, filling with zeros; torch fills with the sign."""
    shifted: Tensor = (values >> by) & (2 ** (64 - by) - 1)
    return shifted


@dataclass(frozen=True, slots=True)
class Whole:
    """No projection: the gradient itself, parameter after parameter; for models that are small enough."""

    sizes: Mapping[str, int]
    """Numbers of each parameter, in order."""
    _starts: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        at = 0
        for name, size in self.sizes.items():
            self._starts[name] = at
            at += size

    @property
    def width(self) -> int:
        return sum(self.sizes.values())

    def add(self, out: Tensor, name: str, start: int, values: Tensor) -> None:
        """Put one part in its place."""
        at = self._starts[name] + start
        out[:, at : at + values.shape[1]] += values
