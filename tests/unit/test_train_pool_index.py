"""Samples of a pool as training takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from train_support import backbone, geometry, tokenizer

from harness.errors import HarnessError
from harness.pool import Pool
from harness.pool_write import PoolWriter
from llava_train.chat import encode, specials
from llava_train.cost import ModelCost
from llava_train.model import load_backbone
from llava_train.pool_index import PoolIndex
from llava_train.tiles import image_tokens
from tests.support import png

RECORDS = [
    {"id": "one", "image": "a.png", "conversations": ["<image>\nWhat is it?", "A circle of red."]},
    {"id": "text", "conversations": ["Say hello.", "hello " * 30]},
    {"id": "two", "image": ["a.png", "b.png"], "conversations": ["<image><image>\nSame?", "no"]},
    {"id": "turns", "image": "b.png", "conversations": ["<image>\nA?", "B", "C?", "D"]},
]
SHAPES = {"a.png": (60, 90), "b.png": (30, 48)}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    with PoolWriter(tmp_path / "pool", "four", image_root=tmp_path / "images") as writer:
        (tmp_path / "images").mkdir()
        for i, (key, shape) in enumerate(SHAPES.items()):
            (tmp_path / "images" / key).write_bytes(png(i, shape))
        for record in RECORDS:
            turns = [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(record["conversations"])]
            load = (tmp_path / "images").joinpath
            assert writer.add(record | {"conversations": turns}, lambda key, load=load: load(key).read_bytes())
    return writer.pool()


def _index(pool: Pool, max_length: int = 4000, mask: str = "llava") -> PoolIndex:
    return PoolIndex(
        pool=pool,
        tokenizer=tokenizer(),
        geometry=geometry(),
        max_length=max_length,
        mask=mask,  # type: ignore[arg-type]
    )


def test_texts_are_encoded_with_the_tokens_of_their_images(pool: Pool) -> None:
    for position, sizes in enumerate([[(60, 90)], [], [(1, 1), (1, 1)], [(30, 48)]]):
        text = _index(pool).text(position)
        encoded = encode(tokenizer(), pool.record(position).conversations, image_tokens(sizes, geometry()))
        np.testing.assert_array_equal(text.ids, encoded.ids)
        np.testing.assert_array_equal(text.targets[1:], encoded.sft_mask[1:])
        assert not text.targets[0]
        pixels = _index(pool).pixels(text)
        assert sum(len(p) for p in pixels) == text.tiles
        assert len(pixels) == len(sizes)


def test_facts_are_the_sums(pool: Pool) -> None:
    index = _index(pool)
    facts = index.facts(range(4), ModelCost.from_config(load_backbone(backbone()).config))
    texts = [index.text(i) for i in range(4)]
    assert facts.tokens.tolist() == [len(t.ids) for t in texts]
    assert facts.supervised.tolist() == [int(t.targets.sum()) for t in texts]
    assert facts.tiles.tolist() == [5, 0, 2, 2]
    assert (facts.flops > 0).all()


def test_truncation_takes_text_from_the_right_and_never_image_tokens(pool: Pool) -> None:
    image = specials(tokenizer()).image
    for position in range(4):
        whole = _index(pool).text(position)
        for limit in (1, 20, len(whole.ids) - 2, len(whole.ids), 9999):
            cut = _index(pool, limit).text(position)
            np.testing.assert_array_equal(cut.ids, whole.ids[: len(cut.ids)])
            assert (cut.ids == image).sum() == (whole.ids == image).sum()
            past = int(np.flatnonzero(whole.ids == image)[-1]) + 1 if whole.images else 0
            assert len(cut.ids) == max(min(limit, len(whole.ids)), past)


def test_the_answer_mask_supervises_less(pool: Pool) -> None:
    for position in range(4):
        wide, narrow = _index(pool).text(position), _index(pool, mask="answer").text(position)
        assert 0 < narrow.supervised < wide.supervised
        assert not (narrow.targets & ~wide.targets).any()
        np.testing.assert_array_equal(wide.answer, narrow.targets)
        np.testing.assert_array_equal(narrow.answer, narrow.targets)


def test_a_changed_or_missing_image_names_the_sample(pool: Pool) -> None:
    index = _index(pool)
    Path(pool.image_root, "a.png").write_bytes(png(0, (61, 90)))
    with pytest.raises(HarnessError, match=r"sample 'one'.*\(61, 90\)"):
        index.pixels(index.text(0))
    Path(pool.image_root, "a.png").write_bytes(b"no picture")
    with pytest.raises(HarnessError, match=r"sample 'one'.*cannot be read"):
        index.pixels(index.text(0))
    Path(pool.image_root, "a.png").unlink()
    with pytest.raises(HarnessError, match=r"sample 'two'.*cannot be read"):
        index.pixels(index.text(2))
