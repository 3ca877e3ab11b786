"""Tiles and token counts against the processor and the model they stand in for."""

import json
import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from harness.errors import HarnessError
from llava_train.tiles import (
    VIEWS,
    Geometry,
    blank,
    cut,
    cut_sample,
    image_tokens,
    sample_tiles,
    square,
    tile_count,
    tokens_of,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _grid(tile: int, n: int) -> tuple[tuple[int, int], ...]:
    return tuple((tile * i, tile * j) for i in range(1, n + 1) for j in range(1, n + 1))


ONEVISION = Geometry(tile=384, patch=14, pinpoints=_grid(384, 6))
TINY = Geometry(tile=48, patch=8, pinpoints=((48, 48), (48, 96), (96, 48), (96, 96)))
NARROW = Geometry(tile=32, patch=8, pinpoints=((32, 96), (96, 32), (64, 64)), max_tiles=2)
GEOMETRIES = {"onevision": ONEVISION, "tiny": TINY, "narrow": NARROW}


@cache
def _processor(name: str):
    from transformers import LlavaOnevisionImageProcessorPil

    g = GEOMETRIES[name]
    half, size = [0.5, 0.5, 0.5], {"height": g.tile, "width": g.tile}
    points = [list(p) for p in g.pinpoints]
    return LlavaOnevisionImageProcessorPil(size=size, image_mean=half, image_std=half, image_grid_pinpoints=points)


def _sizes(n: int, longest: int, seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return [(int(h), int(w)) for h, w in np.exp(rng.uniform(np.log(6), np.log(longest), size=(n, 2)))]


def _image(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height * 10007 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _normalised(tiles: np.ndarray) -> np.ndarray:
    return (tiles.astype(np.float32) / 255 - 0.5) / 0.5


@pytest.mark.parametrize("name", GEOMETRIES)
def test_pixels_equal_the_processors(name: str) -> None:
    geometry = GEOMETRIES[name]
    longest, n = (1000, 5) if name == "onevision" else (300, 40)
    for height, width in _sizes(n, longest, seed=1):
        image = _image(height, width)
        theirs = _processor(name)(image, return_tensors="np")["pixel_values"][0]
        ours = cut(image, geometry)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(_normalised(ours), theirs, atol=2.5e-7, rtol=0)


@pytest.mark.parametrize("name", ["tiny", "narrow"])
def test_several_images_give_a_squared_tile_each(name: str) -> None:
    images = [_image(h, w) for h, w in _sizes(6, 200, seed=2)]
    theirs = _processor(name)([images], return_tensors="np")["pixel_values"]
    ours = cut_sample(images, GEOMETRIES[name])
    assert [len(t) for t in ours] == [1] * 6
    np.testing.assert_allclose(_normalised(np.stack(ours)), theirs, atol=2.5e-7, rtol=0)
    assert square(_image(10, 30), GEOMETRIES[name])[0, 0, 0, 0] == 127


@pytest.mark.parametrize("name", GEOMETRIES)
def test_token_counts_equal_the_processors_and_the_models(name: str) -> None:
    """Counts over many sizes, against both places that compute them in transformers."""
    from transformers.models.llava_onevision import modeling_llava_onevision as hf
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

    geometry = GEOMETRIES[name]
    counter = object.__new__(LlavaOnevisionProcessor)
    counter.image_processor, counter.num_image_tokens = _processor(name), geometry.tile_tokens
    counter.vision_aspect_ratio = f"anyres_max_{geometry.max_tiles}"
    points = [list(p) for p in geometry.pinpoints]
    for height, width in _sizes(300, 3000, seed=3):
        expected = counter._get_number_of_features(height, width, geometry.tile, geometry.tile)
        assert tokens_of(height, width, geometry) == expected
        assert tile_count(height, width, geometry) == hf.image_size_to_num_patches(
            (height, width), points, geometry.tile
        )


@pytest.mark.parametrize(
    ("height", "width", "tokens", "tiles"),
    [
        (336, 336, 1485, 2),
        (375, 500, 1728, 3),
        (300, 1000, 2779, 4),
        (480, 640, 2929, 5),
        (768, 1024, 4725, 7),
        (1080, 1920, 7269, 16),
        (3300, 2550, 7353, 31),
    ],
)
def test_onevision_counts_by_hand(height: int, width: int, tokens: int, tiles: int) -> None:
    assert (tokens_of(height, width, ONEVISION), tile_count(height, width, ONEVISION)) == (tokens, tiles)


def test_samples_without_one_image() -> None:
    assert image_tokens([], TINY) == []
    assert sample_tiles([], TINY) == 0
    assert image_tokens([(50, 60), (90, 90)], TINY) == [37, 37]
    assert sample_tiles([(50, 60), (90, 90)], TINY) == 2
    assert blank(TINY).shape == (1, 3, 48, 48)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_single_view_is_the_base_view(name: str) -> None:
    """The first tile of all, counted as the model counts an image of one tile, whatever its size."""
    geometry = GEOMETRIES[name]
    single = replace(geometry, views="single")
    for height, width in _sizes(4, 300, seed=4):
        image = _image(height, width)
        np.testing.assert_array_equal(cut(image, single), cut(image, geometry)[:1])
        assert image_tokens([(height, width)], single) == [geometry.tile_tokens + 1]
        assert tokens_of(height, width, single) < tokens_of(height, width, geometry)
        assert sample_tiles([(height, width)], single) == tile_count(height, width, single) == 1


def test_several_images_have_one_view_anyhow() -> None:
    single = replace(TINY, views="single")
    sizes = [(50, 60), (90, 90)]
    assert image_tokens(sizes, single) == image_tokens(sizes, TINY)
    for ours, theirs in zip(*(cut_sample([_image(*s) for s in sizes], g) for g in (single, TINY)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_view_is_about_a_quarter_of_a_photograph() -> None:
    sizes = [(480, 640), (375, 500), (768, 1024), (336, 336), (600, 800), (1080, 1920)]
    whole, single = (sum(tokens_of(h, w, replace(ONEVISION, views=v)) for h, w in sizes) for v in VIEWS)
    assert single == 730 * len(sizes)
    assert 0.15 < single / whole < 0.3


def test_geometry_reads_configs_and_their_json() -> None:
    from transformers import LlavaOnevisionConfig

    config = LlavaOnevisionConfig()
    assert Geometry.from_config(config) == ONEVISION
    assert Geometry.from_config(json.loads(config.to_json_string())) == ONEVISION
    assert Geometry.from_config({}) == ONEVISION
    assert Geometry.from_config(config, "single") == replace(ONEVISION, views="single")


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(HarnessError, match="multiple of 48"):
        Geometry(tile=48, patch=8, pinpoints=((64, 48),))
    with pytest.raises(HarnessError, match="views=base is none of checkpoint, single"):
        Geometry.from_config({}, "base")


def test_normalising_on_the_device_equals_the_processor() -> None:
    """All 256 values, in the arithmetic the model wrapper uses."""
    values = torch.arange(256, dtype=torch.uint8)
    ours = (values.float() / 255 - 0.5) / 0.5
    theirs = (np.arange(256).astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1.5e-7)
