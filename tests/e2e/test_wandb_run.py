"""`tracking=wandb` on the command line: whatever happens to W&B, the run ends as it would have without it."""

from __future__ import annotations

import importlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hydra import compose, initialize_config_module

from harness.config import cell_of, register_schemas, settings_of
from harness.store import Store
from harness.sweep import plan_sweep
from tests.e2e.runs import run, sievebench, start
from tests.support import write_pool
from tests.unit.tracking_support import fill
from tests.wandb_offline import read_runs

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, slots=True)
class Finished:
    """A command whose stages are all done already, and its store."""

    store: Path
    arguments: list[str]


@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    write_pool(folder / "pool", 100)
    arguments = [
        "name=one",
        f"store={folder / 'store'}",
        "selector=length",
        "budget=10%",
        f"backbone.path={models / 'tiny'}",
        "pool=path",
        f"pool.path={folder / 'pool'}",
        "pool.name=small",
        "suite=lmms14",
        "suite.only=[mme,ai2d]",
    ]
    importlib.import_module("hydra_plugins.sievebench").register()
    register_schemas()
    with initialize_config_module("harness.conf", version_base="1.3"):
        cfg = compose("config", overrides=arguments)
    sweep = plan_sweep([cell_of(cfg)], settings_of(cfg), "python -m harness", baselines=False)
    fill(sweep.store, sweep.plan)
    return Finished(folder / "store", arguments)


def test_without_tracking_no_tracker_is_mentioned(finished: Finished) -> None:
    output = run(*finished.arguments)
    assert "Report:" in output
    assert "W&B" not in output
    assert not (finished.store / "wandb").exists()


def test_a_run_is_shown_when_it_is_reported(finished: Finished) -> None:
    output = run(*finished.arguments, "tracking=wandb", "tracking.project=mine")
    assert "W&B: 4 runs written (offline), 0 unchanged. 4 wait for 'sievebench wandb sync" in output
    runs = read_runs(finished.store)
    assert {r.head.job_type for r in runs.values()} == {"select", "train", "eval", "report"}
    assert {r.head.project for r in runs.values()} == {"mine"}
    again = sievebench("wandb", "push", "--store", str(finished.store), "--project", "mine")
    assert "W&B: 0 runs written (offline), 4 unchanged." in again


@pytest.mark.parametrize("trouble", ["missing", "unwritable", "refused"])
def test_a_run_ends_well_whatever_wandb_does(
    finished: Finished, trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished.store, store, ignore=shutil.ignore_patterns("wandb"))
    extra = [f"store={store}", "tracking=wandb"]
    if trouble == "missing":
        (tmp_path / "wandb.py").write_text("raise ImportError('not here')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    elif trouble == "unwritable":
        (store / "wandb").write_text("a file where the folder should be")
    else:
        extra.append("tracking.project=a/b")
    output = run(*finished.arguments, *extra)
    warnings = [line for line in output.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "sweep 'one' was not pushed to wandb, its results are complete" in warnings[0]
    assert "Report:" in output
    assert "Traceback" not in output


def test_killing_wandbs_service_does_not_touch_the_run(finished: Finished) -> None:
    process = start(*finished.arguments, "tracking=wandb", "tracking.project=killed")
    killed = 0
    while process.poll() is None and not killed:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "wandb-core" in child.name():
                    child.kill()
                    killed = child.pid
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.005)
    output, _ = process.communicate(timeout=120)
    assert killed
    assert process.returncode == 0, output
    assert "warning: sweep 'one' was not pushed to wandb, its results are complete: W&B failed (" in output
    assert "Traceback" not in output


def test_the_verb_fails_with_a_sentence(finished: Finished) -> None:
    said = sievebench("wandb", "push", "one", "--store", str(finished.store), "--project", "a/b", expect=2)
    assert said.startswith("sievebench: W&B failed (")
    assert "Traceback" not in said
    said = sievebench("wandb", "push", "--store", str(finished.store), "--mode", "onlin", expect=2)
    assert "Did you mean 'online'?" in said


def test_a_wrong_tracker_is_refused_before_anything_runs(finished: Finished) -> None:
    assert "Did you mean 'wandb'?" in run(*finished.arguments, "tracking=wanbd", expect=2)
    assert "W&B mode 'onlin' is not known" in run(*finished.arguments, "tracking.mode=onlin", expect=2)


def test_jsonl_needs_no_wandb(finished: Finished) -> None:
    output = run(*finished.arguments, "tracking=jsonl")
    file = finished.store / "tracking" / "one.jsonl"
    assert f"Tracked: {file}" in output
    assert len(file.read_text().splitlines()) == 4
    assert Store(finished.store).sweeps() == ["one"]
