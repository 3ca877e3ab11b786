"""Watching a run: a heartbeat others can read, a journal of every step, and no number that is not one."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from harness.errors import HarnessError

_BEAT_S: Final = 1.0


class NotFinite(HarnessError):
    """A loss or gradient is NaN or infinite; the message names the samples."""


def check_finite(value: float, what: str, step: int, uids: Sequence[str]) -> None:
    """Stop at the first number that is none, instead of skipping the step as DeepSpeed would.

    Raises NotFinite with the uids of the samples that were in the step.
    """
    if not math.isfinite(value):
        shown = ", ".join(uids[:16]) + (f" and {len(uids) - 16} more" if len(uids) > 16 else "")
        raise NotFinite(
            f"{what} is {value} at step {step}: lower the learning rate, or look at the samples of that step: "
            f"{shown}."
        )


@dataclass(slots=True)
class Heartbeat:
    """Says in a small file what a rank is doing (rank, step, phase, time); replaced, never half-written."""

    path: Path
    rank: int = 0
    _last: tuple[str, float] = field(default=("", 0.0), init=False)

    def beat(self, step: int, phase: str) -> None:
        """Write the file; within a phase at most once a second."""
        now = time.time()
        if phase == self._last[0] and now - self._last[1] < _BEAT_S:
            return
        self._last = phase, now
        text = json.dumps({"rank": self.rank, "step": step, "phase": phase, "time": now})
        draft = self.path.with_suffix(".draft")
        draft.write_text(text)
        os.replace(draft, self.path)


class Journal:
    """One JSON line a step; opened at a step, it forgets what was written from that step on.

    A context manager: rows are on their way to the disk after each step, and the file is closed at the end.
    """

    def __init__(self, path: Path, start: int) -> None:
        kept = [line for line in read_journal(path) if line["step"] < start]
        draft = path.with_suffix(".draft")
        draft.write_text("".join(_line(row) for row in kept))
        os.replace(draft, path)
        self._file = path.open("a")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(_line(row))
        self._file.flush()

    def sync(self) -> None:
        """Make all rows durable: a checkpoint must not outlive the rows before it."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
