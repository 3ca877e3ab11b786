"""`coincide` and `e5v` for real: passes of the shipped backbone over a miniworld pool, and a choice from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.conformance_world import World
from harness.registry import selector_spec

N = 60


@pytest.mark.parametrize(
    ("name", "settings"),
    [("coincide", {"clusters": 5}), ("e5v", {}), ("e5v", {"mode": "cluster", "clusters": 5})],
)
def test_it_runs_on_the_shipped_backbone(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    world = World.make(tmp_path, selector_spec(name, settings), N)
    trial = world.trial()
    (columns,) = trial.features.values()
    for values in columns.values():
        if values.dtype.kind == "f":
            measured = ~np.isnan(values.reshape(N, -1)).any(axis=1)
            assert measured.mean() > 0.8
            assert len(np.unique(values[measured], axis=0)) > N / 4
    kept = trial.kept(20, 0)
    assert len(set(kept)) == 20
    shuffled = np.random.default_rng(0).permutation(N).tolist()
    assert set(world.trial(shuffled).kept(20, 0)) == set(kept)
