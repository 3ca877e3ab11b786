"""Starting real runs through the command line, and watching their stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from harness.store import StageDir, Store

ROOT = Path(__file__).parents[2]
REPORT_FILES = ("table.md", "table.tex", "table.csv")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "harness", *arguments]


def start(*arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """A run in the background."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command(*arguments), cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(*arguments: str, expect: int = 0, cwd: Path = ROOT) -> str:
    """A run to its end; returns what it printed."""
    process = start(*arguments, cwd=cwd)
    output, _ = process.communicate(timeout=580)
    assert process.returncode == expect, output
    return output


def sievebench(*arguments: str, expect: int = 0) -> str:
    """One verb of the console script; returns what it printed, errors included."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def results(report: Path) -> dict[str, Any]:
    """Everything of a report that must not depend on how often it was interrupted."""
    numbers = json.loads((report / "report.json").read_text())
    return {
        **{name: (report / name).read_bytes() for name in REPORT_FILES},
        "report.json": {k: v for k, v in numbers.items() if k not in ("cost", "created")},
    }


def stages(store: Path, kind: str) -> Iterator[StageDir]:
    yield from (d for d in Store(store).stages() if d.path.parent.name == kind)


@dataclass(frozen=True, slots=True)
class Caught:
    """A stage found in the middle of its work."""

    directory: StageDir
    pid: int


def catch(store: Path, kind: str, midway: Callable[[StageDir], bool], process: subprocess.Popen[str]) -> Caught:
    """Wait until a stage of some kind is running and midway; fails if the run ends before."""
    while process.poll() is None:
        for directory in stages(store, kind):
            if directory.done() or directory.status() != "running" or not midway(directory):
                continue
            attempts = directory.attempts()
            if attempts and attempts[-1].outcome == "started" and not directory.done():
                return Caught(directory, attempts[-1].pid)
        time.sleep(0.01)
    output, _ = process.communicate()
    raise AssertionError(f"the run ended before a {kind} stage was seen midway:\n{output}")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
