"""COINCIDE: clusters of what a small model computes inside, and from each as much as it transfers and is
diverse (Lee, Li and Hwang, EMNLP 2024, arXiv 2406.10995).

Samples are clustered by the outputs of five attention projections of a reference model (pass `activations`).
The share of a cluster i in the budget grows with exp(T_i / (D_i tau)): T_i, transferability, is its mean
cosine to other clusters, D_i, density, the mean Gaussian kernel within it. Inside, samples are taken greedily
so that their maximum mean discrepancy to the cluster stays smallest.

Where paper and released code differ, `variant` decides: `released` compares the text halves of centroids,
leaves out pairs of cosine above 0.9, and counts a member's kernel with itself in the density; `paper` does
none of that. Ours in either: k-means (the released one gives equal centroids under some versions of faiss),
and a budget that is filled exactly, by going through the clusters again for what rounding left. Uncertain:
the reference model and the number of clusters behind row "COINCIDE" of arXiv 2503.13383. The default is the
backbone before SFT where the paper has TinyLLaVA-2.0B (which `model` takes too, once it is
converted to transformers' format), and as many samples a cluster as the release has on 665,000.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.api import Features, PassRef, Pool, Scores, Selection, Selector, ranked
from harness.errors import HarnessError
from harness.keys import seeded_order
from harness.types import Json
from selector_zoo.kmeans import Clusters, spherical_kmeans
from selector_zoo.mmd import Kernel, density, greedy_order

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

IMBALANCED = 50.0
"""From this imbalance on a clustering is suspect."""
ALIKE = 0.999
"""Centroids of a mean cosine above this are all the same: no clustering at all."""
OF_ALL = ("centroid_cosine", "reseeded", "dropped")
"""Columns with one value, which is of the clustering as a whole: scores have no other way to tell the card."""


@dataclass(frozen=True, slots=True)
class CoincideConfig:
    """Whose activations, how many clusters, and how the budget is shared among them."""

    model: str = "mid"
    """`mid` (the backbone before SFT), `warm` (after SFT on a random 5 %), a folder, or a pinned hub id."""
    layers: tuple[int, ...] = ()
    """Decoder blocks read, from 0; empty: five at equal distances, 3, 7, 11, 15, 19 of 24."""
    view: str = "square"
    """Images as one view padded to a square (`square`), as in the paper, or in tiles as in training (`tiles`)."""
    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right."""
    variant: str = "released"
    """Transferability and density as in the released code (`released`) or as written (`paper`)."""
    clusters: int = 0
    """Number of clusters (10,000 in the release, for 665,000 samples); 0: as `samples_per_cluster` says."""
    samples_per_cluster: float = 66.5
    """Average size of a cluster, where their number is not given."""
    iterations: int = 50
    """Most rounds of k-means."""
    fit_per_cluster: int = 256
    """k-means runs on at most so many samples a cluster (faiss's default); the others join the nearest."""
    temperature: float = 0.1
    """Of the softmax over clusters; smaller favours the transferable and diverse more."""
    sigma: float = 1.0
    """Width of the Gaussian kernel, in the unit of features of length one."""
    mask: float = 0.9
    """Cosine above which two clusters are too alike to count (variant `released`)."""
    inside: str = "mmd"
    """Within a cluster: greedy by `mmd`, nearest to the `centroid`, or `random`."""
    clustering_seed: int = 1234
    """Decides the first centroids, and ties within clusters."""

    def __post_init__(self) -> None:
        allowed = {"variant": ("released", "paper"), "inside": ("mmd", "centroid", "random")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"coincide: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        for name in ("samples_per_cluster", "iterations", "fit_per_cluster", "temperature", "sigma"):
            if getattr(self, name) <= 0:
                raise HarnessError(f"coincide: {name}={getattr(self, name)} must be more than 0.")
        if not -1 <= self.mask <= 1:
            raise HarnessError(f"coincide: mask={self.mask} is no cosine: give a number from -1 to 1.")
        if self.clusters < 0:
            raise HarnessError(f"coincide: clusters={self.clusters} must be at least 0.")


class Coincide(Selector):
    """Keep samples of clusters that transfer well and are diverse, spread over each."""

    name = "coincide"
    version = 1
    Config = CoincideConfig
    nested = False
    uncertain = (
        "reference model: TinyLLaVA-2.0B in the paper, unpublished for row COINCIDE of arXiv 2503.13383",
        "number of clusters: published for 186,000 and 665,000 samples only",
    )

    def needs(self) -> tuple[PassRef, ...]:
        """Activations of one forward with the answers in it."""
        c: CoincideConfig = self.config
        config: dict[str, Json] = {"layers": list(c.layers), "view": c.view, "max_length": c.max_length}
        return (PassRef(name="activations", model=c.model, config=config),)

    def score(self, pool: Pool, features: Features) -> Scores:
        """A sample's `cluster` and its place in the cluster (`rank`, from 0), and its cluster's `transferability`
        and `density`; -1 and NaN where it has no activations. Also, for all samples the same, the mean cosine of
        different centroids (`centroid_cosine`) and how many clusters were `reseeded` and `dropped`.

        Raises HarnessError where the centroids are all alike.
        """
        columns, c = features["activations"], self.config
        rows = columns["feature"]
        order = seeded_order(pool.column("uid_hash64"), c.clustering_seed)
        order = order[np.asarray(columns["n_text"])[order] >= 0]
        k = cluster_count(c, len(order))
        found = spherical_kmeans(rows, k, order, iterations=c.iterations, per_cluster=c.fit_per_cluster)
        likeness = centroid_cosine(found.centroids)
        _complain(found, likeness, c.model)
        made: Scores = {
            "cluster": found.labels,
            "rank": np.full(pool.n, -1, dtype=np.int32),
            "transferability": np.full(pool.n, np.nan),
            "density": np.full(pool.n, np.nan),
            "centroid_cosine": np.full(pool.n, likeness),
            "reseeded": np.full(pool.n, found.reseeded, dtype=np.int32),
            "dropped": np.full(pool.n, found.dropped, dtype=np.int32),
        }
        transfer = transferability(found.centroids, c)
        for i, members in enumerate(members_of(found.labels, order)):
            made["rank"][members], within = inside(rows[members], found.centroids[i], c)
            made["transferability"][members], made["density"][members] = transfer[i], within
        return made

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The first of every cluster, as many as its share of the budget; clusters of the largest share first."""
        cluster, rank = np.asarray(scores["cluster"]), np.asarray(scores["rank"])
        valid = np.flatnonzero(cluster >= 0)
        _, first, sizes = np.unique(cluster[valid], return_index=True, return_counts=True)
        one_each = valid[first]
        # Beyond eleven decimals it is rounding, which must not decide between clusters.
        share = (scores["transferability"][one_each] / scores["density"][one_each]).round(11)
        kept, rounds = budgets(share, sizes, min(n, len(valid)), self.config.temperature)
        chosen = valid[rank[valid] < kept[cluster[valid]]]
        chosen = chosen[np.lexsort((rank[chosen], cluster[chosen], -share[cluster[chosen]]))]
        missing = ranked(pool, np.where(cluster < 0, 0.0, np.nan), seed)[: n - len(chosen)]
        card: dict[str, Json] = {
            "n_nan": pool.n - len(valid),
            "n_topup": len(missing),
            "variant": self.config.variant,
            "n_clusters": len(sizes),
            "n_clusters_unused": int((kept == 0).sum()),
            "rounds": rounds,
            "imbalance": round(imbalance(sizes), 4),
        }
        # Scores that were stored before these columns were added lack them.
        card |= {name: round(value.item(), 4) for name in OF_ALL for value in scores.get(name, ())[:1]}
        if doubt := imbalanced(sizes):
            card["warning"] = doubt
        return Selection(positions=np.concatenate([chosen, missing]).astype(np.int32), card=card)


def cluster_count(config: CoincideConfig, n: int) -> int:
    """How many clusters n samples are put into."""
    return config.clusters or max(1, round(n / config.samples_per_cluster))


def members_of(labels: npt.NDArray[np.int32], order: Ints) -> Iterator[Ints]:
    """Positions in each cluster, in the order they have in `order`."""
    if len(order):
        by_cluster = order[np.argsort(labels[order], kind="stable")]
        yield from np.split(by_cluster, np.flatnonzero(np.diff(labels[by_cluster])) + 1)


def transferability(centroids: npt.NDArray[np.float32], config: CoincideConfig, rows: int = 1024) -> Floats:
    """Mean cosine of each centroid (k, d) to the others, (k,); `rows` of the k x k cosines at a time.

    Released: of their text halves, without those above `mask` (so without itself), and 0 where none is left.
    Paper: of the whole, to all others.
    """
    k = len(centroids)
    released = config.variant == "released"
    # The activations pass lays out a feature as the image halves of all layers, then the text halves.
    parts = centroids[:, centroids.shape[1] // 2 :] if released else centroids
    unit = parts.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    means = np.zeros(k)
    for start in range(0, k, rows):
        cosines = unit[start : start + rows] @ unit.T
        counted = cosines <= config.mask if released else np.ones_like(cosines, dtype=np.bool_)
        if not released:
            own = np.arange(len(cosines))
            counted[own, start + own] = False
        count = counted.sum(axis=1)
        means[start : start + rows] = (cosines * counted).sum(axis=1) / np.maximum(count, 1)
    return means


def inside(
    rows: npt.NDArray[np.float16], centroid: npt.NDArray[np.float32], config: CoincideConfig
) -> tuple[npt.NDArray[np.int32], float]:
    """Place of each member in its cluster, (n,), and the cluster's density; ties by the order of the rows."""
    kernel = Kernel.of(rows, config.sigma)
    means = kernel.row_means()
    within = density(means, distinct=config.variant == "paper")
    if config.inside == "mmd":
        return greedy_order(kernel, means), within
    nearness = rows.astype(np.float64) @ centroid.astype(np.float64)
    place = np.arange(len(rows), dtype=np.int32)
    if config.inside == "centroid":
        place[np.argsort(-nearness.round(11), kind="stable")] = place.copy()
    return place, within


def budgets(share: Floats, sizes: Ints, n: int, temperature: float) -> tuple[Ints, int]:
    """How many of each cluster are kept, (k,), `n` in all, and how often the clusters were gone through.

    In order of `share` (transferability over density, the lower cluster first among equals), each gets its part of
    what is left under a softmax over the clusters still to come, at most its size. Rounding and small clusters may
    leave some of the budget; it is given out the same way again. `n` is at most the sum of the sizes.
    """
    kept = np.zeros(len(sizes), dtype=np.int64)
    rounds = 0
    while (left := n - int(kept.sum())) > 0:
        open_ = np.flatnonzero(kept < sizes)
        order = open_[np.argsort(-share[open_], kind="stable")]
        for cluster, part in zip(order, inverse_weights(share[order] / temperature), strict=True):
            take = min(round(left / part), int(sizes[cluster] - kept[cluster]))
            kept[cluster] += take
            left -= take
        rounds += 1
    return kept, rounds


def inverse_weights(logits: Floats) -> list[float]:
    """For each of descending logits, one over its weight in a softmax over itself and all that follow.

    Equal logits give whole numbers, so that what is rounded half to even is a half.
    """
    sums = [1.0] * len(logits)
    for i in range(len(logits) - 2, -1, -1):
        sums[i] += math.exp(logits[i + 1] - logits[i]) * sums[i + 1]
    return sums


def imbalance(sizes: Ints) -> float:
    """Imbalance factor of clusters, as faiss defines it: 1 where all are equal, k where one has everything."""
    total = float(sizes.sum())
    return float(len(sizes) * (sizes.astype(np.float64) ** 2).sum() / max(total, 1.0) ** 2)


def imbalanced(sizes: Ints) -> str:
    """What to say of clusters of very unequal sizes; empty where they are not."""
    found = imbalance(sizes)
    return f"the imbalance of {len(sizes)} clusters is {found:.0f}" if found >= IMBALANCED else ""


def centroid_cosine(centroids: npt.NDArray[np.float32]) -> float:
    """Mean cosine of different centroids, (k, d) of length one; 0 where there is only one."""
    k = len(centroids)
    square = float(np.linalg.norm(centroids.sum(axis=0, dtype=np.float64)) ** 2)
    return (square - k) / (k * (k - 1)) if k > 1 else 0.0


def _complain(found: Clusters, likeness: float, model: str) -> None:
    """Warn of clusters that the method cannot make much of.

    Raises HarnessError where the mean cosine of their centroids, `likeness`, says that they are all alike.
    """
    if likeness > ALIKE:
        raise HarnessError(
            f"coincide: the {len(found.centroids)} centroids of the activations of model '{model}' are all alike "
            f"(mean cosine {likeness:.4f}), so clusters say nothing: set another `model` or other `layers`."
        )
    if doubt := imbalanced(found.sizes):
        log.warning("coincide: %s: a few of them hold most samples.", doubt)
    if found.dropped:
        log.warning("coincide: %d clusters stayed empty: so many samples are copies of others.", found.dropped)
