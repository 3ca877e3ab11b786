"""`python -m harness`: Hydra composes, the harness runs."""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError


class SweepFailed(HarnessError):
    """Some cells of a sweep have no result; the terminal has said which and why."""


def run_cells(configs: Sequence[Any], *, command: str, baselines: bool) -> list[Exception | None]:
    """Plan, run and report the cells of some composed configurations; one error (or None) for each."""
    from harness.config import cell_of, settings_of
    from harness.console import ConsoleWatcher, make_console, show_failures, show_plan
    from harness.store import Store
    from harness.sweep import plan_sweep, run_sweep

    console = make_console()
    settings = settings_of(configs[0])
    Store(settings.store).create()
    cells = [cell_of(cfg) for cfg in configs]
    sweep = plan_sweep(cells, settings, command, baselines=baselines)
    show_plan(sweep, console)
    if settings.dry_run:
        from harness.console import show_cells

        show_cells(sweep, console)
        return [None] * len(configs)
    left = sum(not sweep.store.at(s).done() for s in sweep.plan.stages.values())
    with ConsoleWatcher(sweep.store, console, total=left) as watcher:
        result = run_sweep(sweep, watcher)
    show_report(sweep, console)
    show_failures(result, sweep.store, console)
    return _errors(cells, sweep, result.failures)


def _errors(cells: Sequence[Any], sweep: Any, failures: Any) -> list[Exception | None]:
    """Which of the asked-for cells have no result; a failed baseline counts against all of them."""
    from harness.cells import canonical_cell, cell_key

    bad = {c.key: [k for k in c.stages if k in failures] for c in sweep.plan.cells}
    baseline = [c.cell.label for c in sweep.plan.cells if c.cell.baseline and bad[c.key]]
    errors: list[Exception | None] = []
    for cell in cells:
        if bad[cell_key(canonical_cell(cell))]:
            errors.append(SweepFailed(f"{cell.label} has no result."))
        elif baseline:
            errors.append(SweepFailed(f"baselines without a result: {', '.join(baseline)}."))
        else:
            errors.append(None)
    return errors


def show_report(sweep: Any, console: Any) -> None:
    """Print the table of a sweep, write its report folder, and show it to the tracker."""
    from harness.reporting import show_table, write_report
    from harness.tracking import track

    folder = Path(sweep.settings.report) if sweep.settings.report else None
    show_table(sweep.store, sweep.name, console)
    written = write_report(sweep.store, sweep.name, folder)
    console.print(f"Report: {written / 'index.html'}", highlight=False, soft_wrap=True)
    told = track(sweep.store, sweep.name, sweep.settings.tracking)
    if told:
        console.print(told, highlight=False, soft_wrap=True, markup=False)


@dataclasses.dataclass(slots=True)
class _Task:
    """One cell, or one job under a launcher other than ours.

    Errors are kept rather than raised, because Hydra would announce them in its own words first.
    """

    error: Exception | None = None

    def __call__(self, cfg: Any) -> None:
        print("One cell: no baselines are added; sweep with -m to have them.", file=sys.stderr)
        try:
            self.error = run_cells([cfg], command=_command(), baselines=False)[0]
        except HarnessError as e:
            self.error = e


def _command() -> str:
    return shlex.join(["python", "-m", "harness", *sys.argv[1:]])


def selector_files(arguments: list[str]) -> list[str]:
    """Register selectors given as files (`selector=path/to/file.py`) and name them instead."""
    from harness.registry import register_file

    def named(argument: str) -> str:
        key, _, value = argument.partition("=")
        if key != "selector" or ".py" not in value:
            return argument
        names = [register_file(Path(v)) if v.endswith(".py") else v for v in value.split(",")]
        return f"{key}={','.join(names)}"

    return [named(a) for a in arguments]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run Hydra on some arguments; returns the exit status and prints user errors as one sentence."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us; we print them
    try:
        _run_hydra(selector_files(given))
    except SweepFailed as e:
        print(f"sievebench: {e}", file=sys.stderr)
        return 1
    except HarnessError as e:
        print(f"sievebench: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sievebench: stopped; the same command goes on where this one was.", file=sys.stderr)
        return 130
    return 0


def _run_hydra(arguments: list[str]) -> None:
    import hydra
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    from harness.complaints import complaint, missing_option, no_choice, refuse_clashes
    from harness.config import register_schemas

    importlib.import_module("hydra_plugins.sievebench").register()
    register_schemas()
    refuse_clashes(arguments)
    sys.argv = [sys.argv[0] if sys.argv else "harness", *arguments]
    task = _Task()
    run = hydra.main(version_base="1.3", config_path="pkg://harness.conf", config_name="config")(task)
    try:
        run()
    except MissingConfigException as e:
        raise missing_option(e, list(e.options) if e.options else None) from None
    except ValueError as e:
        raise no_choice(e) or e from None
    except (HydraException, OmegaConfBaseException) as e:
        raise complaint(e) from None
    if task.error is not None:
        raise task.error
