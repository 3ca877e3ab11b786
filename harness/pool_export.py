"""Exporting a selection: the chosen samples, in order of preference, in the formats other trainers read."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.explain import find_stage
from harness.pool import Pool, Record, open_pool
from harness.pool_card import Exported, dataset_card
from harness.pool_hf_write import write_parquet
from harness.store import StageDir, Store

Format = Literal["llava-json", "llava-yaml", "hf"]
HELD = 32 << 20
"""Characters of JSON kept until they are written."""

FORMATS: tuple[Format, ...] = ("llava-json", "llava-yaml", "hf")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How to export."""

    format: Format
    pool: Path | None = None
    """Where the pool is now, if it is no longer where it was selected from."""
    copy_images: bool = False
    """Copy images that are files already, instead of leaving them where they are."""
    progress: Callable[[int], None] = lambda _: None


def export(store: Path, selection: str, out: Path, options: ExportOptions) -> int:
    """Write a selection's samples and a README.md into a new folder; returns their number.

    `selection` is the label of a cell, or the label or a key prefix of a select stage. Raises HarnessError
    where it is not there, not finished, or its pool has changed.
    """
    exported, positions = _selected(store, selection, options.pool)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise HarnessError(f"{out} is not an empty folder: choose another --out.")
    tmp = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        _make(tmp, out)
        use, head = _write(exported.pool, positions, tmp, options)
        (tmp / "README.md").write_text(dataset_card(exported, use, head), encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.rename(tmp, out)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return len(positions)


def _stage(store: Store, name: str) -> tuple[StageDir, dict[str, Any]]:
    """The select stage a name means: its own, or that of a cell."""
    cells = (cell for sweep in store.sweeps() for cell in store.sweep(sweep)["cells"])
    keys = {cell["select"] for cell in cells if cell["label"] == name}
    return find_stage(store, keys.pop() if len(keys) == 1 else name, kind="select")


def _make(tmp: Path, out: Path) -> None:
    try:
        tmp.mkdir(parents=True)
    except OSError as e:
        raise HarnessError(f"cannot write to {out}: {e.strerror}; choose another --out.") from None


def _selected(root: Path, name: str, moved: Path | None) -> tuple[Exported, npt.NDArray[np.int32]]:
    directory, spec = _stage(Store(root), name)
    if not directory.done():
        raise HarnessError(f"{spec['label']} is {directory.status()}: run its cell first.")
    pool = open_pool(moved or spec["settings"]["pool_path"])
    selection = json.loads((directory.out / "selection.json").read_text())
    if selection["pool"] != pool.digest:
        raise HarnessError(
            f"{spec['label']} chose from a pool with digest {selection['pool'][:12]}, {pool.path} has "
            f"{pool.digest[:12]}: give the right one with --pool DIR."
        )
    card = json.loads((directory.out / "card.json").read_text())
    exported = Exported(key=directory.key, spec=spec, card=card, pool=pool)
    return exported, np.load(directory.out / "positions.npy")


def _write(
    pool: Pool, positions: npt.NDArray[np.int32], out: Path, options: ExportOptions
) -> tuple[str, dict[str, Any]]:
    """Write the data; returns how to use them and the header of their card."""
    records = _counted((pool.record(int(i)) for i in positions), options.progress)
    import yaml

    if options.format == "hf":
        single = bool((pool.column("n_images")[positions] <= 1).all())
        write_parquet(records, functools.partial(_image_bytes, pool), out / "data", single=single)
        use = '```python\nfrom datasets import load_dataset\n\nload_dataset("FOLDER", split="train")\n```'
        return use, {"configs": [{"config_name": "default", "data_files": "data/*.parquet"}]}
    copied = options.copy_images or not pool.has_files
    root = "images" if copied else pool.image_root
    records = _copied(pool, records, out / "images") if copied else records
    if options.format == "llava-json":
        _write_lists(records, out, lambda record: "data.json")
        use = f"`data.json` is LLaVA's list of records; image paths are relative to `{root}`."
    else:
        files = _write_lists(records, out, lambda record: _file_name(record.source))
        listed = [{"json_path": f, "sampling_strategy": "all"} for f in files]
        (out / "data.yaml").write_text(yaml.safe_dump({"datasets": listed}, allow_unicode=True), encoding="utf-8")
        use = (
            f"`data.yaml` lists one file a source, for LLaVA-NeXT; image paths are relative to `{root}`. Start "
            "training from this folder (`--data_path data.yaml`): LLaVA-NeXT looks for the lists relative to the "
            "folder it is started from, not to the YAML's. Each list is in order of preference; the order across "
            "sources is lost."
        )
    return use, {}


def _counted(records: Iterator[Record], progress: Callable[[int], None]) -> Iterator[Record]:
    for i, record in enumerate(records, 1):
        yield record
        progress(i)


def _copied(pool: Pool, records: Iterator[Record], folder: Path) -> Iterator[Record]:
    """The same records, their images written below a folder."""
    for record in records:
        for key in record.images:
            file = folder / key
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(_image_bytes(pool, key))
        yield record


def _image_bytes(pool: Pool, key: str) -> bytes:
    try:
        return pool.image_bytes(key)
    except (OSError, KeyError):
        raise HarnessError(
            f"image {key} of pool {pool.path} is gone: 'sievebench pool verify {pool.path}' says what else is."
        ) from None


def _write_lists(records: Iterator[Record], out: Path, name: Callable[[Record], str]) -> list[str]:
    """Write each record, one a line, to the JSON list its name says; returns the lists' names in order."""
    waiting: dict[str, list[str]] = {}
    held = 0
    for record in records:
        file, line = name(record), json.dumps(llava(record), ensure_ascii=False)
        head = "[\n" if file not in waiting else ",\n"
        waiting.setdefault(file, []).append(head + line)
        held += len(line)
        if held > HELD:
            _append(out, waiting)
            held = 0
    for lines in waiting.values():
        lines.append("\n]\n")
    _append(out, waiting)
    return list(waiting)


def _append(out: Path, waiting: dict[str, list[str]]) -> None:
    for file, lines in waiting.items():
        if lines:
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            with (out / file).open("a", encoding="utf-8") as f:
                f.writelines(lines)
            lines.clear()


def llava(record: Record) -> dict[str, Any]:
    """A record as LLaVA spells it."""
    images = list(record.images)
    return {
        "id": record.uid,
        **({"image": images[0] if len(images) == 1 else images} if images else {}),
        "data_source": record.source,
        "conversations": [{"from": role, "value": text} for role, text in record.conversations],
    }


def _file_name(source: str) -> str:
    """A file for a source, whose name may hold anything."""
    safe = re.sub(r"[^\w().+-]", "_", source) or "unnamed"
    return f"json/{safe}.json"
