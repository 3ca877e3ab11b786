"""Scenes to pictures. BMP, because its bytes do not depend on the version of a compression library."""

from __future__ import annotations

import functools
import hashlib
import io
from random import Random
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from harness.miniworld.digits import scan
from harness.miniworld.scenes import Chart, Digits, Print, Scene, Shapes, Table
from harness.miniworld.vocabulary import COLOURS, GROUNDS, PLACES

SIDE: Final = 48
INKS: Final = {**COLOURS, **GROUNDS}
Box = tuple[int, int, int, int]


def encode(image: Image.Image) -> bytes:
    """The bytes of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()


def render(scene: Scene, rng: Random) -> Image.Image:
    """Draw a scene; `rng` decides what a scene leaves open (offsets, sizes, stroke)."""
    match scene:
        case Shapes():
            return _shapes(scene, rng)
        case Chart():
            return _chart(scene, rng)
        case Print():
            return _print(scene, rng)
        case Table():
            return _table(scene, rng)
        case Digits():
            return _digits(scene, rng)


def split_of(data: bytes) -> str:
    """The split the bytes of a picture belong to: half of all pictures are the pool's."""
    return ("pool", "pool", "tune", "report")[hashlib.blake2b(data, digest_size=1).digest()[0] % 4]


def width_of(scene: Scene) -> int:
    """Width of a scene's pictures, in pixels."""
    return SIDE * (1 + (isinstance(scene, Chart) and scene.wide))


def picture(scene: Scene, rng: Random, split: str, width: int = 0) -> tuple[Image.Image, bytes]:
    """A picture of a scene, and its bytes, that belongs to `split`; no picture belongs to two.

    A narrower one than `width` is put in the middle, on a ground of the colour of its corner.
    """
    for _ in range(200):
        image = _widened(render(scene, rng), width)
        data = encode(image)
        if split_of(data) == split:
            return image, data
    raise ValueError(f"no drawing of {scene} belongs to {split}")


def _widened(image: Image.Image, width: int) -> Image.Image:
    if image.width >= width:
        return image
    page = Image.new("RGB", (width, image.height), image.getpixel((0, 0)))
    page.paste(image, ((width - image.width) // 2, 0))
    return page


def centre(place: str) -> tuple[int, int]:
    """(x, y) of the middle of a corner's cell, in pixels."""
    row, column = divmod(PLACES.index(place), 2)
    return SIDE // 4 + column * SIDE // 2, SIDE // 4 + row * SIDE // 2


def _canvas(ground: str, rng: Random, width: int = SIDE) -> Image.Image:
    """An empty picture whose ground is a little off its colour."""
    red, green, blue = (c + rng.randint(-5, 5) for c in GROUNDS[ground])
    return Image.new("RGB", (width, SIDE), (red, green, blue))


def _shapes(scene: Shapes, rng: Random) -> Image.Image:
    image = _canvas(scene.ground, rng)
    pen = ImageDraw.Draw(image)
    for item in scene.items:
        x, y = centre(item.place)
        x, y, r = x + rng.randint(-2, 2), y + rng.randint(-2, 2), rng.randint(7, 9)
        _shape(pen, item.shape, (x - r, y - r, x + r, y + r), COLOURS[item.colour])
    return image


def _shape(pen: ImageDraw.ImageDraw, shape: str, box: Box, ink: tuple[int, int, int]) -> None:
    left, top, right, bottom = box
    x, y, w = (left + right) // 2, (top + bottom) // 2, 2
    match shape:
        case "circle":
            pen.ellipse(box, fill=ink)
        case "ring":
            pen.ellipse(box, outline=ink, width=3)
        case "square":
            pen.rectangle((left + 1, top + 1, right - 1, bottom - 1), fill=ink)
        case "triangle":
            pen.polygon([(x, top), (right, bottom), (left, bottom)], fill=ink)
        case "diamond":
            pen.polygon([(x, top), (right, y), (x, bottom), (left, y)], fill=ink)
        case "cross":
            pen.rectangle((x - w, top, x + w, bottom), fill=ink)
            pen.rectangle((left, y - w, right, y + w), fill=ink)
        case _:
            raise ValueError(f"there is no shape '{shape}'")


def _chart(scene: Chart, rng: Random) -> Image.Image:
    width, unit, base = width_of(scene), 4, SIDE - 5
    image = _canvas("white", rng, width)
    pen = ImageDraw.Draw(image)
    for value in range(1, 10):  # tick marks, one a unit
        y = base - unit * value
        pen.line((0, y, 4 if value % 5 == 0 else 2, y), fill=GROUNDS["black"])
    pen.line((0, base, width, base), fill=GROUNDS["black"])
    step = (width - 6) // len(scene.bars)
    bar = min(step - 3, 12)
    for i, (colour, value) in enumerate(scene.bars):
        x = 6 + i * step + rng.randint(0, step - bar - 1)
        pen.rectangle((x, base - unit * value, x + bar - 1, base - 1), fill=COLOURS[colour])
    return image


@functools.cache
def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default_imagefont()


def _write(text: str, scale: int) -> Image.Image:
    """Text in Pillow's built-in bitmap font, as a mask."""
    left, top, right, bottom = _font().getbbox(text)
    mask = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=_font())
    return mask.resize((mask.width * scale, mask.height * scale), Image.Resampling.NEAREST)


def _print(scene: Print, rng: Random) -> Image.Image:
    image = _canvas(scene.ground, rng)
    mask = _write(scene.text, 2)
    at = ((SIDE - mask.width) // 2 + rng.randint(-3, 3), (SIDE - mask.height) // 2 + rng.randint(-4, 4))
    image.paste(INKS[scene.ink], at, mask)
    return image


def _table(scene: Table, rng: Random) -> Image.Image:
    image = _canvas("white", rng)
    pen = ImageDraw.Draw(image)
    split, row = 30 + rng.randint(-2, 2), 16
    for i, (word, number) in enumerate(scene.rows):
        image.paste(GROUNDS["black"], (4, i * row + 3), _write(word, 1))
        image.paste(GROUNDS["black"], (split + 6, i * row + 3), _write(str(number), 1))
        pen.line((0, i * row + row - 1, SIDE, i * row + row - 1), fill=GROUNDS["grey"])
    pen.line((split, 0, split, row * len(scene.rows) - 1), fill=GROUNDS["grey"])
    return image


def _digits(scene: Digits, rng: Random) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE))
    for i, number in enumerate(scene.scans):
        scale = rng.randint(4, 5) if len(scene.scans) == 1 else 3
        side = 8 * scale
        ink = Image.fromarray(scan(number)).resize((side, side), Image.Resampling.BILINEAR)
        middle = SIDE * (2 * i + 1) // (2 * len(scene.scans)) + rng.randint(-2, 2)
        at = (middle - side // 2, (SIDE - side) // 2 + rng.randint(-4, 4))
        image.paste(Image.merge("RGB", (ink, ink, ink)), at)
    return image
