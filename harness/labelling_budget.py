"""What a labelling may still spend, and whether it is over."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from harness.errors import HarnessError


@dataclass(slots=True)
class Budget:
    """What a run may still spend; threads share it."""

    max_requests: int | None
    max_tokens: int | None
    requests: int = 0
    tokens: int = 0
    stopped: str = ""
    """Which limit ended the run; empty where none did."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when no more requests may be sent, by a limit or after an error; pauses end with it."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Whether another HTTP request may be sent; it is counted."""
        with self._lock:
            if self.max_requests is not None and self.requests >= self.max_requests:
                self.stopped = "max_requests"
            elif self.max_tokens is not None and self.tokens >= self.max_tokens:
                self.stopped = "max_tokens"
            if self.stopped:
                self.over.set()
            if self.over.is_set():
                return False
            self.requests += 1
            return True

    def spent(self, tokens: int) -> None:
        """Count the tokens of an answer.

        Raises HarnessError where tokens are limited and the endpoint does not count them.
        """
        if self.max_tokens is not None and tokens < 0:
            raise HarnessError("the endpoint does not say how many tokens it used: limit --max-requests instead.")
        with self._lock:
            self.tokens += max(tokens, 0)
