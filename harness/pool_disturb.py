"""A pool with more in it than there was: copies, wrong answers and pictures of something else, added on purpose.

Selection should not fall for them: DataTailor (arXiv 2412.06293, Table 4) adds as many redundant or noisy samples
as there are sound ones. How it made them is not published; the three defects here are our reading.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import HarnessError
from harness.keys import seed64, seeded_order, uid_hash64
from harness.pool import Pool
from harness.pool_check import Rejected
from harness.pool_export import llava
from harness.pool_fill import Sample, fill
from harness.pool_places import ImageFolder, Place
from harness.pool_write import PoolWriter
from harness.types import Budget

Defect = Literal["duplicate", "wrong", "off_topic"]
DEFECTS: Final[tuple[Defect, ...]] = get_args(Defect)
"""The same sample again, with another sample's answers, or with another sample's pictures."""

LOOK: Final = 1000
"""Samples looked at for one whose answers or pictures differ."""

Ints = npt.NDArray[np.int64]
Pairs = Iterator[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DisturbOptions:
    """How to disturb; nothing here but `seed` and `name` changes the result."""

    seed: int = 0
    name: str = ""
    """Name of the new pool; that of its folder where empty."""
    workers: int = 1
    progress: Callable[[int], None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """One sample that is added: what is wrong with it, and the positions it is made of."""

    uid: str
    """Says nothing of the defect."""
    defect: Defect
    original: int
    donor: int
    """Where its answers or pictures are from."""


def disturb_pool(pool: Pool, out: Path, amounts: Mapping[Defect, Budget], options: DisturbOptions) -> Pool:
    """Write all samples of a pool and some more, by defect so many of the pool's number, to a new pool.

    Beside it lies `NAME.truth.parquet` (uid, source, defect or nothing, uid it was made of), which no selector
    may read. All uids are new, and so are the keys of images that are no files; the new pool is in random order.
    Samples are drawn by hashes of uids, so 5 % is part of 10 %. Raises HarnessError where the pool has not enough
    samples for a defect.
    """
    if not amounts:
        raise HarnessError(f"nothing to add to {pool.path}: say how much of {', '.join(DEFECTS)}.")
    added = [
        one for defect in DEFECTS if defect in amounts for one in draw(pool, defect, amounts[defect], options.seed)
    ]
    kept = Path(pool.image_root) if pool.has_files else None
    folder = ImageFolder(kept) if kept is not None else None
    writer = PoolWriter(out, options.name or out.name, image_root=kept)
    samples = _mixed(pool, added, options.seed)
    with writer:
        fill(writer, samples, folder.place if folder else _inside, max(1, options.workers), options.progress)
        if writer.rejects:
            raise HarnessError(
                f"{sum(writer.rejects.values())} samples of pool {pool.path} cannot be used any more "
                f"({', '.join(writer.rejects)}): 'sievebench pool verify' says which."
            )
        _write_truth(pool, added, options.seed, out)
    return writer.pool()


def truth_file(out: Path) -> Path:
    """Where the truth about a disturbed pool lies."""
    return out.with_name(f"{out.name}.truth.parquet")


def draw(pool: Pool, defect: Defect, amount: Budget, seed: int) -> list[Added]:
    """The samples of one defect that are added.

    Raises HarnessError where the pool has fewer that can have it.
    """
    n = amount.size(pool.n)
    rank = seeded_order(pool.column("uid_hash64"), seed64("disturb", defect, seed))
    pairs = list(itertools.islice(_PAIRS[defect](pool, rank), n))
    if len(pairs) < n:
        raise HarnessError(
            f"{len(pairs)} samples of pool {pool.path} can be made {defect}, and {amount} of {pool.n} are {n}: "
            "ask for fewer."
        )
    return [
        Added(uid=_uid(defect, seed, pool.record(i).uid), defect=defect, original=i, donor=j) for i, j in pairs
    ]


def _uid(defect: Defect | Literal[""], seed: int, uid: str) -> str:
    """A sample's uid in the new pool: of one form, whether it was there before (no defect) or is added."""
    return hashlib.blake2b(f"{defect} {seed} {uid}".encode(), digest_size=8).hexdigest()


def _duplicates(pool: Pool, rank: Ints) -> Pairs:
    return ((int(i), int(i)) for i in rank)


def _wrong(pool: Pool, rank: Ints) -> Pairs:
    """Answers of a sample with as many turns, of the same source if there is one, all of them different."""

    def differ(i: int, j: int) -> bool:
        return not set(enumerate(_answers(pool, i))) & set(enumerate(_answers(pool, j)))

    return _paired(rank, pool.column("n_turns"), pool.column("source_id"), differ)


def _off_topic(pool: Pool, rank: Ints) -> Pairs:
    """Pictures of a sample with as many of them, of any source."""
    counts, contents = pool.column("n_images"), pool.column("image_hash64")
    return _paired(rank[counts[rank] > 0], counts, counts, lambda i, j: bool(contents[i] != contents[j]))


_PAIRS: Final[Mapping[Defect, Callable[[Pool, Ints], Pairs]]] = {
    "duplicate": _duplicates,
    "wrong": _wrong,
    "off_topic": _off_topic,
}


def _answers(pool: Pool, position: int) -> list[str]:
    return [text.strip().casefold() for role, text in pool.record(position).conversations if role == "gpt"]


def _paired(rank: Ints, group: Any, near: Any, differ: Callable[[int, int], bool]) -> Pairs:
    """Positions in the order of `rank`, each with the next of its group, around a circle, that differs from it.

    In the circle those alike in `near` stand together; `near` and `group` have shape (pool,). A position without
    such a partner is left out.
    """
    circle = rank[np.lexsort((np.arange(len(rank)), near[rank], group[rank]))]
    _, start, size = np.unique(group[circle], return_index=True, return_counts=True)
    place = np.empty(len(group), dtype=np.int64)
    place[circle] = np.arange(len(circle))
    for position in rank:
        at = int(place[position])
        own = int(np.searchsorted(start, at, side="right")) - 1
        first, many = int(start[own]), int(size[own])
        others = (int(circle[first + (at - first + k) % many]) for k in range(1, min(many, LOOK)))
        partner = next((other for other in others if differ(int(position), other)), None)
        if partner is not None:
            yield int(position), partner


def _new_uids(pool: Pool, added: list[Added], seed: int) -> list[str]:
    """Uids of the samples that were there, in pool order, then of those added."""
    return [*(_uid("", seed, uid) for uid in pool.uids()), *(one.uid for one in added)]


def _mixed(pool: Pool, added: list[Added], seed: int) -> Iterator[Sample]:
    """All samples of the new pool in its order."""
    uids = _new_uids(pool, added, seed)
    hashes = np.array([uid_hash64(uid) for uid in uids], dtype=np.uint64)
    for at in seeded_order(hashes, seed64("disturb order", seed)):
        raw = llava(pool.record(int(at))) if at < pool.n else spoilt(pool, added[at - pool.n])
        raw["id"] = uids[at]
        yield Sample(raw, "", {} if pool.has_files else _renamed(pool, raw))


def _renamed(pool: Pool, raw: dict[str, Any]) -> dict[str, bytes]:
    """Give a sample's images keys made of their content; returns their bytes by key.

    A key such as `charts/7.png` would show that it is not of the sample's own source.
    """
    images = [(key, pool.image_bytes(key)) for key in _keys(raw)]
    named = [(hashlib.sha256(data).hexdigest()[:32] + PurePosixPath(key).suffix, data) for key, data in images]
    if named:
        raw["image"] = [key for key, _ in named]
    return dict(named)


def spoilt(pool: Pool, one: Added) -> dict[str, Any]:
    """An added sample in LLaVA's format."""
    raw, donor = llava(pool.record(one.original)), llava(pool.record(one.donor))
    if one.defect == "off_topic":
        raw["image"] = donor["image"]
    if one.defect == "wrong":
        for turn, other in zip(raw["conversations"], donor["conversations"], strict=True):
            if turn["from"] == "gpt":
                turn["value"] = other["value"]
    return raw


def _keys(raw: Mapping[str, Any]) -> list[str]:
    image = raw.get("image", [])
    return list(image) if isinstance(image, list) else [image]


def _inside(key: str) -> Place | Rejected:
    return Rejected("missing_image", key)


def _write_truth(pool: Pool, added: list[Added], seed: int, out: Path) -> None:
    """One row a sample of the new pool, those that were there first."""
    old, sources = pool.uids(), pool.sources().tolist()
    columns = {
        "uid": _new_uids(pool, added, seed),
        "source": [*sources, *(sources[one.original] for one in added)],
        "defect": [*([""] * pool.n), *(one.defect for one in added)],
        "original": [*old, *(old[one.original] for one in added)],
    }
    file = truth_file(out)
    tmp = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    pq.write_table(pa.table(columns), tmp)
    os.replace(tmp, file)
