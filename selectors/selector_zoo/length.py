"""Length: the longest answers first; cheap, and hard to beat (arXiv 2410.09335).

A baseline row of DataTailor (arXiv 2412.06293), which does not define it; the unit, part and aggregation below
are our reading: answer tokens, end-of-turn markers left out, summed over turns, before any truncation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, PassRef, Pool, Scores, Selector
from harness.errors import HarnessError


@dataclass(frozen=True, slots=True)
class LengthConfig:
    """What is counted."""

    part: str = "response"
    """`response`, `instruction` or `total`; image tokens never count."""
    agg: str = "sum"
    """`sum` over turns, or `mean_per_turn`."""
    order: str = "longest"
    """`longest` or `shortest` first."""
    tie: str = "hash"
    """Equal lengths by seeded uid hash, or by `index`."""

    def __post_init__(self) -> None:
        allowed = {
            "part": ("response", "instruction", "total"),
            "agg": ("sum", "mean_per_turn"),
            "order": ("longest", "shortest"),
            "tie": ("hash", "index"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"length: {name}={getattr(self, name)} is none of {', '.join(values)}.")


class Length(Selector):
    """Keep the samples with the longest text."""

    name = "length"
    version = 1
    Config = LengthConfig

    def needs(self) -> tuple[PassRef, ...]:
        """Token counts under the backbone's tokenizer."""
        return (PassRef(name="tokens", model="mid"),)

    def score(self, pool: Pool, features: Features) -> Scores:
        """Token counts, negated where the shortest are wanted."""
        columns = features["tokens"]
        counts = {
            "response": columns["n_response"],
            "instruction": columns["n_instruction"],
            "total": columns["n_response"] + columns["n_instruction"],
        }[self.config.part]
        value = counts.astype(np.float32)
        if self.config.agg == "mean_per_turn":
            value = value / (pool.column("n_turns") // 2)
        return {"score": value if self.config.order == "longest" else -value}
