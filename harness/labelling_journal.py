"""The journal of a labelling: every reply a teacher was paid for, on disk before anything is made of it."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.errors import HarnessError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One reply to one question."""

    key: str
    """Digest of the question: model, settings, words and pictures."""
    uid: str
    text: str = ""
    refused: str = ""
    """Why the teacher would not answer; there is no text then."""
    tokens: int = 0
    """Tokens of question and reply, as the teacher counts them; -1 where it does not say."""


@dataclass(slots=True)
class Journal:
    """Replies by question, in the order they came; every new one is on disk when `add` returns."""

    file: Path
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    _fd: int = -1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator[Journal]:
        """Read a journal and go on with it; half a line at its end, of a process that was killed, is cut off.

        Raises HarnessError where it cannot be written, or another process is writing it.
        """
        import fcntl

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as e:
            raise HarnessError(f"the journal {file} cannot be written: {e.strerror}.") from None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HarnessError(f"another process is labelling into {file}: wait for it.") from None
            except OSError as e:
                log.warning("%s cannot be locked (%s): see that no other process labels into it", file, e.strerror)
            yield cls(file, _read(file, fd), fd)
        finally:
            os.close(fd)

    def add(self, reply: Reply) -> None:
        """Keep a reply."""
        line = (json.dumps(asdict(reply), ensure_ascii=False) + "\n").encode()
        with self._lock:
            os.write(self._fd, line)
            os.fsync(self._fd)
            self.replies.setdefault(reply.key, []).append(reply)

    def of(self, key: str) -> list[Reply]:
        """The replies to a question so far."""
        return list(self.replies.get(key, ()))


def _read(file: Path, fd: int) -> dict[str, list[Reply]]:
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.ftruncate(fd, len(whole))
    replies: dict[str, list[Reply]] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            reply = Reply(**json.loads(line))
        except (ValueError, TypeError):
            raise HarnessError(f"line {number} of {file} is no reply of a teacher: move the file away.") from None
        replies.setdefault(reply.key, []).append(reply)
    return replies
