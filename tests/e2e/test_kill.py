"""kill -9 at any moment, the same command again: nothing complete is redone, and the tables are the same bytes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.files import read_json
from harness.store import StageDir, Store
from tests.e2e.runs import Caught, catch, gone, kill, results, run, stages, start

pytestmark = pytest.mark.e2e

SLOW = '''
"""A selector that takes its time, so that a test can kill it."""
import time
from dataclasses import dataclass
from harness.api import PassRef, Selection, Selector, ranked

@dataclass(frozen=True)
class Config:
    """Which model gives the features."""
    model: str = "CLIP"

class Slow(Selector):
    """Ranks by agreement of picture and text, slowly."""
    name = "slow"
    version = 1
    Config = Config

    def needs(self):
        return (PassRef(name="clip", model=self.config.model),)

    def score(self, pool, features):
        return {"score": features["clip"]["cosine"]}

    def select(self, pool, scores, features, n, seed):
        time.sleep(1.5)
        return Selection(positions=ranked(pool, scores["score"], seed)[:n])
'''

Midway = Callable[[StageDir], bool]


@pytest.fixture(scope="module")
def world(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a small sweep."""
    root = tmp_path_factory.mktemp("selector")
    (root / "slow.py").write_text(SLOW.replace("CLIP", str(models / "clip")))
    return [
        "-m",
        "name=killed",
        f"selector=random,{root / 'slow.py'}",
        "budget=0.2",
        f"backbone.path={models / 'tiny'}",
        "pool.miniworld=400",
        "suite.only=[mini_short,mini_circular]",
        "recipe.checkpoint_every=2",
        "executor.shard=40",
        "executor.slots=1",
        "baselines.random_trials=1",
        "baselines.full_trials=0",
    ]


@pytest.fixture(scope="module")
def undisturbed(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = tmp_path_factory.mktemp("undisturbed")
    run(*world, f"store={store}")
    return results(store / "reports" / "killed")


def has_shards(directory: StageDir) -> bool:
    return len(list(directory.partial.glob("shard-*.npz"))) >= 2


def has_checkpoint(directory: StageDir) -> bool:
    said = read_json(directory.path / "progress.json") or {}
    return 2 < said.get("done", 0) < said.get("total", 0)


def has_answers(directory: StageDir) -> bool:
    journal = directory.partial / "answers.jsonl"
    return journal.exists() and len(journal.read_bytes().splitlines()) >= 8


MIDWAY: dict[str, Midway] = {
    "features": has_shards,
    "select": lambda directory: True,  # its 1.5 seconds of sleep
    "train": has_checkpoint,
    "evaluate": has_answers,
}


def resumed(caught: Caught, kind: str) -> None:
    """Assert that a caught stage was finished from where it was, not from the beginning."""
    manifest = caught.directory.manifest()
    assert manifest is not None
    outcomes = [a.outcome for a in caught.directory.attempts()]
    assert outcomes == ["failed", "done"]
    assert caught.directory.attempts()[0].kind == "killed"
    if kind == "features":
        assert int(str(manifest.facts["shards_resumed"])) >= 2
    elif kind == "train":
        assert int(str(manifest.facts["resumed_from"])) > 0
    elif kind == "evaluate":
        assert int(str(manifest.facts["n_resumed"])) >= 8


def test_killing_the_scheduler_in_every_kind_of_stage(
    world: list[str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """The whole process tree dies with the scheduler, four times; then the sweep is let to its end."""
    caught: dict[str, Caught] = {}
    finished: dict[str, bytes] = {}
    for kind, midway in MIDWAY.items():
        process = start(*world, f"store={tmp_path}")
        caught[kind] = catch(tmp_path, kind, midway, process)
        finished |= manifests(tmp_path)
        process.kill()
        process.wait()
        wait_for(lambda pid=caught[kind].pid: gone(pid))
        assert caught[kind].directory.status() == "interrupted", kind
    run(*world, f"store={tmp_path}")
    for kind, stage in caught.items():
        resumed(stage, kind)
    for path, content in finished.items():
        assert Path(path).read_bytes() == content, f"{path} was made again"
    assert results(tmp_path / "reports" / "killed") == undisturbed


def test_killing_stages_under_a_living_scheduler(
    world: list[str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Each kind of stage is killed once; the scheduler starts it again by itself."""
    process = start(*world, f"store={tmp_path}")
    caught: dict[str, Caught] = {}
    for kind, midway in MIDWAY.items():
        caught[kind] = catch(tmp_path, kind, midway, process)
        kill(caught[kind].pid)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for kind, stage in caught.items():
        resumed(stage, kind)
    assert results(tmp_path / "reports" / "killed") == undisturbed


def test_two_sweeps_at_once_share_the_work(world: list[str], undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """The second arrival waits for what the first has claimed; nothing is computed twice."""
    first, second = (start(*world, f"store={tmp_path}", f"name={name}") for name in ("killed", "other"))
    for process in (first, second):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    for directory in Store(tmp_path).stages():
        assert [a.outcome for a in directory.attempts()] == ["done"], directory.path
    assert results(tmp_path / "reports" / "killed") == undisturbed


def manifests(store: Path) -> dict[str, bytes]:
    """Every manifest there is: none of them may be written again."""
    found = {}
    for kind in MIDWAY:
        for directory in stages(store, kind):
            path = directory.path / "manifest.json"
            if path.exists():
                found[str(path)] = path.read_bytes()
    return found


def wait_for(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired("wait", timeout)
        time.sleep(0.02)
