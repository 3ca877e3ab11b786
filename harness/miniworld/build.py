"""Pools on disk: made once, whole or not at all, safe to ask for from several processes at once."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from harness.errors import HarnessError
from harness.files import private
from harness.keys import seed64
from harness.miniworld import teachers
from harness.miniworld.defects import SHARES, repeat, spoil
from harness.miniworld.render import picture, width_of
from harness.miniworld.sources import SOURCES, Sample, draw_sample, quotas
from harness.pool import IMAGE_TOKEN
from harness.pool_write import PoolWriter

VERSION: Final = 7
"""Raised when the same size and seed would give another pool."""


def ensure_pool(n: int = 8000, seed: int = 0, root: Path = Path("runs/miniworld")) -> Path:
    """The folder of the miniworld pool of `n` samples, generated where it is not there yet.

    Beside it lies `teachers.parquet` (capability scores and styles by uid, as labels for a scorer of one's own);
    what is wrong with each uid lies elsewhere, see `truth_file`. Raises HarnessError for fewer than 10 samples.
    """
    if n < len(SOURCES):
        raise HarnessError(f"pool.miniworld={n}: a miniworld has at least {len(SOURCES)} samples, one a source.")
    name = f"miniworld-{n}-s{seed}-v{VERSION}"
    return make_once(root / name, lambda tmp: _write(n, seed, name, tmp)) / "pool"


def truth_file(pool: Path) -> Path:
    """The hidden table of a miniworld pool: uid, source, defect, original, skills and styles.

    It is for the analysis of what selectors keep, and lies in a folder apart from everything they are given.
    """
    return pool.parent.parent / "truth" / f"{pool.parent.name}.parquet"


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Run `make` on a private folder and move it to `folder`, unless `folder` is there already.

    Where two processes make it at once the first to finish wins; both get the same content.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    tmp = private(folder)
    try:
        tmp.mkdir()
        make(tmp)
        try:
            tmp.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return folder


def draw_pool(n: int, seed: int) -> list[Sample]:
    """The `n` samples of a pool before they are mixed; the same arguments give the same samples."""
    samples: list[Sample] = []
    copies: list[int] = []
    for source, size in quotas(n).items():
        for i in range(size):
            rng = Random(seed64("miniworld", VERSION, seed, source, i))
            sample = draw_sample(source, i, rng)
            defect = rng.choices(list(SHARES), list(SHARES.values()))[0]
            if defect == "duplicate" and sample.shown is not None:  # or a small world could lose the last without
                copies.append(len(samples))
            samples.append(spoil(sample, defect, rng) if defect in ("wrong", "off_topic") else sample)
    repeat(samples, copies, Random(seed64("miniworld copies", VERSION, seed)))
    return samples


def uid_of(seed: int, place: int) -> str:
    """A uid that says nothing about its sample."""
    return hashlib.blake2b(f"miniworld {VERSION} {seed} {place}".encode(), digest_size=6).hexdigest()


def _write(n: int, seed: int, name: str, out: Path) -> None:
    samples = draw_pool(n, seed)
    uids = [uid_of(seed, i) for i in range(n)]
    with PoolWriter(out / "pool", name) as writer:
        for i in sorted(range(n), key=uids.__getitem__):
            writer.add(record(samples[i], uids[i]), functools.partial(_picture, samples[i]))
    truth = [_truth(s, uid, uids) for s, uid in zip(samples, uids, strict=True)]
    labels = [_labels(s, uid) for s, uid in zip(samples, uids, strict=True)]
    pq.write_table(pa.Table.from_pylist(labels), out / "teachers.parquet")
    _hide(pa.Table.from_pylist(truth), truth_file(out.with_name(name) / "pool"))


def _hide(truth: pa.Table, file: Path) -> None:
    """Write the truth table whole or not at all; it is there before its pool is."""
    file.parent.mkdir(exist_ok=True)
    tmp = private(file)
    pq.write_table(truth, tmp)
    tmp.replace(file)


def record(sample: Sample, uid: str) -> dict[str, Any]:
    """A sample in LLaVA's format."""
    image = {"image": f"{sample.source}/{uid}.bmp"} if sample.shown is not None else {}
    turns: list[dict[str, str]] = []
    for i, turn in enumerate(sample.turns):
        head = f"{IMAGE_TOKEN}\n" if image and i == 0 else ""
        turns += [{"from": "human", "value": head + turn.text}, {"from": "gpt", "value": turn.answer}]
    return {"id": uid, "data_source": sample.source, **image, "conversations": turns}


def _picture(sample: Sample, key: str) -> bytes:
    """The bytes of the picture a sample shows."""
    drawn = draw_picture(sample)
    if drawn is None:
        raise KeyError(key)
    return drawn[1]


def draw_picture(sample: Sample) -> tuple[Image.Image, bytes] | None:
    """The picture a sample shows, if it does, and its bytes: as wide as one of what the questions are about."""
    if sample.shown is None:
        return None
    width = width_of(sample.scene) if sample.scene else 0
    return picture(sample.shown, Random(sample.render_seed), "pool", width)


def _truth(sample: Sample, uid: str, uids: list[str]) -> dict[str, Any]:
    return {
        "uid": uid,
        "source": sample.source,
        "defect": sample.defect,
        "original": uids[sample.original] if sample.original >= 0 else "",
        "skills": ", ".join(dict.fromkeys(t.skill for t in sample.turns)),
        "styles": ", ".join(teachers.styles(sample)),
    }


def _labels(sample: Sample, uid: str) -> dict[str, Any]:
    return {"uid": uid, "styles": ", ".join(teachers.styles(sample)), **teachers.scores(sample)}
