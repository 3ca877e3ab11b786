"""The ten sources of the pool, very unequal in size, and how a sample of each is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from harness.miniworld import questions as q
from harness.miniworld.consistency import agree
from harness.miniworld.questions import Question
from harness.miniworld.scenes import DRAW, Scene

Ask = Callable[..., Question]
ANY: Final = tuple(DRAW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One conversation about one picture (or none); what the truth table is written from."""

    source: str
    scene: Scene | None
    """What the questions are about."""
    turns: tuple[Question, ...]
    shown: Scene | None
    """What the picture shows; another scene where the questions are off topic."""
    render_seed: int
    defect: str = ""
    """`duplicate`, `wrong`, `off_topic`, or nothing."""
    original: int = -1
    """Place of the sample that a duplicate repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A share of the pool: which pictures it has and what is asked about them."""

    share: float
    kinds: tuple[str, ...]
    asks: tuple[Ask, ...] = ()
    """Empty: all skills of the kind of picture."""
    turns: tuple[int, ...] = (1,)
    """Numbers of turns to choose from."""


SOURCES: Final = {
    "shapes_qa": Source(share=0.22, kinds=("shapes",), asks=q.SHORT["shapes"], turns=(1, 1, 1, 2, 3)),
    "charts_qa": Source(share=0.14, kinds=("chart",), turns=(1, 1, 1, 2)),
    "yes_no": Source(share=0.14, kinds=("shapes", "chart", "print", "digits"), asks=(q.yes_no,), turns=(1, 1, 2)),
    "captions": Source(share=0.14, kinds=ANY, asks=(q.brief, q.detailed)),
    "print_qa": Source(share=0.11, kinds=("print",)),
    "choices": Source(share=0.12, kinds=ANY, asks=(q.choice,)),
    "tables_qa": Source(share=0.08, kinds=("table",), turns=(1, 2)),
    "digits_qa": Source(share=0.025, kinds=("digits",)),
    "points": Source(share=0.015, kinds=("shapes",), asks=(q.point,)),
    "instructions": Source(share=0.01, kinds=(*ANY, ""), asks=(q.styled,)),
}
"""Kinds of picture are taken in turn; a kind of "" is a sample without one."""


def quotas(n: int) -> dict[str, int]:
    """Samples of each source in a pool of `n`; what rounding leaves over goes to the largest."""
    sizes = {name: max(1, int(source.share * n)) for name, source in SOURCES.items()}
    sizes["shapes_qa"] += n - sum(sizes.values())
    return sizes


def draw_sample(name: str, number: int, rng: Random) -> Sample:
    """Draw a sound sample of one source, its kinds of picture in turn by the sample's number."""
    source = SOURCES[name]
    kind = source.kinds[number % len(source.kinds)]
    seed = rng.getrandbits(32)
    if not kind:
        return Sample(source=name, scene=None, shown=None, turns=(q.text_only(rng),), render_seed=seed)
    scene = DRAW[kind](rng)
    turns = _turns(scene, kind, source, rng)
    return Sample(source=name, scene=scene, shown=scene, turns=turns, render_seed=seed)


def _turns(scene: Scene, kind: str, source: Source, rng: Random) -> tuple[Question, ...]:
    """Some questions of different skills whose wrong answers agree with each other; fewer where none do."""
    asks, n = source.asks or q.ASK[kind], rng.choice(source.turns)
    found: list[Question] = []
    for _ in range(100):
        question = rng.choice(asks)(scene, rng)
        if question.skill not in {f.skill for f in found} and agree([*found, question]):
            found.append(question)
        if len(found) == n:
            break
    return tuple(found)
