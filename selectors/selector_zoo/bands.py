"""Which part of a ranking is kept: the top, the bottom, the middle, or a range of quantiles."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import Pool, Selection, ranked
from harness.errors import HarnessError
from harness.types import Json
from selector_zoo.shares import groups, largest_remainder, place_in_group

BANDS = ("top", "middle", "bottom")
RANGE = re.compile(r"([0-9]*\.?[0-9]+)-([0-9]*\.?[0-9]+)")


def quantiles(band: str) -> tuple[Fraction, Fraction] | None:
    """The part of the ascending ranking a band is the centre of; None for `top` and `bottom`.

    Raises HarnessError for what is neither a band's name nor a range `LO-HI` with 0 <= LO < HI <= 1.
    """
    if band in BANDS:
        return (Fraction(0), Fraction(1)) if band == "middle" else None
    found = RANGE.fullmatch(str(band))
    if found is None:
        raise HarnessError(f"band={band} is none of {', '.join(BANDS)}, and no range of quantiles like 0.2-0.5.")
    low, high = Fraction(found[1]), Fraction(found[2])
    if not low < high <= 1:
        raise HarnessError(f"band={band} must run from a lower to a higher quantile, both between 0 and 1.")
    return low, high


def keep_band(
    pool: Pool,
    score: npt.NDArray[Any],
    n: int,
    seed: int,
    *,
    band: str,
    tie: str = "hash",
    scope: str = "global",
) -> Selection:
    """The `n` samples of one band of a score, shape (n,); those without a score (NaN) only where others run out.

    The middle is ranks `N//2 - n//2` to `N//2 - n//2 + n - 1` of the N samples with a score in ascending order,
    as COINCIDE's training loader (arXiv 2406.10995) cuts it. A range `LO-HI` is that of ranks `floor(LO * N)` to
    `floor(HI * N) - 1`, and beyond them where they are too few, which counts as topping up. With scope `source`
    all this holds within each source, whose share of `n` is that of its scored samples, by largest remainder.
    Raises HarnessError for a band that is none.
    """
    values = np.asarray(score, dtype=np.float64)
    missing = np.isnan(values)
    order = ranked(pool, values if band == "top" else -values, seed, tie)
    scored, unscored = np.split(order, [pool.n - int(missing.sum())])
    names, source = groups(pool, scope)
    group = source[scored]
    sizes = np.bincount(group, minlength=len(names))
    inside = sizes
    if limits := quantiles(band):
        first, stop = (np.array([math.floor(q * int(size)) for size in sizes]) for q in limits)
        inside = stop - first
        # From the middle rank outwards, the lower neighbour first: every prefix is the band of its size.
        distance = np.abs(place_in_group(group) - ((first + stop) // 2)[group])
        scored = scored[np.argsort(distance, kind="stable")]
        group = source[scored]
    share = largest_remainder(sizes, min(n, len(scored)), names)
    kept = scored[place_in_group(group) < share[group]]
    filled = unscored[: n - len(kept)]
    n_topup = int(np.maximum(share - inside, 0).sum()) + len(filled)
    card: dict[str, Json] = {"n_nan": int(missing.sum()), "n_topup": n_topup, "scope": scope}
    return Selection(positions=np.concatenate([kept, filled]), card=card)
