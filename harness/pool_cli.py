"""`sievebench pool …` and `sievebench export`: pools in and out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError


def add_pool_verb(verbs: object) -> None:
    """Add `pool import`, `pool verify` and `pool disturb` to the command line."""
    pool: argparse.ArgumentParser = verbs.add_parser("pool", help="make and check pools")  # type: ignore[attr-defined]
    actions = pool.add_subparsers(dest="action", required=True, metavar="ACTION")
    imported = actions.add_parser("import", help="make a pool of existing data")
    imported.add_argument("format", choices=("llava-json", "llava-yaml", "hf"))
    imported.add_argument("file", help="a JSON, JSONL or YAML file; for hf a folder or a name on the hub")
    imported.add_argument("--images", type=Path, help="folder of images, folder of tar files, or one tar file")
    imported.add_argument("--out", type=Path, required=True, help="folder of the new pool")
    imported.add_argument("--name", default="", help="name of the pool; that of the folder where left out")
    imported.add_argument("--strict", action="store_true", help="a record that cannot be used is an error")
    imported.add_argument("--seed", type=int, default=0, help="llava-yaml: draws the random samples")
    imported.add_argument("--revision", default="", help="hf: commit of a data set on the hub")
    imported.add_argument("--subset", action="append", default=[], help="hf: one of its subsets; may be repeated")
    _workers(imported)
    imported.set_defaults(handler=_import)
    verify = actions.add_parser("verify", help="hash everything again and say what differs")
    verify.add_argument("pool", type=Path)
    _workers(verify)
    verify.set_defaults(handler=_verify)
    disturb = actions.add_parser("disturb", help="a new pool with copies and wrong samples among the others")
    disturb.add_argument("pool", type=Path)
    disturb.add_argument("--out", type=Path, required=True, help="folder of the new pool")
    disturb.add_argument("--duplicate", metavar="SHARE", help="samples added again, for example 50%% or 200n")
    disturb.add_argument("--wrong", metavar="SHARE", help="samples added with another sample's answers")
    disturb.add_argument("--off-topic", metavar="SHARE", help="samples added with another sample's pictures")
    disturb.add_argument("--seed", type=int, default=0, help="draws the samples")
    disturb.add_argument("--name", default="", help="name of the new pool; that of the folder where left out")
    _workers(disturb)
    disturb.set_defaults(handler=_disturb)


def add_export_verb(verbs: object) -> None:
    """Add `export` to the command line."""
    text = "write the samples of a selection for another trainer"
    verb: argparse.ArgumentParser = verbs.add_parser("export", help=text)  # type: ignore[attr-defined]
    verb.add_argument(
        "selection",
        help="label of a cell (mmssr/10%%/tiny/s0) or of a select stage (mmssr/10%%/s0), or a key prefix",
    )
    verb.add_argument("--format", choices=("llava-json", "llava-yaml", "hf"), required=True)
    verb.add_argument("--out", type=Path, required=True, help="new folder to write into")
    verb.add_argument("--store", type=Path, default=Path("runs"))
    verb.add_argument("--pool", type=Path, help="where the pool is now, if it was moved")
    verb.add_argument("--copy-images", action="store_true", help="copy images that are files of their own")
    verb.set_defaults(handler=_export)


def _workers(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="of images; all CPUs by default")


@contextmanager
def counter(text: str) -> Iterator[Callable[[int], None]]:
    """A counter of records on a terminal, nothing elsewhere."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from harness.console import make_console

    console = make_console()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:.0f} records"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None, rate="")

        def show(done: int) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            bar.update(task, completed=done, rate=f"{done / elapsed:.0f}/s" if elapsed else "")

        yield show


def _import(options: argparse.Namespace) -> int:
    from harness.console import make_console
    from harness.pool_import import ImportOptions, ImportReport, import_hf, import_llava_json, import_llava_yaml

    if options.format != "hf" and options.images is None:
        raise HarnessError(f"{options.file} names images: say where they are with --images DIR.")
    if options.format != "hf" and (options.revision or options.subset):
        raise HarnessError("--revision and --subset are for data sets of the format hf.")
    with counter("import") as progress:
        how = ImportOptions(
            name=options.name,
            strict=options.strict,
            seed=options.seed,
            workers=options.workers,
            progress=progress,
        )
        report: ImportReport
        if options.format == "hf":
            report = import_hf(
                options.file,
                options.out,
                how,
                images=options.images,
                revision=options.revision,
                subsets=tuple(options.subset),
            )
        else:
            read = import_llava_json if options.format == "llava-json" else import_llava_yaml
            report = read(Path(options.file), options.images, options.out, how)
    console = make_console()
    console.print(
        f"{report.pool.path}: {report.pool.n} of {report.seen} records, digest {report.pool.digest[:12]}",
        highlight=False,
        soft_wrap=True,
    )
    if report.renamed:
        console.print(f"  renamed: {report.renamed} whose id another part had used", highlight=False)
    for reason, n in sorted(report.rejects.items()):
        console.print(f"  set aside: {n} {reason} (see rejects.parquet)", highlight=False)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from harness.pool_verify import verify_pool

    with counter("verify") as progress:
        verdict = verify_pool(options.pool, options.workers, progress)
    print(verdict.sentence)
    return 0 if verdict.whole else 1


def _disturb(options: argparse.Namespace) -> int:
    from harness.pool import open_pool
    from harness.pool_disturb import DEFECTS, DisturbOptions, disturb_pool, truth_file
    from harness.types import Budget

    amounts = {d: Budget.parse(share) for d in DEFECTS if (share := getattr(options, d))}
    pool = open_pool(options.pool)
    with counter("disturb") as progress:
        how = DisturbOptions(seed=options.seed, name=options.name, workers=options.workers, progress=progress)
        made = disturb_pool(pool, options.out, amounts, how)
    print(f"{made.path}: {made.n} records, {made.n - pool.n} of them added, digest {made.digest[:12]}")
    print(f"what was added: {truth_file(options.out)}, not for selectors")
    return 0


def _export(options: argparse.Namespace) -> int:
    from harness.pool_export import ExportOptions, export

    with counter("export") as progress:
        how = ExportOptions(
            format=options.format, pool=options.pool, copy_images=options.copy_images, progress=progress
        )
        n = export(options.store, options.selection, options.out, how)
    print(f"{options.out}: {n} samples and README.md")
    return 0
