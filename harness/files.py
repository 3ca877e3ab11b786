"""Writing files so that a reader sees all of them or nothing, on any file system with atomic rename."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

from harness.errors import HarnessError


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file by temporary file, fsync, rename and fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = private(path)
    try:
        with tmp.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    sync_folder(path.parent)


def private(path: Path) -> Path:
    """A name beside `path` that no other host, process or thread uses."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.tmp")


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def dump_json(value: Any) -> bytes:
    """JSON as it is stored: sorted keys, indented, one newline at the end; NaN is refused."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, dump_json(value))


def read_json(path: Path) -> Any | None:
    """The value of a JSON file, or None where there is none (or it is being replaced)."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def ensure_writable(folder: Path) -> None:
    """Create a folder and prove that files can be made in it.

    Raises HarnessError naming the folder and what to set.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as e:
        raise HarnessError(
            f"the store {folder} cannot be written ({e.strerror}): set store=DIR to a folder you own."
        ) from None
