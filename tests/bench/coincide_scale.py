"""What COINCIDE costs at scale: k-means on a part, assignment of every sample, kernels and greedy order, budgets.

`python -m tests.bench.coincide_scale --n 2600000 --dimensions 512 --clusters 10000` writes features of so many
samples (float16, unit length, in loose groups), then scores and selects in a process of its own, features
memory-mapped as they are in a run. A plain reading of the method chooses from a smaller pool as well. The last
line is one JSON object:

`selector`, `n`, `dimensions`, `clusters`, `fit_per_cluster`, `iterations`, `budget`, `device`
`seconds`, `cpu_s`, `peak_rss_gb`   scoring and selecting; processor time; most memory, mapped pages included
`kmeans_s`, `inside_s`, `select_s`  clustering with the assignment; kernels and greedy order; one budget; processor
                                    time on a CPU, where the clock tells how busy the machine was
`reference_seconds`, `reference_n`, `reference_ours_seconds`, `equal`   the plain reading, and ours, on less
`large_n`, `large_dimensions`, `large_density_s`, `large_order_s`   one cluster whose kernel is not kept: its
                                    density and greedy order, in processor time
`projected_seconds_20480`   scoring 2.6 million samples of 20,480 numbers with 10,000 clusters and 50 iterations on
                            all of them, of one core or of the GPU: clustering in proportion to products, the rest
                            to pairs within clusters
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from selector_zoo import coincide
from selector_zoo.coincide import Coincide, CoincideConfig
from selector_zoo.mmd import Kernel, greedy_order

from harness.keys import mix64
from harness.pool import open_pool
from harness.stages.features import read_columns
from harness.stages.select import checked
from tests import coincide_reference as plain
from tests.bench.pool_open import peak_mb
from tests.bench.select_scale import write_pool

LARGE = {"n": 8_100, "dimensions": 2_048}
PAPER = {"n": 2_600_000, "dimensions": 20_480, "clusters": 10_000, "iterations": 50}
GROUPS = 500
BLOCK = 16_384


def prepare(folder: Path, n: int, dimensions: int, groups: int) -> None:
    """Write a pool without texts and its activations: rows round some directions, a few copies, a few failures."""
    rng = np.random.default_rng(0)
    write_pool(folder / "pool", n, rng)
    (folder / "activations").mkdir()
    directions = rng.normal(size=(groups, dimensions)).astype(np.float32)
    out = open_memmap(folder / "activations" / "feature.npy", mode="w+", dtype=np.float16, shape=(n, dimensions))
    for at in range(0, n, BLOCK):
        size = min(BLOCK, n - at)
        rows = directions[rng.integers(0, groups, size)]
        rows += 0.8 * rng.standard_normal(rows.shape, dtype=np.float32)
        rows[1::50] = rows[::50][: len(rows[1::50])]
        out[at : at + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n_text = rng.integers(1, 200, n, dtype=np.int32)
    n_text[rng.random(n) < 0.001] = -1
    np.save(folder / "activations" / "n_text.npy", n_text)


def run(folder: Path, config: CoincideConfig, budget: float) -> dict[str, Any]:
    """Score and select once; figures, and what was kept and how it was clustered under `kept.npz`."""
    import torch

    pool = open_pool(folder / "pool")
    features = {"activations": read_columns(folder / "activations")}
    chosen, kept_n = Coincide(config), int(pool.n * budget)
    gpu = torch.cuda.is_available()
    clock = time.perf_counter if gpu else time.process_time
    cluster, clustering, found = coincide.spherical_kmeans, list[float](), list[Any]()

    def timed(*args: Any, **settings: Any) -> Any:
        begun = clock()
        found.append(cluster(*args, **settings))
        clustering.append(clock() - begun)
        return found[0]

    coincide.spherical_kmeans = timed
    wall, used, start = time.perf_counter(), time.process_time(), clock()
    scores = chosen.score(pool, features)
    scored = clock()
    selection = chosen.select(pool, scores, features, kept_n, 0)
    end, used, wall = clock(), time.process_time() - used, time.perf_counter() - wall
    kept = checked(selection, pool, kept_n, "coincide")
    np.savez(folder / "kept.npz", kept=kept, labels=found[0].labels, centroids=found[0].centroids)
    return {
        "seconds": wall,
        "cpu_s": used,
        "peak_rss_gb": peak_mb() / 1024,
        "kmeans_s": clustering[0],
        "inside_s": scored - start - clustering[0],
        "select_s": end - scored,
        "pairs": float((found[0].sizes.astype(float) ** 2).sum()),
        "device": "cuda" if gpu else "cpu",
    }


def in_own_process(folder: Path, config: CoincideConfig, budget: float) -> dict[str, Any]:
    asked = ["--clusters", config.clusters, "--fit", config.fit_per_cluster, "--iterations", config.iterations]
    command = [sys.executable, "-m", "tests.bench.coincide_scale", "--run", folder, "--budget", budget, *asked]
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def against_reference(folder: Path, n: int, dimensions: int, budget: float) -> dict[str, Any]:
    """Both on a pool of n samples, and whether clusters, centroids and choices are the same."""
    groups = max(2, n // 60)
    config = CoincideConfig(clusters=groups, iterations=5)
    prepare(folder, n, dimensions, groups)
    ours = in_own_process(folder, config, budget)
    with np.load(folder / "kept.npz") as file:
        kept, labels, centroids = file["kept"], file["labels"], file["centroids"]
    pool, columns = open_pool(folder / "pool"), read_columns(folder / "activations")
    start = time.perf_counter()
    ties = mix64(pool.column("uid_hash64"), config.clustering_seed)
    valid = [i for i in np.argsort(ties, kind="stable").tolist() if columns["n_text"][i] >= 0]
    rows = np.asarray(columns["feature"])[valid]
    wanted_labels, wanted_centroids = plain.kmeans(rows, range(len(valid)), groups, config.iterations)
    rank = range(len(valid))
    wanted = plain.keep(rows, wanted_labels, wanted_centroids, rank, int(n * budget))
    seconds = time.perf_counter() - start
    same = labels[valid].tolist() == wanted_labels and np.allclose(centroids, wanted_centroids, rtol=0, atol=1e-6)
    return {
        "reference_seconds": round(seconds, 3),
        "reference_n": n,
        "reference_ours_seconds": round(ours["seconds"], 3),
        "equal": bool(same and {valid[i] for i in wanted} == set(kept.tolist())),
    }


def large_cluster(n: int, dimensions: int) -> dict[str, Any]:
    """Seconds of processor time for one cluster of n members, a few of them copies."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=dimensions) + 0.8 * rng.normal(size=(n, dimensions))
    rows[1::50] = rows[::50][: len(rows[1::50])]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kernel = Kernel.of(rows.astype(np.float16), 1.0, kept=0)
    start = time.process_time()
    means = kernel.row_means()
    dense = time.process_time()
    place = greedy_order(kernel, means)
    end = time.process_time()
    assert np.array_equal(np.sort(place), np.arange(n))
    return {
        "large_n": n,
        "large_dimensions": dimensions,
        "large_density_s": round(dense - start, 3),
        "large_order_s": round(end - dense, 3),
    }


def projected(n: int, dimensions: int, config: CoincideConfig, figures: dict[str, Any]) -> float:
    """Seconds of scoring at the size of the paper's features, on the same machine."""
    fitted = min(n, config.clusters * config.fit_per_cluster)
    products = float(config.clusters) * dimensions * (config.iterations * fitted + n)
    paper = float(PAPER["clusters"]) * PAPER["dimensions"] * (PAPER["iterations"] + 1) * PAPER["n"]
    pairs = figures["pairs"] * dimensions
    paper_pairs = float(PAPER["n"]) ** 2 / PAPER["clusters"] * PAPER["dimensions"]
    return float(figures["kmeans_s"] * paper / products + figures["inside_s"] * paper_pairs / pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=PAPER["n"])
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=PAPER["clusters"])
    parser.add_argument("--fit", type=int, default=4, help="samples a cluster that k-means runs on")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--reference-n", type=int, default=1000)
    parser.add_argument("--large-n", type=int, default=LARGE["n"], help="samples in one cluster timed by itself")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    config = CoincideConfig(clusters=asked.clusters, fit_per_cluster=asked.fit, iterations=asked.iterations)
    if asked.run:
        print(json.dumps(run(asked.run, config, asked.budget)))
        return
    with tempfile.TemporaryDirectory(prefix="coincide_scale-") as root:
        large = Path(root, "large")
        large.mkdir()
        prepare(large, asked.n, asked.dimensions, GROUPS)
        measured = in_own_process(large, config, asked.budget)
        small = Path(root, "small")
        small.mkdir()
        compared = against_reference(small, asked.reference_n, min(asked.dimensions, 64), asked.budget)
    figures: dict[str, Any] = {"selector": "coincide", "n": asked.n, "dimensions": asked.dimensions}
    figures |= {"clusters": asked.clusters, "fit_per_cluster": asked.fit, "iterations": asked.iterations}
    figures |= {"budget": asked.budget}
    figures |= {k: round(v, 3) if isinstance(v, float) else v for k, v in measured.items() if k != "pairs"}
    figures |= compared | large_cluster(asked.large_n, LARGE["dimensions"])
    figures["projected_seconds_20480"] = round(projected(asked.n, asked.dimensions, config, measured))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
