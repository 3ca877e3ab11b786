"""What do the selectors of a sweep on miniworld keep? Contact sheets, and shares of what was spoilt on purpose.

    python -m tests.bench.picks --store runs/demo_mmssr --out docs/img [--budget 30%] [--make SETTING=VALUE ...]

Needs the select stages of `sweep=demo_mmssr` alone, and makes them with `--make`, which takes settings: for
example `name=paper hydra.sweeper.params.selector=mmssr_mini selector.variant=paper`. Of every selector (seed 0)
it draws the samples it would keep first and those it rates lowest into `picks_NAME.png`, prints a table, and ends
with one JSON object of the same figures:

`sound`, `duplicate`, `wrong`, `off_topic`   percent of what is kept, by the hidden truth table
`copies`                mean number kept of an original and its near-duplicates, where any of them is
`sources`               sources among what is kept, as their effective number (exp of the entropy)
`auc_wrong`, `auc_off_topic`   chance that a sound sample is rated higher than a spoilt one; only of a ranking
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from harness.keys import mix64
from harness.miniworld import truth_file
from harness.pool import IMAGE_TOKEN, Pool, open_pool
from harness.stages.features import read_columns
from harness.store import StageDir, Store
from tests.selections import SWEEP, carry_out, failures, part_of, planned

Ints = npt.NDArray[np.int64]
DEFECTS: Final = {"": "sound", "duplicate": "near duplicate", "wrong": "WRONG", "off_topic": "OFF TOPIC"}
INK: Final = {"": (0, 110, 40), "duplicate": (150, 90, 0), "wrong": (190, 0, 0), "off_topic": (150, 0, 150)}
EACH: Final = 24
COLUMNS: Final = 8
CELL: Final = (168, 118)
TEXT: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is wrong with each sample of a pool, in its order, and which sample it repeats."""

    defect: npt.NDArray[Any]
    family: npt.NDArray[Any]
    """The uid of the original, for it and its copies."""

    @classmethod
    def of(cls, pool: Pool) -> Truth:
        """Read the truth table of a pool of miniworld."""
        rows = {r["uid"]: r for r in pq.read_table(truth_file(Path(pool.path))).to_pylist()}
        uids = pool.uids()
        return cls(
            defect=np.array([rows[uid]["defect"] for uid in uids]),
            family=np.array([rows[uid]["original"] or uid for uid in uids]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """What one selector keeps, best first, and its score of every sample where it has one."""

    method: str
    budget: str
    pool: Pool
    positions: Ints
    score: npt.NDArray[np.float64] | None

    def lowest(self, n: int) -> Ints:
        """Samples with the lowest score; where there is none, some of those that are not kept."""
        if self.score is None:
            rest = np.setdiff1d(np.arange(self.pool.n), self.positions)
            return rest[np.argsort(mix64(self.pool.column("uid_hash64")[rest], 0))][:n]
        return np.argsort(self.score, kind="stable")[:n]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """A row of the table; see the module."""

    method: str
    budget: str
    n: int
    sound: float
    duplicate: float
    wrong: float
    off_topic: float
    copies: float
    sources: float
    auc_wrong: float | None = None
    auc_off_topic: float | None = None


def read_picks(store: Store, sweep: str) -> list[Picked]:
    """The selections of a sweep's first seed that are there, the whole pool left out."""
    cells = [c for c in store.sweep(sweep)["cells"] if c["seed"] == 0 and c["method"] != "full"]
    found = [(cell, store.by_key("select", cell["select"])) for cell in cells]
    return [_picked(store, cell, stage) for cell, stage in found if stage.done()]


def _picked(store: Store, cell: dict[str, Any], stage: StageDir) -> Picked:
    spec = json.loads((stage.path / "spec.json").read_text())
    scores: dict[str, Any] = {}
    if "score.scores" in spec["inputs"]:
        scores = read_columns(store.by_key("score", spec["inputs"]["score.scores"]).out)
    score = next((scores[name] for name in ("score", "influence") if name in scores), None)
    if score is not None and score.ndim > 1:
        score = score.mean(axis=1)
    if json.loads((stage.out / "card.json").read_text()).get("band") == "middle":
        score = _middle(score)
    return Picked(
        method=cell["method"],
        budget=cell["budget"],
        pool=open_pool(spec["settings"]["pool_path"]),
        positions=np.load(stage.out / "positions.npy"),
        score=None if score is None else np.asarray(score, dtype=np.float64),
    )


def _middle(score: Any) -> npt.NDArray[np.float64]:
    """The rating behind a middle band: how far from the median a sample is in rank, negative; NaN stays."""
    known = np.flatnonzero(~np.isnan(score))
    rating = np.full(len(score), np.nan)
    rating[known[np.argsort(score[known], kind="stable")]] = -np.abs(np.arange(len(known)) - len(known) // 2)
    return rating


def shares(truth: Truth, picked: Picked) -> Shares:
    """What a selection is made of."""
    kept = picked.positions
    defect = truth.defect[kept]
    copied = set(truth.family[truth.defect == "duplicate"])
    _, members = np.unique([f for f in truth.family[kept] if f in copied], return_counts=True)
    _, by_source = np.unique(picked.pool.column("source_id")[kept], return_counts=True)
    part = by_source / len(kept)
    percent = {name: round(100 * float((defect == name).mean()), 1) for name in DEFECTS}
    return Shares(
        method=picked.method,
        budget=picked.budget,
        n=len(kept),
        sound=percent[""],
        duplicate=percent["duplicate"],
        wrong=percent["wrong"],
        off_topic=percent["off_topic"],
        copies=round(float(members.mean()), 2) if len(members) else 0.0,
        sources=round(float(np.exp(-(part * np.log(part)).sum())), 1),
        auc_wrong=auc(truth, picked.score, "wrong"),
        auc_off_topic=auc(truth, picked.score, "off_topic"),
    )


def auc(truth: Truth, score: npt.NDArray[np.float64] | None, defect: str) -> float | None:
    """Chance that a sound sample has a higher score than one with a defect, ties counted as a half."""
    if score is None:
        return None
    sound = score[(truth.defect == "") & ~np.isnan(score)]
    spoilt = np.sort(score[(truth.defect == defect) & ~np.isnan(score)])
    below = np.searchsorted(spoilt, sound, "left") + np.searchsorted(spoilt, sound, "right")
    return round(float(below.mean() / 2 / len(spoilt)), 3)


def sheet(truth: Truth, picked: Picked) -> Image.Image:
    """The first samples kept above the lowest rated ones."""
    rated = "rated lowest" if picked.score is not None else "not kept (some)"
    first = (f"{picked.method}, {picked.budget}: kept first", picked.positions[:EACH])
    width, height = CELL
    page = Image.new("RGB", (COLUMNS * width, 2 * (20 + EACH // COLUMNS * height)), "white")
    y = 0
    for title, positions in (first, (rated, picked.lowest(EACH))):
        ImageDraw.Draw(page).text((6, y + 3), title, fill="black", font=ImageFont.load_default(12))
        for i, position in enumerate(positions.tolist()):
            at = (i % COLUMNS * width + 4, y + 20 + i // COLUMNS * height)
            _cell(page, at, picked.pool, position, str(truth.defect[position]))
        y += 20 + EACH // COLUMNS * height
    return page.quantize(255, dither=Image.Dither.NONE)


def _cell(page: Image.Image, at: tuple[int, int], pool: Pool, position: int, defect: str) -> None:
    record, pen = pool.record(position), ImageDraw.Draw(page)
    if record.images:
        page.paste(pool.image(record.images[0]).convert("RGB"), at)
    what = DEFECTS[defect].replace(" ", "\n")
    pen.text((at[0] + 100, at[1]), what, fill=INK[defect], font=ImageFont.load_default(10))
    said = [text.replace(IMAGE_TOKEN, "").strip() for _, text in record.conversations]
    lines = [
        line
        for question, answer in zip(said[::2], said[1::2], strict=True)
        for line in _wrapped(question) + _wrapped(f"> {answer}")
    ]
    pen.text((at[0], at[1] + 49), "\n".join(lines[:6]), fill="black", font=ImageFont.load_default(9), spacing=0)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" / ".join(text.split("\n")), TEXT)


def show(rows: Sequence[Shares]) -> None:
    """Print the table."""
    table = Table(*(name.replace("_", " ") for name in Shares.__dataclass_fields__))
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in asdict(row).values()))
    Console(width=150).print(table)


def make(store: Path, settings: Sequence[str]) -> str:
    """Carry out all selections of the sweep, on two cores, but no training after them; returns its name."""
    sweep = planned(store, settings)
    result = carry_out(sweep, part_of(sweep, [c.select for c in sweep.plan.cells]), slots=2)
    if result.failures:
        raise SystemExit("\n".join(failures(result)))
    return sweep.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="30%", help="of the sheets; the table has all")
    parser.add_argument("--make", nargs="*", metavar="SETTING=VALUE", help="carry out the selections first")
    args = parser.parse_args()
    name = SWEEP if args.make is None else make(args.store, args.make)
    picks = read_picks(Store(args.store), name)
    truth = Truth.of(picks[0].pool)
    args.out.mkdir(parents=True, exist_ok=True)
    for picked in picks:
        if picked.budget == args.budget:
            name = picked.method.partition("(")[0]
            sheet(truth, picked).save(args.out / f"picks_{name}.png", optimize=True)
    rows = [shares(truth, picked) for picked in picks]
    show(rows)
    print(json.dumps({f"{row.method}/{row.budget}": asdict(row) for row in rows}))


if __name__ == "__main__":
    main()
