"""Models on disk: which folder a name means, and the digests that identify it."""

from __future__ import annotations

import functools
from pathlib import Path

from harness.errors import HarnessError
from harness.keys import digest, file_digest
from harness.types import Backbone

MINIWORLD = "miniworld:"
"""How names of the shipped models begin."""
WEIGHTS = ("*.safetensors", "*.bin", "config.json")
PROCESSOR = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "*processor_config.json",
)


def backbone(name: str, path: str, revision: str = "") -> Backbone:
    """A backbone's identity.

    A folder is identified by its files, tokenizer and processor among them: they decide what the weights read. A
    hub id must name its revision (a commit), so that a result says which weights it came from. Raises HarnessError
    for a missing folder or an unpinned hub id.
    """
    folder = model_folder(name, path, revision)
    whole = revision or _digest_of(str(folder), WEIGHTS + PROCESSOR)
    return Backbone(name=name, path=str(folder), revision=whole, processor=_digest_of(str(folder), PROCESSOR))


def model_folder(name: str, path: str, revision: str = "") -> Path:
    """The local folder of a model given as a path, as `miniworld:NAME`, or as a hub id with a revision."""
    if path.startswith(MINIWORLD):
        from harness.miniworld import weights_dir

        return Path(weights_dir(path.removeprefix(MINIWORLD)))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise HarnessError(f"model '{name}': there is no folder {path}.")
    if not revision:
        raise HarnessError(
            f"model '{name}': {path} is neither a folder here nor pinned: write {path}@COMMIT, "
            "or for a backbone set backbone.revision."
        )
    return _from_hub(name, path, revision)


def is_shipped(model: Backbone) -> bool:
    """Whether a model is one of miniworld's own, which know nothing else."""
    from harness.miniworld import WEIGHTS_ROOT

    return Path(model.path).resolve().parent == WEIGHTS_ROOT.resolve()


def _from_hub(name: str, repo: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision))
    except Exception as e:  # offline, no such repository, no access: all the user's to settle
        raise HarnessError(
            f"model '{name}': {repo}@{revision} is not in the local cache and cannot be fetched "
            f"({type(e).__name__}): download it first, or name a folder in its place."
        ) from e


@functools.lru_cache(maxsize=64)
def _digest_of(folder: str, patterns: tuple[str, ...]) -> str:
    root = Path(folder)
    files = sorted({p for pattern in patterns for p in root.glob(pattern)})
    if not files:
        raise HarnessError(f"{folder} does not look like a model: it has none of {', '.join(patterns)}.")
    return digest({p.name: file_digest(p.resolve()) for p in files})
