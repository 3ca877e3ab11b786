"""The conformance kit: what is installed keeps its promises, and what does not is told how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import cli, registry
from harness.conformance import BEHAVIOUR, STATIC, check_selector, settings_of
from harness.conformance_world import World
from harness.errors import HarnessError
from harness.miniworld import ensure_pool, truth_file
from harness.pool import open_pool
from harness.registry import selector_names, selector_spec
from tests.selector_settings import needed

SAMPLES = 60
FEW = 24
GOOD = {
    "top": "",
    "doc": '"""Keeps something."""',
    "said": 'name = "made"; version = 1',
    "config": '@dataclass\nclass Config:\n    """Settings."""\n    power: float = 1.0\n    """How much."""',
    "nested": "True",
    "needs": "()",
    "body": "return Selection(positions=order[:n])",
}
FILE = '''"""A selector in a file."""
from dataclasses import dataclass
import numpy as np
from harness.api import PassRef, Selection, Selector, ranked
from harness.keys import mix64, seed64
{top}

{config}

class Made(Selector):
    {doc}
    {said}
    Config = Config
    nested = {nested}

    def needs(self):
        return {needs}

    def select(self, pool, scores, features, n, seed):
        order = ranked(pool, pool.column("n_words") % 5, seed)
        hashes = pool.column("uid_hash64")
        {body}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scratch space that all checks share: one pool, one set of columns."""
    return tmp_path_factory.mktemp("kit")


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selectors given as files are forgotten after the test."""
    monkeypatch.setattr(registry, "_BY_PATH", {})


def written(path: Path, **changes: str) -> str:
    path.write_text(FILE.format(**(GOOD | changes)))
    return str(path)


def problems(chosen: str, folder: Path, samples: int = SAMPLES, **config: Any) -> dict[str, str]:
    """Broken promises and what was said; every promise is there once unless the selector does not run."""
    verdicts = list(check_selector(chosen, folder, config, samples))
    names = [v.promise for v in verdicts]
    assert len(names) == len(set(names))
    assert names == [*STATIC, "it runs", *BEHAVIOUR] or "it runs" in [v.promise for v in verdicts if v.problem]
    return {v.promise: v.problem for v in verdicts if v.problem}


def test_no_selector_can_look_up_what_is_wrong(tmp_path: Path) -> None:
    """Neither the truth table nor the teachers' labels, which give most of it away, is there to be read."""
    world = World.make(tmp_path, selector_spec("random", {}), 60)
    pool = Path(world.pool.path)
    assert not truth_file(pool).exists()
    assert [p.name for p in pool.parent.iterdir()] == [pool.name]


@pytest.mark.parametrize("name", selector_names())
def test_installed_selectors_keep_every_promise(name: str, folder: Path) -> None:
    uids = open_pool(ensure_pool(SAMPLES, 0, folder / "world")).uids()
    assert problems(name, folder, **needed(name, folder, uids)) == {}


def test_a_model_trained_to_tell_keeps_every_promise(folder: Path) -> None:
    """The scorer and styler that mmSSR asks, every question of both, on the shipped backbone."""
    assert problems("mmssr", folder, samples=FEW, scorer="trained") == {}


def test_a_good_file_keeps_every_promise(folder: Path, tmp_path: Path) -> None:
    assert problems(written(tmp_path / "made.py"), folder, power=2.0) == {}


BARE = "@dataclass\nclass Config:\n    a: int = 1"
CONFIG = '@dataclass\nclass Config:\n    """Settings."""\n    '
BAD = [
    ("importing it does not import torch", {"top": "import torch"}, "import torch inside the functions"),
    ("it says what it is", {"doc": ""}, "class Made has no docstring"),
    ("it says what it is", {"said": 'name = "made"; version = 0'}, "`version` is 0: make it 1"),
    ("its settings are documented", {"config": "class Config:\n    pass"}, "`Config` is not a dataclass"),
    (
        "its settings are documented",
        {"config": BARE},
        "Config has no docstring",
    ),
    ("its settings are documented", {"config": CONFIG + "a: int = 1"}, "setting a is not explained"),
    ("its settings are documented", {"config": CONFIG + "a: int"}, "setting a has no default"),
    (
        "its settings are documented",
        {"config": CONFIG + "a: object = print\n    'A.'"},
        "a default is no plain value",
    ),
    ("it runs", {"body": "return 1 / 0"}, "ZeroDivisionError: division by zero (made.py:26)"),
    (
        "it runs",
        {"needs": 'PassRef(name="tokens", model="mid"),', "body": 'features["tokens"]["n_tokens"][0] = 1'},
        "read-only",
    ),
    (
        "it runs",
        {"nested": "True\n    def score(self, pool, features):\n        return {'score': np.zeros(3)}"},
        "score() returned 3 values of 'score', not one a sample",
    ),
    (
        "the budget is kept exactly",
        {"body": "return Selection(positions=order[: n + n % 2])"},
        "n=1 it kept 2: return positions[:n]",
    ),
    (
        "the budget is kept exactly",
        {"body": "return Selection(positions=np.delete(order, order[-1])[:n])"},
        "n=60 it kept 59: fill up by the method's own score",
    ),
    (
        "positions are valid and different",
        {"body": "return Selection(positions=np.arange(pool.n) < n)"},
        "numpy.flatnonzero of a mask",
    ),
    (
        "positions are valid and different",
        {"body": "return Selection(positions=order[:n] + 1)"},
        "count from 0 to 59",
    ),
    (
        "positions are valid and different",
        {"body": "return Selection(positions=np.where(order == 3, 4, order)[:n])"},
        "keep each sample once",
    ),
    (
        "the same seed gives the same result",
        {"body": "return Selection(positions=np.random.permutation(pool.n)[:n])", "nested": "False"},
        "derive all chance from the seed",
    ),
    (
        "the same seed gives the same result",
        {
            "body": "self.calls = getattr(self, 'calls', 0) + 1; order = np.argsort(mix64(hashes, self.calls)); "
            "return Selection(positions=order[:n])",
            "nested": "False",
        },
        "earlier calls",
    ),
    (
        "the same seed gives the same result",
        {
            "body": "order = sorted(range(pool.n), key=lambda i: hash(pool.record(i).uid)); "
            "return Selection(positions=np.array(order[:n]))"
        },
        "another process gave another result",
    ),
    (
        "the order of the pool does not matter",
        {"body": "return Selection(positions=ranked(pool, pool.column('n_words') % 5, seed, tie='index')[:n])"},
        "harness.api.ranked, which breaks ties by the uid",
    ),
    (
        "budgets are nested if it says so",
        {"body": "return Selection(positions=np.argsort(mix64(hashes, seed64('made', seed, n)))[:n])"},
        "set `nested = False`",
    ),
    (
        "any share of any pool is kept exactly",
        {"body": "return Selection(positions=order[: n if pool.n == 60 else round(pool.n / 10) * 3])"},
        "fill up by the method's own score",
    ),
]


@pytest.mark.parametrize(("promise", "changes", "sentence"), BAD)
def test_a_broken_promise_has_its_sentence(
    promise: str, changes: dict[str, str], sentence: str, folder: Path, tmp_path: Path
) -> None:
    found = problems(written(tmp_path / "made.py", **changes), folder)
    assert sentence in found[promise]
    assert found[promise].endswith(".")


def test_a_promise_not_made_is_not_asked_for(folder: Path, tmp_path: Path) -> None:
    afresh = "return Selection(positions=np.argsort(mix64(hashes, seed64('made', seed, n)))[:n])"
    assert problems(written(tmp_path / "made.py", body=afresh, nested="False"), folder) == {}


def test_the_verb_prints_a_line_a_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-selector", "random", "nested=True"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ", 1)[1].strip() for line in said] == [*STATIC, "it runs", *BEHAVIOUR]
    assert all(line.startswith("ok ") for line in said)
    assert cli.main(["check-selector", written(tmp_path / "made.py", doc="")]) == 1
    assert "broken  it says what it is: class Made has no docstring" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["randm"], "Did you mean 'random'?"),
        (["random", "nest=1"], "Did you mean 'nested'?"),
        (["random", "nested"], "'nested' is no setting: write KEY=VALUE."),
        (["nowhere.py"], "there is no selector file nowhere.py"),
        (["clip_score", "model=/nowhere"], "no folder /nowhere"),
    ],
)
def test_what_the_user_got_wrong_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check-selector", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_settings_are_read_as_values() -> None:
    given = ["a=1", "b=0.5", "c=True", "d=some/model@abc", "e=[1, 2]", "f=x=y", "g="]
    assert settings_of(given) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "some/model@abc",
        "e": [1, 2],
        "f": "x=y",
        "g": "",
    }
    with pytest.raises(HarnessError, match="KEY=VALUE"):
        settings_of(["a"])
