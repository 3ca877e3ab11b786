"""The sampling of mmSSR: capabilities take turns, and within one its buckets do (arXiv 2503.13383, released code).

Rows are samples in the order that decides between equals. Every capability has one queue a bucket, sorted once;
a queue is only ever read forwards, past what others took, so that a budget costs little more than sorting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError

Rows = npt.NDArray[np.int32]
WINDOW: Final = 64
"""Fewest entries of a queue looked at in one go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What differs between the variants."""

    strict_score: bool
    """Within a bucket by score alone; otherwise those come first that name its style first, whatever the score."""
    released: bool
    """Keep the released code's overshoot, and stop where a capability has no sample left."""
    names: Sequence[str]
    """The capabilities, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memberships:
    """Which row is in which bucket, one entry each, sorted by `group`, then row.

    A group is a bucket; or, unless by score alone, those of a bucket's rows that name its style in the same place.
    """

    row: Rows
    bucket: Rows
    group: Rows
    n_groups: int

    @classmethod
    def of(cls, table: npt.NDArray[np.int32], *, strict_score: bool) -> Memberships:
        """Read a table of buckets, (places, rows), -1 where a row has no more."""
        named = [np.flatnonzero(buckets >= 0).astype(np.int32) for buckets in table]
        row = np.concatenate(named)
        bucket = np.concatenate([buckets[rows] for buckets, rows in zip(table, named, strict=True)])
        if strict_score:
            by_row = np.argsort(row, kind="stable")
            row, bucket = row[by_row], bucket[by_row]
            key = bucket
        else:
            place = np.repeat(np.arange(len(table), dtype=np.int32), [len(rows) for rows in named])
            key = bucket * np.int32(len(table)) + place
        used = np.bincount(key) > 0
        group = (np.cumsum(used, dtype=np.int32) - 1)[key]
        n_groups = int(used.sum())
        order = stable_order(group, n_groups)
        return cls(row=row[order], bucket=bucket[order], group=group[order], n_groups=n_groups)


@dataclass(slots=True)
class Queue:
    """One capability's candidates, bucket after bucket, the best first."""

    rows: Rows
    at: npt.NDArray[np.int64]
    """Where the rest of each bucket begins."""
    end: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    """Rows of each bucket that nobody has taken."""

    @classmethod
    def sort(cls, level: npt.NDArray[Any], members: Memberships, buckets: int) -> Queue:
        """Sort the candidates, rows whose level is above 0, by bucket, group and level."""
        seen = level[members.row]
        keep = np.flatnonzero(seen)
        top = int(seen.max(initial=0))
        bound = members.n_groups * (top + 1)
        kind = np.dtype(np.int32 if bound <= np.iinfo(np.int32).max else np.int64)
        key = members.group[keep].astype(kind) * (top + 1)
        key += top - seen[keep].astype(kind)
        rows = members.row[keep][stable_order(key, bound)]
        left = np.bincount(members.bucket[keep], minlength=buckets)
        end = np.cumsum(left)
        return cls(rows=rows, at=end - left, end=end, left=left)

    def take(self, bucket: int, count: int, taken: npt.NDArray[np.bool_]) -> Rows:
        """The next `count` rows of a bucket that are not taken; there must be so many."""
        found: list[Rows] = []
        at, end = int(self.at[bucket]), int(self.end[bucket])
        while count:
            window = self.rows[at : min(at + max(2 * count, WINDOW), end)]
            free = np.flatnonzero(~taken[window])[:count]
            found.append(window[free])
            count -= len(free)
            at += len(window) if count else int(free[-1]) + 1
        self.at[bucket] = at
        return np.concatenate(found)


class Sampler:
    """Samples rows without replacement; may be asked once."""

    def __init__(self, levels: npt.NDArray[Any], table: npt.NDArray[np.int32], buckets: int, rules: Rules) -> None:
        """`levels` (capabilities, rows): 0 not a candidate, higher is better; `table` (places, rows): buckets."""
        members = Memberships.of(table, strict_score=rules.strict_score)
        self._levels, self._table, self._rules = levels, table, rules
        self._queues = [Queue.sort(level, members, buckets) for level in levels]
        self._taken = np.zeros(table.shape[1], dtype=np.bool_)
        self.picked = [0] * len(levels)
        """How many rows each capability has taken."""

    def sample(self, n: int) -> Rows:
        """Rows in the order they are taken: `n`, fewer where no capability has one left, more by the overshoot.

        Raises HarnessError where a capability has none left and the rules are the released ones.
        """
        chosen: list[Rows] = [np.empty(0, dtype=np.int32)]
        serving = list(range(len(self._queues)))
        while sum(self.picked) < n and serving:
            share = max((n - sum(self.picked)) // len(serving), 1)
            exhausted = []
            for c in serving:
                wanted = min(share, n - sum(self.picked))
                if wanted <= 0:
                    break
                if not self._queues[c].left.any():
                    exhausted.append(self._exhausted(c, n))
                    continue
                chosen += self._fill(c, wanted)
            serving = [c for c in serving if c not in exhausted]
        return np.concatenate(chosen)

    def _exhausted(self, c: int, n: int) -> int:
        if self._rules.released:
            raise HarnessError(
                f"mmssr: nothing is left for '{self._rules.names[c]}' after {sum(self.picked)} of {n} samples, "
                "where the released code breaks off: use variant=fixed, a lower threshold, or a smaller budget."
            )
        return c

    def _fill(self, c: int, wanted: int) -> list[Rows]:
        """What one capability takes: small buckets first, their unused share carried to the larger ones."""
        queue = self._queues[c]
        open_buckets = np.flatnonzero(queue.left)
        by_size = open_buckets[np.argsort(queue.left[open_buckets], kind="stable")]
        share, debt, got = max(wanted // len(by_size), 1), 0, 0
        chosen: list[Rows] = []
        for bucket in by_size.tolist():
            if got >= wanted:
                break
            most, free = share + debt, int(queue.left[bucket])
            debt = max(most - free, 0)
            count = min(most, free, free if self._rules.released else wanted - got)
            if count:
                rows = queue.take(bucket, count, self._taken)
                self._taken[rows] = True
                self._forget(c, rows)
                chosen.append(rows)
                got += count
        self.picked[c] += got
        self._forget_elsewhere(c, np.concatenate(chosen))
        return chosen

    def _forget(self, c: int, rows: Rows) -> None:
        """Rows are gone from all buckets of a capability."""
        gone = self._table[:, rows]
        np.subtract.at(self._queues[c].left, gone[gone >= 0], 1)

    def _forget_elsewhere(self, c: int, rows: Rows) -> None:
        """Rows are gone from the buckets of the other capabilities that had them."""
        buckets = self._table[:, rows]
        named = buckets >= 0
        for other, queue in enumerate(self._queues):
            if other != c:
                gone = buckets[named & (self._levels[other, rows] > 0)]
                np.subtract.at(queue.left, gone, 1)


def stable_order(keys: npt.NDArray[Any], bound: int) -> npt.NDArray[np.int64]:
    """`argsort` that keeps the order of equals; keys in [0, bound) that fit 16 bits are counted, not compared."""
    small = next((t for t in (np.uint8, np.uint16) if bound <= np.iinfo(t).max + 1), None)
    return np.argsort(keys if small is None else keys.astype(small), kind="stable")
