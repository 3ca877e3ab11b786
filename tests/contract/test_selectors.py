"""What every installed selector promises, whoever wrote it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness.api import Features, PassContext, Selector
from harness.errors import HarnessError
from harness.keys import digest
from harness.pool import Pool
from harness.registry import configured, feature_pass, selector, selector_names, selector_spec
from harness.stages.select import checked
from tests.selector_settings import needed
from tests.support import write_pool
from tests.synthetic_columns import synthetic

Make = Callable[[str], Selector]
Choose = Callable[[str, int, int, str], npt.NDArray[np.int32]]
N = 60
NAMES = selector_names()

GOLDEN: dict[tuple[str, int], str] = {
    ("clip_score", 1): "a3b7a0c1534c4cc43bbf9d6e1c2697277ffb600ad7c50aff588f91b9dcd141e0",
    ("coincide", 1): "220e87caa13ebe4da1422a4d114a7320826401ca0c3b25f7c212b66d73f83d02",
    ("deita", 2): "96054e4343bd609528101d3e5e965b3990ef1e8685ec217f5cad75947b869a70",
    ("e5v", 1): "e8b33d5d3c8358843ac34ce596281bbbd371fc8d82b238f5e5fab26ac0945d01",
    ("el2n", 1): "c7226f5b595ddacc57ef8efb5be795b1501008b55d2aea41d7e18b7c875fd917",
    ("full", 1): "ffa11ef7cbb6c8a309eff770874d2c219e7cd63bdbe2c65780582bbca5a621e5",
    ("icons", 3): "ba8615a491e64a21f8d790f83515b68d358ab5e5c9b0345f32fc6e9887854f31",
    ("length", 1): "558234310cf3948a3e6ec1ceb3d04776dfa54aef625b86ca7356d87f33cf92b7",
    ("mmssr", 1): "d63d372f99e3e61540c5b62b15f0cfbbc6f10dddb9534d769bba78506a1b3f44",
    ("ppl_mid", 1): "b87401067710da287495a2748f3033a7da0ae39d8006f940884838ba3b553c49",
    ("ppl_si", 1): "b87401067710da287495a2748f3033a7da0ae39d8006f940884838ba3b553c49",
    ("random", 1): "6c76b381ad349ce8de4bc0e46e808fb512623adb31197a416d935de623ffb9b0",
    ("random_stratified", 1): "63e238e2da46ac8c58ed0b9b849005babc99e9a4a1b2cfde34039b62919cc477",
}
"""Digest of the uids kept of a fixed pool with synthetic columns, by selector and version.

Whoever changes what a selector keeps raises its version and adds a line here.
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny untrained models of the real classes, by the alias a pass asks for."""
    from harness.miniworld.architecture import build_untrained
    from tests.models import build_clip

    root = tmp_path_factory.mktemp("models")
    build_untrained("tiny", root / "tiny", seed=0)
    build_clip(root / "clip", tokenizer=root / "tiny")
    return {"mid": root / "tiny", "warm": root / "tiny", "miniworld:clip": root / "clip"}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pool]:
    """The same samples in two orders."""
    root = tmp_path_factory.mktemp("pools")
    order = list(range(N))
    random.Random(0).shuffle(order)
    return {"straight": write_pool(root / "a", N), "shuffled": write_pool(root / "b", N, order=order)}


@pytest.fixture(scope="module")
def features(pools: dict[str, Pool], models: dict[str, Path]) -> Callable[[Selector, str], Features]:
    """Real passes over the pools, computed once for all tests."""
    cache: dict[tuple[str, str, str, str], dict[str, npt.NDArray[Any]]] = {}

    def computed(chosen: Selector, pool: str) -> Features:
        found = {}
        for ref in chosen.needs():
            at = (pool, ref.name, ref.model, digest(ref.config))
            if at not in cache:
                plugin = feature_pass(ref.name)
                context = PassContext(model_path=str(models.get(ref.model, ref.model)))
                feature = plugin.cls(configured(plugin.cls, ref.config), context)
                feature.open()
                cache[at] = feature.run(pools[pool], 0, N)[0]
            found[ref.label] = cache[at]
        return found

    return computed


@pytest.fixture(scope="module")
def make(pools: dict[str, Pool], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Selectors by name, with the settings they cannot do without."""
    root = tmp_path_factory.mktemp("needed")

    def made(name: str) -> Selector:
        plugin = selector(name)
        chosen: Selector = plugin.cls(configured(plugin.cls, needed(name, root, pools["straight"].uids())))
        return chosen

    return made


@pytest.fixture(scope="module")
def choose(pools: dict[str, Pool], make: Make, features: Callable[[Selector, str], Features]) -> Choose:
    """What a selector keeps of a pool, checked."""

    def chosen(name: str, n: int, seed: int, pool: str) -> npt.NDArray[np.int32]:
        made = make(name)
        columns = features(made, pool)
        scores = made.score(pools[pool], columns) or {}
        return checked(made.select(pools[pool], scores, columns, n, seed), pools[pool], n, name)

    return chosen


def budgets(name: str) -> list[int]:
    return [N] if name == "full" else [1, 7, 30, 59, 60]


@pytest.mark.parametrize("name", NAMES)
def test_budgets_are_exact_and_choices_repeatable(name: str, choose: Choose) -> None:
    for n in budgets(name):
        for seed in (0, 3):
            first = choose(name, n, seed, "straight")
            assert len(set(first.tolist())) == n
            assert first.tolist() == choose(name, n, seed, "straight").tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_pool_does_not_matter(name: str, pools: Any, choose: Choose) -> None:
    for n in budgets(name):
        chosen = []
        for pool in ("straight", "shuffled"):
            uids = pools[pool].uids()
            chosen.append({uids[i] for i in choose(name, n, 1, pool)})
        assert chosen[0] == chosen[1]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "full"])
def test_nested_selectors_are_nested(name: str, make: Make, choose: Choose) -> None:
    kept = [set(choose(name, n, 2, "straight").tolist()) for n in (5, 20, 45)]
    nested = kept[0] < kept[1] < kept[2]
    assert nested or not make(name).nested


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_selector_does_not_import_torch(name: str) -> None:
    module = selector(name).cls.__module__
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", NAMES)
def test_choices_change_only_with_the_version(name: str, pools: Any, make: Make) -> None:
    pool, made = pools["straight"], make(name)
    columns = {ref.label: synthetic(ref.name, pool) for ref in made.needs()}
    scores = made.score(pool, columns) or {}
    kept = made.select(pool, scores, columns, N if name == "full" else 10, 0).positions
    uids = pool.uids()
    assert digest([uids[i] for i in kept]) == GOLDEN[(name, made.version)]


@pytest.mark.parametrize("name", NAMES)
def test_a_selector_says_what_it_is(name: str) -> None:
    cls = selector(name).cls
    assert cls.name == name
    assert cls.version >= 1
    assert cls.__doc__
    assert cls.Config.__doc__
    assert selector_spec(name, {}).distribution
    assert sys.modules[cls.__module__].__doc__


MODELS = {"model", "embedding_model", "complexity", "quality", "scorer", "styler"}
OPEN = {*MODELS, "labels", "prompts", "conversation", "targets", "warm_up"}
"""Settings with which users name what is theirs: models, files, pools and shares."""


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_with_a_choice_refuses_what_is_none(name: str, tmp_path: Path) -> None:
    """By the selector or by a pass it needs: before anything runs, and never as the default by another name."""
    cls = selector(name).cls
    given = needed(name, tmp_path, ["a"])
    for field in fields(cls.Config):
        if isinstance(field.default, str) and field.name not in OPEN:
            with pytest.raises(HarnessError, match=r"no such value is n(one of|either)"):
                configure(cls, {**given, field.name: "no such value"})


def configure(cls: type[Selector], settings: dict[str, Any]) -> None:
    """A selector and the passes it needs, as a plan reads them."""
    for ref in cls(configured(cls, settings)).needs():
        configured(feature_pass(ref.name).cls, ref.config)


CERTAIN = {"el2n", "full", "length", "random", "random_stratified"}
"""Selectors that are wholly defined where they were published, or are ours."""


@pytest.mark.parametrize("name", NAMES)
def test_a_selector_says_what_is_not_published_of_it(name: str) -> None:
    """Rows of arXiv 2503.13383 whose adaptation is unknown are told from those that are as published."""
    doubts = selector(name).cls.uncertain
    assert isinstance(doubts, tuple)
    assert bool(doubts) == (name not in CERTAIN)
    assert all("\n" not in doubt and not doubt.endswith(".") for doubt in doubts)
