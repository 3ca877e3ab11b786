"""ICONS: samples that many target tasks agree on (Wu et al., arXiv 2501.00654; row "ICONS" of arXiv 2503.13383,
which does not say with which targets).

A sample's influence on a task is how well its gradient agrees with the task's; each task votes for the samples
that influence it most, and the samples with the most votes are kept. The gradients are those of adapters after a
short warm-up: by default one that other gradient methods share; with `sharing=strict` that of the released
scripts, but on a random 5 % instead of the first 500 steps of a run on everything, and without training the
projector. The released scripts load a merged model and put its adapters on it again; here they count once. Target
samples must not be those the benchmarks score: tasks named like a benchmark that has a test set only are left out
unless `allow_eval_leak` lets them in, which cards and tables then say.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.api import Features, PassRef, Pool, Scores, Selection, Selector, ranked
from harness.errors import HarnessError
from harness.pool import open_pool
from harness.types import OMIT_DEFAULT, Json
from selector_zoo import warm_ups
from selector_zoo.influence import influence, task_means

Floats = npt.NDArray[np.floating[Any]]
TEST_ONLY: Final = ("mmstar", "mmvet", "blink", "mme", "ocrbench")
"""Of the benchmarks of arXiv 2503.13383 those that have no samples beside the ones they score."""


@dataclass(frozen=True, slots=True)
class IconsConfig:
    """Whose agreement counts, on which gradients, and how it is counted."""

    targets: str = ""
    """Folder of a pool of target samples, its sources the tasks, `task/part` for parts; empty: the pool's own."""
    allow_eval_leak: bool = field(default=False, metadata=OMIT_DEFAULT)
    """Whether tasks of `targets` named like a benchmark that has no samples but those it scores (mmstar, mmvet,
    blink, mme, ocrbench) vote; they are left out otherwise."""
    raw_tasks: list[str] = field(default_factory=lambda: ["mme"])
    """Tasks whose samples count by the length of their gradients, as in the release MME; however spelt."""
    model: str = "warm"
    """`warm` (after a warm-up on a random part), `mid` (the backbone before SFT), a folder, or a pinned hub id."""
    sharing: str = "shared"
    """The warm-up all gradient methods share (`shared`), or the one of the released scripts (`strict`)."""
    warm_up: str = "5%"
    """Share of the pool for the warm-up."""
    form: str = "sgd"
    """Gradients of the pool's samples: plain (`sgd`), or as steps of Adam (`adam`, `adam_paper`)."""
    width: int = 5120
    """Numbers of a projected gradient."""
    projection_seed: int = 0
    """Of the projection."""
    mask: str = "ans"
    """Tokens of the loss: answers with their closing markers (`ans`), or all that training supervises (`sft`)."""
    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right."""
    views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """How much of a picture is seen: the tiles of training, or a `single` base view (cheaper)."""
    aggregate: str = "vote"
    """What is ranked: votes; or over tasks the `mean`, the `max`, the mean `rank`, the mean of 0 to 1 (`norm`)."""
    percent: float = 0.0
    """Share of the pool each task votes for; 0 for the budget, as in the release (20 at its budget of 20 %)."""
    tie: str = "hash"
    """Equal votes by seeded uid hash, by `index`, or by `mean_rank` over the tasks."""

    def __post_init__(self) -> None:
        allowed = {
            "sharing": ("shared", "strict"),
            "aggregate": tuple(AGGREGATES),
            "tie": ("hash", "index", "mean_rank"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"icons: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if self.tie == "mean_rank" and self.aggregate != "vote":
            raise HarnessError("icons: tie=mean_rank is for equal votes; leave it out unless aggregate=vote.")
        if not 0 <= self.percent < 100:
            raise HarnessError(f"icons: percent={self.percent} must be in [0, 100); 0 means the budget.")


class Icons(Selector):
    """Keep the samples most target tasks vote for."""

    name = "icons"
    version = 3
    Config = IconsConfig
    nested = False
    uncertain = ("target tasks and warm-up of row ICONS of arXiv 2503.13383 are not published",)
    config: IconsConfig

    def needs(self) -> tuple[PassRef, ...]:
        """Gradients of the pool, and plain ones of the target samples where those are others."""
        config = self.config
        strict = config.sharing == "strict"
        warm_up = warm_ups.ICONS if strict else warm_ups.SHARED
        settings: dict[str, Json] = {
            "parameters": "linear" if strict else "attention",
            "form": config.form,
            "width": config.width,
            "seed": config.projection_seed,
            "mask": config.mask,
            "max_length": config.max_length,
            "views": config.views,
        }
        ref = PassRef(
            name="gradients",
            model=config.model,
            config=settings,
            warm_up=replace(warm_up, budget=config.warm_up),
        )
        if not config.targets and config.form == "sgd":
            return (ref,)
        targets = replace(ref, alias="targets", pool=config.targets, config={**settings, "form": "sgd"})
        return (ref, targets)

    def score(self, pool: Pool, features: Features) -> Scores:
        """Column `influence` (n, tasks), by task in the order of their names; NaN without a gradient.

        Of a task in parts the largest of its parts' influences.
        """
        parts, part = self._parts(pool)
        columns = features.get("targets", features["gradients"])
        means = task_means(columns["gradient"], part, len(parts))
        raw_tasks = {_plain(name) for name in self.config.raw_tasks}
        raw = [i for i, name in enumerate(parts) if _plain(_task(name)) in raw_tasks]
        if raw:
            means[raw] = task_means(columns["gradient"], part, len(parts), columns["norm_projected"])[raw]
        by_part = influence(features["gradients"]["gradient"], means)
        names = _tasks(parts)
        found = np.full((pool.n, len(names)), np.nan, dtype=np.float32)
        for i, name in enumerate(parts):
            task = names.index(_task(name))
            found[:, task] = np.fmax(found[:, task], by_part[:, i])
        kept = [i for i, name in enumerate(names) if name not in self._left_out(names)]
        if not kept:
            raise HarnessError(
                f"icons: all tasks of {self.config.targets} ({', '.join(names)}) are benchmarks that have nothing "
                "but what they score: give samples of others, or set allow_eval_leak=true and compare with care."
            )
        return {"influence": found[:, kept]}

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The most votes first; those without a gradient only where others run out."""
        config = self.config
        values = np.asarray(scores["influence"])
        share = Fraction(str(config.percent)) / 100 if config.percent else Fraction(n, pool.n)
        missing = np.isnan(values).all(axis=1)
        tasks = ~np.isnan(values[~missing]).all(axis=0)
        if not tasks.any():
            raise HarnessError("icons: no target sample has a gradient; failures.json of its pass says why.")
        score = AGGREGATES[config.aggregate](values[:, tasks], share)
        score[missing] = np.nan
        finer = score + mean_rank(values[:, tasks], share) / 2 if config.tie == "mean_rank" else score
        order = ranked(pool, finer, seed, "index" if config.tie == "index" else "hash")
        n_nan = int(missing.sum())
        card: dict[str, Json] = {
            "n_nan": n_nan,
            "n_topup": max(0, n - (pool.n - n_nan)),
            "targets": config.targets or "the pool's own sources",
            "tasks": int(tasks.sum()),
            "sharing": config.sharing,
            "aggregate": config.aggregate,
        }
        return Selection(positions=order[:n], card=card | self._leaks(pool) | _cut(score, order[:n]))

    def _parts(self, pool: Pool) -> tuple[list[str], npt.NDArray[Any]]:
        return _sources(open_pool(self.config.targets) if self.config.targets else pool)

    def _left_out(self, tasks: list[str]) -> list[str]:
        return [] if self.config.allow_eval_leak or not self.config.targets else scored(tasks)

    def _leaks(self, pool: Pool) -> dict[str, Json]:
        """What the card says of targets that are benchmarks."""
        found = scored(_tasks(self._parts(pool)[0])) if self.config.targets else []
        if not found:
            return {}
        if self.config.allow_eval_leak:
            return {"leakage": f"target samples may be those that these benchmarks score: {', '.join(found)}"}
        return {"tasks_left_out": list(found)}


def _sources(pool: Pool) -> tuple[list[str], npt.NDArray[Any]]:
    """Names of a pool's sources, and the number of the source of each sample among them."""
    ids = pool.column("source_id")
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    names = [pool.record(int(i)).source for i in first]
    return names, inverse


def _task(part: str) -> str:
    return part.split("/")[0]


def _tasks(parts: list[str]) -> list[str]:
    return sorted({_task(part) for part in parts})


def scored(tasks: list[str]) -> list[str]:
    """Those of some tasks that are named like a benchmark with a test set only."""
    return [task for task in tasks if _plain(task) in TEST_ONLY]


def _plain(task: str) -> str:
    """A task's name without what people write differently: capitals, dashes, blanks."""
    return re.sub("[^a-z0-9]", "", task.lower())


def votes(values: Floats, share: Fraction) -> npt.NDArray[np.float64]:
    """How many tasks have a sample, of (n, tasks), among the `share` of the pool that influences them most; (n,).

    A task votes for what is at or above its `1 - share` quantile, interpolated linearly: with ties, for more.
    """
    count = np.zeros(len(values))
    for column in values.T:
        present = column[~np.isnan(column)]
        # At or above an interpolated value is at or above the next value of the sample: no rounding decides.
        at = math.ceil((1 - share) * (len(present) - 1))
        count += column >= np.partition(present, at)[at]
    return count


def mean_rank(values: Floats, share: Fraction) -> npt.NDArray[np.float64]:
    """Mean over tasks of the share of samples with less influence, in [0, 1); `share` plays no part."""
    total = np.zeros(len(values))
    for column in values.T:
        present = np.sort(column[~np.isnan(column)])
        total += np.searchsorted(present, column) / len(present)
    total /= max(values.shape[1], 1)
    return total


def _normalised(values: Floats, share: Fraction) -> npt.NDArray[np.float64]:
    """Mean over tasks of influence, each task's scaled to run from 0 to 1."""
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    scale = np.where(high > low, high - low, 1).astype(np.float64)
    return np.asarray(((values - low) / scale).mean(axis=1))


AGGREGATES: Final[Mapping[str, Callable[[Floats, Fraction], npt.NDArray[np.float64]]]] = {
    "vote": votes,
    "mean": lambda values, share: values.mean(axis=1, dtype=np.float64),
    "max": lambda values, share: values.max(axis=1).astype(np.float64),
    "rank": mean_rank,
    "norm": _normalised,
}
"""From influences (n, tasks) to one number a sample, higher first."""


def _cut(score: npt.NDArray[np.float64], kept: npt.NDArray[np.int32]) -> dict[str, Json]:
    """What decided at the edge of the budget: how many share the last value taken, and how many of them got in."""
    last = score[kept[-1]]
    told: dict[str, Json] = {
        "cut": None if math.isnan(last) else float(last),
        "tied_at_cut": int((score == last).sum()),
        "kept_at_cut": int((score[kept] == last).sum()),
    }
    if np.array_equal(score[kept] % 1, np.zeros(len(kept))):
        counts = Counter(score[kept].astype(int).tolist())
        told["votes"] = {str(v): c for v, c in sorted(counts.items(), reverse=True)}
    return told
