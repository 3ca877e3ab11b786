"""Uploading offline runs with `wandb sync`, which reports success whatever happened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from harness.errors import HarnessError
from harness.store import Store
from harness.tracking.push import all_pushed, record, target_of
from harness.tracking.settings import Tracking
from harness.tracking.wandb_file import lost_files, sync_mark, unsent
from harness.tracking.wandb_run import Target, environment, library

_LOGS: Final = ("debug-cli*.log", "logs/debug-sync*.log")
"""Logs of `wandb sync`: of the Python one (0.25), and of the one in Go that follows it."""
_ERROR: Final = re.compile(r'^\S+ \S+ ERROR +(.+)|"level":"ERROR".*?"msg":"([^"]*)"', re.MULTILINE)


def sync(store: Store, tracking: Tracking) -> int:
    """Upload every offline run of a store that is not uploaded; returns how many.

    Refuses where a file is gone that a run refers to, because W&B would upload the run without it. Raises
    HarnessError where `wandb sync` fails or logs an error; the runs of that call then count as not uploaded,
    because its log does not tell which of them failed.
    """
    if not store.root.is_dir():
        raise HarnessError(f"there is no store {store.root}: say where it is with --store DIR.")
    library()
    target = target_of(store, tracking)
    runs = unsent(target.folder)
    _check_files(runs)
    if runs:
        before = _sizes(target.folder)
        status, said = _wandb_sync(runs, target)
        trouble = _trouble(runs, target.folder, before, status, said)
        if trouble:
            for run in runs:
                sync_mark(run).unlink(missing_ok=True)
            raise HarnessError(f"{len(runs)} runs were not uploaded for sure: {trouble}")
        _remember(target.root, runs)
    return len(runs)


def _check_files(runs: Iterable[Path]) -> None:
    gone = [(run, file) for run in runs for file in lost_files(run)]
    if gone:
        n = len({run for run, _ in gone})
        raise HarnessError(
            f"{len(gone)} files that {n} runs refer to are gone, the first is {gone[0][1]}: "
            "'sievebench wandb push' writes these runs again from the store."
        )


def _wandb_sync(runs: Sequence[Path], target: Target) -> tuple[int, str]:
    """Exit status and output of `wandb sync`."""
    command = [sys.executable, "-m", "wandb", "sync", *(str(run.parent) for run in runs)]
    with environment(target):
        env = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SILENT")}
    done = subprocess.run(
        command, env=env, cwd=target.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def _sizes(folder: Path) -> dict[Path, int]:
    return {log: log.stat().st_size for pattern in _LOGS for log in folder.glob(pattern)}


def _trouble(runs: Sequence[Path], folder: Path, before: dict[Path, int], status: int, said: str) -> str:
    """What went wrong, from the exit status, the logs' new lines and the missing marks; empty for nothing."""
    if status:
        last = [line for line in said.splitlines() if line.strip()][-1:]
        return f"'wandb sync' ended with status {status} ({''.join(last).strip()})."
    for log in _sizes(folder):
        with log.open("rb") as f:
            f.seek(before.get(log, 0))
            found = _ERROR.search(f.read().decode(errors="replace"))
        if found:
            return f"{log} says '{found.group(1) or found.group(2)}'."
    unmarked = [run for run in runs if not sync_mark(run).exists()]
    return f"'wandb sync' left out {len(unmarked)} of them, the first is {unmarked[0].parent}." if unmarked else ""


def _remember(root: Path, runs: Iterable[Path]) -> None:
    folders = {run.parent.relative_to(root).as_posix() for run in runs}
    for pushed in all_pushed(root):
        if pushed.folder in folders:
            record(root, replace(pushed, uploaded=True))
