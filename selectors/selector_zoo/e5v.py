"""E5-V: how well picture and text agree under a multimodal language model, or samples spread over the
clusters of what it makes of both (Jiang et al. 2024, arXiv 2407.12580; row "E5-V" of arXiv 2503.13383).

The embedder asks the model for a one-word summary of the picture and of the text (pass `e5v`). What arXiv
2503.13383 does with the embeddings is not published; there are two readings. `similarity`, our default, ranks
by the cosine of the two, a stronger CLIP-score. `cluster` clusters their normalised sum, gives each cluster
its share of the budget, and takes those nearest to the centroid. Also ours: the text view, its length, and
`mid` as the default model; the row's is royokong/e5-v, with `prompts=e5v`. Text-only samples have no score
and are kept last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.api import Features, PassRef, Pool, Scores, Selection, Selector, ranked
from harness.errors import HarnessError
from harness.keys import seeded_order
from harness.types import OMIT_DEFAULT, Json
from selector_zoo.bands import keep_band
from selector_zoo.kmeans import Rows, spherical_kmeans
from selector_zoo.prompts import PromptPack, load_pack, text_digest
from selector_zoo.shares import SCOPES, largest_remainder, place_in_group

Floats = npt.NDArray[np.float64]

BLOCK = 4096
"""Rows in memory as float64 at once."""
PACKS = ("e5v", "e5v_chatml")


@dataclass(frozen=True, slots=True)
class E5vSelectorConfig:
    """Which model embeds what, and what its embeddings are used for."""

    model: str = "mid"
    """`mid` (the backbone before SFT), a folder, or a hub id pinned as `royokong/e5-v@COMMIT`."""
    prompts: str = "e5v_chatml"
    """What it is asked: `e5v` (Llama 3's chat format, as published), `e5v_chatml` (LLaVA-OneVision's), or a YAML
    file with templates `image` and `text`."""
    text: str = "qa"
    """Text of the first turn: question and answer (`qa`), `q`, or `a`."""
    text_tokens: int = 512
    """Longer texts are cut."""
    mode: str = "similarity"
    """Rank by the cosine of picture and text (`similarity`), or spread over clusters of both (`cluster`)."""
    clusters: int = 10000
    """Most clusters; never more than samples are kept."""
    iterations: int = 20
    """Most rounds of k-means."""
    clustering_seed: int = 1234
    """Decides the first centroids."""
    tie: str = "hash"
    """Equal scores by seeded uid hash, or by `index`."""
    scope: str = field(default="global", metadata=OMIT_DEFAULT)
    """With `similarity`, one ranking of the whole pool (`global`), or one a `source`, each with its share of the
    budget."""
    views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """How much of a picture is seen: the tiles the model is configured for, or a `single` base view (cheaper)."""

    def __post_init__(self) -> None:
        allowed = {
            "text": ("qa", "q", "a"),
            "mode": ("similarity", "cluster"),
            "tie": ("hash", "index"),
            "scope": SCOPES,
            "views": ("checkpoint", "single"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"e5v: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        for name in ("text_tokens", "clusters", "iterations"):
            if getattr(self, name) < 1:
                raise HarnessError(f"e5v: {name}={getattr(self, name)} must be at least 1.")
        if self.mode == "cluster" and self.scope != "global":
            raise HarnessError("e5v: scope belongs to mode=similarity; leave it out with mode=cluster.")


class E5v(Selector):
    """Keep the samples whose picture and text agree most, or the typical ones of every cluster."""

    name = "e5v"
    version = 1
    Config = E5vSelectorConfig
    uncertain = (
        "similarity or clusters: row E5-V of arXiv 2503.13383 does not say what the embeddings are used for",
        "text: neither which turns are embedded nor how many tokens is published",
    )
    config: E5vSelectorConfig

    @property
    def nested(self) -> bool:
        """Only one ranking of all is: shares are rounded, and small budgets have clusters of their own."""
        return self.config.mode == "similarity" and self.config.scope == "global"

    def needs(self) -> tuple[PassRef, ...]:
        """Embeddings of picture and text by one model."""
        c: E5vSelectorConfig = self.config
        pack = prompt_pack(c.prompts)
        config: dict[str, Json] = {
            "image_prompt": pack.template("image"),
            "text_prompt": pack.template("text"),
            "text": c.text,
            "text_tokens": c.text_tokens,
            "joint": c.mode == "cluster",
            "views": c.views,
        }
        return (PassRef(name="e5v", model=c.model, config=config),)

    def score(self, pool: Pool, features: Features) -> Scores:
        """`score`: the cosine of picture and text, in [-1, 1], NaN where a sample has no image.

        In mode `cluster` also `cluster` (-1 where it has none) and `nearness`, the cosine with its centroid.
        """
        cosine = np.asarray(features["e5v"]["cosine"], dtype=np.float32)
        if self.config.mode == "similarity":
            return {"score": cosine}
        return {"score": cosine} | self._clustered(pool, features, self.config.clusters)

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The highest cosines; or of every cluster those nearest to its centroid, as many as its share."""
        c: E5vSelectorConfig = self.config
        card: dict[str, Json] = {"mode": c.mode, "prompts": self._prompts()}
        if c.mode == "similarity":
            plain = keep_band(pool, scores["score"], n, seed, band="top", tie=c.tie, scope=c.scope)
            return Selection(positions=plain.positions, card={**plain.card, **card})
        # No more clusters than samples: below that, the ones that score() made do not do.
        made = scores if n >= c.clusters else self._clustered(pool, features, n)
        cluster = np.asarray(made["cluster"])
        sizes = np.bincount(cluster[cluster >= 0])
        numbers = [f"{i:09d}" for i in range(len(sizes))]
        kept = largest_remainder(sizes, min(n, int(sizes.sum())), numbers)
        order = ranked(pool, made["nearness"], seed, c.tie)
        valid = order[cluster[order] >= 0]
        chosen = valid[place_in_group(cluster[valid]) < kept[cluster[valid]]]
        rest = order[cluster[order] < 0][: n - len(chosen)]
        card |= {"n_nan": int((cluster < 0).sum()), "n_topup": len(rest), "n_clusters": len(sizes)}
        return Selection(positions=np.concatenate([chosen, rest]).astype(np.int32), card=card)

    def _prompts(self) -> dict[str, Json]:
        """Whether the model was asked in the published words (`official`) or in our `own`, with digests."""
        pack = prompt_pack(self.config.prompts)
        digests = {name: text_digest(pack.template(name)) for name in ("image", "text")}
        return {"words": "official" if pack.official == "e5v" else "own", **digests}

    def _clustered(self, pool: Pool, features: Features, k: int) -> Scores:
        c: E5vSelectorConfig = self.config
        columns = features["e5v"]
        order = seeded_order(pool.column("uid_hash64"), c.clustering_seed)
        order = order[~np.isnan(columns["cosine"])[order]]
        found = spherical_kmeans(columns["joint"], k, order, iterations=c.iterations)
        return {"cluster": found.labels, "nearness": nearness(columns["joint"], found.labels, found.centroids)}


def prompt_pack(name: str) -> PromptPack:
    """A pack that comes with the package, by name, or one from a file.

    Raises HarnessError for a file that is not there or is no pack.
    """
    return load_pack(str(Path(__file__).parent / "packs" / f"{name}.yaml") if name in PACKS else name)


def nearness(rows: Rows, labels: npt.NDArray[np.int32], centroids: npt.NDArray[np.float32]) -> Floats:
    """Inner product of each row (n, d) with the centroid of its cluster, (n,); NaN without a cluster."""
    found = np.full(len(rows), np.nan)
    clustered = np.flatnonzero(labels >= 0)
    for part in np.array_split(clustered, -(-len(clustered) // BLOCK) or 1):
        own = centroids[labels[part]].astype(np.float64)
        found[part] = np.einsum("ij,ij->i", rows[part].astype(np.float64), own)
    # Beyond eleven decimals it is rounding, which must not decide between copies.
    return found.round(11)
