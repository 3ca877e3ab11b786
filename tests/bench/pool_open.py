"""What millions of samples cost: importing them, opening them, and reading some of them.

`python -m tests.bench.pool_open --n 2600000` writes a LLaVA JSON of generated records (a tenth as many small
pictures in one tar file, four of five records with one of them), imports it, and opens the pool in a process of
its own. The last line is one JSON object:

`records`, `images`
`import_s`, `import_rss_mb`   importing, pictures checked; peak memory of the importing process
`open_s`, `open_cpu_s`, `rss_mb`  opening the pool, reading one numeric column and 1,000 random records
`json_load_s`, `json_rss_mb`  json.load of the same records and picking the same 1,000
`json_measured_records`       how many of them that was measured on: all, or what memory holds, and both figures
                              are scaled up from there
`ratio`                       json_load_s / open_s
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PICKED = 1000
JSON_RECORD = 4096
"""Bytes of memory a loaded record is allowed for: some 3,200 are used."""


def records(n: int, images: int) -> Iterator[dict[str, Any]]:
    """Conversations of one to three exchanges, 44 words each."""
    rng = random.Random(0)
    words = [
        f"{a}{b}" for a in ("ba", "ke", "li", "mo", "nu", "ra") for b in ("chart", "tile", "word", "s", "ing")
    ]
    # Texts are drawn from a few thousand: composing each anew would take longer than importing it.
    questions = [" ".join(rng.choices(words, k=12)) + "?" for _ in range(4096)]
    answers = [" ".join(rng.choices(words, k=32)) + "." for _ in range(4096)]
    for i in range(n):
        said = []
        for turn in range(1 + i % 3):
            head = "<image>\n" if turn == 0 and i % 5 else ""
            said.append({"from": "human", "value": head + rng.choice(questions)})
            said.append({"from": "gpt", "value": rng.choice(answers)})
        image = {"image": f"set{i % 9}/{rng.randrange(images):08d}.png"} if i % 5 else {}
        yield {"id": f"sample_{i:08d}", **image, "data_source": f"source_{i % 90}", "conversations": said}


def write_images(path: Path, n: int) -> None:
    """A tar file of n different pictures, under every folder name the records use."""
    from PIL import Image

    with tarfile.open(path, "w") as tar:
        for i in range(n):
            out = io.BytesIO()
            Image.new("RGB", (8, 8), (i % 256, i // 256 % 256, i // 65536)).save(out, format="png")
            for folder in range(9):
                info = tarfile.TarInfo(f"set{folder}/{i:08d}.png")
                info.size = out.tell()
                tar.addfile(info, io.BytesIO(out.getvalue()))
            tar.members = []  # type: ignore[attr-defined]


def peak_mb() -> float:
    """The most memory this process has had, in MB."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def run_import(folder: Path) -> dict[str, float]:
    from harness.pool_import import import_llava_json

    start = time.perf_counter()
    report = import_llava_json(folder / "data.json", folder / "images.tar", folder / "pool")
    assert not report.rejects, report.rejects
    return {"import_s": time.perf_counter() - start, "import_rss_mb": peak_mb()}


def run_open(folder: Path) -> dict[str, float]:
    from harness.pool import open_pool

    picks = np.random.default_rng(0).random(PICKED)
    start, used = time.perf_counter(), time.process_time()
    pool = open_pool(folder / "pool")
    total = int(pool.column("n_words").sum())
    chosen = [pool.record(int(p * pool.n)) for p in picks]
    seconds, used = time.perf_counter() - start, time.process_time() - used
    assert total > 0
    assert len(chosen) == PICKED
    return {"open_s": seconds, "open_cpu_s": used, "rss_mb": peak_mb()}


def run_json(folder: Path) -> dict[str, float]:
    before = peak_mb()
    picks = np.random.default_rng(0).random(PICKED)
    start = time.perf_counter()
    with (folder / "data.json").open(encoding="utf-8") as f:
        loaded = json.load(f)
    chosen = [loaded[int(p * len(loaded))] for p in picks]
    assert len(chosen) == PICKED
    return {"json_load_s": time.perf_counter() - start, "json_before_mb": before, "json_rss_mb": peak_mb()}


RUNS = {"import": run_import, "open": run_open, "json": run_json}


def apart(name: str, folder: Path) -> dict[str, float]:
    """One of the runs in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.pool_open", "--run", name, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def json_share(n: int) -> int:
    """How many of n records json.load is given: all of them, or what half of the free memory holds."""
    free = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")
    )
    return min(n, int(free.split()[1]) * 1024 // 2 // JSON_RECORD)


def write_list(path: Path, items: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as f:
        for i, item in enumerate(items):
            f.write(("[" if i == 0 else ",\n") + json.dumps(item))
        f.write("]")


def measure(n: int, folder: Path) -> dict[str, float]:
    """All figures, for n records."""
    images, part = max(1, n // 90), json_share(n)
    write_images(folder / "images.tar", images)
    write_list(folder / "data.json", records(n, images))
    figures = {"records": n, "images": 9 * images, **apart("import", folder), **apart("open", folder)}
    if part < n:
        write_list(folder / "data.json", itertools.islice(records(n, images), part))
    loaded = apart("json", folder)
    base = loaded["json_before_mb"]
    figures["json_measured_records"] = part
    figures["json_load_s"] = loaded["json_load_s"] * n / part
    figures["json_rss_mb"] = base + (loaded["json_rss_mb"] - base) * n / part
    return figures | {"ratio": figures["json_load_s"] / figures["open_s"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--run", choices=RUNS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(RUNS[options.run](options.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.n, Path(folder))
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
