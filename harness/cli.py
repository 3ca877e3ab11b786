"""`sievebench VERB …`: thin wrappers on public functions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import main as entry
from harness.compare_cli import add_compare_verb
from harness.errors import HarnessError
from harness.labelling_cli import add_label_verb
from harness.pool_cli import add_export_verb, add_pool_verb
from harness.published import add_published_verb

Handler = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status. User errors are one sentence on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in ("run", "plan"):
        extra = ["dry_run=true"] if given[0] == "plan" else []
        return entry.main([*given[1:], *extra])
    options = _parser().parse_args(given)
    handler: Handler = options.handler
    try:
        return handler(options)
    except HarnessError as e:
        print(f"sievebench: {e}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sievebench", description="Does a data selector really beat random?")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("run", help="run a cell or, with -m, a sweep (arguments as for python -m harness)")
    verbs.add_parser("plan", help="show what run would do")
    _store_verb(verbs, "status", "what is done, running and failed", _status, "sweep")
    _store_verb(verbs, "explain", "what a stage means, needs and has cost", _explain, "stage")
    report = _store_verb(verbs, "report", "the tables of a sweep, or of a paper", _report, "sweep")
    report.add_argument("--published", metavar="PAPER", help="mmssr or datatailor: from its printed raw scores")
    report.add_argument("--format", choices=("terminal", "md", "tex", "csv", "html"), default="terminal")
    report.add_argument("--out", type=Path, help="folder to write the report into")
    add_pool_verb(verbs)
    add_export_verb(verbs)
    add_label_verb(verbs)
    add_published_verb(verbs)
    add_compare_verb(verbs)
    _wandb_verbs(verbs)
    _check_verb(verbs)
    reference = verbs.add_parser("reference", help="every setting, with its type, default and meaning")
    reference.add_argument("--out", type=Path, help="write the project's own page, docs/configuration.md, there")
    reference.set_defaults(handler=_reference)
    return parser


def _store_verb(verbs: object, name: str, text: str, handler: Handler, target: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text)  # type: ignore[attr-defined]
    verb.add_argument(target, nargs="?", default="", help=f"{target} name (label or key prefix)")
    verb.add_argument("--store", type=Path, default=Path("runs"))
    verb.set_defaults(handler=handler)
    return verb


def _check_verb(verbs: object) -> None:
    check: argparse.ArgumentParser = verbs.add_parser(  # type: ignore[attr-defined]
        "check-selector", help="try what a selector promises on a small pool"
    )
    check.add_argument("selector", metavar="NAME|FILE.py")
    check.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings other than its defaults")
    check.set_defaults(handler=_check_selector)


def _wandb_verbs(verbs: object) -> None:
    wandb: argparse.ArgumentParser = verbs.add_parser("wandb", help="show sweeps in W&B")  # type: ignore[attr-defined]
    actions = wandb.add_subparsers(dest="action", required=True, metavar="ACTION")
    push = _store_verb(
        actions, "push", "rebuild a sweep's runs, tables and artifacts from the store", _push, "sweep"
    )
    push.add_argument("--project", default="sievebench")
    push.add_argument("--entity", default="", help="user or team; the account's own where left out")
    push.add_argument("--mode", default="", help="offline or online; WANDB_MODE where left out, and then offline")
    push.add_argument("--force", action="store_true", help="write unchanged runs again too")
    sync = actions.add_parser("sync", help="upload the offline runs of a store, and prove it")
    sync.add_argument("--store", type=Path, default=Path("runs"))
    sync.set_defaults(handler=_sync)


def _push(options: argparse.Namespace) -> int:
    from harness.reporting import only_sweep
    from harness.store import Store
    from harness.tracking import Tracking
    from harness.tracking.apart import push_apart

    store = Store(options.store)
    tracking = Tracking(name="wandb", project=options.project, entity=options.entity, mode=options.mode)
    result = push_apart(store, options.sweep or only_sweep(store), tracking, force=options.force)
    print(result.sentence(store))
    return 0


def _sync(options: argparse.Namespace) -> int:
    from harness.store import Store
    from harness.tracking import Tracking
    from harness.tracking.sync import sync

    print(f"W&B: {sync(Store(options.store), Tracking(name='wandb'))} runs uploaded.")
    return 0


def _check_selector(options: argparse.Namespace) -> int:
    import os
    import tempfile

    from harness.conformance import check_selector, settings_of
    from harness.console import make_console
    from harness.executors import QUIET

    # The passes run in this process, on the CPU; DeepSpeed would say that it found nothing else.
    os.environ.update({**QUIET, "DS_ACCELERATOR": "cpu", **os.environ})
    console, broken = make_console(), 0
    with tempfile.TemporaryDirectory(prefix="sievebench-") as folder:
        for verdict in check_selector(options.selector, Path(folder), settings_of(options.settings)):
            broken += bool(verdict.problem)
            said = f"broken  {verdict.promise}: " if verdict.problem else f"ok      {verdict.promise}"
            console.print(said + verdict.problem, highlight=False, markup=False, soft_wrap=True)
    return 1 if broken else 0


def _reference(options: argparse.Namespace) -> int:
    from harness.reference import reference, write_reference

    if options.out:
        write_reference(options.out)
    else:
        sys.stdout.write(reference())
    return 0


def _status(options: argparse.Namespace) -> int:
    from harness.console import make_console
    from harness.explain import show_status

    return show_status(options.store, options.sweep, make_console())


def _explain(options: argparse.Namespace) -> int:
    from harness.console import make_console
    from harness.explain import show_stage

    return show_stage(options.store, options.stage, make_console())


def _report(options: argparse.Namespace) -> int:
    from harness.console import make_console
    from harness.reporting import only_sweep, print_published, print_report
    from harness.store import Store

    console = make_console()
    if options.published:
        return print_published(options.published, options.format)
    store = Store(options.store)
    return print_report(store, options.sweep or only_sweep(store), options.format, options.out, console)


if __name__ == "__main__":
    sys.exit(main())
