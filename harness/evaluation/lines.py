"""Files of one JSON value a line that are appended to and may be torn by a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[Any]:
    """The values of all complete lines; none where there is no file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    return [json.loads(line) for line in data[: _complete(data)].split(b"\n")[:-1]]


def cut_torn_line(path: Path) -> None:
    """Drop what follows the last line end, so that appending starts on a line of its own."""
    if path.exists():
        data = path.read_bytes()
        if _complete(data) < len(data):
            with path.open("ab") as f:
                f.truncate(_complete(data))


def line(value: Any) -> bytes:
    """One value as a line."""
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _complete(data: bytes) -> int:
    return data.rfind(b"\n") + 1
