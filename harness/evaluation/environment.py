"""The surroundings lmms-eval needs: offline, one process, its own folder, and a cache of ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from harness.files import ensure_writable

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
ONLINE_SWITCH = "SIEVEBENCH_ONLINE"
"""Set to 1 to let evaluation fetch benchmarks from the hub."""

CACHE_VARIABLE = "SIEVEBENCH_CACHE"
"""Folder for what can be made again, such as the Arrow copies of local benchmark files."""

_LAUNCHER = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_LAUNCHER_PREFIXES = ("MASTER_", "ACCELERATE_", "TORCHELASTIC_")


def default_cache() -> Path:
    """`$SIEVEBENCH_CACHE`, else `sievebench` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sievebench"


def prepare_environment(cache: Path | None = None) -> None:
    """Set the variables that lmms-eval, datasets and transformers read when they are imported.

    Call it before the first of these imports. What the user has set is left alone; without
    `SIEVEBENCH_ONLINE=1` nothing is fetched from the network.
    """
    if os.environ.get(ONLINE_SWITCH) != "1":
        for name in OFFLINE:
            os.environ.setdefault(name, "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # one line per item in the log of every stage
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # we bring our own threads
    if cache is not None:
        os.environ[CACHE_VARIABLE] = str(cache)


@contextlib.contextmanager
def isolated(scratch: Path, *, local_data: bool) -> Iterator[None]:
    """Run lmms-eval as one lone process inside `scratch`, and put everything back afterwards.

    A launcher's variables would make lmms-eval wait for other ranks; some tasks write into the working
    directory. Arrow copies of local data go to our cache; hub data stays where the user has it.
    """
    before, folder = dict(os.environ), Path.cwd()
    scratch.mkdir(parents=True, exist_ok=True)
    for name in list(os.environ):
        if name in _LAUNCHER or name.startswith(_LAUNCHER_PREFIXES):
            del os.environ[name]
    from harness.evaluation import judge_server

    os.environ["API_TYPE"] = judge_server.API_TYPE  # scorers that want a judge find ours
    # Some task modules build an API client when they are loaded, whether or not they come to use it.
    os.environ.setdefault("OPENAI_API_KEY", "none")
    if local_data:
        cache = (default_cache() / "datasets").resolve()
        ensure_writable(cache)
        os.environ["LMMS_EVAL_DATASETS_CACHE"] = str(cache)
    _forget_datasets_cache()
    os.chdir(scratch)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(before)
        _forget_datasets_cache()


def _forget_datasets_cache() -> None:
    """Make lmms-eval read the place of its data cache again; it remembers the first answer."""
    from lmms_eval.api import task

    task._resolve_hf_datasets_cache_dir.cache_clear()
