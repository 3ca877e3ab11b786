"""Images: which grid of tiles an image is cut into, how many tokens that makes, and the cutting itself.

Sizes are (height, width) throughout, as in transformers; LLaVA-NeXT writes (width, height). The arithmetic is that
of `select_best_resolution`, `unpad_image` and `LlavaOnevisionImageProcessorPil` in transformers 5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError

if TYPE_CHECKING:
    from PIL.Image import Image

Tiles = npt.NDArray[np.uint8]
"""uint8, shape (tiles, 3, tile, tile), RGB."""

SQUARE_FILL: Final = 127
"""Colour around an image squared for a multi-image sample: the processor's mean of 0.5."""

VIEWS: Final = ("checkpoint", "single")
"""How much of a lone image is seen: what the model's configuration says, or its base view alone."""

_SHRINK_ABOVE: Final = 1.1


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a model sees images: tile side and patch side in pixels, allowed canvases, and the token ceiling."""

    tile: int
    patch: int
    pinpoints: tuple[tuple[int, int], ...]
    """Allowed canvases as (height, width), in order of preference on ties."""
    max_tiles: int = 9
    """Feature maps clearly larger than this many tiles are shrunk (`anyres_max_9`)."""
    views: str = "checkpoint"
    """`checkpoint`: a lone image is a base view and its canvas in tiles; `single`: the base view, nothing else."""

    def __post_init__(self) -> None:
        if self.views not in VIEWS:
            raise HarnessError(f"views={self.views} is none of {', '.join(VIEWS)}.")
        if not self.pinpoints or any(h % self.tile or w % self.tile for h, w in self.pinpoints):
            raise HarnessError(
                f"the image grid {list(self.pinpoints)} does not fit tiles of {self.tile} pixels: make every "
                f"number of image_grid_pinpoints in the model's config.json a multiple of {self.tile}."
            )

    @classmethod
    def from_config(cls, config: Any, views: str = "checkpoint") -> Geometry:
        """Read the geometry from a `LlavaOnevisionConfig` or from its config.json as a mapping.

        Raises HarnessError where canvases are no multiples of a tile, and for views that are none of VIEWS.
        """
        raw: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
        vision = raw.get("vision_config") or {}
        tile = int(vision.get("image_size", 384))
        pinpoints = raw.get("image_grid_pinpoints") or _square_grid(384, 6)
        aspect = str(raw.get("vision_aspect_ratio") or "anyres_max_9")
        return cls(
            tile=tile,
            patch=int(vision.get("patch_size", 14)),
            pinpoints=tuple((int(h), int(w)) for h, w in pinpoints),
            max_tiles=int(aspect.removeprefix("anyres_max_")),
            views=views,
        )

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return self.tile // self.patch

    @property
    def tile_tokens(self) -> int:
        """Tokens of one tile, before newline tokens."""
        return self.side**2

    @property
    def lone_tokens(self) -> int:
        """Tokens of an image that is one tile: those of the tile and one newline token."""
        return self.tile_tokens + 1


def _square_grid(tile: int, n: int) -> list[tuple[int, int]]:
    return [(tile * i, tile * j) for i in range(1, n + 1) for j in range(1, n + 1)]


@functools.lru_cache(maxsize=65536)
def canvas(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """The canvas (height, width) an image is fitted to: most pixels kept, then least waste, then first."""
    best, most, least = geometry.pinpoints[0], -1, 0
    for h, w in geometry.pinpoints:
        scale = min(w / width, h / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = h * w - kept
        if kept > most or (kept == most and waste < least):
            best, most, least = (h, w), kept, waste
    return best


def tile_count(height: int, width: int, geometry: Geometry) -> int:
    """Tiles an image of a single-image sample is cut into, the base tile included."""
    if geometry.views == "single":
        return 1
    h, w = canvas(height, width, geometry)
    return 1 + (h // geometry.tile) * (w // geometry.tile)


@functools.lru_cache(maxsize=65536)
def tokens_of(height: int, width: int, geometry: Geometry) -> int:
    """Tokens an image takes in the language model: base tile, unpadded map and one newline token a row."""
    if geometry.views == "single":
        return geometry.lone_tokens
    rows, columns = _map_shape(height, width, geometry)
    return geometry.tile_tokens + rows * (columns + 1)


def _map_shape(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of the feature map after unpadding and shrinking."""
    canvas_h, canvas_w = canvas(height, width, geometry)
    rows, columns = (canvas_h // geometry.tile) * geometry.side, (canvas_w // geometry.tile) * geometry.side
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    ratio = math.sqrt(rows * columns / (geometry.max_tiles * geometry.tile_tokens))
    if ratio > _SHRINK_ABOVE:
        return int(rows // ratio), int(columns // ratio)
    return rows, columns


def image_tokens(sizes: Sequence[tuple[int, int]], geometry: Geometry) -> list[int]:
    """Tokens of each image of one sample, given the images' (height, width)."""
    if len(sizes) == 1:
        return [tokens_of(*sizes[0], geometry)]
    return [geometry.lone_tokens] * len(sizes)


def sample_tiles(sizes: Sequence[tuple[int, int]], geometry: Geometry) -> int:
    """Tiles of one sample: several images give one each, no image gives none."""
    return tile_count(*sizes[0], geometry) if len(sizes) == 1 else len(sizes)


def cut(image: Image, geometry: Geometry) -> Tiles:
    """Tiles of the image of a single-image sample: the whole image squashed, then the grid, row by row."""
    from PIL import Image as pil

    side = geometry.tile
    base = np.asarray(image.resize((side, side), pil.Resampling.BICUBIC)).transpose(2, 0, 1)
    if geometry.views == "single":
        return base[None]
    canvas_h, canvas_w = canvas(image.height, image.width, geometry)
    height, width = _fitted(image.height, image.width, canvas_h, canvas_w)
    rows, columns = canvas_h // side, canvas_w // side
    board = np.zeros((canvas_h, canvas_w, 3), dtype=np.uint8)
    top, left = (canvas_h - height) // 2, (canvas_w - width) // 2
    fitted = image.resize((width, height), pil.Resampling.BICUBIC)
    board[top : top + height, left : left + width] = np.asarray(fitted)
    tiles = np.empty((1 + rows * columns, 3, side, side), dtype=np.uint8)
    tiles[0] = base
    grid = board.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
    tiles[1:] = grid.reshape(rows * columns, 3, side, side)
    return tiles


def _fitted(height: int, width: int, canvas_h: int, canvas_w: int) -> tuple[int, int]:
    """Size of the image scaled into the canvas with its aspect kept; the free side is rounded up."""
    scale_h, scale_w = canvas_h / height, canvas_w / width
    if scale_w < scale_h:
        return min(math.ceil(height * scale_w), canvas_h), canvas_w
    return canvas_h, min(math.ceil(width * scale_h), canvas_w)


def square(image: Image, geometry: Geometry) -> Tiles:
    """The one tile of an image of a multi-image sample: padded to a square, then scaled."""
    from PIL import Image as pil

    longest = max(image.size)
    board = pil.new("RGB", (longest, longest), (SQUARE_FILL,) * 3)
    board.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    side = geometry.tile
    return np.asarray(board.resize((side, side), pil.Resampling.BICUBIC)).transpose(2, 0, 1)[None]


def cut_sample(images: Sequence[Image], geometry: Geometry) -> list[Tiles]:
    """Tiles of every image of one sample."""
    if len(images) == 1:
        return [cut(images[0], geometry)]
    return [square(image, geometry) for image in images]


def blank(geometry: Geometry) -> Tiles:
    """The tile a pack without images sends through the vision tower: every rank runs the same operations."""
    return np.zeros((1, 3, geometry.tile, geometry.tile), dtype=np.uint8)
