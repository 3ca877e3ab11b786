"""mmSSR: worked examples, a plain reading of its algorithm, and label files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from selector_zoo import prompts
from selector_zoo.mmssr import SCORES, STYLED, Mmssr, tie_order
from selector_zoo.passes.mmssr_answers import parse_styles, style_row
from selector_zoo.passes.mmssr_labels import MmssrLabelsConfig, MmssrLabelsPass
from selector_zoo.prompts import CAPABILITIES, STYLES, load_pack, text_digest, write_pack

from harness.api import PassContext, Pool, Selection
from harness.errors import HarnessError
from harness.pool_write import PoolWriter
from harness.registry import configured
from harness.stages.select import checked
from tests import selector_references as plain
from tests.support import write_pool

A, B = CAPABILITIES[:2]
NAN = float("nan")
MC, SH, YN = "multi-choice", "word/short-phrase", "yes/no"


def make(**settings: Any) -> Mmssr:
    return Mmssr(configured(Mmssr, settings))


def pool_of(path: Path, sources: list[str], order: list[int] | None = None) -> Pool:
    """A text-only pool with these sources; sample i is called `s<i>`."""
    with PoolWriter(path, "labelled") as writer:
        for i in order if order is not None else range(len(sources)):
            said = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": f"{i}"}]
            writer.add({"id": f"s{i}", "data_source": sources[i], "conversations": said}, lambda key: b"")
    return writer.pool()


def columns(scores: dict[str, list[float]], styles: list[str]) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """The pass's columns; capabilities not given are 0."""
    table = np.zeros((len(styles), len(CAPABILITIES)), dtype=np.float32)
    for name, values in scores.items():
        table[:, CAPABILITIES.index(name)] = values
    named = np.stack([style_row(parse_styles(s)) for s in styles])
    return {SCORES: {"scores": table}, STYLED: {"styles": named}}


def select(made: Mmssr, pool: Pool, features: Any, n: int, seed: int = 0) -> Selection:
    scores = made.score(pool, features) or {}
    chosen = made.select(pool, scores, features, n, seed)
    checked(chosen, pool, n, "mmssr")
    return chosen


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, Any]:
    """Eight samples of two capabilities, two sources and three styles."""
    pool = pool_of(tmp_path_factory.mktemp("eight") / "pool", ["d1", "d1", "d1", "d1", "d2", "d2", "d1", "d2"])
    styles = [MC, MC, SH, f"{SH}, {MC}", YN, SH, f"{MC}, {SH}", YN]
    return pool, columns({A: [5, 5, 4, 3, 2, 5, 1, 0], B: [1, 2, 5, 5, 4, 0, 3, 5]}, styles)


@pytest.mark.parametrize(
    ("n", "kept"),
    [
        (2, {5, 7}),
        (3, {4, 5, 7}),
        (4, {2, 4, 5, 7}),
        (5, {2, 3, 4, 5, 7}),
        (6, {2, 3, 4, 5, 6, 7}),
        (7, {0, 2, 3, 4, 5, 6, 7}),
        (8, set(range(8))),
    ],
)
def test_the_worked_example(n: int, kept: set[int], eight: tuple[Pool, Any]) -> None:
    made = make(tie="index", capabilities=[A, B])
    assert set(select(made, *eight, n).positions.tolist()) == kept


def test_who_takes_what_in_the_worked_example(eight: tuple[Pool, Any]) -> None:
    """A style named second comes after all that name it first, whatever the score."""
    chosen = select(make(tie="index", capabilities=[A, B]), *eight, 6)
    assert chosen.positions.tolist() == [5, 4, 2, 7, 3, 6]
    assert chosen.card["by_capability"] == {A: 3, B: 3}
    assert (chosen.card["n_buckets"], chosen.card["n_topup"], chosen.card["n_truncated"]) == (4, 0, 0)


def test_the_released_code_overshoots(tmp_path: Path) -> None:
    """Buckets a, b, c of 1, 1 and 2; b has no free member, and its share comes on top of the last one's."""
    pool = pool_of(tmp_path / "pool", ["d"] * 3)
    features = columns({A: [5, 5, 4]}, [f"{STYLES[5]}, {STYLES[6]}", STYLES[8], STYLES[8]])
    fixed = select(make(tie="index", capabilities=[A]), pool, features, 2)
    assert (fixed.positions.tolist(), fixed.card["n_truncated"]) == ([0, 1], 0)
    released = select(make(tie="index", capabilities=[A], variant="released"), pool, features, 2)
    assert (released.positions.tolist(), released.card["n_truncated"]) == ([0, 1], 1)


def test_the_card_says_whose_words_were_asked(
    eight: tuple[Pool, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words count as official by their digests, whatever the file is called."""

    def told(**settings: Any) -> Any:
        return select(make(**settings), *eight, 2).card["prompts"]

    own = load_pack("own")
    assert told(labels=str(tmp_path / "l.parquet")) == {"words": "none", "labels": "l.parquet"}
    assert told(scorer="trained")["words"] == "own"
    assert told(scorer="trained")["score"] == text_digest(own.template("score"))
    write_pack(own, tmp_path / "pack.yaml")
    known = {name: text_digest(own.template(name)) for name in ("score", "styles")}
    monkeypatch.setattr(prompts, "OFFICIAL", {"mmssr": known})
    said = told(scorer="trained", prompts=str(tmp_path / "pack.yaml"), inference="released")
    assert said == {"words": "official", "inference": "released", **known}


def test_styles_that_are_none_of_the_nine_are_counted(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", ["d"] * 3)
    features = columns({A: [5, 5, 4]}, ["haiku", STYLES[8], f"riddle, {STYLES[1]}"])
    assert select(make(capabilities=[A]), pool, features, 2).card["n_style_other"] == 2


def test_a_capability_that_runs_out_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", ["d"] * 5)
    features = columns({A: [1, 0, 0, 0, 0], B: [3] * 5}, [MC] * 5)
    chosen = select(make(tie="index", capabilities=[A, B]), pool, features, 4)
    assert set(chosen.positions.tolist()) == {0, 1, 2, 3}
    assert chosen.card["by_capability"] == {A: 1, B: 3}
    with pytest.raises(HarnessError, match="nothing is left for 'object spatial understanding' after 3 of 4"):
        select(make(tie="index", capabilities=[A, B], variant="released"), pool, features, 4)


def test_when_nobody_has_a_candidate_the_mean_score_decides(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", ["d"] * 6)
    features = columns({A: [0, 3, 1, NAN, 2, NAN], B: [0, 0, 3, 2, 0, NAN]}, [MC] * 6)
    chosen = select(make(tie="index", capabilities=[A, B], threshold=2), pool, features, 5)
    assert set(chosen.positions[:2].tolist()) == {1, 2}
    assert chosen.positions[2:].tolist() == [3, 4, 0]  # means 2, 1, 0
    assert (chosen.card["n_topup"], chosen.card["n_nan"]) == (3, 1)
    assert select(make(capabilities=[A]), pool, features, 6).card["n_nan"] == 2


def random_world(seed: int, n: int, pool_path: Path) -> tuple[Pool, Any, list[list[str]], npt.NDArray[Any]]:
    """Ties everywhere, unknown scores, one source of a single sample, samples of no, one and many styles."""
    rng = np.random.default_rng(seed)
    sources = [f"src{k}" for k in rng.integers(0, 4, n)]
    sources[0] = "alone"
    pool = pool_of(pool_path, sources)
    styles = [", ".join(rng.permutation(STYLES)[: rng.integers(0, 4)]) for _ in range(n)]
    scores = rng.integers(0, 6, (len(CAPABILITIES), n)).astype(float)
    scores[:, rng.random(n) < 0.1] = NAN
    scores[rng.random(scores.shape) < 0.3] = 0
    scores[3] = 0  # a capability without candidates
    features = columns(dict(zip(CAPABILITIES, scores.tolist(), strict=True)), styles)
    labels = [[s.strip() for s in text.split(",")] if text else ["other"] for text in styles]
    return pool, features, [[f"{s}+{sources[i]}" for s in row] for i, row in enumerate(labels)], scores


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tie", ["hash", "index"])
def test_equals_a_plain_reading(seed: int, tie: str, tmp_path: Path) -> None:
    n_pool = 40 + 23 * seed
    pool, features, labels, scores = random_world(seed, n_pool, tmp_path / "pool")
    ties = np.empty(n_pool, dtype=np.int64)
    ties[np.arange(n_pool) if tie == "index" else tie_order(pool, seed)] = np.arange(n_pool)
    for n in (1, 5, 14, 15, n_pool // 3, n_pool // 2, n_pool - 12):
        for settings in ({}, {"strict_score": True}, {"threshold": 2.0}, {"variant": "paper"}):
            given = {"tie": tie, **settings}
            chosen = select(make(**given), pool, features, n, seed)
            by = [[k.split("+")[0] for k in row] for row in labels] if "variant" in settings else labels
            strict = bool(settings.keys() & {"strict_score", "variant"})
            wanted = plain.mmssr(
                scores.tolist(), by, ties.tolist(), n, threshold=given.get("threshold", 0.0), strict_score=strict
            )
            assert chosen.positions[: len(wanted)].tolist() == wanted
            assert chosen.card["n_topup"] == n - len(wanted)


def test_equals_a_plain_reading_of_the_released_code(tmp_path: Path) -> None:
    served = [CAPABILITIES[c] for c in (4, 1, 7)]
    differs = 0
    for seed in range(4):
        pool, features, labels, scores = random_world(seed, 60, tmp_path / f"pool{seed}")
        made = make(tie="index", variant="released", capabilities=served)
        for n in range(1, 40):
            wanted = plain.mmssr(scores[[4, 1, 7]].tolist(), labels, list(range(60)), n, released=True)
            chosen = select(made, pool, features, n)
            assert chosen.positions.tolist() == wanted[:n]
            assert chosen.card["n_truncated"] == len(wanted) - n
            fixed = select(make(tie="index", capabilities=served), pool, features, n)
            differs += fixed.positions.tolist() != wanted[:n]
    assert differs


@pytest.mark.parametrize("n", [1, 13, 14, 31, 100])
def test_a_pass_gives_no_capability_more_than_its_share(n: int, tmp_path: Path) -> None:
    """Where all have candidates enough, each takes its share, and the first what is left over, one each."""
    pool = pool_of(tmp_path / "pool", [f"src{i % 3}" for i in range(120)])
    rng = np.random.default_rng(n)
    scores = {c: rng.integers(1, 6, 120).astype(float).tolist() for c in CAPABILITIES}
    chosen = select(make(), pool, columns(scores, [[MC, SH][i % 2] for i in range(120)]), n)
    share, left = divmod(n, len(CAPABILITIES))
    assert list(chosen.card["by_capability"].values()) == [share + (i < left) for i in range(len(CAPABILITIES))]


@pytest.mark.parametrize("n", [1, 9, 30, 60])
def test_nothing_below_the_threshold_but_to_fill_up(n: int, tmp_path: Path) -> None:
    """And whoever has no candidate takes none."""
    pool, features, _, scores = random_world(5, 90, tmp_path / "pool")
    for threshold in range(5):
        chosen = select(make(threshold=threshold), pool, features, n)
        filled = chosen.card["n_topup"]
        assert isinstance(filled, int)
        best = np.nanmax(np.where(np.isnan(scores), -1, scores), axis=0)[chosen.positions[: n - filled]]
        assert (best > threshold).all()
    taken = select(make(), pool, features, n).card
    assert taken["n_topup"] == 0
    by: Any = taken["by_capability"]
    assert by[CAPABILITIES[3]] == 0
    assert sum(by.values()) == n


def test_scores_that_are_not_whole_numbers_are_ranked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pool, _, labels, _ = random_world(9, 70, tmp_path / "pool")
    scores = rng.choice([0.0, 0.25, 0.5, 3.75, 4.0, NAN], (len(CAPABILITIES), 70))
    styles = [", ".join(k.split("+")[0] for k in row) for row in labels]
    features = columns(dict(zip(CAPABILITIES, scores.tolist(), strict=True)), styles)
    for n in (3, 20, 50):
        chosen = select(make(tie="index", threshold=0.25), pool, features, n)
        assert chosen.positions.tolist() == plain.mmssr(
            scores.tolist(), labels, list(range(70)), n, threshold=0.25
        )


def test_the_order_of_the_pool_does_not_matter(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(60).tolist()
    pool, features, labels, _ = random_world(3, 60, tmp_path / "pool")
    sources = [row[0].split("+")[1] for row in labels]
    other = pool_of(tmp_path / "other", sources, order)
    moved = {label: {name: values[order] for name, values in table.items()} for label, table in features.items()}
    for n in (5, 21, 44):
        first = {pool.uids()[i] for i in select(make(), pool, features, n, 2).positions}
        assert first == {other.uids()[i] for i in select(make(), other, moved, n, 2).positions}


def test_every_source_its_own_bucket(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", [f"s{i:03}" for i in range(300)])
    values = (np.arange(300) % 6).tolist()
    chosen = select(make(tie="index", capabilities=[A]), pool, columns({A: values}, [MC] * 300), 40)
    assert chosen.positions.tolist() == [i for i in range(300) if values[i]][:40]


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"variant": "fix"}, "fixed, released, paper"),
        ({"bucket_by": "source"}, "style_source, style"),
        ({"capabilities": ["logical deductions"]}, "Did you mean 'logical deduction'"),
        ({"capabilities": [A, A]}, "name each once"),
        ({"teaching": {"epochs": "two"}}, "no mapping to numbers"),
        ({"teaching": [4]}, "no mapping to numbers"),
        ({"threshold": 5}, "from 0, below 5"),
        ({"threshold": -1}, "from 0, below 5"),
        ({"threshold": float("nan")}, "from 0, below 5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(HarnessError, match=hint):
        make(**settings)


def label_rows(pool: Pool) -> list[dict[str, Any]]:
    """A row of labels for each sample: its number modulo 6 for everything, two styles."""
    return [
        {"uid": uid, "styles": f"{YN}, haiku" if i % 2 else "", **{c: int(uid[1:]) % 6 for c in CAPABILITIES}}
        for i, uid in enumerate(pool.uids())
    ]


def write_labels(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(path: Path, pool: Pool, start: int = 0, stop: int = 0) -> tuple[dict[str, Any], list[str]]:
    feature = MmssrLabelsPass(MmssrLabelsConfig(path=str(path)), PassContext(model_path=""))
    feature.open()
    return feature.run(pool, start, stop or pool.n)


@pytest.mark.parametrize("name", ["labels.parquet", "labels.jsonl"])
def test_labels_are_found_by_uid(name: str, tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", ["d"] * 20)
    rows = label_rows(pool)
    del rows[3]
    rows[7][CAPABILITIES[2]] = None
    rows[0]["styles"] = rows[0]["styles"] or SH
    path = write_labels(tmp_path / name, [*reversed(rows), {**rows[0], "uid": "elsewhere"}])
    found, reasons = labelled(path, pool)
    assert [i for i, reason in enumerate(reasons) if reason] == [3]
    assert reasons[3] == "no_label"
    assert found["scores"].dtype == np.float32
    assert found["scores"].shape == (20, 14)
    assert np.isnan(found["scores"][3]).all()
    assert np.isnan(found["scores"][8]).sum() == 1
    assert found["scores"][10, 0] == 4
    assert [row[:3].tolist() for row in found["styles"][:4]] == [[3, -1, -1], [2, 9, -1], [-1] * 3, [-1] * 3]
    part, _ = labelled(path, pool, 5, 12)
    np.testing.assert_array_equal(part["scores"], found["scores"][5:12])
    np.testing.assert_array_equal(part["styles"], found["styles"][5:12])


def test_styles_may_be_lists(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", ["d"] * 4)
    rows = [row | {"styles": row["styles"].split(", ")} for row in label_rows(pool)]
    plain_rows = labelled(write_labels(tmp_path / "a.jsonl", label_rows(pool)), pool)[0]
    for name in ("b.jsonl", "b.parquet"):
        found, _ = labelled(write_labels(tmp_path / name, rows), pool)
        np.testing.assert_array_equal(found["styles"], plain_rows["styles"])


def test_a_label_file_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", ["d"] * 4)
    rows = label_rows(pool)
    lacking = [{k: v for k, v in row.items() if k not in ("styles", CAPABILITIES[3])} for row in rows]
    cases: dict[str, tuple[Any, str]] = {
        "lacking.parquet": (lacking, "lacks 'scene understanding', 'styles'"),
        "lacking.jsonl": (lacking, "lacks 'scene understanding', 'styles'"),
        "twice.jsonl": ([*rows, rows[1]], "names sample 's1' twice"),
        "high.jsonl": ([{**rows[0], CAPABILITIES[1]: 6}], "'attribute identification' is not between 0 and 5"),
        "word.jsonl": ([{**rows[0], CAPABILITIES[1]: "five"}], "'attribute identification' is not a number"),
        "styles.jsonl": ([{**rows[0], "styles": 3}], "styles must be"),
        "strangers.jsonl": ([{**rows[0], "uid": "x"}], "none of the 4 samples of pool labelled"),
        "empty.jsonl": ([], "is empty"),
    }
    for name, (given, sentence) in cases.items():
        with pytest.raises(HarnessError, match=sentence) as raised:
            labelled(write_labels(tmp_path / name, given), pool)
        assert "\n" not in str(raised.value)
    for name, content in (("bad.parquet", b"no parquet"), ("bad.jsonl", b"{"), ("list.jsonl", b"[1]\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HarnessError, match=r"cannot be read|is no JSON object") as raised:
            labelled(tmp_path / name, pool)
        assert "\n" not in str(raised.value)


def test_labels_are_known_by_their_content(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", ["d"] * 6)
    path = write_labels(tmp_path / "labels.jsonl", label_rows(pool))
    first = make(labels=str(path)).needs()
    assert [(ref.name, ref.model, ref.label) for ref in first] == [
        ("mmssr_labels", "", SCORES),
        ("mmssr_labels", "", STYLED),
    ]
    assert first[0].config == first[1].config
    write_labels(path, label_rows(pool)[:5])
    assert make(labels=str(path)).needs()[0].config["digest"] != first[0].config["digest"]
    with pytest.raises(HarnessError, match="there is no label file"):
        make(labels=str(tmp_path / "nowhere.parquet")).needs()


def test_two_models_may_be_trained_apart(tmp_path: Path) -> None:
    """As the authors have them; with a scorer alone, one model learns both."""
    one, two = make(scorer="trained", styler="trained").needs()
    assert (one.model, two.model) == ("trained", "trained")
    assert [bool(ref.config["score"]) for ref in (one, two)] == [True, False]
    assert [bool(ref.config["styles"]) for ref in (one, two)] == [False, True]
    one, two = make(scorer="trained").needs()
    assert one.config == two.config


def test_released_models_are_asked_as_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = load_pack("own")
    write_pack(own, tmp_path / "pack.yaml")
    official = {"prompts": str(tmp_path / "pack.yaml"), "inference": "released"}
    released = {"scorer": "mengyaolyu/mmssr-7b-scorer@0", "styler": "mengyaolyu/mmssr-7b-styler@0"}
    with pytest.raises(HarnessError, match="set inference=released"):
        make(**released, **official).needs()  # our own words in a file
    known = {name: text_digest(own.template(name)) for name in ("score", "styles")}
    monkeypatch.setattr(prompts, "OFFICIAL", {"mmssr": known})
    scored, styled = make(**released, **official).needs()
    assert (scored.config["clean"], styled.config["view"]) == ("charset", "squash")
    assert make(**released, **official, clean="prefix").needs()[0].config["clean"] == "prefix"
    for given in ({**released}, {"scorer": "some/other", "styler": released["styler"], "prompts": "own"}):
        with pytest.raises(HarnessError, match="published prompts mmssr"):
            make(**given).needs()


def test_models_are_asked_once_where_they_are_one() -> None:
    one = make(scorer="some/folder").needs()
    assert [(ref.name, ref.model, ref.label) for ref in one] == [
        ("mmssr", "some/folder", SCORES),
        ("mmssr", "some/folder", STYLED),
    ]
    assert one[0].config == one[1].config
    two = make(scorer="a/scorer", styler="a/styler", inference="released").needs()
    assert [ref.model for ref in two] == ["a/scorer", "a/styler"]
    assert [bool(ref.config["score"]) for ref in two] == [True, False]
    assert [bool(ref.config["styles"]) for ref in two] == [False, True]
    assert two[0].config["clean"] == "charset"
    with pytest.raises(HarnessError, match="set labels to a file"):
        make().needs()


def test_settings_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 4)
    write_labels(tmp_path / "labels.parquet", label_rows(pool))
    labels = {"labels": str(tmp_path / "labels.parquet")}
    for models in ({"scorer": "some/folder"}, {"styler": "some/folder"}):
        with pytest.raises(HarnessError, match="so does some/folder: leave one of them out"):
            make(**labels, **models).needs()
    for models in ({"scorer": "trained"}, {"scorer": "some/folder", "styler": "trained"}):
        with pytest.raises(HarnessError, match="asked as it was taught"):
            make(**labels, **models, inference="released").needs()
