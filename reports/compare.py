"""Comparing selections of one pool: what they share, what they are made of, and what they repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.pool import Pool, Record
from reports.duplicates import DISTANCE, duplicate_rate, expected_rate, families, look
from reports.overlap import Overlap, overlap
from reports.styles import STYLES, style_of

Positions = npt.NDArray[np.int32]
Records = Mapping[int, Record]
POOL: Final = "pool"
"""Name of the last value of every measure."""
_WORDS: Final = {"words": "n_words", "answer words": "n_answer_words"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Some samples of a pool, under the name a comparison gives them."""

    name: str
    positions: Positions
    origin: str = ""
    """Key of the selection, or the file its ids came from."""
    unknown: tuple[str, ...] = ()
    """Ids that the pool does not have."""
    repeated: int = 0
    """Ids that were listed before; a sample counts once."""
    unfinished: tuple[str, ...] = ()
    """Selections of the same sweep that could not be compared, because they are not finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One line of a comparison: a number for each subset, then one for the whole pool; None where not known."""

    name: str
    values: tuple[float | None, ...]
    decimals: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """Measures that belong together."""

    title: str
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What to look at besides the columns of the pool; the rest costs reading texts and pictures."""

    texts: bool = True
    """Read the samples of the subsets, for styles and near-duplicates."""
    whole_pool: bool = False
    """Read all samples, for the pool's own styles and the duplicates expected of random subsets."""
    distance: int = DISTANCE
    """Differing bits up to which two pictures are near-duplicates."""
    workers: int = 1
    progress: Callable[[int], None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything a comparison found."""

    pool: Pool
    subsets: tuple[Subset, ...]
    overlap: Overlap
    chapters: tuple[Chapter, ...]
    distance: int = DISTANCE

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.subsets)

    def chapter(self, title: str) -> Chapter | None:
        return next((c for c in self.chapters if c.title == title), None)


def compare(pool: Pool, subsets: Sequence[Subset], options: CompareOptions | None = None) -> Comparison:
    """Compare subsets of a pool; reads its columns alone where `options.texts` is off."""
    options = options or CompareOptions()
    chapters = [_sizes(pool, subsets), _by_source(pool, subsets), _lengths(pool, subsets), _images(pool, subsets)]
    if options.texts:
        wanted = range(pool.n) if options.whole_pool else _union(subsets)
        records = {int(p): pool.record(int(p)) for p in wanted}
        chapters.insert(2, _by_style(subsets, records, whole=options.whole_pool))
        chapters.append(_duplicates(pool, subsets, records, options))
    return Comparison(
        pool=pool,
        subsets=tuple(subsets),
        overlap=overlap([s.positions for s in subsets], pool.n),
        chapters=tuple(chapters),
        distance=options.distance,
    )


def _union(subsets: Sequence[Subset]) -> Positions:
    return np.unique(np.concatenate([s.positions for s in subsets]))


def _everything(pool: Pool, subsets: Sequence[Subset]) -> list[Positions]:
    """The subsets, and the pool as one more."""
    return [*(s.positions for s in subsets), np.arange(pool.n, dtype=np.int32)]


def _sizes(pool: Pool, subsets: Sequence[Subset]) -> Chapter:
    sizes = [len(p) for p in _everything(pool, subsets)]
    return Chapter(
        title="Size",
        measures=(
            Measure(name="samples", values=tuple(sizes), decimals=0),
            Measure(name="% of the pool", values=tuple(100 * n / pool.n for n in sizes)),
            Measure(name="unknown ids", values=(*(len(s.unknown) for s in subsets), None), decimals=0),
            Measure(name="repeated ids", values=(*(s.repeated for s in subsets), None), decimals=0),
        ),
    )


def _by_source(pool: Pool, subsets: Sequence[Subset]) -> Chapter:
    """Shares of sources, the pool's largest first, and two numbers that sum them up."""
    sources, number = np.unique(pool.sources(), return_inverse=True)
    counts = np.stack([np.bincount(number[p], minlength=len(sources)) for p in _everything(pool, subsets)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    order = np.lexsort((sources, -counts[-1]))
    away = np.abs(shares - shares[-1]).sum(axis=1) / 2
    lines = [Measure(name=str(sources[i]), values=tuple((100 * shares[:, i]).tolist())) for i in order]
    return Chapter(
        title="% by source",
        measures=(
            *lines,
            Measure(name="effective sources", values=tuple(effective(row) for row in shares)),
            Measure(name="% to move to the pool's mix", values=tuple((100 * away).tolist())),
        ),
    )


def effective(shares: npt.NDArray[np.float64]) -> float:
    """Number of equal parts with the same entropy as these shares."""
    positive = shares[shares > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def _by_style(subsets: Sequence[Subset], records: Records, *, whole: bool) -> Chapter:
    style = {p: STYLES.index(style_of(record)) for p, record in records.items()}
    groups = [[style[int(p)] for p in s.positions] for s in subsets] + ([list(style.values())] if whole else [])
    shares = [100 * np.bincount(g, minlength=len(STYLES)) / len(g) for g in groups]
    lines = [(name, tuple(float(s[i]) for s in shares)) for i, name in enumerate(STYLES)]
    none = () if whole else (None,)
    return Chapter(
        title="% by style",
        measures=tuple(Measure(name=name, values=(*values, *none)) for name, values in lines if any(values)),
    )


def _lengths(pool: Pool, subsets: Sequence[Subset]) -> Chapter:
    how: dict[str, Callable[[Any], Any]] = {"mean": np.mean, "median": np.median, "90th percentile": _ninetieth}
    rows = [(f"{what}, {name}", column, how[name]) for what, column in _WORDS.items() for name in how]
    rows.append(("exchanges, mean", "n_turns", _mean_exchanges))
    everything = _everything(pool, subsets)
    return Chapter(
        title="Lengths",
        measures=tuple(
            Measure(name=name, values=tuple(float(function(pool.column(column)[p])) for p in everything))
            for name, column, function in rows
        ),
    )


def _ninetieth(values: npt.NDArray[Any]) -> float:
    return float(np.percentile(values, 90))


def _mean_exchanges(turns: npt.NDArray[Any]) -> float:
    return float(turns.mean()) / 2  # a question and its answer are two turns of the pool's column


def _images(pool: Pool, subsets: Sequence[Subset]) -> Chapter:
    """First images: sizes in pixels over the samples that have one, and how many differ in their bytes."""
    count, image = pool.column("n_images"), pool.column("image_hash64")
    shapes = np.stack([pool.column("width"), pool.column("height")]).astype(np.float64)

    def read(positions: Positions) -> list[float | None]:
        n, some = count[positions], positions[count[positions] > 0]
        share = [100 * float((n == 0).mean()), 100 * float((n > 1).mean())]
        if not len(some):
            return [*share, None, None, None, None]
        area = shapes[:, some].prod(axis=0) / 1e6
        middle = np.median(shapes[:, some], axis=1)
        different = len(np.unique(image[some])) / len(some)
        return [*share, 100 * different, float(middle[0]), float(middle[1]), float(area.mean())]

    names = (
        "% without image",
        "% with several",
        "% different",
        "width, median",
        "height, median",
        "megapixels, mean",
    )
    columns = zip(*(read(p) for p in _everything(pool, subsets)), strict=True)
    decimals = (1, 1, 1, 0, 0, 3)
    return Chapter(
        title="Images",
        measures=tuple(
            Measure(name=name, values=values, decimals=d)
            for name, values, d in zip(names, columns, decimals, strict=True)
        ),
    )


def _duplicates(pool: Pool, subsets: Sequence[Subset], records: Records, options: CompareOptions) -> Chapter:
    looked = look(pool, records, options.workers, options.progress)
    found = [families((int(p) for p in s.positions), looked, options.distance) for s in subsets]
    rates: list[float | None] = [100 * duplicate_rate(f) for f in found]
    largest: list[float | None] = [max(map(len, f)) for f in found]
    if not options.whole_pool:
        lines = [Measure(name="% of samples", values=(*rates, None))]
        return Chapter(title="Near-duplicates", measures=(*lines, _largest([*largest, None])))
    whole = families(range(pool.n), looked, options.distance)
    by_size = {n: expected_rate(n, pool.n, looked, options.distance) for n in {len(s.positions) for s in subsets}}
    expected = [100 * by_size[len(s.positions)] for s in subsets]
    return Chapter(
        title="Near-duplicates",
        measures=(
            Measure(name="% of samples", values=(*rates, 100 * duplicate_rate(whole))),
            Measure(name="% expected at random", values=(*expected, None)),
            _largest([*largest, max(map(len, whole))]),
        ),
    )


def _largest(values: Sequence[float | None]) -> Measure:
    return Measure(name="largest family", values=tuple(values), decimals=0)
