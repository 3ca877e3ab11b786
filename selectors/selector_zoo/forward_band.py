"""What selectors share that keep a band of something the forward pass measures: settings, and their use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.api import Features, PassRef, Pool, Scores, Selection, Selector
from harness.errors import HarnessError
from selector_zoo.bands import BANDS, keep_band


@dataclass(frozen=True, slots=True)
class ForwardBandConfig:
    """Which model is asked, which tokens count, and which part of the ranking is kept."""

    owner: ClassVar[str]
    """Name of the selector, for messages."""

    model: str
    """`mid` (the backbone before SFT), `warm` (after SFT on a random 5 %), a folder, or a pinned hub id."""
    mask: str = "ans"
    """Tokens counted: the answers with their closing markers (`ans`), or all that training supervises (`sft`)."""
    band: str = "top"
    """Keep the largest scores (`top`), those in the `middle`, or the smallest (`bottom`)."""
    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right."""
    tie: str = "hash"
    """Equal scores by seeded uid hash, or by `index`."""

    def __post_init__(self) -> None:
        allowed = {"mask": ("ans", "sft"), "band": BANDS, "tie": ("hash", "index")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"{self.owner}: {name}={getattr(self, name)} is none of {', '.join(values)}.")


class ForwardBand(Selector):
    """Keep a band of a score read off one teacher-forced forward; subclasses say which."""

    config: ForwardBandConfig

    def needs(self) -> tuple[PassRef, ...]:
        """One teacher-forced forward."""
        config = {"max_length": self.config.max_length}
        return (PassRef(name="forward", model=self.config.model, config=config),)

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The configured band of the scores."""
        return keep_band(pool, scores["score"], n, seed, band=self.config.band, tie=self.config.tie)
