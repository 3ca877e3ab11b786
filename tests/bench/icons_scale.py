"""What ICONS costs on millions of samples, their gradients on disk as the pass leaves them.

`python -m tests.bench.icons_scale --n 2600000` writes (n, 5120) float16 gradients, 26.6 GB at full size, and those
of 12 target tasks; then influences and votes are computed in a process of its own. A plain reading chooses from a
smaller pool as well. The last line is one JSON object:

`selector`, `n`, `width`, `tasks`, `budget`, `gb`   `gb`: the file of gradients
`seconds`, `peak_rss_gb`    scoring and selecting; most memory of the process
`score_s`, `select_s`, `read_gb_s`   its parts, and how fast the file went by
`cpu_s`                     processor time of scoring and selecting, which a busy machine does not stretch
`plain_read_s`              reading the same file in blocks and doing nothing, just before
`reference_seconds`, `reference_n`, `reference_ours_seconds`   the plain reading, and ours on the same samples
`equal`                     both kept the same samples of it
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from selector_zoo.icons import Icons, IconsConfig

from harness.keys import mix64
from harness.pool import Pool, open_pool
from harness.stages.features import read_columns
from harness.stages.select import checked
from tests import icons_reference as plain
from tests.bench.pool_open import peak_mb
from tests.bench.select_scale import write_pool
from tests.support import raw_record

TASKS, EACH, BLOCK, SEED = 12, 40, 2048, 3


def write_gradients(folder: Path, n: int, width: int, seed: int) -> None:
    """Rows of length one, one in a thousand missing: a random block, turned further with every copy of it."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    block = rng.normal(size=(min(BLOCK, n), width)).astype(np.float32)
    block = (block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float16)
    out = open_memmap(folder / "gradient.npy", mode="w+", dtype=np.float16, shape=(n, width))
    for at in range(0, n, BLOCK):
        rows = out[at : at + BLOCK]
        rows[:] = np.roll(block, at // BLOCK, axis=1)[: len(rows)]
    out[rng.random(n) < 0.001] = np.nan
    out.flush()
    np.save(folder / "norm_projected.npy", rng.gamma(2, size=n).astype(np.float32))


def write_targets(path: Path) -> Pool:
    """Target samples of twelve tasks; only their sources matter here."""
    from harness.pool_write import PoolWriter

    with PoolWriter(path, "targets") as writer:
        for i in range(TASKS * EACH):
            turns = raw_record(4)["conversations"]
            writer.add({"id": f"t{i}", "data_source": f"task{i % TASKS}", "conversations": turns}, bytes)
    return writer.pool()


def prepare(folder: Path, n: int, width: int) -> None:
    folder.mkdir(parents=True)
    write_pool(folder / "pool", n, np.random.default_rng(0))
    write_targets(folder / "target_pool")
    write_gradients(folder / "gradients", n, width, seed=0)
    write_gradients(folder / "targets", TASKS * EACH, width, seed=1)


def run(folder: Path, budget: float) -> dict[str, Any]:
    """Score and select once; figures, and the positions under `kept.npy`."""
    pool, icons = open_pool(folder / "pool"), Icons(IconsConfig(targets=str(folder / "target_pool")))
    n, start, busy = int(pool.n * budget), time.perf_counter(), time.process_time()
    features = {name: read_columns(folder / name) for name in ("gradients", "targets")}
    scores = icons.score(pool, features)
    scored = time.perf_counter()
    kept = checked(icons.select(pool, scores, features, n, SEED), pool, n, "icons")
    end = time.perf_counter()
    np.save(folder / "kept.npy", kept)
    size = (folder / "gradients/gradient.npy").stat().st_size / 1e9
    return {
        "gb": round(size, 2),
        "seconds": round(end - start, 3),
        "score_s": round(scored - start, 3),
        "select_s": round(end - scored, 3),
        "cpu_s": round(time.process_time() - busy, 3),
        "read_gb_s": round(size / (scored - start), 3),
        "peak_rss_gb": round(peak_mb() / 1024, 3),
    }


def in_own_process(folder: Path, budget: float) -> dict[str, Any]:
    asked = [sys.executable, "-m", "tests.bench.icons_scale", "--budget", str(budget), "--run", str(folder)]
    done = subprocess.run(asked, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def plain_read(file: Path) -> float:
    """Seconds to read a file from end to end."""
    start = time.perf_counter()
    with file.open("rb", buffering=0) as f:
        while f.read(2**24):
            pass
    return round(time.perf_counter() - start, 3)


def against_reference(folder: Path, n: int, width: int, budget: float) -> dict[str, Any]:
    """Both on a pool of n samples."""
    prepare(folder, n, width)
    ours = in_own_process(folder, budget)
    pool, target_pool = open_pool(folder / "pool"), open_pool(folder / "target_pool")
    rows, targets = (np.load(folder / name / "gradient.npy").astype(float) for name in ("gradients", "targets"))
    start = time.perf_counter()
    found = plain.influences(rows.tolist(), targets.tolist(), target_pool.sources().tolist())
    kept = int(n * budget)
    # To the precision influences are kept in, or equal ones would differ in their last bits.
    told = np.array([found[name] for name in sorted(found)]).astype(np.float32)
    counted = plain.votes(told.tolist(), 100 * kept / n)
    ties = np.argsort(np.argsort(mix64(pool.column("uid_hash64"), SEED), kind="stable"), kind="stable")
    wanted = set(plain.keep(counted, ties.tolist(), kept))
    return {
        "reference_seconds": round(time.perf_counter() - start, 3),
        "reference_n": n,
        "reference_ours_seconds": ours["seconds"],
        "equal": wanted == set(np.load(folder / "kept.npy").tolist()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=2_600_000)
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--folder", help="where to put the gradients for the time of the run")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.run:
        print(json.dumps(run(asked.run, asked.budget)))
        return
    root = Path(tempfile.mkdtemp(prefix="icons_scale-", dir=asked.folder))
    try:
        needed, free = asked.n * asked.width * 2, shutil.disk_usage(root).free
        if needed > 0.9 * free:
            raise SystemExit(f"{needed / 1e9:.1f} GB of gradients do not fit into {free / 1e9:.1f} GB: give --n.")
        figures: dict[str, Any] = {"selector": "icons", "n": asked.n, "width": asked.width}
        figures |= {"tasks": TASKS, "budget": asked.budget}
        figures |= against_reference(root / "small", 1000, 256, asked.budget)
        prepare(root / "large", asked.n, asked.width)
        figures["plain_read_s"] = plain_read(root / "large/gradients/gradient.npy")
        figures |= in_own_process(root / "large", asked.budget)
    finally:
        shutil.rmtree(root)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
