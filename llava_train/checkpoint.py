"""Resumable checkpoints: written beside, renamed into place, and only the last one kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch.distributed as dist

from llava_train.engine import Engine
from llava_train.world import World

log = logging.getLogger(__name__)

_TAG: Final = "state"
_META: Final = "checkpoint.json"
_LATEST: Final = "latest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a checkpoint belongs to."""

    step: int
    """Steps done: the next step to run."""
    run: str
    """Digest of recipe, selection and pool."""
    world: int
    zero_stage: int


def save(engine: Engine, folder: Path, mark: Mark) -> None:
    """Write a checkpoint; a crash at any point leaves the one before it in force."""
    leads, name = engine.world.leads, f"checkpoint-{mark.step:08d}"
    draft = folder / "checkpoint.draft"
    if leads:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    dist.barrier()
    engine.deepspeed.save_checkpoint(str(draft), tag=_TAG, save_latest=False)
    dist.barrier()
    if leads:
        files = {str(f.relative_to(draft)): f.stat().st_size for f in _files(draft)}
        (draft / _META).write_text(json.dumps({"mark": asdict(mark), "files": files}))
        for file in _files(draft):
            _sync(file)
        shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(draft, folder / name)
        _point(folder, name)
        for old in folder.glob("checkpoint-*"):
            if old.name != name:
                shutil.rmtree(old)
    dist.barrier()


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _sync(file: Path) -> None:
    with file.open("rb") as f:
        os.fsync(f.fileno())


def _point(folder: Path, name: str) -> None:
    draft = folder / (_LATEST + ".draft")
    draft.write_text(json.dumps({"checkpoint": name}))
    _sync(draft)
    os.replace(draft, folder / _LATEST)


def find(folder: Path, wanted: Mark) -> Path | None:
    """The checkpoint to continue from, or None to start at the beginning.

    One of another recipe, selection, number of processes or ZeRO stage is not used, and the log says so.
    """
    latest = folder / _LATEST
    if not latest.is_file():
        return None
    found = folder / str(json.loads(latest.read_text())["checkpoint"])
    mark = _read(found)
    if mark is None:
        log.warning("the checkpoint %s is incomplete; training starts again", found)
        return None
    if (mark.run, mark.world, mark.zero_stage) != (wanted.run, wanted.world, wanted.zero_stage):
        log.warning("the checkpoint %s is of another run (%s); training starts again", found, mark)
        return None
    return found


def _read(found: Path) -> Mark | None:
    """The mark of a checkpoint whose files are all there in full, else None."""
    meta = found / _META
    if not meta.is_file():
        return None
    value = json.loads(meta.read_text())
    whole = all((found / f).is_file() and (found / f).stat().st_size == n for f, n in value["files"].items())
    return Mark(**value["mark"]) if whole else None


def load(engine: Engine, found: Path) -> int:
    """Put a checkpoint into a fresh engine; returns the next step."""
    path, _ = engine.deepspeed.load_checkpoint(str(found), tag=_TAG)
    mark = _read(found)
    if path is None or mark is None:
        raise RuntimeError(f"DeepSpeed could not read its checkpoint in {found}")
    return mark.step


def clear(folder: Path, world: World) -> None:
    """Remove all checkpoints of a finished run."""
    if world.leads:
        for old in folder.glob("checkpoint*"):
            shutil.rmtree(old, ignore_errors=True)
        (folder / _LATEST).unlink(missing_ok=True)
