"""Labelling: a teacher scores a part of a pool, so that a scorer of one's own can be trained on its labels.

Every reply is in the journal before it is used, and the label file is made of the journal: a labelling that was
ended in any way goes on where it was, and what has been paid for is never asked again.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from selector_zoo.passes.mmssr_questions import Spelling, flattened, without_images
from selector_zoo.prompts import PromptPack, fill

from harness.errors import HarnessError
from harness.keys import digest, seeded_order
from harness.labelling_budget import Budget
from harness.labelling_file import write_labels
from harness.labelling_journal import Journal, Reply
from harness.labelling_refusals import Refusals
from harness.labelling_reply import NoLabel, parse_reply
from harness.labelling_teacher import (
    LONGEST_ASKED_S,
    Answer,
    Refused,
    Teacher,
    TeacherSpec,
    Unreachable,
    pause_before,
    question,
)
from harness.pool import Pool

log = logging.getLogger(__name__)

ASK_AGAIN: Final = 2
"""Times a teacher whose reply is no label is told so and asked again."""
GIVE_UP: Final = 10
"""Samples in a row that got no answer end a labelling: the endpoint is down. So do as many at its beginning that
were refused alike: the endpoint does not take our questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRequest:
    """What is to be labelled, by whom, and for how much."""

    pool: Pool
    teacher: TeacherSpec
    pack: PromptPack
    out: Path
    """The label file; its journal and its rejects lie beside it."""
    samples: int
    seed: int = 0
    """Draws the samples, by their uids' hashes: fewer samples of a seed are some of more."""
    max_requests: int | None = None
    """HTTP requests of this run, at most, retries included; 0 only makes the file of what the journal has."""
    max_tokens: int | None = None
    """Tokens of this run's questions and replies; what is under way when they are used up is still answered."""
    concurrency: int = 8

    def __post_init__(self) -> None:
        if self.samples < 1 or self.concurrency < 1:
            raise HarnessError("labelling: samples and concurrency must be at least 1.")
        if min(self.max_requests or 0, self.max_tokens or 0) < 0:
            raise HarnessError("labelling: max_requests and max_tokens must be at least 0.")


@dataclass(slots=True)
class LabelReport:
    """What a labelling has come to."""

    labelled: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    """Samples without a label for good, by reason."""
    unanswered: int = 0
    """Samples to ask another time: out of budget, or out of reach."""
    requests: int = 0
    tokens: int = 0
    stopped: str = ""
    """Which limit ended the run; empty where none did."""


@dataclass(slots=True, kw_only=True)
class _Labelling:
    """A labelling under way."""

    request: LabelRequest
    journal: Journal
    teacher: Teacher
    budget: Budget
    refusals: Refusals
    unreached: int = 0
    """Samples in a row that got no answer."""

    def label(self, position: int) -> str:
        """Ask about one sample until there is a label, a reject, or no more budget; its key in the journal.

        Returns "" for a sample whose pictures cannot be read.
        """
        record = self.request.pool.record(position)
        try:
            pictures = [self.request.pool.image_bytes(key) for key in record.images]
            text = words(self.request.pack, record.conversations)
            asked = question(text, pictures)
        except (OSError, KeyError):
            return ""
        spec = self.request.teacher
        key = digest(
            {
                "model": spec.model,
                "temperature": spec.temperature,
                "reply_tokens": spec.reply_tokens,
                "text": text,
                "pictures": [hashlib.sha256(p).hexdigest() for p in pictures],
            }
        )
        while not settled(replies := self.journal.of(key)):
            if not self._ask(key, record.uid, [asked, *follow_up(replies)]):
                break
        return key

    def _ask(self, key: str, uid: str, messages: list[dict[str, Any]]) -> bool:
        """Whether the teacher answered; where it did not, it refused or the budget was spent."""
        self.refusals.asking(key)
        try:
            answer = self._answer(messages)
        except Refused as e:
            self.refusals.refused(Reply(key=key, uid=uid, refused=str(e)))
            return False
        except Unreachable:
            self.refusals.unreached(key)
            raise
        if answer is None:
            return False
        self.journal.add(Reply(key=key, uid=uid, text=answer.text, tokens=answer.tokens))
        self.refusals.answered()
        self.budget.spent(answer.tokens)
        return True

    def _answer(self, messages: list[dict[str, Any]]) -> Answer | None:
        """The answer of a teacher that is waited for while it is busy; None where the budget is spent before."""
        spec, retries = self.request.teacher, 0
        while self.budget.take():
            try:
                return self.teacher.ask(messages)
            except Unreachable as e:
                retries += 1
                if retries > spec.retries or e.asked_s > LONGEST_ASKED_S:
                    raise
                self.budget.over.wait(pause_before(retries, spec, e.asked_s))
        return None

    def try_label(self, position: int) -> str:
        """`label`, giving up only where many samples in a row are out of reach."""
        try:
            key = self.label(position)
        except Unreachable as e:
            self.unreached += 1
            if self.unreached >= GIVE_UP:
                raise HarnessError(
                    f"{self.request.teacher.endpoint} does not answer ({e}): start again when it does; what was "
                    "answered is kept, and --max-requests 0 makes a label file of it."
                ) from None
            return "unreachable"
        self.unreached = 0
        return key


def label_pool(request: LabelRequest, progress: Callable[[int], None] = lambda _: None) -> LabelReport:
    """Label samples of a pool and write the label file; what the journal has is not asked again.

    Raises HarnessError where the teacher cannot be asked; the file is then as it was before, and the journal has
    what was answered.
    """
    positions = drawn(request.pool, request.samples, request.seed)
    keys: dict[int, str] = {}
    budget = Budget(request.max_requests, request.max_tokens)
    teacher = Teacher(request.teacher)
    with Journal.open(journal_of(request.out)) as journal:
        refusals = Refusals(journal=journal, endpoint=request.teacher.endpoint, give_up=GIVE_UP)
        work = _Labelling(request=request, journal=journal, teacher=teacher, budget=budget, refusals=refusals)
        try:
            for done, (position, key) in enumerate(_concurrently(work, positions), 1):
                keys[position] = key
                progress(done)
        finally:
            teacher.close()
        refusals.end(answered_before=any(not r.refused for key in keys.values() for r in journal.of(key)))
        report = _write(request, journal, positions, keys)
    report.requests, report.tokens, report.stopped = budget.requests, budget.tokens, budget.stopped
    return report


def _concurrently(work: _Labelling, positions: list[int]) -> Iterator[tuple[int, str]]:
    """(position, key) as they come; an error of one ends all that have not begun."""
    waiting: dict[Future[str], int] = {}
    rest = iter(positions)
    concurrency = work.request.concurrency
    with ThreadPoolExecutor(concurrency, thread_name_prefix="label") as threads:
        while True:
            for position in rest:
                waiting[threads.submit(work.try_label, position)] = position
                if len(waiting) >= 2 * concurrency:
                    break
            if not waiting:
                return
            try:
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield waiting.pop(future), future.result()
            except BaseException:
                work.budget.over.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise


def _write(request: LabelRequest, journal: Journal, positions: list[int], keys: dict[int, str]) -> LabelReport:
    """Make the label file, and that of rejects, of what the journal says about the samples."""
    report, labels, rejects = LabelReport(), [], []
    for position in positions:
        uid, key = request.pool.record(position).uid, keys[position]
        replies = journal.of(key)
        label, reason, detail = verdict(replies) if key else (None, "unreadable_image", "")
        if label is not None:
            labels.append({"uid": uid, **label})
        elif not key or settled(replies):
            report.rejects[reason] += 1
            rejects.append({"uid": uid, "reason": reason, "detail": detail})
        else:
            report.unanswered += 1
    report.labelled = len(labels)
    if labels:
        write_labels(request.out, labels)
    write_labels(rejects_of(request.out), rejects)
    return report


def journal_of(out: Path) -> Path:
    """The journal beside a label file."""
    return out.with_name(f"{out.stem}.journal.jsonl")


def rejects_of(out: Path) -> Path:
    """The list of samples without a label, beside a label file."""
    return out.with_name(f"{out.stem}.rejects.jsonl")


def drawn(pool: Pool, samples: int, seed: int) -> list[int]:
    """Positions of the samples to label, in a seeded order that does not depend on that of the pool."""
    order = seeded_order(pool.column("uid_hash64"), seed)
    return [int(i) for i in order[:samples]]


def words(pack: PromptPack, turns: tuple[tuple[str, str], ...]) -> str:
    """What a teacher is asked about a conversation."""
    said = tuple((role, without_images(text)) for role, text in turns)
    return fill(pack.template("label"), conversation=flattened(said, Spelling()))


def settled(replies: list[Reply]) -> bool:
    """Whether nothing more is to be asked: a label, a refusal, or replies enough that are neither."""
    if not replies:
        return False
    return len(replies) > ASK_AGAIN or bool(replies[-1].refused) or verdict(replies)[0] is not None


def verdict(replies: list[Reply]) -> tuple[dict[str, Any] | None, str, str]:
    """The label in the last reply; or None, with a reason and its detail."""
    if not replies:
        return None, "unanswered", ""
    if replies[-1].refused:
        return None, "refused", replies[-1].refused
    try:
        return parse_reply(replies[-1].text), "", ""
    except NoLabel as e:
        return None, e.reason, str(e)


def follow_up(replies: list[Reply]) -> list[dict[str, Any]]:
    """The rest of the conversation after replies that were no labels."""
    messages: list[dict[str, Any]] = []
    for reply in replies:
        complaint = f"That is not usable: {verdict([reply])[2]}. Reply with the JSON object, complete and alone."
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": complaint}]
    return messages
