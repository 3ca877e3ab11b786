"""Estimates: rates from finished stages, and the model of work where there are none."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from harness import work
from harness.benchmarks import LMMS14, Suite
from harness.cells import Cell
from harness.config import RunSettings
from harness.console import show_plan
from harness.estimate import Estimate, Where, duration, estimate, say, total
from harness.history import History, read_history
from harness.miniworld import weights_dir
from harness.pool import Pool
from harness.registry import feature_pass, loadable_selectors, selector_spec
from harness.store import Attempt, Store
from harness.sweep import Sweep, plan_sweep
from harness.types import Backbone, Budget, Cost, Json, Stage, TrainSpec
from harness.work import CPU_RATE, TOKENS_PER_WORD, Work, count_weights, mean_tokens, model_work, nominal_rate
from llava_train.tiles import VIEWS, Geometry, tokens_of
from tests.support import write_pool

N = 40
CPU = Where(gpu=False, threads=2)
TAUGHT = {"mmssr": {"scorer": "mid", "styler": "mid"}}
"""Settings without which a selector knows nothing."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", N)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 1,000 numbers in two files, whose images are 2 by 2 patches."""
    folder = tmp_path_factory.mktemp("model")
    save_file({"a": np.zeros((20, 30), np.float32), "b": np.zeros(100, np.float16)}, folder / "one.safetensors")
    save_file({"c": np.zeros((3, 100), np.float32)}, folder / "two.safetensors", metadata={"format": "pt"})
    config = {"vision_config": {"image_size": 8, "patch_size": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def features(pool: Pool, model: Path, name: str = "clip", **config: Json) -> Stage:
    params: dict[str, Json] = {"pass": name, "config": config, "pool": pool.digest, "model": "m"}
    settings: dict[str, Json] = {"pool_path": pool.path, "model_path": str(model), "shard": 16}
    return Stage(kind="features", version=1, params=params, settings=settings, label=name)


def train(pool: Pool, model: Path, backbone: str = "b", **recipe: Json) -> Stage:
    settings: dict[str, Json] = {"pool_path": pool.path, "backbone_path": str(model), "samples": 10}
    params: dict[str, Json] = {"recipe": {"epochs": 2, **recipe}, "backbone": backbone}
    return Stage(kind="train", version=1, params=params, settings=settings, label=backbone)


def evaluate(train_key: str, benchmark: str = "x") -> Stage:
    return Stage(
        kind="evaluate",
        version=1,
        params={"eval": {"benchmark": benchmark, "limit": None}},
        inputs={"train.checkpoint": train_key},
        settings={"benchmark": {"n_items": 30}},
        label=benchmark,
    )


def finish(store: Store, stage: Stage, facts: Mapping[str, Json], **cost: float) -> str:
    """Complete a stage that took so long; returns its key."""
    directory = store.at(stage)
    directory.begin(stage)
    directory.fresh_out()
    directory.write_attempt(Attempt(number=1, outcome="done", cost=Cost(attempts=1, **cost)))  # type: ignore[arg-type]
    directory.commit(stage, facts, {})
    return directory.key


def seconds(store: Store, stage: Stage, stages: Mapping[str, Stage] | None = None, where: Where = CPU) -> Estimate:
    history = read_history(store, {stage.kind})
    history.plan(stages or {})
    return estimate(stage, history, where, stages or {})


def test_a_pass_takes_what_it_took_on_another_pool(tmp_path: Path, pool: Pool, model: Path) -> None:
    store = Store(tmp_path).create()
    done = features(pool, model)
    finish(store, replace(done, params={**done.params, "pool": "other"}), {"samples": 10}, wall_s=5.0)
    found = seconds(store, done)
    assert found.seconds == pytest.approx(5.0 / 10 * N)
    assert found.basis == "history"
    assert say(found) == "20 s of work, as measured here"


def test_loading_a_model_is_paid_once_whatever_the_pool(tmp_path: Path, pool: Pool, model: Path) -> None:
    store = Store(tmp_path).create()
    done = features(pool, model)
    for i, size in enumerate((10, 20)):
        part = replace(done, params={**done.params, "pool": f"other{i}"})
        finish(store, part, {"samples": size, "shards_s": 0.5 * size}, wall_s=20 + 0.5 * size)
    assert seconds(store, done).seconds == pytest.approx(20 + 0.5 * N)


@pytest.mark.parametrize("change", [{"model": "another"}, {"config": {"text": "q"}}, {"pass": "forward"}])
def test_another_pass_model_or_setting_says_nothing(
    tmp_path: Path, pool: Pool, model: Path, change: dict[str, Json]
) -> None:
    store = Store(tmp_path).create()
    finish(store, features(pool, model), {"samples": N}, wall_s=5.0)
    asked = features(pool, model)
    assert seconds(store, replace(asked, params={**asked.params, **change})).basis == "cost model"


def test_seconds_on_a_cpu_say_nothing_of_a_gpu(tmp_path: Path, pool: Pool, model: Path) -> None:
    store = Store(tmp_path).create()
    finish(store, features(pool, model), {"samples": N}, wall_s=5.0)
    assert seconds(store, features(pool, model), where=Where(gpu=True)).basis == "cost model"


def test_training_is_estimated_by_the_samples_it_sees(tmp_path: Path, pool: Pool, model: Path) -> None:
    store = Store(tmp_path).create()
    finish(store, train(pool, model), {}, wall_s=40.0)  # 10 samples, twice
    longer = train(pool, model, fixed_steps=25, global_batch=4)
    assert seconds(store, longer).seconds == pytest.approx(40.0 / 20 * 100)
    assert seconds(store, train(pool, model, backbone="another")).basis == "cost model"


def test_evaluation_takes_what_the_backbone_took(tmp_path: Path, pool: Pool, model: Path) -> None:
    """The same benchmark is the best guide, another one of the same backbone the second best."""
    store = Store(tmp_path).create()
    key = finish(store, train(pool, model), {}, wall_s=1.0)
    finish(store, evaluate(key), {"n": 30}, wall_s=8.0)
    planned = {"new": train(pool, model, fixed_steps=1), "foreign": train(pool, model, backbone="another")}
    assert seconds(store, evaluate("new"), planned).seconds == pytest.approx(8)
    assert seconds(store, evaluate("new", "y"), planned).seconds == pytest.approx(8)
    assert seconds(store, evaluate("foreign"), planned).basis == "cost model"


@pytest.mark.parametrize("kind", ["score", "select"])
def test_a_selection_says_nothing_of_another_selector_or_pool(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path).create()
    params: dict[str, Json] = {"selector": {"name": "random"}, "pool": "p", "budget": "5%"}
    finish(store, Stage(kind=kind, version=1, params=params), {}, wall_s=0.5)
    again = Stage(kind=kind, version=1, params=params | {"budget": "10%"})
    assert seconds(store, again).seconds == pytest.approx(0.5)
    for change in ({"selector": {"name": "deita"}}, {"pool": "q"}):
        other = Stage(kind=kind, version=1, params={**params, **change})
        assert seconds(store, other) == Estimate(seconds=None, basis="unknown")


def test_judges_stand_for_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path).create()
    finish(store, Stage(kind="judge", version=1, params={"of": "x"}), {}, wall_s=0.5)
    assert seconds(store, Stage(kind="judge", version=1, params={"of": "y"})).seconds == pytest.approx(0.5)


def test_a_shared_pass_is_measured_in_the_seconds_of_all_its_processes(
    tmp_path: Path, pool: Pool, model: Path
) -> None:
    """And it is no guide to what one process would take."""
    store = Store(tmp_path).create()
    alone = features(pool, model)
    shared = replace(alone, settings={**alone.settings, "processes": 4})
    past = replace(shared, params={**shared.params, "pool": "other"})
    finish(store, past, {"samples": 10, "shards_s": 16.0, "processes": 4}, wall_s=5.0)
    assert seconds(store, shared).seconds == pytest.approx(4 + 16.0 / 10 * N)
    assert seconds(store, alone).basis == "cost model"


def test_the_model_of_work_by_hand(pool: Pool, model: Path) -> None:
    assert count_weights(model) == 1000
    words, images = pool.column("n_words").mean(), pool.column("n_images").mean()
    tokens = TOKENS_PER_WORD * words + 4 * images
    assert mean_tokens(pool.path, model) == pytest.approx(tokens)
    found = model_work(pool.path, model, 7, per_token=6)
    assert found is not None
    assert found.tokens == pytest.approx(7 * tokens)
    assert found.flops == pytest.approx(6 * 1000 * 7 * tokens)


def test_a_folder_without_weights_has_no_work(tmp_path: Path, pool: Pool) -> None:
    assert model_work(pool.path, tmp_path, 7, 2) is None


def test_images_are_counted_as_the_backbone_cuts_them(pool: Pool) -> None:
    """Four samples of five have one image of 24 by 16 pixels."""
    folder = weights_dir("tiny")
    lone = tokens_of(24, 16, Geometry.from_config(json.loads((folder / "config.json").read_text())))
    words = TOKENS_PER_WORD * pool.column("n_words").mean()
    assert mean_tokens(pool.path, folder) == pytest.approx(words + 0.8 * lone)


def test_a_pass_that_sees_one_view_is_estimated_so(tmp_path: Path, pool: Pool) -> None:
    folder = weights_dir("tiny")
    geometry = Geometry.from_config(json.loads((folder / "config.json").read_text()))
    words = TOKENS_PER_WORD * pool.column("n_words").mean()
    empty = Store(tmp_path).create()
    whole, single = (seconds(empty, features(pool, folder, "forward", views=v)).work for v in VIEWS)
    assert whole is not None
    assert single is not None
    assert whole.tokens == pytest.approx(N * mean_tokens(pool.path, folder))
    assert single.tokens == pytest.approx(N * (words + 0.8 * geometry.lone_tokens))
    assert single.tokens < whole.tokens


@pytest.mark.parametrize(("name", "views"), [("activations", "square"), ("mmssr", "squash")])
def test_a_pass_with_a_view_of_its_own_is_estimated_so(tmp_path: Path, pool: Pool, name: str, views: str) -> None:
    folder, empty = weights_dir("tiny"), Store(tmp_path).create()
    whole, square = (seconds(empty, features(pool, folder, name, view=v)).work for v in ("tiles", views))
    assert whole is not None
    assert square is not None
    assert square.tokens < whole.tokens


def test_a_gradient_is_three_forwards_and_questions_are_tokens(tmp_path: Path, pool: Pool, model: Path) -> None:
    """6 operations a weight and token; about 300 tokens are asked of every sample and answered."""
    empty = Store(tmp_path).create()
    forward, gradients, asked = (
        seconds(empty, features(pool, model, name)).work for name in ("forward", "gradients", "mmssr")
    )
    assert forward is not None
    assert gradients is not None
    assert asked is not None
    assert gradients.tokens == forward.tokens
    assert gradients.flops == pytest.approx(3 * forward.flops)
    assert asked.tokens == pytest.approx(forward.tokens + 300 * N)
    assert asked.flops == pytest.approx(2 * 1000 * asked.tokens)


@pytest.mark.parametrize("name", loadable_selectors())
def test_every_pass_of_a_selector_has_an_estimate_however_much_of_a_picture_it_shows(
    tmp_path: Path, pool: Pool, name: str
) -> None:
    plugin, empty = loadable_selectors()[name].cls, Store(tmp_path).create()
    for views in VIEWS if "views" in {f.name for f in fields(plugin.Config)} else ("",):
        asked = TAUGHT.get(name, {}) | ({"views": views} if views else {})
        for ref in plugin(plugin.Config(**asked)).needs():
            found = seconds(empty, features(pool, weights_dir("tiny"), ref.name, **ref.config))
            assert (found.work is None) == (feature_pass(ref.name).cls.identity != "weights")


def test_weights_in_bin_files_are_counted_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model-1.bin").write_bytes(bytes(1000))
    (tmp_path / "pytorch_model-2.bin").write_bytes(bytes(200))
    assert count_weights(tmp_path) == 300
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    count_weights.cache_clear()
    assert count_weights(tmp_path) == 600


def test_a_first_run_is_estimated_by_the_model(tmp_path: Path, pool: Pool, model: Path) -> None:
    found = seconds(Store(tmp_path).create(), features(pool, model))
    assert found.work is not None
    assert found.work.flops == pytest.approx(2 * 1000 * N * mean_tokens(pool.path, model))
    assert found.seconds == pytest.approx(found.work.flops / (2 * CPU_RATE))
    said = f"{found.work.flops:.1e} FLOP, {found.work.tokens:.1e} tokens"
    assert say(found) == f"at least 0 s by cost model: {said}"


def test_the_rate_is_the_one_training_reached_here(tmp_path: Path, pool: Pool, model: Path) -> None:
    store = Store(tmp_path).create()
    finish(store, train(pool, model, backbone="another"), {"flops": 3000.0}, wall_s=3.0)
    finish(store, train(pool, model, backbone="resumed"), {"flops": 9e9, "resumed_from": 5}, wall_s=1.0)
    found = seconds(store, features(pool, model))
    assert found.work is not None
    assert found.seconds == pytest.approx(found.work.flops / 1000)


def test_a_gpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "gpu_names", lambda: ("NVIDIA H100 80GB HBM3",))
    large, small = int(7e9), int(5e8)
    assert nominal_rate(large, gpu=True) == pytest.approx(0.4 * 989e12)
    assert nominal_rate(small, gpu=True) == pytest.approx(0.2 * 989e12)
    assert nominal_rate(large, gpu=True, training=True) == pytest.approx(0.25 * 989e12)
    monkeypatch.setattr(work, "gpu_names", lambda: ("Something else",))
    assert nominal_rate(large, gpu=True) is None


def test_an_unknown_gpu_still_has_its_work_said(
    tmp_path: Path, pool: Pool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "gpu_names", tuple)
    found = seconds(Store(tmp_path).create(), features(pool, model), where=Where(gpu=True))
    assert found.seconds is None
    assert "tokens by cost model, on a device of unknown speed" in say(found)


def test_a_sum_is_as_sure_as_its_least_sure_part() -> None:
    measured = Estimate(seconds=5, basis="history")
    modelled = Estimate(seconds=7, basis="cost model", work=Work(samples=1, tokens=2, flops=3, weights=4))
    unknown = Estimate(seconds=None, basis="unknown")
    assert total([measured, measured]) == Estimate(seconds=10, basis="history")
    assert total([measured, modelled]) == Estimate(seconds=12, basis="cost model")
    assert total([modelled, modelled]).work == Work(samples=2, tokens=4, flops=6, weights=4)
    assert say(total([unknown, unknown])) == "not yet measured here"


def test_a_sum_has_what_is_known_and_counts_the_rest() -> None:
    measured = Estimate(seconds=5, basis="history")
    modelled = Estimate(seconds=7, basis="cost model")
    unknown = Estimate(seconds=None, basis="unknown")
    found = total([measured, unknown, unknown])
    assert found == Estimate(seconds=5, basis="history", unmeasured=2)
    assert say(found) == "at least 5 s of work, as measured here + 2 not yet measured here"
    assert say(total([modelled, unknown])) == "at least 7 s by cost model + 1 not yet measured here"


def test_durations_are_as_a_person_says_them() -> None:
    assert [duration(s) for s in (0.4, 119, 150, 7100, 9000)] == ["0 s", "119 s", "2 min", "118 min", "2.5 h"]


def test_history_counts_device_seconds(tmp_path: Path, pool: Pool, model: Path) -> None:
    store = Store(tmp_path).create()
    finish(store, features(pool, model), {"samples": N}, wall_s=5.0, gpu_s=20.0)
    history: History = read_history(store, {"features"})
    assert history.seconds(features(pool, model), N, gpu=True) == pytest.approx(20)
    assert history.seconds(features(pool, model), N, gpu=False) is None


@pytest.fixture
def sweep(tmp_path: Path, pool: Pool, model: Path) -> Sweep:
    """Selector length and its full run on a backbone of 1,000 weights; nothing has run."""
    cell = Cell(
        pool=pool,
        selector=selector_spec("length", {}),
        budget=Budget.parse("10%"),
        backbone=Backbone(name="tiny", path=str(model), revision="r", processor="p"),
        recipe=TrainSpec(global_batch=8),
        suite=Suite(name="one", protocol="p", benchmarks=LMMS14.benchmarks[6:7]),
    )
    settings = RunSettings(
        store=tmp_path,
        name="study",
        report="",
        mode="cached",
        dry_run=True,
        full_trials=1,
        random_trials=0,
        executor="local",
        slots=1,
        threads=1,
        shard=16,
    )
    return plan_sweep([cell], settings, "command", baselines=True)


def plan_lines(sweep: Sweep) -> dict[str, str]:
    """What a plan says, by the first word of the line."""
    out = io.StringIO()
    show_plan(sweep, Console(file=out, width=1000))
    return {line.split()[0]: " ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()}


def test_a_plan_of_a_new_store_is_by_the_model_and_says_so(sweep: Sweep) -> None:
    said = plan_lines(sweep)
    assert re.search(r"^train 2 0 2 at least \d+ s by cost model: \d.\de\+\d\d FLOP", said["train"])
    assert said["tokens/small/tiny"] == "tokens/small/tiny not yet measured here"
    assert said["select"] == "select 2 0 2 not yet measured here"


def test_a_plan_of_a_used_store_is_by_what_was_measured(sweep: Sweep) -> None:
    trains = [s for s in sweep.plan.stages.values() if s.kind == "train"]
    small = min(trains, key=lambda s: int(str(s.settings["samples"])))
    assert small.settings["samples"] == 4
    finish(sweep.store, small, {}, wall_s=8.0)
    assert plan_lines(sweep)["train"] == "train 2 1 1 80 s of work, as measured here"


def test_a_plan_with_nothing_left_reads_no_history(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in sweep.plan.stages.values():
        finish(sweep.store, stage, {}, wall_s=1.0)

    def never(store: Store, kinds: object) -> History:
        raise AssertionError("read")

    monkeypatch.setattr("harness.sweep.read_history", never)
    assert all(line.endswith("0 -") for name, line in plan_lines(sweep).items() if name not in ("Sweep", "stage"))
