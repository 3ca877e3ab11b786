"""`sievebench compare A B …`: what selections share and what they are made of."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError

if TYPE_CHECKING:
    from reports.compare import Comparison

FORMATS = ("terminal", "md", "csv", "tex", "html", "json")


def add_compare_verb(verbs: object) -> None:
    """Add `compare` to the command line."""
    text = "overlap, composition and near-duplicates of selections"
    verb: argparse.ArgumentParser = verbs.add_parser("compare", help=text)  # type: ignore[attr-defined]
    verb.add_argument(
        "selections",
        nargs="+",
        metavar="SELECTION",
        help="a sweep, cell, selection (label, key prefix, directory), or a .txt, .json, .jsonl or .csv of ids",
    )
    verb.add_argument("--store", type=Path, default=Path("runs"))
    verb.add_argument("--pool", type=Path, help="the pool of the ids, or where the selections' pool is now")
    verb.add_argument("--format", choices=FORMATS, default="terminal")
    verb.add_argument("--out", type=Path, help="folder for compare.md, .csv, .json and a heat map")
    verb.add_argument("--columns-only", action="store_true", help="read no texts: no styles, no duplicates")
    verb.add_argument("--whole-pool", action="store_true", help="read the whole pool: what would random have?")
    verb.add_argument("--distance", type=int, help="differing bits of 64 up to which pictures look alike")
    verb.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="of pictures; all CPUs by default")
    verb.set_defaults(handler=_compare)


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from harness.compare import read_subsets
    from harness.store import Store
    from reports.compare import CompareOptions, compare
    from reports.duplicates import DISTANCE

    distance = DISTANCE if options.distance is None else options.distance
    if not 0 <= distance <= 64:
        raise HarnessError(f"--distance {distance} is not a number of bits: give 0 to 64.")
    if options.columns_only and options.whole_pool:
        raise HarnessError("--columns-only reads no samples and --whole-pool reads all: give one of them.")
    pool, subsets = read_subsets(Store(options.store), options.selections, options.pool)
    with Console(stderr=True).status("Reading samples") as status:
        how = CompareOptions(
            texts=not options.columns_only,
            whole_pool=options.whole_pool,
            distance=distance,
            workers=max(1, options.workers),
            progress=lambda done: status.update(f"Pictures of {done:,} samples hashed"),
        )
        comparison = compare(pool, subsets, how)
    _show(comparison, options.format)
    if options.out is not None:
        _write(comparison, options.out)
    return 0


def _show(comparison: Comparison, form: str) -> None:
    from reports.compare_table import compare_json, compare_table

    if form == "terminal":
        from harness.console import make_console
        from reports.render_terminal import print_table

        print_table(compare_table(comparison), make_console())
    elif form == "json":
        print(json.dumps(compare_json(comparison), indent=1, sort_keys=True, allow_nan=False))
    else:
        from reports.render import render

        print(render(compare_table(comparison), form), end="")  # type: ignore[arg-type]


def _write(comparison: Comparison, folder: Path) -> None:
    from harness.console import make_console
    from harness.files import write_json
    from reports.compare_figure import write_heat_map
    from reports.compare_table import compare_json, compare_table
    from reports.render import render

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise HarnessError(f"{folder} cannot be written ({e.strerror}): choose another --out.") from None
    table = compare_table(comparison)
    (folder / "compare.md").write_text(render(table, "md"), encoding="utf-8")
    (folder / "compare.csv").write_text(render(table, "csv"), encoding="utf-8")
    write_json(folder / "compare.json", compare_json(comparison))
    _, picture = write_heat_map(comparison, folder)
    make_console().print(f"Comparison: {picture.parent}", highlight=False, soft_wrap=True)
