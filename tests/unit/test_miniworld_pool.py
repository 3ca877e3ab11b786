"""The pool of miniworld: deterministic, whole, defective by plan, and silent about its defects."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.errors import HarnessError
from harness.miniworld import ensure_pool, truth_file
from harness.miniworld.build import VERSION, draw_picture, draw_pool, make_once, record
from harness.miniworld.defects import SHARES
from harness.miniworld.render import split_of, width_of
from harness.miniworld.sources import SOURCES, Sample, quotas
from harness.miniworld.teachers import scores, styles
from harness.miniworld.vocabulary import CAPABILITIES, STYLES
from harness.pool import Pool, open_pool

N = 1000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def pool(root: Path) -> Pool:
    return open_pool(ensure_pool(N, 0, root))


@pytest.fixture(scope="module")
def drawn() -> list[Sample]:
    return draw_pool(4000, 0)


@pytest.fixture(scope="module")
def truth(pool: Pool) -> dict[str, dict[str, str]]:
    rows = pq.read_table(truth_file(Path(pool.path))).to_pylist()
    return {row["uid"]: row for row in rows}


def test_same_seed_gives_the_same_pool_and_another_seed_another(pool: Pool, tmp_path: Path) -> None:
    again = open_pool(ensure_pool(N, 0, tmp_path))
    other = open_pool(ensure_pool(N, 1, tmp_path))
    assert again.digest == pool.digest
    assert other.digest != pool.digest


def test_every_sample_is_usable_and_known_to_the_truth_table(pool: Pool, truth: dict[str, dict[str, str]]) -> None:
    head = json.loads((Path(pool.path) / "pool.json").read_text())
    assert (head["n"], head["rejects"]) == (N, {})
    assert set(pool.uids()) == set(truth)


def test_sources_are_ten_and_very_unequal(pool: Pool) -> None:
    sizes = Counter(map(str, pool.sources()))
    assert sizes == quotas(N)
    assert len(sizes) == len(SOURCES) == 10
    assert max(sizes.values()) > 20 * min(sizes.values())


def test_all_styles_turns_and_text_only_samples_occur(pool: Pool, truth: dict[str, dict[str, str]]) -> None:
    assert {s for row in truth.values() for s in row["styles"].split(", ")} == set(STYLES)
    assert set(pool.column("n_turns")) == {2, 4, 6}
    assert 0 < (pool.column("n_images") == 0).sum() < 0.02 * N


@pytest.mark.parametrize("seed", range(8))
def test_a_small_world_has_samples_without_a_picture_whatever_its_seed(seed: int) -> None:
    assert 0 < sum(s.shown is None for s in draw_pool(N, seed)) < 0.02 * N


def test_a_world_without_room_for_its_sources_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="at least 10 samples"):
        ensure_pool(9, 0, tmp_path)
    assert open_pool(ensure_pool(10, 0, tmp_path)).n == 10


def test_defects_are_planted_in_their_shares(truth: dict[str, dict[str, str]]) -> None:
    counts = Counter(row["defect"] for row in truth.values())
    for defect, share in SHARES.items():
        assert counts[defect] == pytest.approx(share * N, abs=50)


def test_a_near_duplicate_repeats_a_sound_sample_with_another_picture(
    pool: Pool, truth: dict[str, dict[str, str]]
) -> None:
    place = {uid: i for i, uid in enumerate(pool.uids())}
    copies = [row for row in truth.values() if row["defect"] == "duplicate"]
    for row in copies:
        copy, original = pool.record(place[row["uid"]]), pool.record(place[row["original"]])
        assert truth[row["original"]]["defect"] == ""
        assert copy.conversations == original.conversations
    differ = [
        pool.image_bytes(pool.record(place[r["uid"]]).images[0])
        != pool.image_bytes(pool.record(place[r["original"]]).images[0])
        for r in copies
        if pool.record(place[r["uid"]]).images
    ]
    assert sum(differ) > 0.9 * len(differ)


def test_a_wrong_answer_differs_from_the_right_one() -> None:
    for sample in draw_pool(N, 0):
        for turn in sample.turns:
            assert (turn.answer == turn.wrong) == (sample.defect == "wrong")


def test_what_needs_no_picture_is_sound_and_has_no_near_duplicates(drawn: list[Sample]) -> None:
    """Its wrong answers would be found by reading alone, and its copies would be exact."""
    without = [s for s in drawn if s.scene is None]
    assert len(without) > 5
    assert {s.defect for s in without} == {""}


def _said(sample: Sample) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[int]]:
    """(colour, shape) and (word, number) that a conversation speaks of, and how many shapes, by reading it."""
    shapes, rows, counts = [], [], []
    for turn in sample.turns:
        text = turn.text.split("\n")[0]
        if found := re.match(r"(?:What|Which) colour (?:is|does) the (\w+)", text):
            shapes.append((turn.answer, found[1]))
        elif found := re.match(r"(?:What shape is|Which shape has the colour) (\w+)", text):
            shapes.append((found[1], turn.answer))
        elif found := re.match(r"Where is the (\w+) (\w+)", text):
            shapes.append((found[1], found[2]))
        elif found := re.match(r"(?:What number has the row|Which number belongs to) (\w+)", text):
            rows.append((found[1], turn.answer))
        elif found := re.match(r"Which row has the number (\d)", text):
            rows.append((turn.answer, found[1]))
        elif text.startswith("How many shapes"):
            counts.append(int(turn.answer))
    return shapes, rows, counts


def test_no_conversation_contradicts_itself_right_or_wrong(drawn: list[Sample]) -> None:
    """Each turn is about a thing of its own, so who sees no picture has nothing to compare an answer with."""
    several = [s for s in drawn if s.source in ("shapes_qa", "tables_qa") and len(s.turns) > 1]
    assert sum(s.defect == "wrong" for s in several) > 30
    for sample in several:
        shapes, rows, counts = _said(sample)
        assert len(shapes) + len(rows) + len(counts) == len(sample.turns)
        for pairs in (shapes, rows):
            assert all(len({pair[side] for pair in pairs}) == len(pairs) for side in (0, 1)), sample.turns
        assert all(count >= len(shapes) for count in counts), sample.turns


def test_no_chart_is_spoken_of_in_contradictions(drawn: list[Sample]) -> None:
    for sample in drawn:
        bars = {t.skill: t for t in sample.turns}
        if sample.source != "charts_qa" or len(bars) < 2:
            continue
        heights: dict[str, int] = {}
        for turn in sample.turns:
            said = re.findall(r"The (\w+) bar is (\d)", turn.answer)
            if found := re.search(r"(?:value of|high is) the (\w+) bar", turn.text):
                said = [(found[1], turn.answer)]
            for name, height in said:
                assert heights.setdefault(name, int(height)) == int(height), sample.turns
        for skill in {"highest", "compare"} & set(bars):
            top = bars[skill].answer
            others = bars[skill].about if skill == "compare" else heights
            assert all(heights.get(name, 0) <= heights.get(top, 9) for name in others), sample.turns
        if {"highest", "compare"} <= set(bars) and bars["highest"].answer in bars["compare"].about:
            assert bars["highest"].answer == bars["compare"].answer, sample.turns


def test_a_wrong_reckoning_is_as_possible_as_a_right_one(drawn: list[Sample]) -> None:
    """The higher bar is higher, and the sum is right: only the picture tells."""
    wrong = [s for s in drawn if s.defect == "wrong"]
    told = [turn.answer for sample in wrong for turn in sample.turns if turn.skill == "difference"]
    assert len(told) > 10
    for answer in told:
        high, low, gap = map(int, re.search(r"(-?\d+) - (-?\d+) = (-?\d+)$", answer).groups())  # type: ignore[union-attr]
        assert 9 >= high > low >= 1
        assert gap == high - low


def test_off_topic_questions_are_about_another_kind_of_picture() -> None:
    for sample in draw_pool(N, 0):
        same = type(sample.scene) is type(sample.shown)
        assert same == (sample.defect != "off_topic")


def test_an_off_topic_picture_has_the_size_of_the_one_it_replaces(drawn: list[Sample]) -> None:
    off = [s for s in drawn if s.defect == "off_topic"]
    shown = [(s, picture[0]) for s in off if (picture := draw_picture(s))]
    assert {(width_of(s.scene), picture.width) for s, picture in shown if s.scene} == {(48, 48), (96, 96)}
    assert all(width_of(s.shown) == 48 for s in off if s.shown)


@pytest.mark.parametrize("defect", ["wrong", "off_topic"])
def test_no_number_of_a_sample_tells_what_is_wrong_with_it(
    pool: Pool, truth: dict[str, dict[str, str]], defect: str
) -> None:
    """Area under the curve of every column, of the uid and of the place, within the larger sources."""
    from scipy.stats import mannwhitneyu

    found = np.array([truth[uid]["defect"] for uid in pool.uids()])
    names = ("n_turns", "n_words", "n_answer_words", "n_images", "width", "height", "uid_hash64", "image_hash64")
    columns = {name: np.asarray(pool.column(name), dtype=float) for name in names}
    columns |= {"place": np.arange(N), "uid": np.array([int(uid, 16) for uid in pool.uids()], dtype=float)}
    for source in ("shapes_qa", "charts_qa", "yes_no", "captions", "print_qa", "choices", "tables_qa"):
        mine = pool.sources() == source
        for name, values in columns.items():
            test = mannwhitneyu(values[mine & (found == defect)], values[mine & (found == "")])
            assert test.pvalue > 1e-3, f"{name} of {source} tells {defect} samples"


def test_nothing_in_the_pool_reveals_a_defect(pool: Pool, truth: dict[str, dict[str, str]]) -> None:
    names = {p.name for p in Path(pool.path).rglob("*")}
    files = {"pool.json", "meta.parquet", "text.arrow", "images.tar", "image_index.arrow", "rejects.parquet"}
    assert names == files
    for i in range(pool.n):
        record = pool.record(i)
        assert record.images in ((), (f"{record.source}/{record.uid}.bmp",))
    beside = {p.name for p in Path(pool.path).parent.iterdir()}
    assert beside == {"pool", "teachers.parquet"}, "the truth lies apart"
    sound = [truth[uid]["defect"] == "" for uid in pool.uids()]
    expected = sum(sound) / N
    first = sorted(range(N), key=pool.uids().__getitem__)[: N // 2]
    assert sum(sound[i] for i in first) / len(first) == pytest.approx(expected, abs=0.08), "uids follow defects"


def test_pictures_and_sizes(pool: Pool) -> None:
    sizes = set(zip(pool.column("width"), pool.column("height"), strict=True))
    assert sizes == {(0, 0), (48, 48), (96, 48)}
    small = (pool.column("width") == 48).sum()
    assert small > 0.9 * N
    images = [key for i in range(200) for key in pool.record(i).images]
    assert {split_of(pool.image_bytes(key)) for key in images} == {"pool"}


def test_teachers_label_every_sample(pool: Pool, truth: dict[str, dict[str, str]]) -> None:
    rows = pq.read_table(Path(pool.path).parent / "teachers.parquet").to_pylist()
    assert {row["uid"] for row in rows} == set(pool.uids())
    for row in rows:
        assert set(row) == {"uid", "styles", *CAPABILITIES}
        assert all(0 <= row[c] <= 5 for c in CAPABILITIES)
        assert row["styles"] == truth[row["uid"]]["styles"]
    mean: dict[str, list[int]] = {d: [] for d in SHARES}
    for row in rows:
        mean[truth[row["uid"]]["defect"]].append(sum(row[c] for c in CAPABILITIES))
    assert sum(mean["off_topic"]) == 0
    assert sum(mean["wrong"]) / len(mean["wrong"]) < sum(mean[""]) / len(mean[""])


NOTHING_MOVES = "activity recognition"
"""The one capability that no sample of miniworld can teach."""


def test_every_capability_but_one_is_taught_by_some_samples(pool: Pool) -> None:
    rows = pq.read_table(Path(pool.path).parent / "teachers.parquet").to_pylist()
    assert [c for c in CAPABILITIES if not any(row[c] for row in rows)] == [NOTHING_MOVES]


def test_another_pool_has_another_version() -> None:
    """What is already in stores is found by its version: raise it with this digest of all that is written."""
    told = []
    for sample in draw_pool(300, 0):
        drawn = draw_picture(sample)
        told.append((sample, drawn and drawn[1], record(sample, ""), scores(sample), styles(sample)))
    digest = hashlib.sha256(repr(told).encode()).hexdigest()
    assert (VERSION, digest[:16]) == (7, "bea1b0a7919a9fe2")


def _make(path: str) -> str:
    return open_pool(ensure_pool(50, 0, Path(path))).digest


def test_two_processes_may_ask_for_the_pool_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        digests = processes.map(_make, [str(tmp_path)] * 2)
    assert len(set(digests)) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"miniworld-50-s0-v{VERSION}", "truth"]
    assert [p.name for p in (tmp_path / "truth").iterdir()] == [f"miniworld-50-s0-v{VERSION}.parquet"]


def test_a_failed_attempt_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        make_once(tmp_path / "thing", fail)
    assert list(tmp_path.iterdir()) == []
