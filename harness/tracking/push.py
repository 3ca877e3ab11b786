"""Pushing a sweep to W&B: what has not changed since the last push is left alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import read_json, write_json
from harness.store import Store
from harness.tracking.content import RunContent
from harness.tracking.settings import Tracking
from harness.tracking.sweep_runs import sweep_runs
from harness.tracking.wandb_file import lost_files, unsent
from harness.tracking.wandb_run import Target, environment, library, write_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """The record of a run's last push: `STORE/wandb/pushed/ID.json`."""

    id: str
    digest: str
    sweep: str
    job: str
    project: str
    entity: str
    mode: str
    folder: str
    """W&B's folder of the run, relative to the store."""
    uploaded: bool
    """Whether the server has it: pushed online, or synced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What a push did."""

    written: int
    unchanged: int
    mode: str
    waiting: int = 0
    """Offline runs of the store that are not uploaded."""
    note: str = ""
    """One sentence where it did not go as asked for."""

    def sentence(self, store: Store) -> str:
        """What a person is told."""
        note = f"warning: {self.note} " if self.note else ""
        told = f"W&B: {self.written} runs written ({self.mode}), {self.unchanged} unchanged."
        upload = f" {self.waiting} wait for 'sievebench wandb sync --store {store.root}'." if self.waiting else ""
        return f"{note}{told}{upload}"


def push(store: Store, name: str, tracking: Tracking, *, force: bool = False) -> PushResult:
    """Write every run of a sweep that W&B does not have as it is now; `force` writes all of them.

    A run that changed is written anew under its old id, and its folder replaces the one before it. Raises
    HarnessError, or whatever wandb raises.
    """
    library()
    target = target_of(store, tracking)
    runs = sweep_runs(store, name)
    with environment(target):
        written = _push(runs, target, name, force)
    return PushResult(
        written=written,
        unchanged=len(runs) - written,
        mode=target.mode,
        waiting=len(unsent(target.folder)),
    )


def target_of(store: Store, tracking: Tracking) -> Target:
    """Where a push goes.

    Raises HarnessError where the store's `wandb` folder cannot be written: W&B would go to /tmp in silence.
    """
    target = Target(
        root=store.root, project=tracking.project, entity=tracking.entity, mode=tracking.resolved_mode()
    )
    probe = target.folder / ".probe"
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as e:
        raise HarnessError(f"{target.folder} cannot be written ({e.strerror}): W&B needs it.") from None
    return target


def _push(runs: Iterable[RunContent], target: Target, sweep: str, force: bool) -> int:
    written = 0
    for run in runs:
        before = read_pushed(target.root, run.id)
        if not force and before is not None and _is_current(before, run, target):
            continue
        folder = write_run(run, target)
        written += 1
        if target.mode == "disabled":
            continue
        for old in ([before] if before else []) + list(_outdated_reports(target.root, run)):
            forget(target.root, old, keep=folder)
        record(target.root, _pushed(run, target, folder, sweep))
    return written


def _pushed(run: RunContent, target: Target, folder: Path, sweep: str) -> Pushed:
    return Pushed(
        id=run.id,
        digest=run.digest,
        sweep=sweep,
        job=run.job,
        project=target.project,
        entity=target.entity,
        mode=target.mode,
        folder=folder.relative_to(target.root).as_posix(),
        uploaded=target.mode == "online",
    )


def _is_current(before: Pushed, run: RunContent, target: Target) -> bool:
    """Whether a run was pushed as it is, to the same place, and is on the server or still whole on disk."""
    same = (before.digest, before.project, before.entity) == (run.digest, target.project, target.entity)
    if not same or target.mode == "disabled":
        return False
    return before.uploaded or (target.mode == "offline" and _is_whole(target.root / before.folder))


def _is_whole(folder: Path) -> bool:
    """Whether an offline run can be uploaded: W&B deletes staged files as it tries, even where it fails."""
    return any(not list(lost_files(run)) for run in folder.glob("run-*.wandb"))


def _outdated_reports(root: Path, run: RunContent) -> Iterator[Pushed]:
    """Reports of the same sweep that nobody has uploaded; every result has a report run of its own."""
    if run.job != "report":
        return
    for old in all_pushed(root):
        if old.job == "report" and old.sweep == run.group and old.id != run.id and not old.uploaded:
            yield old


def record(root: Path, pushed: Pushed) -> None:
    write_json(_file(root, pushed.id), asdict(pushed))


def forget(root: Path, pushed: Pushed, *, keep: Path | None = None) -> None:
    """Remove the record of a push and W&B's folder of it (but not `keep`)."""
    folder = root / pushed.folder
    if folder != keep and folder.parent == root / "wandb":
        shutil.rmtree(folder, ignore_errors=True)
    _file(root, pushed.id).unlink(missing_ok=True)


def read_pushed(root: Path, run_id: str) -> Pushed | None:
    """The record of a run's last push, or None."""
    raw: Any = read_json(_file(root, run_id))
    return None if raw is None else Pushed(**raw)


def all_pushed(root: Path) -> list[Pushed]:
    """Records of every push, by id."""
    files = sorted((root / "wandb" / "pushed").glob("*.json"))
    return [pushed for f in files if (pushed := read_pushed(root, f.stem)) is not None]


def _file(root: Path, run_id: str) -> Path:
    return root / "wandb" / "pushed" / f"{run_id}.json"
