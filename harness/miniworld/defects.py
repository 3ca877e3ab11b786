"""What is wrong with a part of the pool on purpose, so that there is something for a selector to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final

from harness.miniworld.questions import kind
from harness.miniworld.render import SIDE, width_of
from harness.miniworld.scenes import DRAW, Scene
from harness.miniworld.sources import Sample

SHARES: Final = {"": 0.5, "duplicate": 0.18, "wrong": 0.16, "off_topic": 0.16}
"""Share of the pool by defect; sound samples have none."""
COPIES: Final = 8
"""Near-duplicates of one original, about."""


def spoil(sample: Sample, defect: str, rng: Random) -> Sample:
    """The sample with wrong answers, or with another picture than its questions are about, of the same size.

    A sample without a picture stays as it is: what is wrong with it would be found by reading alone.
    """
    if sample.scene is None:
        return sample
    if defect == "off_topic":
        others = [k for k in DRAW if k != kind(sample.scene)]
        return replace(sample, defect=defect, shown=_narrow(DRAW[rng.choice(others)], rng))
    turns = tuple(replace(t, answer=t.wrong) for t in sample.turns)
    return replace(sample, defect="wrong", turns=turns)


def _narrow(draw: Callable[..., Scene], rng: Random) -> Scene:
    """A scene whose picture is not wide; it is widened where the one it replaces is."""
    while width_of(scene := draw(rng)) > SIDE:
        pass
    return scene


def repeat(samples: list[Sample], places: list[int], rng: Random) -> None:
    """Replace the samples at `places` by near-duplicates of a few sound ones of the same source.

    A near-duplicate has the same conversation and the same scene, drawn a little differently.
    """
    replaced = set(places)
    for source in {samples[p].source: None for p in places}:
        mine = [p for p in places if samples[p].source == source]
        alike = [i for i, s in enumerate(samples) if s.source == source and s.shown is not None]
        sound = [i for i in alike if not samples[i].defect and i not in replaced]
        originals = sound[: 1 + len(mine) // COPIES]
        for place in mine if originals else ():
            original = rng.choice(originals)
            samples[place] = replace(
                samples[original], defect="duplicate", original=original, render_seed=rng.getrandbits(32)
            )
