"""Answers as they are given, one JSON line each, so that a killed run keeps what it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from harness.evaluation.lines import cut_torn_line, line, read_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said to one item."""

    task: str
    doc_id: int
    input: str
    """sha256 of the prompt, its images and the generation settings."""
    text: str
    tokens: int
    """Generated tokens, the end-of-turn token included."""
    truncated: bool
    """True where the model was cut off before it ended its turn."""

    @property
    def key(self) -> tuple[str, int, str]:
        return self.task, self.doc_id, self.input


@dataclass(slots=True)
class Journal:
    """An append-only file of answers; a torn last line, as a kill leaves it, is dropped."""

    path: Path
    answers: dict[tuple[str, int, str], Answer] = field(default_factory=dict)
    _file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(self.path)
        self.answers = {a.key: a for a in read_answers(self.path)}
        self._file = self.path.open("ab")
        return self

    def __exit__(self, *error: object) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None

    def add(self, answers: Iterable[Answer]) -> None:
        """Append answers and hand them to the operating system before returning."""
        assert self._file is not None, "open the journal first: `with journal:`"
        for answer in answers:
            self.answers[answer.key] = answer
            self._file.write(line(dataclasses.asdict(answer)))
        self._file.flush()


def read_answers(path: Path) -> list[Answer]:
    """The answers of a journal; none where there is no file."""
    return [Answer(**raw) for raw in read_lines(path)]
