"""Answers depend on the questions alone: not on batching, threads, kills or the order of arrival."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_support import picture, tiny_checkpoint

from harness.errors import HarnessError
from harness.evaluation.answering import Answerer, Question, ordered_map
from harness.evaluation.checkpoint import Checkpoint, load_checkpoint
from harness.evaluation.generation import Generation
from harness.evaluation.journal import Answer, Journal, read_answers
from harness.evaluation.prompts import read_messages

SHORT = Generation(max_new_tokens=6)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.set_num_threads(1)
    return load_checkpoint(tiny_checkpoint(), device="cpu", dtype="float32", attention="sdpa")


def question(i: int, generation: Generation = SHORT) -> Question:
    """Every seventh without a picture, every fifth with two, the others of various sizes."""
    n_images = 0 if i % 7 == 6 else 2 if i % 5 == 4 else 1
    images = [picture(10 * i + k, 40 + 11 * (i % 6), 48 + 13 * (i % 4)) for k in range(n_images)]
    text = "what is the colour of the circle" + " on the left" * (i % 9) + "?"
    content = [{"type": "image", "url": image} for image in images] + [{"type": "text", "text": text}]
    return Question(
        task="t", doc_id=i, messages=lambda: [{"role": "user", "content": content}], generation=generation
    )


def ask(
    checkpoint: Checkpoint,
    questions: list[Question],
    folder: Path,
    *,
    batch_size: int = 8,
    workers: int = 0,
) -> list[Answer]:
    answerer = Answerer(checkpoint=checkpoint, batch_size=batch_size, workers=workers)
    with Journal(folder / "answers.jsonl") as journal:
        return answerer.answer(questions, journal, lambda done, total: None)


def test_batches_of_eight_answer_as_batches_of_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    questions = [question(i, Generation(max_new_tokens=4 + 3 * (i % 2))) for i in range(40)]
    alone = ask(checkpoint, questions, tmp_path / "1", batch_size=1)
    together = ask(checkpoint, questions, tmp_path / "8", batch_size=8)
    assert together == alone
    assert [a.doc_id for a in together] == list(range(40))
    assert len({a.text for a in alone}) > 30, "a model that always says the same proves nothing"
    assert {a.tokens for a in alone if a.truncated} == {4, 7}


def test_threads_change_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    questions = [question(i) for i in range(14)]
    assert ask(checkpoint, questions, tmp_path / "a", workers=2) == ask(checkpoint, questions, tmp_path / "b")


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    checkpoint: Checkpoint, tmp_path: Path, temperature: float
) -> None:
    questions = [question(i, replace(SHORT, temperature=temperature)) for i in range(20)]
    whole = ask(checkpoint, questions, tmp_path / "whole", batch_size=4)
    journal, steps = tmp_path / "cut" / "answers.jsonl", []

    def killed(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    answerer = Answerer(checkpoint=checkpoint, batch_size=4)
    with pytest.raises(KeyboardInterrupt), Journal(journal) as open_journal:
        answerer.answer(questions, open_journal, killed)
    journal.write_bytes(journal.read_bytes()[:-7])  # the last line is torn
    with Journal(journal) as open_journal:
        resumed = answerer.answer(questions, open_journal, lambda done, total: steps.append(done))
    assert resumed == whole
    assert steps[0] == 4, "one whole batch was kept, the torn one is repeated"
    assert read_answers(journal)[:7] == read_answers(tmp_path / "whole" / "answers.jsonl")[:7]


def test_a_journal_of_other_prompts_is_not_used(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = ask(checkpoint, [question(1)], tmp_path)
    other = replace(question(2), doc_id=1)
    assert ask(checkpoint, [other], tmp_path)[0].input != first[0].input


def test_a_failure_is_never_an_answer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def broken() -> list[dict[str, object]]:
        raise OSError("the picture is gone")

    bad = replace(question(3), messages=broken)
    for workers in (0, 2):
        with pytest.raises(OSError, match="the picture is gone"):
            ask(checkpoint, [question(0), bad], tmp_path, workers=workers)
    assert read_answers(tmp_path / "answers.jsonl") == []


@pytest.mark.parametrize("n_images", [0, 1, 2])
def test_prompts_are_encoded_as_in_training(checkpoint: Checkpoint, n_images: int) -> None:
    from llava_train.chat import prompt_ids

    images = [picture(i, 100, 70) for i in range(n_images)]
    text = "what is the colour of the circle?"
    content = [{"type": "image", "url": i} for i in images] + [{"type": "text", "text": text}]
    prompt = read_messages([{"role": "user", "content": content}], checkpoint.placeholders)
    processor = checkpoint.own_processor()
    rendered = prompt.render(processor)
    pictures = [images] if images else None
    encoded = processor(images=pictures, text=[rendered], return_tensors="np")["input_ids"][0]
    each = [checkpoint.visual_tokens(images) // len(images)] * n_images if images else []
    expected = prompt_ids(processor.tokenizer, text, each)
    np.testing.assert_array_equal(encoded, expected)


def test_visual_tokens_are_those_of_the_processor(checkpoint: Checkpoint) -> None:
    processor = checkpoint.own_processor()
    for i in range(12):
        content = question(i).messages()[0]["content"]
        prompt = read_messages([{"role": "user", "content": content}], checkpoint.placeholders)
        text = prompt.render(processor)
        images = [list(prompt.images)] if prompt.images else None
        ids = processor(images=images, text=[text], return_tensors="np")["input_ids"][0]
        assert (ids == processor.image_token_id).sum() == checkpoint.visual_tokens(prompt.images)


def test_stray_placeholders_and_other_media() -> None:
    content = [{"type": "image", "url": picture(0)}, {"type": "text", "text": "Question: <image>\nwhat?"}]
    prompt = read_messages([{"role": "user", "content": content}], ("<image>",))
    assert len(prompt.images) == 1
    assert prompt.turns[0]["content"] == [{"type": "image"}, {"type": "text", "text": "Question: \nwhat?"}]
    with pytest.raises(HarnessError, match="sends video"):
        read_messages([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], ())


@pytest.mark.parametrize(
    ("arguments", "temperature", "tokens"),
    [
        ({}, 0.0, 1024),
        ({"temperature": 0.2, "do_sample": False, "max_new_tokens": 8}, 0.0, 8),  # MMVet's
        ({"temperature": 0.7, "do_sample": True, "until": ["\n\n"]}, 0.7, 1024),
        ({"temperature": 0, "do_sample": True}, 0.0, 1024),
    ],
)
def test_generation_arguments(arguments: dict[str, object], temperature: float, tokens: int) -> None:
    generation = Generation.read(arguments)
    assert (generation.temperature, generation.max_new_tokens) == (temperature, tokens)
    assert generation.arguments()["do_sample"] is (temperature > 0)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_checkpoint().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HarnessError, match="not finite"):
        load_checkpoint(tmp_path, device="cpu", dtype="float32", attention="sdpa")
    with pytest.raises(HarnessError, match=r"no config\.json"):
        load_checkpoint(tmp_path / "nowhere", device="cpu", dtype="float32", attention="sdpa")


def test_ordered_map_runs_only_a_little_ahead() -> None:
    started: list[int] = []

    def note(i: int) -> int:
        started.append(i)
        return -i

    results = ordered_map(note, range(100), workers=2)
    assert [next(results) for _ in range(3)] == [0, -1, -2]
    assert max(started) < 12
    results.close()


def test_journal_keeps_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer = Answer(task="t", doc_id=0, input="x", text="größe\n", tokens=2, truncated=False)
    with Journal(path) as journal:
        journal.add([answer, replace(answer, doc_id=1)])
    path.write_bytes(path.read_bytes() + json.dumps({"task": "t"}).encode()[:5])
    assert [a.doc_id for a in read_answers(path)] == [0, 1]
    with Journal(path) as journal:
        journal.add([replace(answer, doc_id=2)])
    assert read_answers(path) == [replace(answer, doc_id=i) for i in range(3)]
