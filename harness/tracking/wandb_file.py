"""Reading W&B's .wandb files: the records of a run that has not been uploaded.

The file is a LevelDB log: a 7-byte header, then blocks of 32 KiB with chunks of (crc32, length, kind, bytes).
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


def needed_files(path: Path) -> Iterator[Path]:
    """The files outside a .wandb file that uploading it reads: its artifacts' and its media."""
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "artifact":
            yield from (Path(e.local_path) for e in record.artifact.manifest.contents if e.local_path)
        elif kind == "files":
            yield from (path.parent / "files" / f.path for f in record.files.files)
