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
from scipy.sparse import coo_array

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
    group: npt.NDArray[Any]
    bucket: Rows
    """Of each group."""

    @classmethod
    def of(cls, table: npt.NDArray[np.int32], *, strict_score: bool) -> Memberships:
        """Read a table of buckets, (places, rows), -1 where a row has no more."""
        named = [np.flatnonzero(buckets >= 0).astype(np.int32) for buckets in table]
        row = np.concatenate(named)
        key = np.concatenate([buckets[rows] for buckets, rows in zip(table, named, strict=True)])
        places = 1 if strict_score else len(table)
        if strict_score:
            by_row = np.argsort(row, kind="stable")
            row, key = row[by_row], key[by_row]
        else:
            key *= places
            key += np.repeat(np.arange(places, dtype=np.int32), [len(rows) for rows in named])
        used = np.bincount(key) > 0
        number = np.cumsum(used) - 1
        # Numbers of up to 16 bits are sorted by counting, not by comparing.
        group = number.astype(np.min_scalar_type(len(number)))[key]
        order = np.argsort(group, kind="stable")
        return cls(row=row[order], group=group[order], bucket=np.flatnonzero(used).astype(np.int32) // places)


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
    def sort(cls, level: npt.NDArray[Any], members: Memberships, left: npt.NDArray[np.int64]) -> Queue:
        """Sort the candidates, rows whose level is above 0, by bucket, group and level; `left` is filled in."""
        seen = level[members.row]
        keep = np.flatnonzero(seen > 0)
        seen, group = seen[keep], members.group[keep]
        heights = int(seen.max(initial=0)) + 1
        kind = np.min_scalar_type(len(members.bucket) * heights)
        key = group.astype(kind)
        key *= heights
        key += heights - 1
        key -= seen.astype(kind)
        rows = members.row[keep][np.argsort(key, kind="stable")]
        np.add.at(left, members.bucket, np.bincount(group, minlength=len(members.bucket)))
        end = np.cumsum(left)
        return cls(rows=rows, at=end - left, end=end, left=left)

    def take(self, bucket: int, count: int, free: npt.NDArray[np.bool_]) -> Rows:
        """The next `count` rows of a bucket that are free; there must be so many."""
        found: list[Rows] = []
        at, end = int(self.at[bucket]), int(self.end[bucket])
        while count:
            window = self.rows[at : min(at + max(2 * count, WINDOW), end)]
            places = free[window].nonzero()[0][:count]
            found.append(window[places])
            count -= len(places)
            at += len(window) if count else int(places[-1]) + 1
        self.at[bucket] = at
        return found[0] if len(found) == 1 else np.concatenate(found)


class Sampler:
    """Samples rows without replacement; may be asked once."""

    def __init__(self, levels: npt.NDArray[Any], table: npt.NDArray[np.int32], buckets: int, rules: Rules) -> None:
        """`levels` (rows, capabilities): 0 not a candidate, higher is better; `table` (places, rows): buckets."""
        members = Memberships.of(table, strict_score=rules.strict_score)
        self._levels, self._table, self._rules = levels, table, rules
        self._left = np.zeros((levels.shape[1], buckets), dtype=np.int64)
        by_capability = zip(np.ascontiguousarray(levels.T), self._left, strict=True)
        self._queues = [Queue.sort(level, members, left) for level, left in by_capability]
        self._free = np.ones(len(levels), dtype=np.bool_)
        self.picked = [0] * len(self._queues)
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
                rows = queue.take(bucket, count, self._free)
                self._free[rows] = False
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
        place, row = np.nonzero(buckets >= 0)
        wanted = np.take(self._levels, rows, axis=0) > 0
        wanted[:, c] = False
        named = (np.ones(len(row), dtype=np.int64), (buckets[place, row], row))
        self._left -= (coo_array(named, shape=(self._left.shape[1], len(rows))) @ wanted).T
