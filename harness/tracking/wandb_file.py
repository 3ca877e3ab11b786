"""Offline runs on disk: which wait to be uploaded, and what their .wandb files say.

A .wandb file is a LevelDB log: a 7-byte header, then blocks of 32 KiB with chunks of (crc32, length, kind, bytes).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_HEADER: Final = b":W&B"
_HEADER_SIZE: Final = 7
_BLOCK: Final = 32 * 1024
_CHUNK: Final = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def payloads(path: Path) -> Iterator[bytes]:
    """The serialised records of a .wandb file; a torn end, as a killed writer leaves it, ends them quietly.

    Raises ValueError where the file is something else.
    """
    data = path.read_bytes()
    if not data.startswith(_HEADER):
        raise ValueError(f"{path} is not a .wandb file")
    at, parts = _HEADER_SIZE, b""
    while True:
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK.size:  # too little for a chunk: padding
            at += left
            continue
        if at + _CHUNK.size > len(data):
            return
        _, size, kind = _CHUNK.unpack_from(data, at)
        at += _CHUNK.size
        if at + size > len(data) or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            return
        parts = data[at : at + size] if kind in (_FULL, _FIRST) else parts + data[at : at + size]
        at += size
        if kind in (_FULL, _LAST):
            yield parts


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file as protobuf messages of the installed wandb."""
    from wandb.proto import wandb_internal_pb2

    for payload in payloads(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        yield record


def unsent(folder: Path) -> list[Path]:
    """The .wandb files of offline runs without W&B's mark of having been uploaded, oldest first."""
    return [f for f in sorted(folder.glob("offline-run-*/run-*.wandb")) if not sync_mark(f).exists()]


def sync_mark(run: Path) -> Path:
    """The file that W&B makes beside a .wandb file it has uploaded, or thinks it has."""
    return run.with_name(f"{run.name}.synced")


def lost_files(path: Path) -> Iterator[Path]:
    """The files that uploading a .wandb file reads, its artifacts' and its media, and that are not there."""
    return (file for file in _needed_files(path) if not file.is_file())


def _needed_files(path: Path) -> Iterator[Path]:
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "artifact":
            yield from (Path(e.local_path) for e in record.artifact.manifest.contents if e.local_path)
        elif kind == "files":
            yield from (path.parent / "files" / f.path for f in record.files.files)
