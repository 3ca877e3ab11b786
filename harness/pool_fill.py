"""Filling a pool: records in order through one process, their images checked by several."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.errors import HarnessError
from harness.pool_check import CheckedRecord, ImageFacts, Rejected, check_record, said_uid
from harness.pool_places import Place, check_bytes
from harness.pool_write import PoolWriter

RECORDS = 256
"""Records whose images are checked together."""

BYTES = 32 << 20
"""Bytes of images that came with their records and are checked together."""

Find = Callable[[str], Place | Rejected]
Found = list[ImageFacts | Rejected]
Submit = Callable[[list[Place | bytes | Rejected]], Future[Found]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A record on its way into a pool."""

    raw: Any
    """In LLaVA's format, or Rejected where it could not even be read."""
    part: str
    """Which input it is from; also its source, where nothing in it says another."""
    data: Mapping[str, bytes] = field(default_factory=dict)
    """Images that came with it, by key."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Samples in flight, and the images that were first met in them."""

    start: int
    """Position of the first sample in the input."""
    entries: list[tuple[Sample, CheckedRecord | Rejected]]
    keys: list[str]
    found: Future[Found]


def fill(
    writer: PoolWriter, samples: Iterable[Sample], find: Find, workers: int, progress: Callable[[int], None]
) -> None:
    """Add samples to a pool in their order; every image is checked once.

    `find` says where an image lies that did not come with its record. The result does not depend on `workers`.
    """
    waiting: deque[_Batch] = deque()
    flying: set[str] = set()
    with _checking(workers) as submit:
        for batch in _batches(samples):
            waiting.append(_examine(writer, batch, find, flying, submit))
            if len(waiting) >= 2 * workers:
                progress(_write(writer, waiting.popleft(), flying))
        while waiting:
            progress(_write(writer, waiting.popleft(), flying))


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    size = 0
    for sample in samples:
        batch.append(sample)
        size += sum(map(len, sample.data.values()))
        if len(batch) >= RECORDS or size >= BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _examine(writer: PoolWriter, samples: list[Sample], find: Find, flying: set[str], submit: Submit) -> _Batch:
    """Check the records and send off the images that nobody has looked at yet."""
    start = writer.seen
    entries: list[tuple[Sample, CheckedRecord | Rejected]] = []
    new: dict[str, Place | bytes | Rejected] = {}
    for sample in samples:
        record = _checked(sample, writer.seen)
        entries.append((sample, record))
        writer.seen += 1
        for key in record.images if isinstance(record, CheckedRecord) else ():
            if key not in writer.facts and key not in flying and key not in new:
                new[key] = sample.data[key] if key in sample.data else find(key)
    flying.update(new)
    return _Batch(start, entries, list(new), submit(list(new.values())))


def _checked(sample: Sample, position: int) -> CheckedRecord | Rejected:
    if isinstance(sample.raw, Rejected):
        return sample.raw
    try:
        return check_record(sample.raw, position, sample.part)
    except Rejected as e:
        return e


def _write(writer: PoolWriter, batch: _Batch, flying: set[str]) -> int:
    """Add a batch to the pool; returns how many samples have been dealt with so far."""
    try:
        writer.facts.update(zip(batch.keys, batch.found.result(), strict=True))
    except BrokenProcessPool:
        raise HarnessError(
            f"a process that checks images was killed at one of {', '.join(batch.keys[:3])} and "
            f"{max(0, len(batch.keys) - 3)} more: is memory short? Use fewer --workers, or 1 to see which it is."
        ) from None
    flying.difference_update(batch.keys)
    for position, (sample, record) in enumerate(batch.entries, batch.start):
        if isinstance(record, Rejected):
            writer.reject(position, said_uid(sample.raw), record)
        else:
            writer.put(position, record, sample.data.__getitem__, sample.part)
    return batch.start + len(batch.entries)


@contextmanager
def _checking(workers: int) -> Iterator[Submit]:
    """A way to have images checked: at once with one worker, by processes of their own with more."""
    if workers == 1:
        yield _at_once
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as processes:
        try:
            yield lambda images: processes.submit(_check_all, images) if images else _at_once(images)
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            raise


def _at_once(images: list[Place | bytes | Rejected]) -> Future[Found]:
    done: Future[Found] = Future()
    done.set_result(_check_all(images))
    return done


def _check_all(images: list[Place | bytes | Rejected]) -> Found:
    return [check_bytes(image) for image in images]
