"""Near-duplicates and styles: what counts as the same, and as which form."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from harness.miniworld import teachers
from harness.miniworld.build import draw_pool
from harness.miniworld.build import record as miniworld_record
from harness.pool import Pool, Record
from harness.pool_write import PoolWriter
from reports.duplicates import DISTANCE, Looked, dhash, duplicate_rate, expected_rate, families, look, text_digest
from reports.styles import STYLES, style_of


def picture(seed: int, side: int = 96) -> Image.Image:
    """Coloured shapes, different ones for every seed."""
    rng = random.Random(seed)
    image = Image.new("RGB", (side, side), tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, size = rng.randrange(side), rng.randrange(side), rng.randrange(side // 6, side // 2)
        draw.ellipse((x - size, y - size, x + size, y + size), fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


def differing(a: Image.Image, b: Image.Image) -> int:
    return int((dhash(a) != dhash(b)).sum())


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, format="jpeg", quality=quality)
    return Image.open(out)


def test_a_gradient_is_all_or_nothing() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 252, 4, dtype=np.uint8), (40, 1)))
    assert dhash(ramp).tolist() == [1.0] * 64
    assert dhash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).tolist() == [-1.0] * 64
    assert dhash(Image.new("RGB", (9, 9))).tolist() == [-1.0] * 64


def test_what_is_done_to_a_picture_changes_it_less_than_another_one() -> None:
    changed = [
        lambda image: jpeg(image, 40),
        lambda image: image.resize((61, 61)),
        lambda image: image.resize((300, 200)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: ImageEnhance.Contrast(image).enhance(0.7),
        lambda image: image.convert("L"),
    ]
    for seed in range(20):
        assert all(differing(picture(seed), change(picture(seed))) <= DISTANCE for change in changed), seed
    others = [differing(picture(a), picture(b)) for a in range(20) for b in range(a)]
    assert np.mean(np.array(others) <= DISTANCE) < 0.02
    assert 20 < np.mean(others) < 36


def record(answer: str, *images: str, question: str = "What is it?") -> Record:
    turns = (("human", "<image>\n" * len(images) + question), ("gpt", answer))
    return Record(uid="u", source="s", conversations=turns, images=images)


def test_words_are_equal_whatever_their_case_and_space() -> None:
    assert text_digest(record("A Cat")) == text_digest(record(" a  cat\n"))
    assert text_digest(record("A Cat")) != text_digest(record("A Cat", "x.png"))
    assert text_digest(record("a cat")) != text_digest(record("cat", question="What is it? a"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Planted: 0, 1 and 2 are one picture treated three ways, 3 another, 4 the first with another answer; 5 and 6
    are text alone and equal, 7 and 8 pairs that differ in their second pictures, 9 is nobody's."""
    files = {
        "a.png": picture(1),
        "b.png": jpeg(picture(1), 50),
        "c.png": picture(1).resize((70, 70)),
        "d.png": picture(2),
        "e.png": picture(3),
    }
    said = [
        ("a ball", ["a.png"]),
        ("A ball", ["b.png"]),
        ("a ball", ["c.png"]),
        ("a ball", ["d.png"]),
        ("a cube", ["a.png"]),
        ("forty", []),
        ("forty", []),
        ("two", ["a.png", "d.png"]),
        ("two", ["b.png", "e.png"]),
        ("alone", ["e.png"]),
    ]
    encoded = {}
    for name, image in files.items():
        out = io.BytesIO()
        image.save(out, format="png")
        encoded[name] = out.getvalue()
    with PoolWriter(tmp_path_factory.mktemp("pool") / "pool", "planted") as writer:
        for i, (answer, images) in enumerate(said):
            turns = [
                {"from": "human", "value": "<image>\n" * len(images) + "What?"},
                {"from": "gpt", "value": answer},
            ]
            assert writer.add({"id": f"u{i}", "conversations": turns, "image": images}, encoded.__getitem__)
    return writer.pool()


def looked_at(pool: Pool, positions: Any) -> Looked:
    return look(pool, {p: pool.record(p) for p in positions}, workers=2)


def test_families_are_what_was_planted(pool: Pool) -> None:
    looked = looked_at(pool, range(pool.n))
    found = families(range(pool.n), looked)
    assert sorted(map(sorted, found)) == [[0, 1, 2], [3], [4], [5, 6], [7], [8], [9]]
    assert duplicate_rate(found) == pytest.approx(3 / 10)
    assert {4, 5, 6, 9}.isdisjoint(looked.pictures)  # nobody else says what they say, or they show nothing


def test_families_do_not_depend_on_order_or_on_who_else_was_looked_at(pool: Pool) -> None:
    looked = looked_at(pool, range(pool.n))
    some = [9, 2, 6, 0, 5, 3]
    expected = [[0, 2], [3], [5, 6], [9]]
    assert sorted(map(sorted, families(some, looked))) == expected
    assert sorted(map(sorted, families(sorted(some), looked_at(pool, some)))) == expected


def test_distance_is_what_separates(pool: Pool) -> None:
    looked = looked_at(pool, range(pool.n))
    assert duplicate_rate(families(range(4), looked, 64)) == pytest.approx(3 / 4)
    assert duplicate_rate(families([0, 3], looked, 0)) == 0


def test_families_are_linked_by_steps() -> None:
    """a is like b and b like c, but a is not like c."""
    a = np.ones(64, dtype=np.float32)
    b, c = a.copy(), a.copy()
    b[:8], c[:16] = -1, -1
    looked = Looked(text=dict.fromkeys(range(3), b"same"), pictures={0: a[None], 1: b[None], 2: c[None]})
    assert families([0, 1, 2], looked, 8) == [[0, 1, 2]]
    assert sorted(families([0, 2], looked, 8)) == [[0], [2]]


def test_a_picture_that_cannot_be_read_is_like_no_other(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Pool, key: str) -> Image.Image:
        raise OSError("gone")

    monkeypatch.setattr(Pool, "image", broken)
    assert families([0, 1, 2], looked_at(pool, [0, 1, 2])) == [[0], [1], [2]]


def test_random_subsets_repeat_less_than_the_pool(pool: Pool) -> None:
    looked = looked_at(pool, range(pool.n))
    assert expected_rate(pool.n, pool.n, looked) == pytest.approx(0.3)
    assert 0 <= expected_rate(3, pool.n, looked) < 0.3
    assert expected_rate(3, pool.n, looked) == expected_rate(3, pool.n, looked)


@pytest.mark.parametrize(
    ("question", "answer", "style"),
    [
        ("Which one?\nA. cat\nB. dog\nAnswer with the letter.", "B", "multi-choice"),
        ("Which one? (A) cat (B) dog", "(B) dog", "multi-choice"),
        ("Which one?\nA. a cat\nB. a black dog.", "A black dog", "multi-choice"),
        ("Which one?\nA. a cat\nB. a dog", "a horse", "word/short-phrase"),
        ("Which one? Answer in quotes.", '"dog"', "specified style"),
        ("Is A. Smith in the picture?", "Yes.", "yes/no"),
        ("Is it red?", "no, it is blue", "yes/no"),
        ("Where is the dog? Give its box.", "[0.1, 0.22, 0.3, 0.4]", "coordinate"),
        ("What year?", "1984", "word/short-phrase"),
        ("How many are left? Explain step by step.", "There are 3. One goes. 2", "chain-of-thought"),
        ("Compare the two bars.", "the left one", "comparison"),
        ("Describe the picture as a haiku.", "Old pond", "specified style"),
        ("Describe the picture briefly.", "a dog", "short description"),
        ("Describe the picture in detail.", "A dog on grass.", "detailed description"),
        ("What happens here?", "word " * 20, "short description"),
        ("What happens here?", "word " * 60, "detailed description"),
    ],
)
def test_styles_by_example(question: str, answer: str, style: str) -> None:
    assert style_of(record(answer, "x.png", question=question)) == style


def test_rules_find_the_true_styles_of_miniworld() -> None:
    for sample in draw_pool(300, seed=0):
        turns = [(str(t["from"]), str(t["value"])) for t in miniworld_record(sample, "u")["conversations"]]
        read = Record(uid="u", source="s", conversations=tuple(turns), images=())
        assert style_of(read) == teachers.styles(sample)[0], turns


def test_every_sample_has_one_of_nine_styles() -> None:
    assert len(STYLES) == 9
    silent = Record(uid="u", source="s", conversations=(), images=())
    assert style_of(silent) in STYLES
    assert style_of(record("")) in STYLES


def test_hashing_is_reported(pool: Pool) -> None:
    told: list[int] = []
    look(pool, {p: pool.record(p) for p in range(pool.n)}, progress=told.append)
    assert told[-1] == 6
