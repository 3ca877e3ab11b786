"""The lmms-eval model `sieve_llava_ov`: Hugging Face LLaVA-OneVision checkpoints, batched and resumable."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from harness.errors import HarnessError
from harness.evaluation.answering import Answerer, Progress, Question
from harness.evaluation.checkpoint import Checkpoint, load_checkpoint
from harness.evaluation.generation import Generation
from harness.evaluation.journal import Answer, Journal


class AnsweringModel(lmms):  # type: ignore[misc]
    """What the two models share: chat messages in, text with token counts out, nothing else."""

    is_simple = False

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[tuple[str, int], Answer] = {}
        """Every answer given so far, by task and doc_id."""

    def clean(self) -> None:
        """Keep the weights: lmms-eval would drop them after each task."""

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise HarnessError("only tasks with output_type generate_until can be run: give the task that type.")

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        raise HarnessError("only tasks with output_type generate_until can be run: give the task that type.")

    def _results(self, answers: Sequence[Answer]) -> list[GenerationResult]:
        for answer in answers:
            self.answers[answer.task, answer.doc_id] = answer
        return [GenerationResult(text=a.text, token_counts=TokenCounts(output_tokens=a.tokens)) for a in answers]


class SieveLlavaOv(AnsweringModel):
    """Batched generation with left padding; a failure raises instead of becoming an empty answer.

    Also usable from lmms-eval's command line: `--model sieve_llava_ov --model_args pretrained=DIR,...`.
    """

    def __init__(
        self,
        pretrained: str,
        device: str = "cpu",
        dtype: str = "float32",
        attn_implementation: str = "sdpa",
        batch_size: int | str = 8,
        workers: int = 1,
        journal: str = "",
    ) -> None:
        checkpoint = load_checkpoint(Path(pretrained), device=device, dtype=dtype, attention=attn_implementation)
        path = Path(journal) if journal else Path(tempfile.mkdtemp()) / "answers.jsonl"
        self._set(checkpoint, int(batch_size), int(workers), path, lambda done, total: None)

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, *, batch_size: int, workers: int, journal: Path, progress: Progress
    ) -> Self:
        """The model around a checkpoint that is loaded already."""
        model = cls.__new__(cls)
        model._set(checkpoint, batch_size, workers, journal, progress)
        return model

    def _set(
        self, checkpoint: Checkpoint, batch_size: int, workers: int, journal: Path, progress: Progress
    ) -> None:
        AnsweringModel.__init__(self)
        self._answerer = Answerer(checkpoint=checkpoint, batch_size=batch_size, workers=workers)
        self._journal = journal
        self._progress = progress

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        questions = [self._question(*request.args) for request in requests]
        with Journal(self._journal) as journal:
            return self._results(self._answerer.answer(questions, journal, self._progress))

    def _question(
        self,
        _context: str,
        to_messages: Callable[[Any], Any],
        arguments: dict[str, Any],
        doc_id: int,
        task: str,
        split: str,
    ) -> Question:
        docs = self.task_dict[task][split]
        return Question(
            task=task,
            doc_id=doc_id,
            messages=lambda: to_messages(docs[doc_id]),
            generation=Generation.read(arguments),
        )
