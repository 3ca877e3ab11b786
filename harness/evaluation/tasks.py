"""Finding the lmms-eval task of a benchmark: local files, corrected built-ins, or built-ins."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from harness.errors import HarnessError, unknown_name

MMT_YAML = """\
include: {tasks}/mmt/mmt_val.yaml
task: sieve_mmt_val
doc_to_text: !function prompts.question
"""
MMT_PROMPTS = '''\
"""MMT-Bench prompts without the literal image placeholder of lmms-eval's mmt_val."""

from lmms_eval.tasks.mmt.utils import mmt_doc_to_text

HEAD = "Question: <image>\\n"


def question(doc, lmms_eval_specific_kwargs=None):
    return mmt_doc_to_text(doc, lmms_eval_specific_kwargs).replace(HEAD, "", 1)
'''


def _mmt_val(folder: Path, tasks: Path) -> None:
    """`mmt_val` sends an `<image>` in its text besides the image, which stops a whole run."""
    (folder / "sieve_mmt_val.yaml").write_text(MMT_YAML.format(tasks=tasks))
    (folder / "prompts.py").write_text(MMT_PROMPTS)


CORRECTED: Final[Mapping[str, Callable[[Path, Path], None]]] = {"sieve_mmt_val": _mmt_val}
"""Built-in tasks with a known defect, under a name of ours; their files are written when they are run."""


def task_manager(task: str, include_path: str, scratch: Path) -> Any:
    """A `TaskManager` that knows `task`, from the folder it lives in or from lmms-eval itself.

    Raises HarnessError for a task that is not there, naming the closest ones.
    """
    if include_path:
        manager = _local(include_path)
        if task not in manager.all_tasks:
            raise unknown_name(f"task in {include_path}", task, manager.all_tasks)
    elif task in CORRECTED:
        folder = scratch / "tasks" / task
        folder.mkdir(parents=True, exist_ok=True)
        CORRECTED[task](folder, builtin_folder())
        manager = _local(str(folder))
    else:
        manager = _builtin()
        if task not in manager.all_tasks:
            raise _unknown_builtin(task, manager.all_tasks)
    return manager


def builtin_folder() -> Path:
    """Where lmms-eval keeps its task files."""
    import lmms_eval.tasks

    return Path(lmms_eval.tasks.__file__).parent


def _local(folder: str) -> Any:
    """Only this folder: reading lmms-eval's own two thousand files takes seconds."""
    from lmms_eval.tasks import TaskManager

    if not Path(folder).is_dir():
        raise HarnessError(f"there is no task folder {folder}: give a folder with lmms-eval task files.")
    return TaskManager(include_path=folder, include_defaults=False)


@functools.cache
def _builtin() -> Any:
    from lmms_eval.tasks import TaskManager

    return TaskManager()


def _unknown_builtin(task: str, known: list[str]) -> HarnessError:
    close = difflib.get_close_matches(task, known, n=3, cutoff=0.5)
    hint = f" Closest: {', '.join(close)}." if close else ""
    return HarnessError(
        f"lmms-eval has no task '{task}' ({len(known)} are known).{hint} For a task of your own, give the folder "
        "of its YAML file as the benchmark's include_path."
    )
