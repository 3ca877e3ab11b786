"""Leases: who is working on a stage, and whether they still live.

Claims are numbered files `claim-0001.json`, `claim-0002.json`, …, made by exclusive creation; the highest
number counts. Taking over a dead owner's stage means creating the next number, so two processes can never both
succeed, and a claim is never rewritten by anyone but its owner.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from harness.files import read_json, write_json

BEAT_S = 5.0
MISSED_S = 120.0
"""Without a beat for this long, an owner on another machine is taken for dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process, told apart from a later one with the same number."""

    host: str
    pid: int
    started: float
    boot: str
    job: str = ""
    """Scheduler job id, where a cluster started the process."""
    released: bool = False

    @classmethod
    def me(cls) -> Owner:
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            boot=_boot_id(),
            job=os.environ.get("SLURM_JOB_ID", ""),
        )

    def alive(self, beat: float) -> bool:
        """Whether the owner still works; `beat` is the time of its last sign of life.

        On this boot of this machine the process table decides at once; elsewhere only silence does.
        """
        if self.released:
            return False
        if self.boot == _boot_id():
            try:
                process = psutil.Process(self.pid)
                same = abs(process.create_time() - self.started) < 1.0
                return bool(same and process.status() != psutil.STATUS_ZOMBIE)
            except psutil.NoSuchProcess:
                return False
        return time.time() - beat < MISSED_S


@functools.cache
def _boot_id() -> str:
    """This boot and process namespace: two containers of one machine number their processes separately."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if not path.exists():
        return f"{socket.gethostname()}@{psutil.boot_time():.0f}"
    return f"{path.read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"


def _latest(folder: Path) -> tuple[int, Path | None]:
    claims = sorted(folder.glob("claim-*.json"))
    return (int(claims[-1].stem.split("-")[1]), claims[-1]) if claims else (0, None)


def holder(folder: Path) -> Owner | None:
    """The live owner of a stage directory, or None."""
    return _living(_latest(folder)[1])


def _living(path: Path | None) -> Owner | None:
    """The owner a claim names, if they live."""
    if path is None:
        return None
    try:
        beat = path.stat().st_mtime
        raw = read_json(path)
    except (FileNotFoundError, json.JSONDecodeError):
        # Being created right now: someone lives.
        return Owner(host="?", pid=0, started=0.0, boot="?")
    owner = Owner(**raw) if raw else None
    return owner if owner is not None and owner.alive(beat) else None


class Lease:
    """A held claim on a stage directory, with a heartbeat thread; a context manager."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path = path
        self.owner = owner
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._beats, daemon=True, name="lease")

    @classmethod
    def take(cls, folder: Path) -> Lease | None:
        """Claim a stage directory; None where a live process holds it."""
        # Looked up once: the claim found dead must be the one whose successor is created.
        number, latest = _latest(folder)
        if _living(latest) is not None:
            return None
        owner = Owner.me()
        path = folder / f"claim-{number + 1:04d}.json"
        # A complete file under a name of its own, then a link: exclusive, and never seen half-written.
        tmp = folder / f".claim.{owner.host}.{owner.pid}.{threading.get_ident()}.tmp"
        write_json(tmp, asdict(owner))
        try:
            os.link(tmp, path)
        except FileExistsError:
            return None
        finally:
            tmp.unlink(missing_ok=True)
        return cls(path, owner)

    def lost(self) -> bool:
        """Whether someone else took the stage over (after this process was silent for too long)."""
        return _latest(self.path.parent)[1] != self.path

    def _beats(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                os.utime(self.path)
            except OSError:
                return

    def __enter__(self) -> Self:
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self.path.exists():
            write_json(self.path, asdict(self.owner) | {"released": True})


def clear(folder: Path) -> None:
    """Remove all claims of a completed stage."""
    for path in folder.glob("claim-*.json"):
        path.unlink(missing_ok=True)
