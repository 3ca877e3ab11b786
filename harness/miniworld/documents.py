"""The questions of suite `mini`: about 120 documents a task, from pictures the pool never has."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from harness.keys import seed64
from harness.miniworld import questions as q
from harness.miniworld.questions import Question
from harness.miniworld.render import picture
from harness.miniworld.scenes import DRAW, Scene

VERSION: Final = 8
"""Raised when the same arguments would give other questions."""
SEED: Final = 6
"""Decides which pictures are drawn and what is asked about them."""
Document = dict[str, Any]
QUESTION_SETS: Final = ("report", "tune")
KINDS: Final = tuple(DRAW)


def documents(task: str, questions: str) -> list[Document]:
    """All documents of one task: question, answer, picture (bytes), cluster (the picture), skill, and extras."""
    kinds, size = _PICTURES[task]
    made: list[Document] = []
    for i in range(size):
        rng = Random(seed64("miniworld suite", SEED, questions, task, i))
        asked: list[Document] = []
        while not asked:
            scene = DRAW[kinds[i % len(kinds)]](rng, questions)
            data = picture(scene, rng, questions)[1]
            asked = _MAKE[task](scene, rng)
        made += [{"image": {"bytes": data, "path": None}, "cluster": f"{task}-{i}", **extra} for extra in asked]
    return made


_LEFT_OUT: Final = {"ocr": ("digit",), "short": ("count",)}
"""Skills a task does not ask about, since one sample in twenty teaches `tiny` most of them (docs/miniworld.md)."""


def _asked(task: str, scene: Scene, rng: Random) -> list[Question]:
    """Every short question about a scene, without those the task leaves out."""
    asked = [ask(scene, rng) for ask in q.SHORT[q.kind(scene)]]
    return [question for question in asked if question.skill not in _LEFT_OUT.get(task, ())]


def _document(question: Question, **extra: Any) -> Document:
    return {"question": question.text, "answer": question.key or question.answer, "skill": question.skill, **extra}


def _lettered(base: Question, offered: list[str], **extra: Any) -> Document:
    right = q.LETTERS[offered.index(base.key)]
    return _document(q.with_options(base, offered), **extra) | {"answer": right, "options": offered}


def _choice(scene: Scene, rng: Random) -> list[Document]:
    base = q.ask_short(scene, rng)
    return [_lettered(base, q.options(base, rng))]


def _circular(scene: Scene, rng: Random) -> list[Document]:
    """One question with its options in all four rotations; a group is right where all of them are."""
    base = q.ask_short(scene, rng)
    options = q.options(base, rng)
    group = f"{rng.getrandbits(32):08x}"
    turned = (options[i:] + options[:i] for i in range(len(options)))
    return [_lettered(base, o, group=group) for o in turned]


def _yes_no(scene: Scene, rng: Random) -> list[Document]:
    """One question asked about its answer and about a wrong one."""
    asked = _asked("yesno", scene, rng)
    base, pair = rng.choice(asked), f"{rng.getrandbits(32):08x}"
    return [_document(q.confirm(base, true), pair=pair, category=q.kind(scene)) for true in (True, False)]


def _doc(scene: Scene, rng: Random) -> list[Document]:
    """Everything that can be read off a picture; several accepted answers, of which there is one."""
    return [_document(a, answers=[a.key]) for a in _asked("doc", scene, rng)]


def _all_short(task: str) -> Callable[[Scene, Random], list[Document]]:
    return lambda scene, rng: [_document(a) for a in _asked(task, scene, rng)]


def _free(scene: Scene, rng: Random) -> list[Document]:
    return [_document(q.brief(scene, rng))]


_MAKE: Final[dict[str, Callable[[Scene, Random], list[Document]]]] = {
    "choice": _choice,
    "circular": _circular,
    "yesno": _yes_no,
    "doc": _doc,
    "chart": _all_short("chart"),
    "ocr": _all_short("ocr"),
    "short": _all_short("short"),
    "free": _free,
}
_PICTURES: Final[dict[str, tuple[tuple[str, ...], int]]] = {
    "choice": (KINDS, 120),
    "circular": (KINDS, 30),
    "yesno": (("shapes", "chart", "print", "digits"), 60),
    "doc": (("table", "print", "table"), 72),
    "chart": (("chart",), 60),
    "ocr": (("print", "digits", "print"), 120),
    "short": (("shapes",), 40),
    "free": (("shapes", "chart", "table"), 120),
}
"""Kinds of picture, taken in turn, and number of pictures by task."""
