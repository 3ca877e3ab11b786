"""Deita: complex questions, good answers, and no two samples too alike (Liu et al. 2024, arXiv 2312.15685; row
"Deita" of arXiv 2503.13383).

Every turn has a complexity and a quality; a sample scores the sum over turns of their product, so long
conversations score higher. The best are kept first, each unless its embedding is nearer than a threshold to one
kept before. The paper words that filter as a distance; the released code drops what is more similar than 0.9, and
so does this. The code returns too few where nearly everything is alike; here the best of what it dropped fill up.
How the released text scorers were fed samples with pictures is not published: here they read the text, and the
embedding is the state of the backbone at the end of the conversation, picture included. Instead of a text scorer a
LLaVA-OneVision can be the judge; it is asked about the question or answer and sees the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.api import Features, PassRef, Pool, Scores, Selection, Selector, ranked
from harness.errors import HarnessError
from harness.types import OMIT_DEFAULT, Json
from selector_zoo.blocks import blocks
from selector_zoo.diversity import cosine_quantiles, diverse
from selector_zoo.passes.deita import is_onevision
from selector_zoo.prompts import OFFICIAL, OWN, load_pack, text_digest

MINIWORLD: Final = "miniworld"
"""The prompt pack that miniworld's scorers were trained on."""
RELEASED: Final = "hkust-nlp/deita-"
"""How the released scorers are named."""
TEXT: Final = "text"
MULTIMODAL: Final = "multimodal"
"""Kinds of scorers: one that reads, and a judge that sees."""


@dataclass(frozen=True, slots=True)
class DeitaConfig:
    """Which scorers, how their grades make a score, and how alike two samples may be."""

    prompts: str = "miniworld"
    """What scorers are told: `miniworld`, the pack of miniworld's own, `own`, ours for a judge, or a prompt pack's
    YAML file with the templates `complexity` and `quality`."""
    complexity: str = "miniworld:deita_complexity"
    """The scorer of questions: miniworld's, a folder, or a hub id pinned as
    `hkust-nlp/deita-complexity-scorer@COMMIT`; or a judge, which sees pictures: `mid` (the backbone before SFT),
    `warm`, or any LLaVA-OneVision."""
    quality: str = "miniworld:deita_quality"
    """The scorer of answers: miniworld's, a folder, or a hub id pinned as
    `hkust-nlp/deita-quality-scorer@COMMIT`; or a judge, as for `complexity`."""
    judge_views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """How much of a picture a judge sees: the tiles of training, or a `single` base view (cheaper)."""
    grade: str = "product"
    """What a turn counts: `product` of both grades, `complexity` or `quality` alone."""
    turns: str = "sum"
    """What a sample counts: `sum` or `mean` over its turns, or the `first`."""
    threshold: float = 0.9
    """The largest cosine similarity that two kept samples may have; it belongs to an embedder."""
    embedder: str = "mm"
    """`mm`: `embedding_model` reads picture and text as in training; `text`: a language model reads the text."""
    embedding_model: str = "mid"
    """`mid` (the backbone before SFT), `warm`, a folder, or a pinned hub id."""
    views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """How much of a picture `embedding_model` sees: the tiles of training, or a `single` base view (cheaper)."""
    conversation: str = field(default="", metadata=OMIT_DEFAULT)
    """For `embedder=text`, how a conversation is written: a prompt pack's YAML file with the template
    `conversation` for a turn, and perhaps `system`; empty: the pack of `prompts` has them."""
    embedding_length: int = field(default=12000, metadata=OMIT_DEFAULT)
    """Tokens it reads with `mm`, image included; longer samples lose text from the right."""
    max_length: int = 2048
    """Tokens of a prompt, those of pictures not counted; longer ones lose the end of their text."""
    tie: str = "hash"
    """Equal scores by seeded uid hash, or by `index`."""

    def __post_init__(self) -> None:
        allowed = {
            "grade": ("product", "complexity", "quality"),
            "turns": ("sum", "mean", "first"),
            "embedder": ("mm", "text"),
            "tie": ("hash", "index"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"deita: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if not -1 <= self.threshold <= 1:
            raise HarnessError(f"deita: threshold={self.threshold} is no cosine; give one between -1 and 1.")

    @property
    def graded(self) -> tuple[str, ...]:
        """The grades that count."""
        return ("complexity", "quality") if self.grade == "product" else (self.grade,)


class Deita(Selector):
    """Keep complex questions with good answers, none too like another."""

    name = "deita"
    version = 2
    Config = DeitaConfig
    uncertain = ("how row Deita of arXiv 2503.13383 fed pictures to text scorers, and its embedding",)

    def needs(self) -> tuple[PassRef, ...]:
        """Grades of every turn, and an embedding of every sample.

        Raises HarnessError where the prompt pack is not there, is not that of the scorers, or lacks a template.
        """
        config = self.config
        self._check_words()
        pack = load_pack(config.prompts)
        grades = [self._grading(part, pack.template(part)) for part in config.graded]
        if config.embedder == "mm":
            seen: dict[str, Json] = {
                "hidden": "post_norm",
                "views": config.views,
                "max_length": config.embedding_length,
            }
            embedding = PassRef(name="forward", model=config.embedding_model, config=seen)
        else:
            spoken = load_pack(config.conversation) if config.conversation else pack
            words = {"template": spoken.template("conversation"), "system": spoken.templates.get("system", "")}
            asked: dict[str, Json] = {"part": "embedding", "max_length": config.max_length, **words}
            embedding = PassRef(name="deita", model=config.embedding_model, config=asked)
        return (*grades, replace(embedding, alias="embedding"))

    def _grading(self, part: str, template: str) -> PassRef:
        config = self.config
        asked: dict[str, Json] = {
            "part": part,
            "template": template,
            "max_length": config.max_length,
            "views": config.judge_views,
        }
        return PassRef(name="deita", model=getattr(config, part), config=asked, alias=part)

    def score(self, pool: Pool, features: Features) -> Scores:
        """Grades times grades, over turns; NaN where a grade or the embedding is missing."""
        rounds = pool.column("n_turns") // 2
        score = np.empty(pool.n, dtype=np.float32)
        for rows in blocks(pool.n):
            grades = [np.asarray(features[part]["turns"][rows], dtype=np.float64) for part in self.config.graded]
            lost = np.isnan(np.asarray(features["embedding"]["hidden"][rows, 0], dtype=np.float32))
            score[rows] = np.where(lost, np.nan, self._total(np.prod(grades, axis=0), rounds[rows]))
        return {"score": score}

    def _total(self, turns: npt.NDArray[np.float64], rounds: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """What samples count, (n,), of what their turns count, (n, most); NaN where one that counts is unknown."""
        places = np.arange(turns.shape[1]) < rounds[:, None]
        if self.config.turns == "first":
            turns, places = turns[:, :1], places[:, :1]
        total = np.nansum(turns, axis=1)
        if self.config.turns == "mean":
            total = total / places.sum(axis=1)
        return np.where((places & np.isnan(turns)).any(axis=1), np.nan, total)

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The best that are not too alike; then the best of those that were; then those without a score."""
        score, rows = scores["score"], features["embedding"]["hidden"]
        order = ranked(pool, score, seed, self.config.tie)
        judged = order[: len(order) - int(np.isnan(score).sum())]
        kept, refused = diverse(rows, judged, n, self.config.threshold)
        filled = np.concatenate([kept, refused, order[len(judged) :]])[:n]
        card: dict[str, Json] = {
            "n_nan": len(order) - len(judged),
            "n_topup": max(0, n - len(kept)),
            "n_refused": len(refused),
            "threshold": self.config.threshold,
            "cosine_quantiles": cosine_quantiles(rows, judged, seed),
            "prompts": self._prompts(),
        }
        return Selection(positions=filled.astype(np.int32), card=card)

    def _check_words(self) -> None:
        if not all(self._understands(getattr(self.config, part)) for part in self.config.graded):
            raise HarnessError(
                "deita: scorers only understand the words they were trained on: set prompts to the YAML file of "
                "their prompt pack; 'sievebench published prompts deita' fetches the published one. prompts=own "
                "is for judges: set complexity and quality to mid, warm or another LLaVA-OneVision."
            )

    def _understands(self, model: str) -> bool:
        """Whether a scorer may know the words it is asked in; a judge was trained on none and takes any."""
        kind, words = kind_of(model), str(self.config.prompts)
        if kind == MULTIMODAL:
            return True
        if model.startswith(f"{MINIWORLD}:"):
            return words == MINIWORLD
        # A scorer of unknown kind may be a judge.
        return words not in ((MINIWORLD, OWN) if kind == TEXT else (MINIWORLD,))

    def _prompts(self) -> dict[str, Json]:
        """Digests of the scorers' templates, whether they are the published words, and the kind of scorer."""
        parts = self.config.graded
        pack = load_pack(self.config.prompts)
        digests = {part: text_digest(pack.template(part)) for part in parts}
        official = all(OFFICIAL["deita"][part] == digest for part, digest in digests.items())
        kinds = dict.fromkeys(kind_of(getattr(self.config, part)) for part in parts)
        judge: dict[str, Json] = {"judge": ", ".join(kinds)} if all(kinds) else {}
        return {"words": "official" if official else "own", **judge, **digests}


def kind_of(model: str) -> str:
    """Whether a scorer is `text` or `multimodal`, by its name or folder; "" where only a download would tell."""
    if model in ("mid", "warm"):
        return MULTIMODAL
    if model.startswith(f"{MINIWORLD}:"):
        return TEXT if model.startswith(f"{MINIWORLD}:deita_") else MULTIMODAL
    if model.startswith(RELEASED):
        return TEXT
    folder = Path(model.partition("@")[0]).expanduser()
    if not (folder / "config.json").is_file():
        return ""
    return MULTIMODAL if is_onevision(folder) else TEXT
