"""Mistakes a user can make at the command line: one sentence, the fix in it, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.runs import run, sievebench
from tests.support import write_pool

pytestmark = pytest.mark.e2e

MISTAKES = [
    ("selector=lenght", "selector 'lenght' is not known.", "Did you mean 'length'?"),
    ("budget=5", "budget 5 is not in (0, 1]", "0.05 or 5%"),
    ("budget=abc", "budget 'abc' cannot be read", "200n"),
    ("budget=0.00001", "keeps 0 of 400 samples", "keep 1 to 400"),
    ("pool=path", "pool 'own' has no path", "pool.path=DIR"),
    ("pool=path pool.path=/nowhere/pool", "there is no pool at /nowhere/pool", "pool import"),
    ("pool.path=somewhere", "both a path and miniworld", "pool.miniworld=0"),
    ("suite=minii", "suite 'minii' is not known", "Did you mean 'mini'?"),
    ("suite.only=[mini_shrt]", "benchmark 'mini_shrt' is not known", "Did you mean 'mini_short'?"),
    ("backbone.path=/nowhere/model", "model 'tiny'", "no folder /nowhere/model"),
    ("backbone=ov_7b", "nor pinned", "backbone.revision"),
    ("sed=1", "setting 'sed' is not known", "Did you mean 'seed'?"),
    ("selector.sed=1", "there is no setting 'selector.sed'", "Key 'sed' not in 'RandomConfig'"),
    ("mode=cachd", "mode 'cachd' is not known", "Did you mean 'cached'?"),
    ("selector=random,length", "names several values", "add -m"),
    ("selector=nowhere.py", "there is no selector file nowhere.py", ""),
    ("recipe.global_batch=7", "global_batch=7 is not a multiple", "nominal_micro_batch=2"),
    ("store=/proc/runs", "/proc/runs cannot be written", "set store=DIR"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize(("override", "what", "fix"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_sentence(override: str, what: str, fix: str, store: Path) -> None:
    chosen = [] if "store=" in override else [f"store={store}"]
    small = [] if "pool=" in override else ["pool.miniworld=400"]
    output = run(*small, *chosen, *override.split(), expect=2)
    (said,) = [line for line in output.splitlines() if line.startswith("sievebench:")]
    assert what in said
    assert fix in said
    assert "Traceback" not in output
    assert "Error executing job" not in output


def test_a_sweep_refuses_a_bad_job_before_anything_runs(tmp_path: Path) -> None:
    output = run("-m", "pool.miniworld=400", f"store={tmp_path}", "budget=0.1,7", expect=2)
    assert "budget 7 is not in (0, 1]" in output
    assert not list(tmp_path.glob("train/*"))


def test_verbs_explain_what_they_cannot_find(tmp_path: Path) -> None:
    assert "has no sweeps" in sievebench("status", "--store", str(tmp_path), expect=2)
    assert "has no sweeps" in sievebench("report", "--store", str(tmp_path), expect=2)
    assert "has no stage 'x'" in sievebench("explain", "x", "--store", str(tmp_path), expect=2)
    assert "Did you mean 'mmssr'?" in sievebench("report", "--published", "mmsr", expect=2)
    taken = write_pool(tmp_path / "pool", 3)
    data = tmp_path / "data.json"
    data.write_text("[]")
    arguments = ("pool", "import", "llava-json", str(data), "--images", str(tmp_path), "--out")
    assert "already holds a pool" in sievebench(*arguments, taken.path, expect=2)
    assert "no usable record" in sievebench(*arguments, str(tmp_path / "new"), expect=2)


def test_the_published_table_comes_out_in_every_format() -> None:
    markdown = sievebench("report", "--published", "mmssr", "--format", "md")
    assert "| mmSSR |" in markdown
    assert "93.20" in markdown
    assert "8/10" in markdown
    assert "mmSSR" in sievebench("report", "--published", "mmssr", "--format", "csv")
    assert r"\toprule" in sievebench("report", "--published", "mmssr", "--format", "tex")
