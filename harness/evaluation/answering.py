"""Answering many prompts with one checkpoint: fixed batches of similar length, each journalled when done."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from harness.evaluation.checkpoint import Checkpoint
from harness.evaluation.generation import Generation
from harness.evaluation.journal import Answer, Journal
from harness.evaluation.prompts import Messages, Prompt, input_digest, read_messages
from harness.keys import seed64

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told how many items of how many are done."""

KEPT_BYTES = 256 * 2**20
"""Decoded images kept between measuring and answering; beyond that they are decoded twice."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One item to answer; `messages` makes its prompt, as often as it is called."""

    task: str
    doc_id: int
    messages: Callable[[], Messages]
    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A question whose prompt has been looked at."""

    question: Question
    digest: str
    visual: int
    length: int
    """Prompt tokens, visual ones included."""
    prompt: Prompt | None
    """Kept where memory allows."""

    @property
    def key(self) -> tuple[str, int, str]:
        return self.question.task, self.question.doc_id, self.digest

    @property
    def bucket(self) -> tuple[Generation, bool]:
        """Items of different buckets never share a batch."""
        return self.question.generation, self.visual > 0

    @property
    def order(self) -> tuple[int, int, str, int]:
        return -self.visual, -self.length, self.question.task, self.question.doc_id


@dataclass(slots=True, kw_only=True)
class Answerer:
    """Answers questions in batches that depend on the questions alone, so that a resumed run repeats them.

    `workers` threads prepare batches while the model generates; 0 prepares them in between.
    """

    checkpoint: Checkpoint
    batch_size: int
    workers: int = 0
    _local: threading.local = field(default_factory=threading.local)

    def answer(self, questions: Sequence[Question], journal: Journal, progress: Progress) -> list[Answer]:
        """One answer a question, in their order; those in the journal are not generated again.

        A batch is repeated whole when one of its answers is missing: its padding is part of the arithmetic.
        """
        measured = self._measure(questions)
        batches = make_batches(measured, self.batch_size)
        missing = [batch for batch in batches if any(m.key not in journal.answers for m in batch)]
        done = len(measured) - sum(map(len, missing))
        if done:
            log.info("%d of %d answers are in the journal", done, len(measured))
        progress(done, len(measured))
        for batch, inputs in self._prepared(missing):
            journal.add(self._generate(batch, inputs))
            done += len(batch)
            progress(done, len(measured))
        return [journal.answers[m.key] for m in measured]

    def _measure(self, questions: Sequence[Question]) -> list[Measured]:
        measured, room = [], KEPT_BYTES
        for question, (prompt, digest, length) in zip(
            questions, ordered_map(self._look, questions, self.workers), strict=True
        ):
            room -= sum(3 * image.width * image.height for image in prompt.images)
            visual = self.checkpoint.visual_tokens(prompt.images)
            measured.append(
                Measured(
                    question=question,
                    digest=digest,
                    visual=visual,
                    length=length + visual,
                    prompt=prompt if room > 0 else None,
                )
            )
        return measured

    def _look(self, question: Question) -> tuple[Prompt, str, int]:
        prompt = self._prompt(question)
        text = prompt.render(self._processor)
        digest = input_digest(text, prompt.images, repr(question.generation))
        return prompt, digest, len(self._processor.tokenizer(text).input_ids)

    def _prompt(self, question: Question) -> Prompt:
        return read_messages(question.messages(), self.checkpoint.placeholders)

    @property
    def _processor(self) -> Any:
        if not hasattr(self._local, "processor"):
            self._local.processor = self.checkpoint.own_processor()
        return self._local.processor

    def _prepared(self, batches: Sequence[Sequence[Measured]]) -> Iterator[tuple[Sequence[Measured], Any]]:
        return zip(batches, ordered_map(self._encode, batches, self.workers), strict=True)

    def _encode(self, batch: Sequence[Measured]) -> Any:
        """Processor output of a batch, padded on the left to its longest prompt."""
        prompts = [m.prompt or self._prompt(m.question) for m in batch]
        images = [list(p.images) for p in prompts] if batch[0].visual else None
        texts = [p.render(self._processor) for p in prompts]
        return self._processor(images=images, text=texts, padding=True, return_tensors="pt")

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Measured], inputs: Any) -> list[Answer]:
        generation = batch[0].question.generation
        if generation.temperature > 0:  # the same draws whether or not the run was resumed
            torch.manual_seed(seed64(*(m.digest for m in batch)) % 2**63)
        model = self.checkpoint.model
        inputs = inputs.to(self.checkpoint.device, model.dtype)
        output = model.generate(**inputs, **generation.arguments())
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._answer(m, row) for m, row in zip(batch, rows, strict=True)]

    def _answer(self, item: Measured, row: list[int]) -> Answer:
        ends = self.checkpoint.end_ids
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        ids = row if stop is None else row[: stop + 1]
        return Answer(
            task=item.question.task,
            doc_id=item.question.doc_id,
            input=item.digest,
            text=self._processor.tokenizer.decode(ids, skip_special_tokens=True),
            tokens=len(ids),
            truncated=stop is None,
        )


def make_batches(items: Iterable[Measured], size: int) -> list[list[Measured]]:
    """Batches of at most `size` items of one bucket, longest first, so that memory runs out early or never."""
    buckets: dict[tuple[Generation, bool], list[Measured]] = {}
    for item in sorted(items, key=lambda m: m.order):
        buckets.setdefault(item.bucket, []).append(item)
    return [bucket[i : i + size] for bucket in buckets.values() for i in range(0, len(bucket), size)]


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map` on threads that run at most a few items ahead; plain `map` without workers."""
    if workers == 0:
        yield from map(function, items)
        return
    # Threads start with as many OpenMP threads as there are cores, whatever the main thread was told.
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare", initializer=lambda: torch.set_num_threads(1))
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > workers + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
