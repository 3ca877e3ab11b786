"""Tags of regions: what stands where in a picture, for teaching the vision tower to see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.miniworld.render import SIDE, centre
from harness.miniworld.scenes import Chart, Digits, Print, Scene, Shapes, Table
from harness.miniworld.vocabulary import COLOURS, SHAPES, WORDS
from llava_train.tiles import Geometry

NONE: Final = "nothing"
THINGS: Final = (NONE, *SHAPES, *WORDS, "number", "bar", "handwriting")
INKS: Final = (NONE, *COLOURS, "black")
FIGURES: Final = (NONE, *"0123456789")
SLOTS: Final = (THINGS, INKS, FIGURES, FIGURES, FIGURES)
"""Answers of the five questions a patch is tagged with: what, in which colour, and up to three figures."""


@dataclass(frozen=True, slots=True)
class Region:
    """A box (left, top, right, bottom) in pixels and its tag."""

    box: tuple[float, float, float, float]
    thing: str
    ink: str = NONE
    figures: str = ""


def regions(scene: Scene) -> list[Region]:
    """The parts of a scene, each with the room it has to itself."""
    match scene:
        case Shapes():
            return [Region(_around(*centre(i.place), SIDE / 4), i.shape, i.colour) for i in scene.items]
        case Chart():
            width = SIDE * (1 + scene.wide)
            step = (width - 6) / len(scene.bars)
            boxes = [(6 + i * step, 0.0, 6 + (i + 1) * step, float(SIDE)) for i in range(len(scene.bars))]
            return [Region(box, "bar", c, str(v)) for box, (c, v) in zip(boxes, scene.bars, strict=True)]
        case Print():
            number = scene.text.isdigit()
            thing, figures = ("number", scene.text) if number else (scene.text, "")
            return [Region((0, 8, SIDE, SIDE - 8), thing, scene.ink, figures)]
        case Table():
            return [Region((0, 16 * i, SIDE, 16 * i + 16), w, NONE, str(n)) for i, (w, n) in enumerate(scene.rows)]
        case Digits():
            share = SIDE / len(scene.digits)
            boxes = [(i * share, 0.0, (i + 1) * share, float(SIDE)) for i in range(len(scene.digits))]
            return [Region(b, "handwriting", NONE, str(d)) for b, d in zip(boxes, scene.digits, strict=True)]


def _around(x: int, y: int, half: float) -> tuple[float, float, float, float]:
    return x - half, y - half, x + half, y + half


def tags(scene: Scene, width: int, geometry: Geometry) -> npt.NDArray[np.int64]:
    """Tags of every patch of every tile of a picture as high as one tile: shape (tiles, patches, slots).

    The first tile is the whole picture squashed, as in `llava_train.tiles.cut`.
    """
    found = regions(scene)
    middles = (np.arange(geometry.side) + 0.5) * geometry.patch
    columns = [middles * width / SIDE, *(middles + left for left in range(0, width, SIDE))]
    rows: list[Any] = [[_tag(found, x, y) for y in middles for x in xs] for xs in columns]
    return np.array(rows)


def _tag(found: list[Region], x: float, y: float) -> list[int]:
    for region in found:
        left, top, right, bottom = region.box
        if left <= x < right and top <= y < bottom:
            figures = [FIGURES.index(f) for f in region.figures]
            return [THINGS.index(region.thing), INKS.index(region.ink), *figures, *[0] * (3 - len(figures))]
    return [0] * len(SLOTS)
