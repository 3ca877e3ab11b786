"""What selecting from millions of samples costs, on columns of the real shapes and types.

`python -m tests.bench.select_scale --selector mmssr --n 2600000` writes a pool without texts and the columns the
selector asks for, then scores and selects in a process of its own, columns memory-mapped as they are in a run. A
plain reading of the algorithm chooses from a smaller pool as well. The last line is one JSON object:

`selector`, `n`, `budget`
`seconds`, `peak_rss_gb`    scoring and selecting; most memory of the process, mapped pages included
`score_s`, `select_s`       its parts
`cpu_s`, `start_rss_gb`     processor time of both; memory before them
`reference_seconds`, `reference_n`     the plain reading
`reference_ours_seconds`    ours on the same smaller pool
`equal`                     both kept the same samples of it
`projected_cpu_s_2600000`   where time grows faster than the pool: `a n + b n^2`, through `cpu_s` at n and
                            `cpu_s_half` at n / 2, taken to 2.6 million; no measurement

A selector joins by an entry in CASES, or by a benchmark of its own with these figures in DELEGATED.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from harness.keys import mix64, seed64
from harness.pool import FORMAT, Pool, open_pool
from harness.pool_rows import META_SCHEMA, TEXT_SCHEMA
from harness.pool_write import ROW_GROUP, TEXT_BATCH
from harness.registry import configured, selector
from harness.stages.features import read_columns
from harness.stages.select import checked
from tests import selector_references as plain
from tests.bench.pool_open import peak_mb

Columns = dict[str, npt.NDArray[Any]]
SOURCES = 90
SEED = 3
EMBEDDING = 3584
FULL = 2_600_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """How to try one selector."""

    columns: Callable[[int, np.random.Generator], Mapping[str, Columns]]
    """Columns for n samples by the label of their pass."""
    reference: Callable[[Pool, Mapping[str, Columns], npt.NDArray[Any], int], set[int]]
    """The positions a plain reading keeps, given pool, columns, scores and budget."""
    reference_n: int = 20_000
    config: Mapping[str, Any] = field(default_factory=dict)
    n: int = FULL
    """Samples where no --n is given."""
    quadratic: bool = False
    """Every sample may be compared with every other."""


def ties(pool: Pool, seed: int = SEED) -> list[int]:
    rank = np.empty(pool.n, dtype=np.int64)
    rank[np.argsort(mix64(pool.column("uid_hash64"), seed), kind="stable")] = np.arange(pool.n)
    return list(rank.tolist())


def no_columns(n: int, rng: np.random.Generator) -> Mapping[str, Columns]:
    """The selector looks at uids alone."""
    return {}


def forward_columns(n: int, rng: np.random.Generator) -> Mapping[str, Columns]:
    """Losses of answers of 1 to 200 tokens, many alike, one in a thousand without a token."""
    counts = rng.integers(1, 200, n, dtype=np.int32)
    counts[rng.random(n) < 0.001] = 0
    mean = np.round(rng.gamma(2.0, 0.5, n), 2)
    return {"forward": {"n_tok_ans": counts, "nll_sum_ans": (mean * counts).astype(np.float32)}}


def clip_columns(n: int, rng: np.random.Generator) -> Mapping[str, Columns]:
    """Cosines round 0.25, one in ten missing (text-only)."""
    cosine = rng.normal(0.25, 0.05, n).astype(np.float32)
    cosine[rng.random(n) < 0.1] = np.nan
    return {"clip": {"cosine": cosine}}


def e5v_columns(n: int, rng: np.random.Generator) -> Mapping[str, Columns]:
    """Cosines as those of CLIP: the selector reads nothing else."""
    return {"e5v": clip_columns(n, rng)["clip"]}


def mmssr_columns(n: int, rng: np.random.Generator) -> Mapping[str, Columns]:
    """Whole scores, half of them 0 and one in a thousand unknown; one to three of nine unequal styles."""
    scores = rng.choice(6, (n, 14), p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]).astype(np.float32)
    scores[rng.random(n) < 0.001] = np.nan
    share = np.array([0.3, 0.02, 0.1, 0.3, 0.1, 0.1, 0.03, 0.04, 0.01])
    said = rng.choice(9, (n, 3), p=share).astype(np.int8)
    said[rng.random(n) < 0.6, 1] = -1
    said[(said[:, 1] < 0) | (said[:, 1] == said[:, 0]), 1:] = -1
    said[(said[:, 2] == said[:, 0]) | (said[:, 2] == said[:, 1]), 2] = -1
    styles = np.full((n, 10), -1, dtype=np.int8)
    styles[:, :3] = said
    return {"scores": {"scores": scores}, "styles": {"styles": styles}}


def deita_columns(n: int, rng: np.random.Generator) -> Mapping[str, Columns]:
    """Grades of one turn, and embeddings of 3,584 numbers: groups of some ten that are nearly the same."""
    turns = rng.uniform(1, 6, (2, n, 1)).astype(np.float32)
    centre = rng.normal(size=(n // 10 + 1, EMBEDDING)).astype(np.float16)
    hidden = np.empty((n, EMBEDDING), dtype=np.float16)
    for at in range(0, n, 4096):
        group = rng.integers(0, len(centre), min(4096, n - at))
        hidden[at : at + 4096] = centre[group] + 0.3 * rng.normal(size=(len(group), EMBEDDING))
    grades = {part: {"turns": turns[i]} for i, part in enumerate(("complexity", "quality"))}
    return {**grades, "embedding": {"hidden": hidden}}


def by_diversity(pool: Pool, features: Mapping[str, Columns], score: npt.NDArray[Any], n: int) -> set[int]:
    return set(plain.diverse(score.tolist(), ties(pool), features["embedding"]["hidden"], n, 0.9))


def by_chance(pool: Pool, features: Mapping[str, Columns], score: npt.NDArray[Any], n: int) -> set[int]:
    return {i for i, rank in enumerate(ties(pool, seed64("random", SEED))) if rank < n}


def by_band(which: str) -> Callable[[Pool, Mapping[str, Columns], npt.NDArray[Any], int], set[int]]:
    return lambda pool, features, score, n: plain.band(score.tolist(), ties(pool), n, which)


def by_mmssr(pool: Pool, features: Mapping[str, Columns], score: npt.NDArray[Any], n: int) -> set[int]:
    from selector_zoo.mmssr import LABELS

    rows = zip(features["styles"]["styles"], pool.sources(), strict=True)
    labels = [[f"{LABELS[style]}+{source}" for style in said if style >= 0] for said, source in rows]
    return set(plain.mmssr(features["scores"]["scores"].T.tolist(), labels, ties(pool), n))


CASES: dict[str, Case] = {
    "clip_score": Case(columns=clip_columns, reference=by_band("top")),
    "deita": Case(columns=deita_columns, reference=by_diversity, reference_n=400, n=60_000, quadratic=True),
    "e5v": Case(columns=e5v_columns, reference=by_band("top")),
    "mmssr": Case(columns=mmssr_columns, reference=by_mmssr, reference_n=6_000),
    "ppl_mid": Case(columns=forward_columns, reference=by_band("middle")),
    "ppl_si": Case(columns=forward_columns, reference=by_band("middle")),
    "random": Case(columns=no_columns, reference=by_chance),
}
DELEGATED = {"coincide": "tests.bench.coincide_scale", "icons": "tests.bench.icons_scale"}
"""Selectors whose columns are too large for the page cache, or whose parts are worth figures of their own."""


def write_pool(path: Path, n: int, rng: np.random.Generator) -> Pool:
    """A pool of n records without turns or images, its sources of very unequal size."""
    path.mkdir(parents=True)
    source = np.minimum(rng.geometric(0.05, n) - 1, SOURCES - 1)
    first = {int(s): i for i, s in enumerate(dict.fromkeys(source.tolist()))}
    number = np.array([first.get(s, 0) for s in range(SOURCES)], dtype=np.int32)[source]
    zeros = np.zeros(n, dtype=np.int64)
    meta = {
        "idx": np.arange(n),
        "uid_hash64": rng.integers(0, 2**64, n, dtype=np.uint64),
        "source_id": number,
        "n_turns": zeros + 2,
    }
    arrays = [
        pa.array(meta.get(name, zeros)).cast(t)
        for name, t in zip(META_SCHEMA.names, META_SCHEMA.types, strict=True)
    ]
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=META_SCHEMA), path / "meta.parquet", row_group_size=ROW_GROUP
    )
    nothing = pa.array(np.zeros(n + 1, dtype=np.int32))
    texts = [
        pa.array(np.arange(n)).cast(pa.string()),
        pa.array([f"source_{s}" for s in range(SOURCES)]).take(pa.array(source)),
        pa.ListArray.from_arrays(nothing, pa.array([], TEXT_SCHEMA.field("conversations").type.value_type)),
        pa.ListArray.from_arrays(nothing, pa.array([], pa.string())),
    ]
    with pa.ipc.new_file(str(path / "text.arrow"), TEXT_SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(texts, schema=TEXT_SCHEMA), max_chunksize=TEXT_BATCH)
    head = {"format": FORMAT, "name": path.name, "digest": "0" * 64, "n": n, "image_root": ""}
    (path / "pool.json").write_text(json.dumps(head))
    return open_pool(path)


def prepare(folder: Path, case: Case, n: int) -> None:
    """Write pool and columns."""
    rng = np.random.default_rng(0)
    write_pool(folder / "pool", n, rng)
    for label, columns in case.columns(n, rng).items():
        (folder / label).mkdir()
        for name, values in columns.items():
            np.save(folder / label / f"{name}.npy", values)


def run(folder: Path, name: str, budget: float) -> dict[str, Any]:
    """Score and select once; figures, and the positions under `kept.npy`."""
    cls = selector(name).cls
    made = cls(configured(cls, CASES[name].config))
    pool = open_pool(folder / "pool")
    n = int(pool.n * budget)
    start_mb, used, start = peak_mb(), time.process_time(), time.perf_counter()
    features = {p.name: read_columns(p) for p in folder.iterdir() if p.is_dir() and p.name != "pool"}
    scores = made.score(pool, features) or {}
    scored = time.perf_counter()
    selection = made.select(pool, scores, features, n, SEED)
    end, used = time.perf_counter(), time.process_time() - used
    np.save(folder / "kept.npy", checked(selection, pool, n, name))
    np.save(folder / "score.npy", scores.get("score", np.zeros(0)))
    return {
        "seconds": round(end - start, 3),
        "score_s": round(scored - start, 3),
        "select_s": round(end - scored, 3),
        "cpu_s": round(used, 3),
        "peak_rss_gb": round(peak_mb() / 1024, 3),
        "start_rss_gb": round(start_mb / 1024, 3),
    }


def in_own_process(folder: Path, name: str, budget: float) -> dict[str, Any]:
    asked = [sys.executable, "-m", "tests.bench.select_scale", "--selector", name, "--budget", str(budget)]
    done = subprocess.run([*asked, "--run", str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def against_reference(folder: Path, name: str, n: int, budget: float) -> dict[str, Any]:
    """Both on a pool of n samples."""
    case = CASES[name]
    folder.mkdir()
    prepare(folder, case, n)
    ours = in_own_process(folder, name, budget)
    pool = open_pool(folder / "pool")
    features = {p.name: read_columns(p) for p in folder.iterdir() if p.is_dir() and p.name != "pool"}
    score = np.load(folder / "score.npy")
    start = time.perf_counter()
    wanted = case.reference(pool, features, score, int(n * budget))
    seconds = time.perf_counter() - start
    return {
        "reference_seconds": round(seconds, 3),
        "reference_n": n,
        "reference_ours_seconds": ours["seconds"],
        "equal": wanted == set(np.load(folder / "kept.npy").tolist()),
    }


def projected(folder: Path, name: str, n: int, cpu_s: float, budget: float) -> dict[str, Any]:
    """Processor time of half as many samples, and of 2.6 million by what both say of `a n + b n^2`."""
    folder.mkdir()
    prepare(folder, CASES[name], n // 2)
    half = in_own_process(folder, name, budget)["cpu_s"]
    square = max(0.0, 2 * (cpu_s - 2 * half) / n**2)
    line = cpu_s / n - square * n
    return {"cpu_s_half": half, "projected_cpu_s_2600000": round(line * FULL + square * FULL**2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--selector", required=True, choices=sorted({*CASES, *DELEGATED}))
    parser.add_argument("--n", type=int, default=0)
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(run(asked.run, asked.selector, asked.budget)))
        return
    if asked.selector in DELEGATED:
        sizes = ["--n", str(asked.n)] if asked.n else []
        importlib.import_module(DELEGATED[asked.selector]).main([*sizes, "--budget", str(asked.budget)])
        return
    case = CASES[asked.selector]
    n = asked.n or case.n
    with tempfile.TemporaryDirectory(prefix="select_scale-") as root:
        large = Path(root, "large")
        large.mkdir()
        prepare(large, case, n)
        figures = {"selector": asked.selector, "n": n, "budget": asked.budget}
        figures |= in_own_process(large, asked.selector, asked.budget)
        figures |= against_reference(Path(root, "small"), asked.selector, case.reference_n, asked.budget)
        if case.quadratic and n < FULL:
            figures |= projected(Path(root, "half"), asked.selector, n, figures["cpu_s"], asked.budget)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
