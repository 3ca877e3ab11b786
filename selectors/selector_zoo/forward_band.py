"""What selectors share that keep a band of something the forward pass measures: settings, and their use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from harness.api import Features, PassRef, Pool, Scores, Selection, Selector
from harness.errors import HarnessError
from harness.types import OMIT_DEFAULT, Json
from selector_zoo.bands import keep_band, quantiles
from selector_zoo.shares import SCOPES


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
    """Keep the largest scores (`top`), those in the `middle`, the smallest (`bottom`), or those between two
    quantiles of the ascending ranking, as in `0.2-0.5`, from their middle outwards."""
    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right."""
    tie: str = "hash"
    """Equal scores by seeded uid hash, or by `index`."""
    scope: str = field(default="global", metadata=OMIT_DEFAULT)
    """One ranking of the whole pool (`global`), or one a `source`, each with its share of the budget."""
    views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """How much of a picture is seen: the tiles of training, or a `single` base view (cheaper)."""

    def __post_init__(self) -> None:
        allowed = {"mask": ("ans", "sft"), "tie": ("hash", "index"), "scope": SCOPES}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"{self.owner}: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        try:
            quantiles(self.band)
        except HarnessError as e:
            raise HarnessError(f"{self.owner}: {e}") from None


class ForwardBand(Selector):
    """Keep a band of a score read off one teacher-forced forward; subclasses say which."""

    config: ForwardBandConfig
    besides: ClassVar[dict[str, Json]] = {}
    """What else the pass is to keep, for others that read the same forward."""

    @property
    def nested(self) -> bool:
        """Not by source: shares are rounded."""
        return self.config.scope == "global"

    def needs(self) -> tuple[PassRef, ...]:
        """One teacher-forced forward."""
        c = self.config
        settings: dict[str, Json] = {"max_length": c.max_length, "views": c.views, **self.besides}
        return (PassRef(name="forward", model=c.model, config=settings),)

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The configured band of the scores."""
        c = self.config
        chosen = keep_band(pool, scores["score"], n, seed, band=c.band, tie=c.tie, scope=c.scope)
        return replace(chosen, card={**chosen.card, "band": c.band})
