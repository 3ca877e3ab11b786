"""The lmms-eval model `sieve_replay`: stored answers, for the official scorers to score."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from lmms_eval.api.instance import GenerationResult, Instance

from harness.evaluation.adapter import AnsweringModel
from harness.evaluation.journal import Answer, read_answers


class SieveReplay(AnsweringModel):
    """Gives back answers by task and doc_id.

    From lmms-eval's command line: `--model sieve_replay --model_args answers=FILE.jsonl`.
    """

    def __init__(self, answers: str, device: str = "cpu", batch_size: int | str = 1) -> None:
        super().__init__()
        self._stored = {(a.task, a.doc_id): a for a in read_answers(Path(answers))}

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> Self:
        """The model around answers that are in memory already."""
        model = cls.__new__(cls)
        AnsweringModel.__init__(model)
        model._stored = {(a.task, a.doc_id): a for a in answers}
        return model

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The stored answers; raises KeyError where one is missing."""
        asked = [(request.task_name, request.doc_id) for request in requests]
        missing = [key for key in asked if key not in self._stored]
        if missing:
            raise KeyError(f"{len(missing)} of {len(asked)} items have no stored answer, first {missing[0]}")
        return self._results([self._stored[key] for key in asked])
