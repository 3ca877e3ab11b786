"""Questions a teacher refused with an HTTP error: about the sample, or about all we ask?"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from harness.errors import HarnessError
from harness.labelling_journal import Journal, Reply


@dataclass(slots=True, kw_only=True)
class Refusals:
    """The refusals of a run; none is kept, and thereby final, before the teacher has answered another question.

    Threads share them. Those that nothing vouches for are forgotten with the run, and asked again in the next.
    """

    journal: Journal
    endpoint: str
    give_up: int
    """So many first questions, all refused alike, end the run."""
    _first: set[str] = field(default_factory=set)
    """Keys of the first questions, not in the order of their replies: a refusal is quicker than an answer."""
    _held: dict[str, Reply] = field(default_factory=dict)
    _answered: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def asking(self, key: str) -> None:
        """A question is about to be asked."""
        with self._lock:
            if len(self._first) < self.give_up:
                self._first.add(key)

    def unreached(self, key: str) -> None:
        """A question got neither answer nor refusal: another takes its place among the first."""
        with self._lock:
            self._first.discard(key)

    def answered(self) -> None:
        """A question was answered: refusals, earlier and later, are about their samples."""
        with self._lock:
            self._answered = True
            self._keep()

    def refused(self, reply: Reply) -> None:
        """A question was refused.

        Raises HarnessError where the first questions were all refused with the same status.
        """
        with self._lock:
            if self._answered:
                self.journal.add(reply)
                return
            self._held[reply.key] = reply
            ended = len(self._first) == self.give_up and self._first <= self._held.keys()
            if ended and len({_status(self._held[key]) for key in self._first}) == 1:
                self._stop(reply, f"the first {self.give_up} questions")

    def end(self, *, answered_before: bool) -> None:
        """Decide on what is left at the end of a run; a few refusals are believed if the journal has answers.

        Raises HarnessError where nothing was answered.
        """
        with self._lock:
            if answered_before and len(self._held) < self.give_up:
                self._keep()
            elif self._held:
                self._stop(list(self._held.values())[-1], f"every question that reached it ({len(self._held)})")

    def _keep(self) -> None:
        for reply in self._held.values():
            self.journal.add(reply)
        self._held.clear()

    def _stop(self, last: Reply, which: str) -> None:
        self._held.clear()
        raise HarnessError(
            f"{self.endpoint} refused {which}, at last with {last.refused!r}: see what --model, --endpoint and "
            "--prompts ask of it, and start again; none of these refusals was kept."
        )


def _status(reply: Reply) -> str:
    return reply.refused.partition(":")[0]
