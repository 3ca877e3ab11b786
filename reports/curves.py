"""Summaries of a budget curve: y is the mean REL over runs (percent), x the budget as a share of the pool.

Between measured budgets a curve is a straight line in log10 of the budget; nothing is extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from reports.grid import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points of one method on one backbone, by ascending budget."""

    budgets: Floats
    values: Floats

    @classmethod
    def of(cls, points: dict[float, float | None]) -> Curve:
        """A curve through the points that exist."""
        kept = sorted((b, v) for b, v in points.items() if v is not None)
        return cls(budgets=np.array([b for b, _ in kept]), values=np.array([v for _, v in kept]))

    def with_full(self) -> Curve:
        """The same curve ending in the full run: budget 1, REL 100."""
        below = self.budgets < 1.0
        return Curve(
            budgets=np.append(self.budgets[below], 1.0),
            values=np.append(self.values[below], 100.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """The budget at which a curve first reaches a level, or the bound that is known of it."""

    budget: float
    bound: Literal["", "<=", ">"] = ""

    def __str__(self) -> str:
        return f"{self.bound}{100 * self.budget:.1f}%"


def crossing(curve: Curve, level: float) -> Crossing | None:
    """First budget at which `curve` reaches `level`: `<=` if its smallest budget does, `>` if none does.

    None for a curve without points.
    """
    x, y = np.log10(curve.budgets), curve.values
    if not y.size:
        return None
    if y[0] >= level:
        return Crossing(budget=float(curve.budgets[0]), bound="<=")
    reached = np.flatnonzero(y >= level)
    if not reached.size:
        return Crossing(budget=float(curve.budgets[-1]), bound=">")
    i = int(reached[0])
    share = (level - y[i - 1]) / (y[i] - y[i - 1])
    return Crossing(budget=float(10 ** (x[i - 1] + share * (x[i] - x[i - 1]))))


def area(curve: Curve) -> float | None:
    """Area under the curve over log10 of the budget, divided by its range: REL points, on one grid only.

    None below two budgets.
    """
    if curve.values.size < 2:
        return None
    x = np.log10(curve.budgets)
    return float(np.trapezoid(curve.values, x) / (x[-1] - x[0]))


def random_equivalent(random: Curve, rel: float) -> Crossing | None:
    """Budget at which random sampling reaches `rel`; its ratio to the method's budget is the data multiplier."""
    return crossing(random.with_full(), rel) if random.values.size else None


def at_budget(curve: Curve, budget: float) -> float | None:
    """REL of a curve at a budget inside its range, None outside."""
    if not curve.values.size or not curve.budgets[0] <= budget <= curve.budgets[-1]:
        return None
    return float(np.interp(np.log10(budget), np.log10(curve.budgets), curve.values))
