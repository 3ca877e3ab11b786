"""Near-duplicates: samples with the same words, and pictures that look the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from harness.pool import Pool, Record

if TYPE_CHECKING:
    from PIL.Image import Image

Bits = npt.NDArray[np.float32]
"""Hashes as 64 numbers each, -1 or 1, so that a product counts differences."""

DISTANCE: Final = 10
"""Differing bits of 64 up to which Krawetz takes two pictures for variations of one."""
SIDE: Final = 8
DRAWS: Final = 10
"""Random subsets that an expectation is the mean of."""
_AT_ONCE: Final = 512
"""Pictures hashed between two reports of progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Samples that were looked at: what they say, and how their pictures look where that could matter."""

    text: Mapping[int, bytes]
    """Digest of the words of each position."""
    pictures: Mapping[int, Bits] = field(default_factory=dict)
    """Hashes (pictures, 64) of a position whose words are not its alone; NaN for pictures that cannot be read."""


def dhash(image: Image) -> Bits:
    """Difference hash of a picture, float32 (64,), -1 or 1: does it get brighter from left to right?

    Krawetz, "Kind of Like That", 2013: eight differences in each of eight rows of the shrunk grey picture.
    Brightness, contrast, size and recompression hardly change it.
    """
    from PIL.Image import Resampling

    small = image.convert("L").resize((SIDE + 1, SIDE), Resampling.LANCZOS)
    grey = np.asarray(small, dtype=np.int16)
    return np.where(grey[:, 1:] > grey[:, :-1], 1, -1).astype(np.float32).ravel()


def text_digest(record: Record) -> bytes:
    """Digest of a sample's turns and its number of pictures; case and white space do not count."""
    turns = (f"{role}\0{' '.join(text.lower().split())}" for role, text in record.conversations)
    return hashlib.blake2b("\0\0".join([str(len(record.images)), *turns]).encode(), digest_size=16).digest()


def look(
    pool: Pool, records: Mapping[int, Record], workers: int = 1, progress: Callable[[int], None] = lambda _: None
) -> Looked:
    """Digest the words of samples, and hash the pictures of those whose words are not theirs alone.

    `progress` is told the number of samples whose pictures are done.
    """
    text = {position: text_digest(record) for position, record in records.items()}
    seen: dict[bytes, int] = {}
    for digest in text.values():
        seen[digest] = seen.get(digest, 0) + 1
    wanted = [p for p, digest in text.items() if seen[digest] > 1 and records[p].images]
    pictures: dict[int, Bits] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="hash") as threads:
        for at in range(0, len(wanted), _AT_ONCE):
            some = wanted[at : at + _AT_ONCE]
            hashed = threads.map(lambda p: np.stack([_hash(pool, key) for key in records[p].images]), some)
            pictures |= dict(zip(some, hashed, strict=True))
            progress(len(pictures))
    return Looked(text=text, pictures=pictures)


def _hash(pool: Pool, key: str) -> Bits:
    try:
        return dhash(pool.image(key))
    except (OSError, KeyError):
        return np.full(SIDE * SIDE, np.nan, dtype=np.float32)


def families(positions: Iterable[int], looked: Looked, distance: int = DISTANCE) -> list[list[int]]:
    """The samples in families: linked by steps between near-duplicates, order without influence.

    Two samples are near-duplicates if their words are equal and each picture of one differs from its counterpart
    in at most `distance` of 64 bits; without pictures equal words suffice. An unreadable picture resembles none.
    """
    same_words: dict[bytes, list[int]] = {}
    for position in positions:
        same_words.setdefault(looked.text[position], []).append(position)
    return [family for group in same_words.values() for family in _linked(group, looked, distance)]


def _linked(group: list[int], looked: Looked, distance: int) -> list[list[int]]:
    """Split samples of equal words into connected components."""
    if len(group) == 1 or group[0] not in looked.pictures:
        return [group]
    hashes = np.stack([looked.pictures[position] for position in group])
    left, found = np.arange(len(group)), []
    while len(left):
        family, todo, left = [left[0]], [left[0]], left[1:]
        while todo and len(left):
            differ = (SIDE * SIDE - np.einsum("nkb,kb->nk", hashes[left], hashes[todo.pop()])) / 2
            near = (differ <= distance).all(axis=1)
            todo += left[near].tolist()
            family += left[near].tolist()
            left = left[~near]
        found.append([group[i] for i in family])
    return found


def duplicate_rate(families: Sequence[Sequence[int]]) -> float:
    """Share of samples that could go without a family losing its last one."""
    n = sum(map(len, families))
    return (n - len(families)) / n if n else 0.0


def expected_rate(n: int, total: int, looked: Looked, distance: int = DISTANCE) -> float:
    """Duplicate rate of random subsets of `n` of `total` samples, all of them looked at: the mean of `DRAWS`."""
    draws = np.random.default_rng(0)
    drawn = (draws.choice(total, n, replace=False).tolist() for _ in range(DRAWS))
    return float(np.mean([duplicate_rate(families(positions, looked, distance)) for positions in drawn]))
