"""The plan of a run, as pure functions: which samples make a step, how they count, and which rank packs them how.

Order is computed, never stored: the batches of step 800 are known without running the 799 before it, they do not
depend on how many processes there are, and two selections that share samples meet them in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.keys import mix64, seed64
from harness.types import TrainSpec

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What planning needs to know of samples; arrays of one length."""

    tokens: Ints
    """Tokens in the language model, image tokens included."""
    supervised: Ints
    """Target tokens."""
    tiles: Ints
    """Image tiles, 0 for text alone."""
    flops: Floats
    """Cost of a forward; only ratios matter here."""

    def __getitem__(self, members: Ints) -> Facts:
        return Facts(
            tokens=self.tokens[members],
            supervised=self.supervised[members],
            tiles=self.tiles[members],
            flops=self.flops[members],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One optimiser step."""

    members: Ints
    """Indices into the selection, in sampler order."""
    weights: Floats
    """Weight of each target token of each member, aligned with `members`."""
    ranks: tuple[tuple[tuple[int, ...], ...], ...]
    """For each rank its packs, each a tuple of indices into `members`; at least one, maybe empty."""


def plan(hashes: npt.NDArray[np.uint64], facts: Facts, spec: TrainSpec, world: int) -> list[StepPlan]:
    """The whole run over a selection: `hashes` are the `uid_hash64` of its samples, `facts` their sizes.

    A run plans step by step with `batches` and `divide`; this is the same thing for those who want it at once.
    """
    return [divide(members, facts[members], spec, world) for members in batches(hashes, spec)]


def order(hashes: npt.NDArray[np.uint64], seed: int, epoch: int) -> Ints:
    """The order of one epoch: indices sorted by `mix64(hash ^ seed)`, a derived seed for each later epoch.

    The k-th copy of a sample that is there more than once is ranked by a seed of its own.
    """
    ranked = np.empty(len(hashes), dtype=np.uint64)
    copies = _copies(hashes)
    for k in np.unique(copies):
        own = seed if epoch == 0 and k == 0 else seed64("order", seed, epoch, int(k))
        ranked[copies == k] = mix64(hashes[copies == k], own)
    return np.argsort(ranked, kind="stable").astype(np.int64)


def _copies(hashes: npt.NDArray[np.uint64]) -> Ints:
    """For each entry, how many equal ones stand before it."""
    by_hash = np.argsort(hashes, kind="stable")
    ordered = hashes[by_hash]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(hashes)), 0))
    copies = np.empty(len(hashes), dtype=np.int64)
    copies[by_hash] = np.arange(len(hashes)) - first
    return copies


def sample_count(n: int, spec: TrainSpec) -> int:
    """Samples a run over a selection of `n` sees, repeats counted, after the last batch is settled."""
    batch = spec.global_batch
    if spec.fixed_steps:
        return spec.fixed_steps * batch
    seen = max(math.floor(spec.epochs * n), 1)
    return seen - seen % batch if spec.last_batch == "drop" and seen >= batch else seen


def batches(hashes: npt.NDArray[np.uint64], spec: TrainSpec) -> list[Ints]:
    """The global batch of every step as indices into the selection, in sampler order.

    All have `global_batch` members but a last partial one, and the only one of a selection smaller than that.
    Raises HarnessError for an empty selection.
    """
    n = len(hashes)
    if n == 0:
        raise HarnessError("the selection to train on is empty: keep at least one sample.")
    count = sample_count(n, spec)
    epochs = [order(hashes, spec.seed, epoch) for epoch in range(-(-count // n))]
    sequence = np.concatenate(epochs)[:count]
    return [sequence[at : at + spec.global_batch] for at in range(0, count, spec.global_batch)]


def divide(members: Ints, facts: Facts, spec: TrainSpec, world: int) -> StepPlan:
    """Plan one step: `facts` are those of `members`, in the same order.

    Every rank gets at least one pack, an empty one if need be; from ZeRO-2 on all get equally many, because there
    each backward is a meeting of all ranks.
    """
    packs = [pack(part, facts.tokens, facts.tiles, spec) for part in deal(facts.flops, world)]
    most = max(map(len, packs)) if spec.zero_stage > 1 else 1
    ranks = tuple((*own, *[()] * (most - len(own))) for own in packs)
    return StepPlan(members=members, weights=token_weights(facts.supervised, spec), ranks=ranks)


def token_weights(supervised: Ints, spec: TrainSpec) -> Floats:
    """Weight of each target token of each sample of a global batch, in sampler order.

    Nominal micro-batches are the consecutive groups the reference recipe would have formed; weights follow from
    them and not from how samples are packed or spread, so neither changes the objective.
    """
    if spec.loss_norm == "token_mean":
        return np.full(len(supervised), 1 / max(int(supervised.sum()), 1))
    group = spec.nominal_micro_batch if spec.loss_norm == "microbatch_mean" else 1
    starts = np.arange(0, len(supervised), group)
    sums = np.add.reduceat(supervised, starts)
    per_group = 1 / (len(starts) * np.maximum(sums, 1))
    return np.repeat(per_group, np.diff(np.append(starts, len(supervised))))


def deal(flops: Floats, world: int) -> list[tuple[int, ...]]:
    """Spread samples over ranks: the costliest first, each to the rank with the least so far."""
    loads, parts = [0.0] * world, [list[int]() for _ in range(world)]
    for i in np.argsort(-flops, kind="stable"):
        rank = loads.index(min(loads))
        loads[rank] += float(flops[i])
        parts[rank].append(int(i))
    return [tuple(sorted(part)) for part in parts]


def pack(members: Sequence[int], tokens: Ints, tiles: Ints, spec: TrainSpec) -> list[tuple[int, ...]]:
    """Pack samples under `pack_tokens` and `pack_tiles`: the longest first, each where it first fits.

    A sample over a limit makes a pack of its own. Members keep sampler order within a pack.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for i in sorted(members, key=lambda i: (-int(tokens[i]), i)):
        length, images = int(tokens[i]), int(tiles[i])
        fits = (p for p, (t, k) in enumerate(room) if length <= t and images <= k)
        p = next(fits, len(packs))
        if p == len(packs):
            packs.append([])
            room.append((spec.pack_tokens, spec.pack_tiles))
        packs[p].append(i)
        room[p] = room[p][0] - length, room[p][1] - images
    return [tuple(sorted(p)) for p in packs]
