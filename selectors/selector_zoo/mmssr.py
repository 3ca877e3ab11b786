"""mmSSR: rich scorers and a styler, and a round-robin over what they say (arXiv 2503.13383).

Fourteen capability scores and some of nine interaction styles a sample; every capability takes its share of the
budget in turn, spread over buckets of samples that are alike. The released sampler, which is more exact than what
is known of the paper, buckets by style and source and serves small buckets first; it also breaks off when a
capability runs out and may keep a sample too many. What is unknown: the wording of the capabilities the authors
asked their scorer for, and the order they served them in; the order here is that of their documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.api import Features, Lessons, PassRef, Pool, Scores, Selection, Selector, ranked
from harness.errors import HarnessError, unknown_name
from harness.keys import file_digest, seeded_order
from harness.types import OMIT_DEFAULT, Json
from selector_zoo.blocks import blocks
from selector_zoo.mmssr_sampler import Rules, Sampler
from selector_zoo.prompts import CAPABILITIES, STYLES, load_pack, text_digest

SCORES: Final = "scores"
"""Label of the pass with column `scores`: float32 (n, 14), 0 to 5, NaN where unknown; order of CAPABILITIES."""

STYLED: Final = "styles"
"""Label of the pass with column `styles`: int8 (n, 10), numbers of a sample's styles in LABELS in the order named,
none twice, -1 in the places left over. The place counts: see `Memberships`. A sample that names none is
`other`."""

LABELS: Final = (*STYLES, "other")
TRAINED: Final = "trained"
RELEASED: Final = "mengyaolyu/mmssr-7b-"
"""How the names of the released scorer and styler begin."""
VARIANTS: Final = ("fixed", "released", "paper")


@dataclass(frozen=True, slots=True)
class MmssrConfig:
    """Where scores and styles come from, and how they are sampled."""

    labels: str = ""
    """A .parquet or .jsonl file of uid, fourteen scores and styles; empty: models are asked."""
    scorer: str = ""
    """The model that is asked for scores: a folder, or a hub id pinned as `org/name@COMMIT`; or `trained`, the
    backbone taught from `labels` (empty: `teachers.parquet` beside the pool)."""
    styler: str = ""
    """The model that is asked for styles; empty: the scorer; `trained` as above, a model of its own."""
    lessons: int = 0
    """How many labels a `trained` model learns from; 0: all."""
    zeros: str = field(default="all", metadata=OMIT_DEFAULT)
    """Which scores of 0 it is taught: `all`, as the authors do as far as is known, or `some`, no more of a sample
    than it has others, if it has any: of labels that are mostly 0 a small model learns nothing else."""
    teaching: Any = field(default=None, metadata=OMIT_DEFAULT)  # of a typed mapping Hydra lets nobody set a key
    """Numbers of the recipe in which its training differs from the cell's, as `{global_batch: 8, epochs: 2}`."""
    prompts: str = "own"
    """What they are asked: a prompt pack's YAML file, or `own`, the pack that models trained here know."""
    inference: str = "own"
    """How samples are put to them: as training here does (`own`), or as the `released` inference code does."""
    clean: str = field(default="", metadata=OMIT_DEFAULT)
    """What goes from the front of a question: the word "Question:" (`prefix`), or all of its letters, at the end
    too, as the released inference has it (`charset`); empty: as `inference` says."""
    capabilities: tuple[str, ...] = ()
    """Those that count, in the order they are served; empty: all fourteen."""
    threshold: float = 0.0
    """A capability takes only samples it scores above this."""
    variant: str = "fixed"
    """`fixed`; `released`, with its overshoot and its end when a capability runs out; or `paper`, which sets
    `bucket_by=style` and `strict_score=true`."""
    bucket_by: str = "style_source"
    """What makes samples alike: `style_source`, or `style` alone."""
    strict_score: bool = False
    """Within a bucket by score alone, not those first whose first style it is."""
    tie: str = "hash"
    """Equal scores by seeded uid hash, or by `index`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "capabilities", tuple(self.capabilities))
        if self.variant == "paper":
            object.__setattr__(self, "bucket_by", "style")
            object.__setattr__(self, "strict_score", True)
        allowed = {
            "variant": VARIANTS,
            "inference": ("own", "released"),
            "clean": ("", "prefix", "charset"),
            "zeros": ("all", "some"),
            "bucket_by": ("style_source", "style"),
            "tie": ("hash", "index"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"mmssr: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if not 0 <= self.threshold < 5:
            raise HarnessError(
                f"mmssr: threshold={self.threshold} leaves all scores or none: give one from 0, below 5."
            )
        object.__setattr__(self, "teaching", _numbers(self.teaching))
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise unknown_name("mmssr: capability", capability, CAPABILITIES)
        if len(set(self.capabilities)) < len(self.capabilities):
            raise HarnessError("mmssr: a capability is named twice: name each once.")

    @property
    def served(self) -> tuple[str, ...]:
        """The capabilities in order."""
        return self.capabilities or CAPABILITIES


def _numbers(given: Any) -> dict[str, float] | None:
    """A mapping of names to numbers as it was given; None for an empty one."""
    if not given:
        return None
    if not isinstance(given, Mapping) or any(type(v) not in (int, float) for v in given.values()):
        raise HarnessError(
            f"mmssr: teaching={given} is no mapping to numbers: write teaching={{global_batch: 8, epochs: 2}}."
        )
    return dict(given)


class Mmssr(Selector):
    """Keep what helps each of fourteen capabilities most, of every style and source."""

    name = "mmssr"
    version = 1
    Config = MmssrConfig
    nested = False
    uncertain = (
        "capability wording and order: those of the released documentation",
        "buckets: the released code's style and source, where the paper is understood to say style",
    )

    def needs(self) -> tuple[PassRef, ...]:
        """Scores and styles, from a file or from models.

        Raises HarnessError where neither is named or both are, and for a file that is not there.
        """
        asked = [model for model in (self.config.scorer, self.config.styler) if model]
        if self.config.labels and TRAINED not in asked:
            if asked:
                raise HarnessError(
                    f"mmssr: labels says what the samples teach, and so does {asked[0]}: leave one of them out. "
                    "(Labels are also what a model learns from that is trained here: scorer=trained.)"
                )
            refs = [self._file()] * 2
        elif self.config.scorer:
            refs = self._asked()
        else:
            raise HarnessError(
                "mmssr: nothing says what the samples teach: set labels to a file of scores and styles, or scorer "
                "(and styler) to models that were trained to tell."
            )
        return tuple(replace(ref, alias=alias) for ref, alias in zip(refs, (SCORES, STYLED), strict=True))

    def _file(self) -> PassRef:
        path = Path(self.config.labels).expanduser().resolve()
        if not path.is_file():
            raise HarnessError(f"mmssr: there is no label file {path}: set labels to a .parquet or .jsonl file.")
        return PassRef(name="mmssr_labels", config={"path": str(path), "digest": file_digest(path)})

    def _asked(self) -> list[PassRef]:
        """One pass asks both where scorer and styler are the same; two that are trained here never are."""
        from selector_zoo.passes.mmssr import asking

        self._check_words()
        config = self.config
        styler = config.styler or config.scorer
        both = styler == config.scorer and config.styler != TRAINED
        released = config.inference == "released"
        return [
            PassRef(
                name="mmssr",
                model=model,
                config=asking(config.prompts, scores=scores or both, styles=not scores or both, released=released)
                | ({"clean": config.clean} if config.clean else {})
                | ({"zeros": config.zeros} if model == TRAINED else {}),
                lessons=self._lessons() if model == TRAINED else Lessons(),
            )
            for model, scores in ((config.scorer, True), (styler, False))
        ]

    def _lessons(self) -> Lessons:
        config = self.config
        return Lessons(labels=config.labels, limit=config.lessons, recipe=dict(config.teaching or {}))

    def _check_words(self) -> None:
        config = self.config
        models = (config.scorer, config.styler)
        if config.inference == "released" and TRAINED in models:
            raise HarnessError(
                "mmssr: a model that is trained here is asked as it was taught, with the tiles of training: leave "
                "inference=released, the layout of the released checkpoints, to those."
            )
        if not any(model.startswith(RELEASED) for model in models):
            return
        if config.inference != "released" or load_pack(config.prompts).official != "mmssr":
            raise HarnessError(
                "mmssr: the released scorer and styler only understand the words and the layout they were trained "
                "on: set inference=released, and prompts to what 'sievebench published prompts mmssr' fetches."
            )

    def score(self, pool: Pool, features: Features) -> Scores:
        """Mean of the capabilities that count and are known, which only fills up; NaN where none is known."""
        said = features[SCORES]["scores"]
        columns = [CAPABILITIES.index(c) for c in self.config.served]
        mean = np.empty(pool.n, dtype=np.float32)
        for rows in blocks(pool.n):
            part = _columns(said[rows], columns).astype(np.float64)
            known = np.isfinite(part)
            total = np.where(known, part, 0).sum(axis=1)
            count = known.sum(axis=1)
            mean[rows] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return {"score": mean}

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """Capabilities take turns; within one, buckets do.

        Raises HarnessError where a capability runs out and `variant` is `released`.
        """
        config = self.config
        order = np.arange(pool.n) if config.tie == "index" else tie_order(pool, seed)
        styles = features[STYLED]["styles"]
        buckets, labels = bucket_table(pool, styles, by_source=config.bucket_by == "style_source")
        columns = [CAPABILITIES.index(c) for c in config.served]
        levels = score_levels(features[SCORES]["scores"], columns, config.threshold)
        sampler = Sampler(
            np.take(levels, order, axis=0),
            np.take(buckets, order, axis=1),
            len(labels),
            Rules(strict_score=config.strict_score, released=config.variant == "released", names=config.served),
        )
        picked = order[sampler.sample(n)]
        filled = top_up(pool, picked, scores["score"], n, seed, config.tie)
        card: dict[str, Json] = {
            "variant": config.variant,
            "n_nan": int(np.isnan(scores["score"]).sum()),
            "n_topup": max(0, n - len(picked)),
            "n_truncated": max(0, len(picked) - n),
            "n_buckets": len(labels),
            "n_style_other": int(np.count_nonzero(other_style(styles))),
            "by_capability": dict(zip(config.served, sampler.picked, strict=True)),
            "prompts": self._prompts(),
        }
        return Selection(positions=filled[:n].astype(np.int32), card=card)

    def _prompts(self) -> dict[str, Json]:
        """Whose words scorer and styler were asked in: the published (`official`) or our `own`, with digests."""
        config = self.config
        if config.labels and TRAINED not in (config.scorer, config.styler):
            return {"words": "none", "labels": Path(config.labels).name}
        pack = load_pack(config.prompts)
        digests = {name: text_digest(pack.template(name)) for name in ("score", "styles")}
        words = "official" if pack.official == "mmssr" else "own"
        return {"words": words, "inference": config.inference, **digests}


def tie_order(pool: Pool, seed: int) -> npt.NDArray[np.int64]:
    """Positions in the seeded order that decides between equals."""
    return seeded_order(pool.column("uid_hash64"), seed)


def top_up(
    pool: Pool, picked: npt.NDArray[Any], score: npt.NDArray[Any], n: int, seed: int, tie: str
) -> npt.NDArray[Any]:
    """`picked`, followed by the best of the rest where it is fewer than `n`."""
    if len(picked) >= n:
        return picked
    free = np.ones(pool.n, dtype=np.bool_)
    free[picked] = False
    best = ranked(pool, score, seed, tie)
    return np.concatenate([picked, best[free[best]][: n - len(picked)]])


def score_levels(
    scores: npt.NDArray[Any], columns: list[int], threshold: float
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint32]:
    """What each capability thinks of each sample, (n, capabilities): 0 not a candidate, higher is better.

    Whole numbers, which scores are, keep their order in a byte; others are replaced by their rank.
    """
    levels = np.empty((len(scores), len(columns)), dtype=np.uint8)
    for rows in blocks(len(scores)):
        part = _columns(scores[rows], columns)
        above = part > threshold  # NaN is above nothing
        with np.errstate(invalid="ignore"):
            whole = part.astype(np.uint8)
        if (above & ((whole != part) | (whole == 255))).any():
            return _ranks(scores, columns, threshold)
        levels[rows] = np.where(above, whole + 1, 0)
    return levels


def _columns(scores: npt.NDArray[Any], columns: list[int]) -> npt.NDArray[Any]:
    """Some columns in some order; all of them as they are, which copies nothing."""
    whole = np.asarray(scores)
    return whole if columns == list(range(whole.shape[1])) else whole[:, columns]


def _ranks(scores: npt.NDArray[Any], columns: list[int], threshold: float) -> npt.NDArray[np.uint32]:
    ranks = np.zeros((len(scores), len(columns)), dtype=np.uint32)
    for place, column in enumerate(columns):
        values = np.asarray(scores[:, column])
        above = np.isfinite(values) & (values > threshold)
        ranks[above, place] = np.unique(values[above], return_inverse=True)[1] + 1
    return ranks


def bucket_table(
    pool: Pool, styles: npt.NDArray[np.int8], *, by_source: bool
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Buckets of every sample in the order of its styles, (places, n), -1 where it has no more; and their labels.

    Buckets are numbered by label, `style+source`, in alphabetical order.
    """
    names, source = source_names(pool) if by_source else ([""], np.zeros(pool.n, dtype=np.int32))
    places = max(1, int((styles.max(axis=0, initial=-1) >= 0).sum()))
    table = np.ascontiguousarray(styles[:, :places].T, dtype=np.int32)
    table[0, table[0] < 0] = len(STYLES)
    absent = table < 0
    table *= len(names)
    table += source
    table[absent] = -1
    found = np.zeros(len(LABELS) * len(names) + 1, dtype=np.bool_)
    found[table] = True  # the last one is what -1 finds
    used = np.flatnonzero(found[:-1])
    labels = [LABELS[k // len(names)] + (f"+{names[k % len(names)]}" if by_source else "") for k in used.tolist()]
    number = np.full(len(found), -1, dtype=np.int32)
    number[used[np.argsort(labels, kind="stable")]] = np.arange(len(used), dtype=np.int32)
    return number[table], sorted(labels)


def other_style(styles: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Samples with a style that is none of the nine, or with no style, (n,)."""
    other: npt.NDArray[np.bool_] = (styles == len(STYLES)).any(axis=1) | (styles[:, 0] < 0)
    return other


def source_names(pool: Pool) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Names of the sources, and each sample's index into them."""
    ids = pool.column("source_id")  # from 0, none left out
    first = np.empty(int(ids.max()) + 1, dtype=np.int64)
    first[ids[::-1]] = np.arange(pool.n)[::-1]
    return [pool.record(int(i)).source for i in first], ids
