"""Pictures of the pool to look at: `python -m harness.miniworld.contact_sheet --out docs/img`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from harness.miniworld.build import draw_picture, draw_pool
from harness.miniworld.sources import SOURCES, Sample

CELL: Final = (250, 216)
COLUMNS: Final = 5
ZOOM: Final = 2
FAMILIES: Final = ("charts_qa", "shapes_qa", "print_qa")
"""Sources of the near-duplicates shown."""


def sheet(rows: Sequence[tuple[str, Sequence[Sample]]]) -> Image.Image:
    """One row a title, one cell a sample: its picture, enlarged, above its conversation."""
    width, height = CELL
    page = Image.new("RGB", (90 + COLUMNS * width, len(rows) * height), "white")
    pen = ImageDraw.Draw(page)
    for r, (title, samples) in enumerate(rows):
        pen.line((0, r * height, page.width, r * height), fill=(180, 180, 180))
        pen.text((6, r * height + 8), title, fill="black", font=ImageFont.load_default(12))
        for c, sample in enumerate(samples[:COLUMNS]):
            _cell(page, (90 + c * width, r * height + 6), sample)
    return page


def _cell(page: Image.Image, at: tuple[int, int], sample: Sample) -> None:
    x, y = at
    drawn = draw_picture(sample)
    if drawn is not None:
        image = drawn[0]
        page.paste(image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST), at)
    lines = [line for t in sample.turns for part in (t.text, f"> {t.answer}") for line in part.split("\n")]
    text = "\n".join(w for line in lines for w in textwrap.wrap(line, 38))
    ImageDraw.Draw(page).text(
        (x, y + 48 * ZOOM + 2), text, fill="black", font=ImageFont.load_default(12), spacing=0
    )


def by_source(pool: Sequence[Sample]) -> Image.Image:
    """Sound samples of every source, each as unlike those before it as there is one."""
    return sheet([(name, _varied([s for s in pool if s.source == name and not s.defect])) for name in SOURCES])


def _varied(samples: Sequence[Sample]) -> list[Sample]:
    chosen: list[Sample] = []
    rest, seen = list(samples), set[tuple[str, object]]()
    while rest and len(chosen) < COLUMNS:
        newest = max(rest, key=lambda s: len(_traits(s) - seen))
        chosen.append(newest)
        rest.remove(newest)
        seen |= _traits(newest)
    return chosen


def _traits(sample: Sample) -> set[tuple[str, object]]:
    """What tells conversations apart at a glance: turns, kind of picture, and how the first question ends."""
    asked = sample.turns[0].text.split("\n")[0]
    return {("turns", len(sample.turns)), ("picture", type(sample.shown)), ("ends", asked.split()[-1])}


def by_defect(pool: Sequence[Sample]) -> Image.Image:
    """Wrong and off-topic samples of every source, and families of near-duplicates beside their original."""
    rows: list[tuple[str, Sequence[Sample]]] = []
    for name, title in (("wrong", "wrong\nanswer"), ("off_topic", "off topic")):
        one_a_source = {s.source: s for s in pool if s.defect == name}
        shown = [one_a_source[source] for source in SOURCES]
        rows += [(title, shown[at : at + COLUMNS]) for at in range(0, len(shown), COLUMNS)]
    for source in FAMILIES:
        copies = [s for s in pool if s.defect == "duplicate" and s.source == source]
        family = [s for s in copies if s.original == copies[0].original]
        rows.append(("an original\nand its near-\nduplicates", [pool[copies[0].original], *family]))
    return sheet(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    pool = draw_pool(4000, 0)
    order = Random(0).sample(range(len(pool)), len(pool))
    by_source([pool[i] for i in order]).save(out / "miniworld_sources.png")
    by_defect(pool).save(out / "miniworld_defects.png")


if __name__ == "__main__":
    main()
