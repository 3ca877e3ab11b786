"""The activations pass: what attention writes, averaged over the right tokens, whatever the batches."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selector_zoo.passes.activations import ActivationsConfig, ActivationsPass
from selector_zoo.passes.activations_model import ActivationReader, in_halves, spans, spread_layers
from selector_zoo.passes.forward import packs
from selector_zoo.passes.forward_samples import read_samples
from selector_zoo.passes.square_view import SquareIndex

from harness.api import PassContext
from harness.errors import HarnessError
from harness.pool import Pool
from harness.pool_write import PoolWriter
from harness.types import TrainSpec
from llava_train.chat import specials
from llava_train.pool_index import PoolIndex
from llava_train.tiles import square
from tests.support import png, pool_of_files, raw_record
from tests.unit.train_support import backbone, geometry, tokenizer

N = 20
SIZES = ((24, 16), (60, 120), (48, 48), (130, 70))
WIDTH = 128


def opened(**settings: Any) -> ActivationsPass:
    feature = ActivationsPass(ActivationsConfig(**settings), PassContext(model_path=str(backbone())))
    feature.open()
    return feature


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Small and large pictures, text alone, one and two turns."""
    path = tmp_path_factory.mktemp("pool") / "pool"
    with PoolWriter(path, "mixed") as writer:
        for i in range(N):
            assert writer.add(raw_record(i), lambda key: png(int(key[:-4]), SIZES[int(key[:-4]) % 4]))
    return writer.pool()


def index(pool: Pool, kind: type[PoolIndex]) -> PoolIndex:
    return kind(pool=pool, tokenizer=tokenizer(), geometry=geometry(), max_length=12000)


def stock_inputs(seen: PoolIndex, position: int, view: str) -> dict[str, Any]:
    """What transformers' own model takes for a sample."""
    text = seen.text(position)
    ids = torch.from_numpy(text.ids.astype(np.int64))[None]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if text.images:
        (tiles,) = seen.pixels(text)
        inputs["pixel_values"] = (torch.tensor(tiles).float() / 255 - 0.5)[None] / 0.5
        inputs["image_sizes"] = torch.tensor(text.sizes)
        # Told that there are two images, it cuts none into tiles.
        inputs["batch_num_images"] = torch.tensor([2 if view == "square" else 1])
    return inputs


def plain_feature(states: list[torch.Tensor], masks: tuple[Any, Any]) -> Any:
    """The definition, one half at a time; states (tokens, d) by layer."""
    halves = []
    for mask in masks:
        for layer in states:
            mean = layer[torch.from_numpy(mask)].mean(dim=0) if mask.any() else torch.zeros(WIDTH)
            squashed = torch.tanh(mean)
            halves.append(squashed / max(float(squashed.norm()), 1e-12))
    return (torch.cat(halves) / len(halves) ** 0.5).numpy()


@pytest.mark.parametrize("view", ["square", "tiles"])
def test_features_are_those_of_the_stock_model(pool: Pool, view: str) -> None:
    from transformers import LlavaOnevisionForConditionalGeneration

    columns, reasons = opened(view=view, layers=(0, 2)).run(pool, 0, N)
    assert reasons == [""] * N
    assert columns["feature"].dtype == np.float16
    assert columns["feature"].shape == (N, 2 * 2 * WIDTH)
    stock = LlavaOnevisionForConditionalGeneration.from_pretrained(backbone(), dtype=torch.float32).eval()
    caught: list[torch.Tensor] = []
    for i in (0, 2):
        o_proj = stock.model.language_model.layers[i].self_attn.o_proj
        o_proj.register_forward_hook(lambda _, __, out: caught.append(out[0].detach()))
    seen = index(pool, SquareIndex if view == "square" else PoolIndex)
    marks = specials(tokenizer())
    for position in (0, 3, 4, 5):
        inputs = stock_inputs(seen, position, view)
        caught.clear()
        with torch.inference_mode():
            stock.model(**inputs)
        ids = inputs["input_ids"][0].numpy()
        image = ids == marks.image
        # Text begins after the image; without one, after the system message.
        start = np.flatnonzero(image)[-1] if image.any() else np.flatnonzero(ids == marks.start)[1]
        after = np.arange(len(ids)) >= start
        after &= ~image
        wanted = plain_feature(caught, (image, after))
        np.testing.assert_allclose(columns["feature"][position].astype(np.float32), wanted, atol=3e-4)
        assert columns["n_image"][position] == image.sum()
        assert columns["n_text"][position] == after.sum()


def test_features_have_length_one(pool: Pool) -> None:
    """A sample without an image has zeros for its image half."""
    feature = opened()
    columns, _ = feature.run(pool, 0, N)
    layers = len(feature._reader.layers)
    assert columns["feature"].shape == (N, 2 * layers * WIDTH)
    lengths = np.linalg.norm(columns["feature"].astype(np.float64), axis=1)
    text_only = pool.column("n_images") == 0
    np.testing.assert_allclose(lengths[~text_only], 1, atol=1e-3)
    np.testing.assert_allclose(lengths[text_only], 0.5**0.5, atol=1e-3)
    assert not columns["feature"][text_only][:, : layers * WIDTH].any()
    assert columns["n_image"][text_only].tolist() == [0] * int(text_only.sum())
    assert set(columns["n_image"][~text_only].tolist()) == {geometry().lone_tokens}


def test_batches_and_shards_change_nothing(pool: Pool) -> None:
    feature = opened()
    whole, _ = feature.run(pool, 0, N)
    sharded = [feature.run(pool, a, b)[0] for a, b in pairwise((0, 7, 8, N))]
    feature.limits = TrainSpec(pack_tokens=1)
    assert len(packs(read_samples(index(pool, SquareIndex), 0, N)[0], feature.limits)) == N
    one_by_one, _ = feature.run(pool, 0, N)
    for name, values in whole.items():
        joined = np.concatenate([shard[name] for shard in sharded])
        for other in (one_by_one[name], joined):
            assert other.dtype == values.dtype
            np.testing.assert_allclose(other, values, rtol=0, atol=2e-4)


def test_a_square_view_keeps_the_whole_picture(pool: Pool) -> None:
    seen = index(pool, SquareIndex)
    for position in (0, 1, 3):
        text = seen.text(position)
        (tiles,) = seen.pixels(text)
        assert np.array_equal(tiles, square(pool.image(text.images[0]), geometry()))
        assert (text.ids == specials(tokenizer()).image).sum() == geometry().lone_tokens
        assert text.tiles == 1
    assert seen.text(4).tiles == 0


def test_only_the_layers_below_are_loaded_and_run() -> None:
    reader = ActivationReader.load(backbone(), "float32", "cpu", (2, 0, 2))
    assert reader.layers == (0, 2)
    assert len(reader.packed.model.model.language_model.layers) == 3
    for layers in ((4,), (-1,)):
        with pytest.raises(HarnessError, match="of a model with 4"):
            ActivationReader.load(backbone(), "float32", "cpu", layers)


def test_five_layers_at_equal_distances() -> None:
    assert spread_layers(24) == [3, 7, 11, 15, 19]
    assert spread_layers(28) == [3, 8, 13, 17, 22]
    assert spread_layers(4) == [0, 1, 2]
    assert spread_layers(1) == [0]


def test_what_is_image_and_what_is_text() -> None:
    marks = specials(tokenizer())
    system, user = [marks.start, 5, marks.end, marks.newline], [marks.start, 6]
    picture, said = [marks.image] * 3, [7, 8, marks.end]
    image, text = spans(np.array([*system, *user, *picture, *said]), marks, has_image=True)
    assert np.flatnonzero(image).tolist() == [6, 7, 8]
    assert np.flatnonzero(text).tolist() == [9, 10, 11]
    image, text = spans(np.array([*system, *user, *said]), marks, has_image=False)
    assert not image.any()
    assert np.flatnonzero(text).tolist() == [4, 5, 6, 7, 8]
    image, text = spans(np.array([*user, *picture, 7, *picture, 8]), marks, has_image=True)
    assert np.flatnonzero(text).tolist() == [5, 9]


def test_text_that_was_cut_away_leaves_zeros(pool: Pool) -> None:
    columns, reasons = opened(max_length=1).run(pool, 0, 2)
    assert reasons == ["", ""]
    assert columns["n_text"].tolist() == [0, 0]
    half = columns["feature"].shape[1] // 2
    assert columns["feature"][:, :half].any()
    assert not columns["feature"][:, half:].any()


def test_failures_have_reasons_and_shift_nothing(tmp_path: Path) -> None:
    pool, images = pool_of_files(tmp_path)
    feature = opened()
    before, _ = feature.run(pool, 0, 8)
    (images / "2.png").write_bytes(b"no picture")
    (images / "5.png").unlink()
    after, reasons = feature.run(pool, 0, 8)
    assert [i for i, reason in enumerate(reasons) if reason] == [2, 5]
    assert all(reasons[i].startswith("unusable_image: ") for i in (2, 5))
    good = [i for i in range(8) if not reasons[i]]
    np.testing.assert_allclose(after["feature"][good], before["feature"][good], atol=2e-4)
    for i in (2, 5):
        assert np.isnan(after["feature"][i]).all()
        assert (after["n_image"][i], after["n_text"][i]) == (-1, -1)


def test_an_overflowing_model_is_a_failure_by_name(pool: Pool) -> None:
    broken = opened()
    broken._reader.packed.model.model.language_model.layers[1].self_attn.o_proj.weight.data.fill_(float("nan"))
    columns, reasons = broken.run(pool, 0, 3)
    assert reasons == ["not_finite"] * 3
    assert np.isnan(columns["feature"]).all()
    assert columns["n_text"].tolist() == [-1] * 3


def test_too_little_memory_halves_the_batch() -> None:
    sizes: list[int] = []

    def work(items: Any) -> list[int]:
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("no memory")
        return [i * i for i in items]

    assert in_halves(work, list(range(7))) == [i * i for i in range(7)]
    assert max(sizes) == 7
    assert in_halves(work, []) == []

    def never(items: Any) -> list[int]:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_halves(never, [1, 2, 3])


def test_planning_does_not_import_torch() -> None:
    code = "import sys, selector_zoo.passes.activations; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("settings", [{"view": "crop"}, {"dtype": "float16"}, {"max_length": 0}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=next(iter(settings))):
        ActivationsConfig(**settings)
