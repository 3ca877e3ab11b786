"""Real data from import to score: TabMWP's tables, by the README's commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from harness.pool import open_pool
from tests.e2e.runs import ROOT, run, sievebench, stages

pytestmark = pytest.mark.e2e

DATA = Path(os.environ.get("SIEVEBENCH_TABMWP", ROOT.parent / "shared" / "data" / "tabmwp"))


@pytest.mark.skipif(not DATA.is_dir(), reason="TabMWP is not here; its licence keeps it out of the repository")
def test_a_cell_of_tabmwp(tmp_path: Path) -> None:
    said = sievebench(
        "pool",
        "import",
        "llava-json",
        f"{DATA}/train.json",
        "--images",
        f"{DATA}/images",
        "--out",
        f"{tmp_path}/pool",
    )
    assert "1045 of 1045 records" in said
    pool = open_pool(tmp_path / "pool")
    assert pool.record(0).uid == "tabmwp_33_mc"
    assert set(pool.sources()) == {"tabmwp(mc)", "tabmwp(cot)", "tabmwp(short)"}

    task = tmp_path / "task"
    shutil.copytree(ROOT / "examples" / "tabmwp_task", task, ignore=shutil.ignore_patterns("*.parquet"))
    make = [sys.executable, str(task / "make_data.py"), "--source", str(DATA)]
    subprocess.run(make, check=True, capture_output=True, timeout=120)

    output = run(
        "selector=random",
        "budget=30%",
        "pool=path",
        f"pool.path={tmp_path / 'pool'}",
        "pool.name=tabmwp",
        "suite=tabmwp",
        f"suite.include_path={task}",
        f"store={tmp_path / 'store'}",
    )
    assert "TabMWP" in output
    (scored,) = stages(tmp_path / "store", "evaluate")
    manifest = scored.manifest()
    assert manifest is not None
    assert manifest.facts["n"] == 200
    items = pq.read_table(scored.out / "samples.parquet").to_pandas()
    # The gate inside the stage compares the engine's value with these scores; here it is done once more.
    assert abs(100 * items["score"].mean() - float(str(manifest.facts["value"]))) < 1e-6
    assert items["answer"].nunique() > 1
