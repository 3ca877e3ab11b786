"""Importing pools from the formats people have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.pool import Pool
from harness.pool_check import Rejected
from harness.pool_fill import Sample, fill
from harness.pool_hf import read_hf
from harness.pool_parts import Part, name_parts, read_yaml
from harness.pool_places import ImageFolder, ImageTars, Place, find_images
from harness.pool_read import expand
from harness.pool_write import PoolWriter


def _silent(_: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """How to import; nothing here but `strict` and `seed` changes the result."""

    name: str = ""
    """Name of the pool; that of its folder where empty."""
    strict: bool = False
    """A record that cannot be used is an error, and no pool is made."""
    seed: int = 0
    """Draws the records of a YAML's `random` strategies."""
    workers: int = 1
    """Processes that check images; with more than one, call this from a module that can be imported."""
    progress: Callable[[int], None] = _silent
    """Told now and then how many records have been dealt with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import found."""

    pool: Pool
    seen: int
    rejects: dict[str, int]
    renamed: int
    """Records that got their part's name in front, because an earlier part had used their id."""


DEFAULT = ImportOptions()


def import_llava_json(file: Path, images: Path, out: Path, options: ImportOptions = DEFAULT) -> ImportReport:
    """Make a pool of a LLaVA JSON or JSONL file (or several, `{a,b}.json`); images are files or in tar files.

    Records that cannot be used are set aside in `rejects.parquet`. Raises HarnessError for what cannot be read.
    """
    parts = name_parts([(f, "all") for f in expand(file)])
    return _import(file, _of_parts(parts, options.seed), find_images(images), out, options)


def import_llava_yaml(file: Path, images: Path, out: Path, options: ImportOptions = DEFAULT) -> ImportReport:
    """Make a pool of the mixture that a LLaVA-NeXT data YAML describes; as `import_llava_json` otherwise."""
    return _import(file, _of_parts(read_yaml(file), options.seed), find_images(images), out, options)


def import_hf(
    source: str,
    out: Path,
    options: ImportOptions = DEFAULT,
    *,
    images: Path | None = None,
    revision: str = "",
    subsets: tuple[str, ...] = (),
) -> ImportReport:
    """Make a pool of a Hugging Face data set of LLaVA-OneVision-Data's schema: a folder, or a name on the hub.

    Embedded images are copied into the pool; with `images` the data set only names them. Raises HarnessError
    for what cannot be read.
    """
    places = find_images(images) if images is not None else None
    samples = read_hf(source, revision, subsets, embedded=places is None)
    return _import(source, samples, places, out, options)


def _of_parts(parts: list[Part], seed: int) -> Iterator[Sample]:
    for part in parts:
        for raw in part.records(seed):
            yield Sample(raw, part.name)


def _import(
    source: Path | str,
    samples: Iterable[Sample],
    places: ImageFolder | ImageTars | None,
    out: Path,
    options: ImportOptions,
) -> ImportReport:
    writer = PoolWriter(
        out,
        options.name or out.name,
        image_root=places.root if places is not None else None,
        tars=places if isinstance(places, ImageTars) else None,
    )
    with writer:
        find = places.place if places is not None else _nowhere
        fill(writer, samples, find, max(1, options.workers), options.progress)
        if options.strict and writer.rejects:
            found = ", ".join(f"{reason} ({n})" for reason, n in writer.rejects.most_common())
            raise HarnessError(f"{source}: {sum(writer.rejects.values())} records cannot be used: {found}.")
    return ImportReport(pool=writer.pool(), seen=writer.seen, rejects=dict(writer.rejects), renamed=writer.renamed)


def _nowhere(key: str) -> Place | Rejected:
    return Rejected("missing_image", "not embedded, give --images")
