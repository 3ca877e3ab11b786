"""Real data from import to score: TabMWP's tables and questions, with a local task of the user's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from harness.pool import open_pool
from harness.store import StageDir
from tests.e2e.runs import ROOT, run, sievebench, stages

pytestmark = pytest.mark.e2e

DATA = Path(os.environ.get("SIEVEBENCH_TABMWP", ROOT.parent / "shared" / "data" / "tabmwp"))
CELLS = {"random/30%": 313, "length/30%": 313, "full/100%": 1045}
"""The cells of one sweep, and the samples each selects."""


@pytest.mark.skipif(not DATA.is_dir(), reason="TabMWP is not here; its licence keeps it out of the repository")
def test_three_cells_of_tabmwp(tmp_path: Path) -> None:
    pool, store = tmp_path / "pool", tmp_path / "store"
    images = ("--images", f"{DATA}/images", "--out", str(pool))
    said = sievebench("pool", "import", "llava-json", f"{DATA}/train.json", *images)
    assert "1045 of 1045 records" in said
    assert open_pool(pool).record(0).uid == "tabmwp_33_mc"
    assert set(open_pool(pool).sources()) == {"tabmwp(mc)", "tabmwp(cot)", "tabmwp(short)"}

    output = run(
        "-m",
        "selector=random,length",
        "budget=30%",
        "baselines.random_trials=1",
        "recipe.fixed_steps=78",  # an epoch of 30 %, for the full run as well
        "pool=path",
        f"pool.path={pool}",
        "pool.name=tabmwp",
        "suite=tabmwp",
        f"suite.include_path={own_task(tmp_path / 'task')}",
        f"store={store}",
    )
    assert "TabMWP" in output
    chosen = {label(d).removesuffix("/s0/select"): d.manifest() for d in stages(store, "select")}
    assert {name: manifest.facts["n"] for name, manifest in chosen.items() if manifest} == CELLS
    scored = {label(d).removesuffix("/tiny/s0/tabmwp"): d for d in stages(store, "evaluate")}
    assert scored.keys() == CELLS.keys()
    for name, directory in scored.items():
        manifest = directory.manifest()
        assert manifest is not None
        items = pq.read_table(directory.out / "samples.parquet").to_pandas()
        assert (manifest.facts["n"], len(items), items["doc_id"].nunique()) == (200, 200, 200), name
        # The gate inside the stage compares the engine's value with these scores; here it is done once more.
        assert abs(100 * items["score"].mean() - float(str(manifest.facts["value"]))) < 1e-6, name
        assert items["answer"].nunique() > 1, name


def label(directory: StageDir) -> str:
    """What a stage is called: its cell and, behind it, itself."""
    return str(json.loads((directory.path / "spec.json").read_text())["label"])


def own_task(folder: Path) -> Path:
    """The example's task in a folder of its own, with its data made."""
    shutil.copytree(ROOT / "examples" / "tabmwp_task", folder, ignore=shutil.ignore_patterns("*.parquet"))
    make = [sys.executable, str(folder / "make_data.py"), "--source", str(DATA)]
    subprocess.run(make, check=True, capture_output=True, timeout=120)
    return folder
