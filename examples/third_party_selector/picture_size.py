"""Picture size: the samples with the largest pictures first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, Pool, Scores, Selector


@dataclass(frozen=True, slots=True)
class PictureSizeConfig:
    """Which end is kept."""

    order: str = "largest"
    """`largest` or `smallest` pictures first."""


class PictureSize(Selector):
    """Keep the samples with the largest (or smallest) pictures; text alone comes last."""

    name = "picture_size"
    version = 1
    Config = PictureSizeConfig

    def score(self, pool: Pool, features: Features) -> Scores:
        """Pixels of the first picture."""
        pixels = pool.column("height").astype(float) * pool.column("width")
        pixels[pool.column("n_images") == 0] = np.nan
        return {"score": pixels if self.config.order == "largest" else -pixels}
