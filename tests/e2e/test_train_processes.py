"""Training as processes: killed and started again, and spread over several ranks, it comes to the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llava_train.watch import read_journal
from tests.support import write_pool

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
MODEL = "out/model/model.safetensors"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A pool and a backbone, as paths."""
    from harness.miniworld.architecture import build_untrained

    root = tmp_path_factory.mktemp("parts")
    build_untrained("tiny", root / "tiny", seed=1)
    return {"pool": write_pool(root / "pool", 48).path, "backbone": str(root / "tiny")}


def _train(parts: dict[str, str], folder: Path, *, ranks: int = 1, n: int = 48, **wanted: object) -> int:
    """Run it in processes of its own; returns the exit status."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    argument = json.dumps({**parts, "folder": str(folder), "n": n, **wanted})
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "tests.e2e.train_one", argument]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=300).returncode


def _log(folder: Path) -> list[dict]:
    rows = read_journal(folder / "out" / "train_log.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def alone(parts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run everything is compared with: one process, uninterrupted, eight steps."""
    folder = tmp_path_factory.mktemp("alone")
    assert _train(parts, folder) == 0
    assert len(_log(folder)) == 8
    return folder


def _assert_close(folder: Path, other: Path) -> None:
    """Equal batches and, up to rounding, equal losses, gradients and weights."""
    for ours, theirs in zip(_log(folder), _log(other), strict=True):
        assert (ours["batch"], ours["tokens"], ours["lr"]) == (theirs["batch"], theirs["tokens"], theirs["lr"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    weights, expected = load_file(folder / MODEL), load_file(other / MODEL)
    assert weights.keys() == expected.keys()
    for name in weights:
        assert np.abs(weights[name] - expected[name]).max() < 1e-4, name


def test_killed_twice_and_finished(parts: dict[str, str], alone: Path, tmp_path: Path) -> None:
    assert _train(parts, tmp_path, kill_at=4) == -9
    assert _train(parts, tmp_path, kill_at=7) == -9
    assert not (tmp_path / "out" / "model").exists()
    assert _train(parts, tmp_path) == 0
    assert json.loads((tmp_path / "out/report.json").read_text())["resumed_from"] == 6
    assert _log(tmp_path) == _log(alone)
    assert (tmp_path / MODEL).read_bytes() == (alone / MODEL).read_bytes()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_compute_what_one_does(parts: dict[str, str], alone: Path, tmp_path: Path, stage: int) -> None:
    assert _train(parts, tmp_path, ranks=2, spec={"zero_stage": stage}) == 0
    _assert_close(tmp_path, alone)


def test_two_ranks_killed_and_finished(parts: dict[str, str], alone: Path, tmp_path: Path) -> None:
    assert _train(parts, tmp_path, ranks=2, kill_at=5) != 0
    assert _train(parts, tmp_path, ranks=2) == 0
    assert json.loads((tmp_path / "out/report.json").read_text())["resumed_from"] == 3
    _assert_close(tmp_path, alone)


def test_a_rank_without_samples(parts: dict[str, str], tmp_path: Path) -> None:
    """One sample on two ranks."""
    assert _train(parts, tmp_path / "one", n=1) == 0
    assert _train(parts, tmp_path / "two", ranks=2, n=1) == 0
    _assert_close(tmp_path / "two", tmp_path / "one")


def test_adapters_on_two_ranks_are_those_of_one(parts: dict[str, str], tmp_path: Path) -> None:
    """Without dropout; Adam's moments, which ZeRO spreads over the ranks, are whole again."""
    spec = {"lora_rank": 4, "lora_dropout": 0.0}
    assert _train(parts, tmp_path / "one", n=12, spec=spec) == 0
    for stage in (1, 3):
        folder = tmp_path / f"two-{stage}"
        assert _train(parts, folder, ranks=2, n=12, spec=spec | {"zero_stage": stage}) == 0
        _assert_close(folder, tmp_path / "one")
        for file in ("adapter_model.safetensors", "moments.safetensors"):
            ours, theirs = (load_file(f / "out/adapter" / file) for f in (folder, tmp_path / "one"))
            assert ours.keys() == theirs.keys()
            for name in ours:
                scale = max(float(np.abs(theirs[name]).max()), 1e-12)
                assert np.abs(ours[name] - theirs[name]).max() < 2e-3 * scale + 1e-9, name
