"""Packs of each step, prepared ahead of the device by background threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from harness.keys import canonical, seed64
from harness.types import TrainSpec
from llava_train.chat import specials
from llava_train.cost import ModelCost
from llava_train.packs import Item, Pack, collate
from llava_train.plan import Ints, divide
from llava_train.pool_index import PoolIndex, Text, facts_of
from llava_train.tiles import blank
from llava_train.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One step, ready to run: this rank's packs, and the sizes of the whole global batch."""

    step: int
    packs: tuple[Pack, ...]
    uids: tuple[str, ...]
    """Of the whole global batch, in sampler order."""
    tokens: int
    supervised: int
    tiles: int
    flops: float
    """Model operations of forward and backward."""
    digest: str
    """Hash of the uids in order, 16 hex digits: equal digests are equal batches."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Turns steps of a plan into packs; a pure function of the step, so that a run can start at any."""

    index: PoolIndex
    cost: ModelCost
    spec: TrainSpec
    world: World
    positions: Ints
    """Pool positions of the selection."""
    batches: Sequence[Ints] = field(repr=False)
    """Members of each step as indices into `positions`."""
    pin: bool = False

    def build(self, step: int) -> Work:
        """Tokenise a step's global batch, plan it, and decode the images of this rank's share."""
        members = self.batches[step]
        texts = [self.index.text(int(p)) for p in self.positions[members]]
        facts = facts_of(texts, self.cost)
        plan = divide(members, facts, self.spec, self.world.size)
        shares = plan.ranks[self.world.rank]
        packs = [self._pack([(texts[i], float(plan.weights[i])) for i in share]) for share in shares]
        tokens, supervised, tiles = (int(a.sum()) for a in (facts.tokens, facts.supervised, facts.tiles))
        uids = tuple(t.uid for t in texts)
        return Work(
            step=step,
            packs=tuple(p.pinned() if self.pin else p for p in packs),
            uids=uids,
            tokens=tokens,
            supervised=supervised,
            tiles=tiles,
            flops=3 * float(np.sum(facts.flops)),
            digest=f"{seed64(canonical(uids)):016x}",
        )

    def _pack(self, members: Sequence[tuple[Text, float]]) -> Pack:
        items = [
            Item(ids=t.ids, targets=t.targets, images=self.index.pixels(t), sizes=t.sizes, weight=weight)
            for t, weight in members
        ]
        return collate(items, specials(self.index.tokenizer).image, blank(self.index.geometry))

    def stream(self, start: int, threads: int = 1, ahead: int = 2) -> Iterator[Work]:
        """Work for all steps from `start`, in order, built `ahead` steps early.

        An error of a step surfaces when its turn comes.
        """
        pool = ThreadPoolExecutor(threads, thread_name_prefix="load")
        waiting: deque[Future[Work]] = deque()
        try:
            for step in range(start, len(self.batches)):
                waiting.append(pool.submit(self.build, step))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
