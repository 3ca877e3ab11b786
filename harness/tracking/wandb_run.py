"""Writing one run with the wandb library; nothing outside this module and `sync` knows it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import HarnessError
from harness.tracking.content import ArtifactContent, RunContent, TableContent

log = logging.getLogger(__name__)

TABLE_ROWS: Final = 10_000
"""W&B shows no more rows of a table and cuts the rest off in silence."""
INIT_TIMEOUT_S: Final = 60.0

_OTHERS: Final = (
    "RUN_ID", "RUN_GROUP", "RESUME", "RESUME_FROM", "FORK_FROM", "JOB_TYPE", "NAME", "NOTES", "TAGS", "SWEEP_ID",
    "PROJECT", "DISABLED", "LAUNCH", "LAUNCH_CONFIG_PATH",
)  # fmt: skip
"""WANDB_* variables that would turn our runs into somebody else's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where runs are written and what they say of themselves to W&B."""

    root: Path
    """The store; W&B gets its folder `wandb`."""
    project: str
    entity: str
    mode: str

    @property
    def folder(self) -> Path:
        return self.root / "wandb"

    @property
    def scratch(self) -> Path:
        """Where files of artifacts are made that the store does not have; kept, because a sync reads them."""
        return self.folder / "made"


@contextmanager
def environment(target: Target) -> Iterator[None]:
    """Everything W&B writes goes below the store, and no variable meant for other runs reaches ours."""
    before = dict(os.environ)
    for name in _OTHERS:
        os.environ.pop(f"WANDB_{name}", None)
    os.environ |= {
        "WANDB_DIR": str(target.root),
        "WANDB_DATA_DIR": str(target.folder / "data"),
        "WANDB_CACHE_DIR": str(target.folder / "cache"),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",  # W&B's failures are not reported to W&B
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def library() -> Any:
    """The wandb module.

    Raises HarnessError where it is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise HarnessError("the wandb package cannot be imported: run 'pip install wandb'.") from None
    return wandb


def write_run(content: RunContent, target: Target) -> Path:
    """Write a run from beginning to end; returns W&B's folder of it.

    To be called inside `environment`. Raises whatever wandb raises, and HarnessError where W&B wrote outside the
    store, which it does without a word when it cannot write there.
    """
    wandb = library()
    settings = wandb.Settings(
        console="off",
        silent=True,
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT_S)),
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        host="",  # W&B would send this machine's name
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    with wandb.init(
        dir=str(target.root),
        mode=target.mode,
        project=target.project,
        entity=target.entity or None,
        id=content.id,
        name=content.name,
        group=content.group,
        job_type=content.job,
        tags=list(content.tags),
        config=dict(content.config),
        reinit="create_new",  # the default would hand us an earlier run of this process
        settings=settings,
    ) as run:
        folder = Path(run.dir).parent
        _fill(wandb, run, content, target)
    if target.mode != "disabled" and not folder.resolve().is_relative_to(target.folder.resolve()):
        raise HarnessError(f"W&B wrote to {folder} instead of {target.folder}: make that folder writable.")
    return folder


def _fill(wandb: Any, run: Any, content: RunContent, target: Target) -> None:
    for key in sorted({key for row in content.history for key in row} - {content.step}):
        run.define_metric(key, step_metric=content.step)  # by name: `wandb sync` cannot expand patterns
    for row in content.history:
        run.log(dict(row))
    tables = {key: _table(wandb, t) for key, t in content.tables.items() if _fits(key, t)}
    if tables:
        run.log(tables)
    for artifact in content.artifacts:
        files = artifact.files(target.scratch)
        if artifact.type == "report" and "index.html" in files:
            run.log({"report/page": wandb.Html(str(files["index.html"]), inject=False)})
        logged = run.log_artifact(_artifact(wandb, artifact, files), aliases=artifact.aliases)
        if target.mode == "online":
            logged.wait()  # an upload that fails is otherwise only a line in W&B's log
    run.summary.update(dict(content.summary))  # last, because history has summaries of its own


def _fits(key: str, table: TableContent) -> bool:
    if len(table.rows) < TABLE_ROWS:
        return True
    log.warning("%s has %d rows, too many for a W&B table; the report artifact has them.", key, len(table.rows))
    return False


def _table(wandb: Any, table: TableContent) -> Any:
    return wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows], log_mode="IMMUTABLE")


def _artifact(wandb: Any, content: ArtifactContent, files: Any) -> Any:
    artifact = wandb.Artifact(content.name, type=content.type, metadata=dict(content.metadata))
    for name, path in files.items():
        # Files of the store never change, so W&B need not copy them to its staging folder and its cache.
        artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    for name, path in content.references.items():
        # Without W&B's own checksum, which would read every checkpoint again; ours are in the metadata.
        artifact.add_reference(path.as_uri(), name=name, checksum=False)
    return artifact
