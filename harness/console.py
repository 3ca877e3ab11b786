"""What a person sees in the terminal: the plan, progress while stages run, and what failed."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from harness.estimate import say
from harness.files import read_json
from harness.keys import stage_key
from harness.schedule import Failure, RunResult
from harness.store import Store
from harness.sweep import Sweep, counts
from harness.types import Stage
from harness.worker import Job

QUIET_EVERY_S = 30.0


def make_console() -> Console:
    """The terminal; plain and 120 columns wide where the output is not one."""
    if sys.stdout.isatty():
        return Console()
    return Console(width=120, color_system=None, force_terminal=False)


def show_plan(sweep: Sweep, console: Console) -> None:
    """Print what a sweep will do, before anything runs."""
    cells = sweep.plan.cells
    added = sum(c.cell.baseline for c in cells)
    console.print(
        f"Sweep [bold]{sweep.name}[/]: {len(cells)} cells ({len(cells) - added} asked for, {added} baselines "
        f"added), {len(sweep.plan.stages)} stages, store {sweep.store.root}",
        highlight=False,
    )
    table = RichTable(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("stage", "all", "done", "to do", "estimate"):
        table.add_column(name, justify="left" if name in ("stage", "estimate") else "right")
    for c in counts(sweep):
        left = c.total - c.done
        said = say(c.estimate) if left else "-"
        table.add_row(c.kind, str(c.total), str(c.done), str(left), said)
        for label, estimate in c.passes:
            table.add_row(f"  {label}", "", "", "", say(estimate))
    console.print(table)


def show_cells(sweep: Sweep, console: Console) -> None:
    """Print every cell of a plan with how much of it is there."""
    table = RichTable(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("cell", "samples", "stages done", "key"):
        table.add_column(name, justify="left" if name in ("cell", "key") else "right")
    for planned in sweep.plan.cells:
        cell = planned.cell
        done = sum(sweep.store.at(sweep.plan.stages[k]).done() for k in planned.stages)
        label = cell.label + ("  (baseline)" if cell.baseline else "")
        size = str(cell.budget.size(cell.pool.n))
        table.add_row(label, size, f"{done}/{len(planned.stages)}", planned.key[:12])
    console.print(table)


def show_failures(result: RunResult, store: Store, console: Console) -> None:
    """Print every failure once, with the last lines of its log; consequences only as a count."""
    for failure in result.roots:
        console.print(Text(f"failed: {failure.stage.label}: {failure.message}", style="red"))
        for line in _tail(failure):
            console.print(Text(f"    {line}", style="dim"))
        console.print(Text(f"    log: {store.at(failure.stage).log}", style="dim"))
    blocked = sum(f.kind == "blocked" for f in result.failures.values())
    stopped = sum(f.kind == "stopped" for f in result.failures.values())
    if blocked:
        console.print(f"{blocked} stages wait for these.")
    if stopped:
        console.print(f"{stopped} stages were not started.")


def _tail(failure: Failure) -> list[str]:
    return [] if failure.kind == "user" else failure.log_tail.splitlines()[-6:]


@dataclass(slots=True)
class ConsoleWatcher:
    """Shows a run: bars on a terminal, one line a finished stage elsewhere."""

    store: Store
    console: Console
    total: int
    done: int = 0
    failed: int = 0
    _jobs: dict[str, Job] = field(default_factory=dict)
    _live: Live | None = None
    _start: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def __enter__(self) -> ConsoleWatcher:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, job: Job) -> None:
        for stage in job.stages:
            self._jobs[stage_key(stage)] = job

    def ended(self, stage: Stage, outcome: str, message: str) -> None:
        self._jobs.pop(stage_key(stage), None)
        self.done += outcome == "done"
        self.failed += outcome == "failed"
        if outcome == "failed":
            self.console.print(Text(f"failed: {stage.label}: {message}", style="red"))
        elif self._live is None and stage.kind in ("features", "train"):
            self._line(stage.label)

    def tick(self) -> None:
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
        elif time.monotonic() - self._last > QUIET_EVERY_S:
            self._last = time.monotonic()
            names = ", ".join(sorted({job.name for job in self._jobs.values()}))
            self.console.print(
                f"[{self._elapsed()}] {self.done}/{self.total} done; running: {names}", markup=False
            )

    def _line(self, text: str) -> None:
        self.console.print(
            f"[{self._elapsed()}] {self.done}/{self.total} done; {text}", markup=False, highlight=False
        )

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._start)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"

    def _view(self) -> RichTable:
        table = RichTable.grid(padding=(0, 2))
        table.add_row(f"{self._elapsed()}  {self.done}/{self.total} stages", "", "")
        for job in {id(j): j for j in self._jobs.values()}.values():
            table.add_row(Text(job.name), *_bar(self._progress(job)))
        return table

    def _progress(self, job: Job) -> tuple[int, int, str]:
        """How far a job's current stage is: its first one that is not done."""
        for stage in job.stages:
            directory = self.store.at(stage)
            if not directory.done():
                raw = read_json(directory.path / "progress.json") or {}
                return int(raw.get("done", 0)), int(raw.get("total", 0)), str(raw.get("text", ""))
        return 0, 0, ""


def _bar(progress: tuple[int, int, str], width: int = 24) -> tuple[str, str]:
    done, total, text = progress
    if total == 0:
        return "", "starting"
    filled = round(width * done / total)
    return "━" * filled + "─" * (width - filled), f"{done}/{total} {text}"
