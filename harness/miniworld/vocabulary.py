"""The words miniworld is made of; everything that names something draws from here."""

from __future__ import annotations

from typing import Final

from harness.taxonomy import CAPABILITIES as CAPABILITIES
from harness.taxonomy import STYLES as STYLES

COLOURS: Final = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 90, 220),
    "yellow": (240, 210, 50),
    "orange": (245, 140, 30),
    "purple": (150, 60, 180),
    "pink": (245, 140, 190),
    "brown": (130, 85, 45),
}
"""Name and RGB of the colours of shapes and bars."""

GROUNDS: Final = {"white": (250, 250, 250), "grey": (200, 200, 205), "black": (25, 25, 30)}
"""Name and RGB of the backgrounds."""

SHAPES: Final = ("circle", "square", "triangle", "diamond", "cross", "ring")
PLACES: Final = ("top left", "top right", "bottom left", "bottom right")

WORDS: Final = (
    "ant", "arm", "bag", "bat", "bed", "bee", "box", "bus", "cap", "car", "cat", "cow", "cup", "dog", "ear",
    "egg", "eye", "fan", "fig", "fox", "gem", "hat", "hen", "ice", "ink", "jam", "jar", "jet", "key", "kit",
    "leg", "lid", "map", "mud", "net", "nut", "oak", "oil", "owl", "pan", "pea", "pen", "pie", "pig", "pot",
    "ram", "rat", "rug", "sea", "sky", "sun", "tea", "toy", "tub", "van", "web", "yak", "zip",
)  # fmt: skip
"""Words that are printed in pictures."""
