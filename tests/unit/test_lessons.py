"""Lessons: labels become conversations, conversations a model, and the model the scores of a pass."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selector_zoo.passes.mmssr import MmssrConfig, MmssrPass
from selector_zoo.passes.mmssr_questions import message
from selector_zoo.prompts import CAPABILITIES

from harness import registry
from harness.api import Features, PassRef, Pool, Scores, Selector
from harness.benchmarks import Benchmark, Suite
from harness.cells import Cell
from harness.errors import HarnessError
from harness.keys import stage_key
from harness.labelling_file import read_labels, write_labels
from harness.labelling_lessons import lessons_stage, write_lessons
from harness.models import backbone as read_backbone
from harness.plan import make_plan
from harness.pool import open_pool
from harness.registry import Plugin, selector_spec
from harness.stages.features import read_columns
from harness.store import Store
from harness.types import Budget, Lessons, Stage, TrainSpec
from harness.worker import Job, run_stage
from tests.support import write_pool
from tests.unit.train_support import backbone

N = 20
SCORE = "Teaches {cap_keyword}?"
CONFIG = {"score": SCORE, "styles": "Styles?", "max_new_tokens": 4}


def label(i: int) -> dict[str, Any]:
    scores = {c: (i + k) % 6 for k, c in enumerate(CAPABILITIES)}
    return {"uid": f"s{i}", "styles": "yes/no, comparison" if i % 2 else "coordinate", **scores}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return write_pool(tmp_path / "small" / "pool", N)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels.parquet"
    write_labels(file, [label(i) for i in range(12)] + [label(99)])
    return file


def ref(labels: Path, **lessons: Any) -> PassRef:
    return PassRef(name="mmssr", model="trained", config=CONFIG, lessons=Lessons(labels=str(labels), **lessons))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_label_file_comes_back_as_it_was_written(tmp_path: Path, name: str) -> None:
    rows = [label(3), label(1)]
    write_labels(tmp_path / name, rows)
    assert list(read_labels(tmp_path / name).values()) == [rows[1], rows[0]]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", '{"uid": "a"}\n{"uid": "a"}\n', "labelled twice"),
        ("a.jsonl", '{"id": "a"}\n', "no uid"),
        ("a.jsonl", '{"uid": \n', "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not an object"),
        ("a.parquet", "nothing", "not Parquet"),
        ("a.csv", "uid\n", "neither"),
    ],
)
def test_a_label_file_of_another_form_is_refused(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(HarnessError, match=complaint):
        read_labels(tmp_path / name)


def test_a_label_makes_a_lesson_a_score_and_one_of_styles(pool: Pool) -> None:
    config, record = MmssrConfig(**CONFIG), pool.record(1)
    said = MmssrPass.lessons(config, record, label(1))
    assert len(said) == 15
    assert said[3] == (message(record, SCORE.format(cap_keyword="scene understanding"), config.spelling), "4")
    assert said[14] == (message(record, "Styles?", config.spelling), "yes/no, comparison")
    some = {"uid": "s1", "humanities": 2.0, "stem knowledge": math.nan, "styles": ["Comparison", "haiku"]}
    assert [answer for _, answer in MmssrPass.lessons(config, record, some)] == ["2", "comparison"]
    assert MmssrPass.lessons(MmssrConfig(styles="Styles?"), record, {"uid": "s1", "humanities": 3}) == []


def test_no_more_zeros_of_a_sample_are_taught_than_it_has_others(pool: Pool) -> None:
    config, record = MmssrConfig(**CONFIG, zeros="some"), pool.record(1)

    def answers(row: dict[str, Any]) -> list[str]:
        return [answer for _, answer in MmssrPass.lessons(config, record, row)][:-1]  # the last is of styles

    mostly = dict.fromkeys(CAPABILITIES, 0) | {"humanities": 2, "scene understanding": 5, "styles": "comparison"}
    assert sorted(answers(mostly)) == ["0", "0", "2", "5"]
    assert answers(mostly) == answers(dict(reversed(mostly.items())))
    assert answers(dict.fromkeys(CAPABILITIES, 0) | {"styles": "comparison"}) == ["0"] * 14
    assert answers(dict.fromkeys(CAPABILITIES, 3) | {"styles": "comparison"}) == ["3"] * 14
    asked = {question for question, _ in MmssrPass.lessons(config, record, mostly)}
    others = {question for question, _ in MmssrPass.lessons(config, pool.record(2), mostly)}
    assert len(asked) == len(others) == 5


@pytest.mark.parametrize("value", [6, -1, 2.5, "3", True])
def test_a_wrong_score_is_refused(pool: Pool, value: object) -> None:
    with pytest.raises(HarnessError, match="label of 's1': humanities is"):
        MmssrPass.lessons(MmssrConfig(**CONFIG), pool.record(1), {"uid": "s1", "humanities": value})


def test_lessons_are_a_pool_with_the_pictures_of_the_samples(pool: Pool, labels: Path, tmp_path: Path) -> None:
    stage = lessons_stage(pool, ref(labels))
    facts = write_lessons(pool, labels, stage.params, tmp_path / "lessons")
    made = open_pool(tmp_path / "lessons")
    assert facts == {"labels": 12, "lessons": 180, "rejects": {}, "labels_elsewhere": 1}
    assert made.n == 180
    by_uid = {made.record(i).uid: made.record(i) for i in range(made.n)}
    assert by_uid["s2#0"].conversations[1] == ("gpt", "2")
    assert by_uid["s2#0"].images == ("2.png",)
    assert made.image_bytes("2.png") == pool.image_bytes("2.png")
    assert by_uid["s4#14"].images == ()  # a sample without pictures
    assert by_uid["s2#0"].source == pool.record(2).source


def test_a_limit_draws_the_same_labels_again_and_others_at_no_time(
    pool: Pool, labels: Path, tmp_path: Path
) -> None:
    used = []
    for limit in (4, 7, 7):
        stage = lessons_stage(pool, ref(labels, limit=limit))
        out = tmp_path / f"lessons{len(used)}"
        assert write_lessons(pool, labels, stage.params, out)["labels"] == limit
        made = open_pool(out)
        used.append({uid.split("#")[0] for uid in made.uids()})
    assert used[0] < used[1] == used[2]


def test_lessons_are_known_by_what_the_labels_say(pool: Pool, labels: Path, tmp_path: Path) -> None:
    first = stage_key(lessons_stage(pool, ref(labels)))
    moved = tmp_path / "elsewhere.parquet"
    moved.write_bytes(labels.read_bytes())
    assert stage_key(lessons_stage(pool, ref(moved))) == first
    assert stage_key(lessons_stage(pool, ref(labels, limit=3))) != first
    other = replace(ref(labels), config=CONFIG | {"score": "How much {cap_keyword}?"})
    assert stage_key(lessons_stage(pool, other)) != first
    write_labels(labels, [label(0)])
    assert stage_key(lessons_stage(pool, ref(labels))) != first


def test_labels_beside_the_pool_are_found(pool: Pool, labels: Path) -> None:
    nameless = PassRef(name="mmssr", model="trained", config=CONFIG)
    with pytest.raises(HarnessError, match="no label file"):
        lessons_stage(pool, nameless)
    (Path(pool.path).parent / "teachers.parquet").write_bytes(labels.read_bytes())
    assert stage_key(lessons_stage(pool, nameless)) == stage_key(lessons_stage(pool, ref(labels)))


def test_a_pass_without_lessons_cannot_be_trained(pool: Pool, labels: Path) -> None:
    with pytest.raises(HarnessError, match="'tokens' has no lessons"):
        lessons_stage(pool, replace(ref(labels), name="tokens"))


def test_labels_of_other_samples_teach_nothing(pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps(label(77)) + "\n")
    stage = lessons_stage(pool, ref(file))
    with pytest.raises(HarnessError, match="none of the 1 labels"):
        write_lessons(pool, file, stage.params, tmp_path / "out")


class Taught(Selector):
    """A selector on a scorer that is trained from labels."""

    name = "taught"
    version = 1
    Config = registry.selector("full").cls.Config
    file = Path()

    def needs(self) -> tuple[PassRef, ...]:
        return (ref(self.file),)

    def score(self, pool: Pool, features: Features) -> Scores:
        return {"score": features["mmssr"]["scores"][:, 0]}


@pytest.fixture
def cell(pool: Pool, labels: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.setattr(Taught, "file", labels)
    monkeypatch.setitem(registry._BY_PATH, "taught", Plugin(name="taught", distribution="t", cls=Taught))
    recipe = TrainSpec(
        global_batch=8, learning_rate=3e-3, vision_learning_rate=1e-3, fixed_steps=40, max_length=512,
        dtype="float32", gradient_checkpointing=False, checkpoint_every=0, mask="answer",
    )  # fmt: skip
    benchmark = Benchmark(name="free", title="Free", task="free", metrics=("score,none",))
    return Cell(
        pool=pool,
        selector=selector_spec("taught", {}),
        budget=Budget.parse("25%"),
        backbone=read_backbone("tiny", str(backbone())),
        recipe=recipe,
        suite=Suite(name="one", protocol="p", benchmarks=(benchmark,)),
    )


def test_the_planner_trains_the_scorer_once(cell: Cell) -> None:
    plan = make_plan([cell, replace(cell, seed=3), replace(cell, budget=Budget.parse("50%"))])
    kinds = [s.kind for s in plan.stages.values()]
    assert kinds[:4] == ["lessons", "train", "features", "score"]
    assert (kinds.count("lessons"), kinds.count("features"), kinds.count("train")) == (1, 1, 4)
    features = next(s for s in plan.stages.values() if s.kind == "features")
    trained = plan.stages[features.inputs["train.model"]]
    assert trained.label == "mmssr/tiny/train"
    assert plan.stages[trained.inputs["lessons.selection"]].label == "mmssr/small/lessons"
    assert features.label == "mmssr/small/tiny/trained"


def test_lessons_may_have_a_recipe_of_their_own(cell: Cell, labels: Path) -> None:
    def recipe(**settings: Any) -> Any:
        spec = selector_spec("mmssr", {"scorer": "trained", "labels": str(labels)} | settings)
        plan = make_plan([replace(cell, selector=spec)])
        return next(s for s in plan.stages.values() if s.label == "scores/tiny/train").params["recipe"]

    changed = recipe(teaching={"global_batch": 8, "learning_rate": 0.5})
    assert changed == recipe() | {"global_batch": 8, "learning_rate": 0.5}
    assert recipe(teaching={}) == recipe()
    with pytest.raises(HarnessError, match="Did you mean 'epochs'"):
        recipe(teaching={"epoch": 2})


def test_a_trained_scorer_scores(cell: Cell, tmp_path: Path, labels: Path) -> None:
    """Labels to lessons to a model to finite scores, through the store; asked again, nothing runs."""
    store = Store(tmp_path / "runs")
    plan = make_plan([cell])
    stages: list[Stage] = [s for s in plan.stages.values() if s.kind in ("lessons", "features")]
    stages.insert(1, plan.stages[stages[-1].inputs["train.model"]])
    for stage in stages:
        job = Job(name=stage.label, stages=(stage,))
        assert run_stage(store, stage, job, {}) == "done", store.at(stage).attempts()[-1].message
    columns = read_columns(store.at(stages[2]).out)
    assert columns["scores"].shape == (N, 14)
    assert np.isfinite(columns["scores"]).mean() > 0.9
    assert columns["styles"].shape == (N, 10)
    assert set(np.unique(columns["scores"][np.isfinite(columns["scores"])])) <= set(range(6))
    again = store.at(make_plan([cell]).stages[stage_key(stages[1])])
    assert again.done()
    write_labels(labels, [label(0)])
    late = replace(stages[0], params=dict(stages[0].params) | {"limit": 5})
    assert run_stage(store, late, Job(name="late", stages=(late,)), {}) == "failed"
    assert "has changed since" in store.at(late).attempts()[-1].message


def test_mmssr_asks_a_model_trained_from_its_labels(pool: Pool, labels: Path) -> None:
    from selector_zoo.mmssr import Mmssr
    from selector_zoo.mmssr import MmssrConfig as Settings

    both = Mmssr(Settings(scorer="trained", labels=str(labels), lessons=5)).needs()
    assert [(r.name, r.model, r.label) for r in both] == [
        ("mmssr", "trained", "scores"),
        ("mmssr", "trained", "styles"),
    ]
    assert [r.lessons for r in both] == [Lessons(labels=str(labels), limit=5)] * 2
    assert lessons_stage(pool, both[0]) == lessons_stage(pool, both[1])  # one model answers both
    apart = Mmssr(Settings(scorer="trained", styler="miniworld:tiny", labels=str(labels))).needs()
    assert [(r.model, r.lessons.labels) for r in apart] == [("trained", str(labels)), ("miniworld:tiny", "")]
    assert [r.name for r in Mmssr(Settings(labels=str(labels))).needs()] == ["mmssr_labels"] * 2
