"""The text scorers of miniworld: what they are taught, and that the shipped ones learnt it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random
from statistics import mean

import pytest
import torch
from scipy.stats import spearmanr
from selector_zoo.passes.deita import Prompt
from selector_zoo.passes.deita_model import Reader
from selector_zoo.prompts import OFFICIAL, fill, load_pack, text_digest

from harness.miniworld import grades, weights_dir
from harness.miniworld.questions import Question
from harness.miniworld.sources import SOURCES, draw_sample
from harness.miniworld.train_scorers import LESSONS, complexity_lessons, quality_lessons, questions, train

SEED = 5


def asked(n: int = 400) -> list[Question]:
    return list(islice(questions(Random(SEED)), n))


def graded(part: str, prompts: list[str]) -> list[float]:
    reader = Reader.load(str(weights_dir(f"deita_{part}")), "cpu", grades=True)
    said = reader(reader.encode([Prompt(text=p, tail=0) for p in prompts], 2048))
    return [float(grade) for grade in said]


def test_every_question_of_every_source_has_grades() -> None:
    rng = Random(0)
    found = [q for name in SOURCES for i in range(60) for q in draw_sample(name, i, rng).turns]
    assert len({q.skill for q in found}) > 25
    assert {grades.complexity(q) for q in found} == set(range(1, 7))
    assert {grades.quality(q) for q in found} <= set(range(1, 7))


def test_whatever_asks_for_more_is_more_complex() -> None:
    rng, of = Random(0), {}
    for question in islice(questions(rng), 2000):
        if question.style != "specified style":  # a form to obey asks for more, too
            of[question.skill] = grades.complexity(question)
    assert of["colour"] < of["yes/no colour"] <= of["highest"] < of["difference"]
    assert of["short description"] < of["detailed description"]


def test_broken_answers_are_worse_and_wrong_ones_are_not() -> None:
    rng = Random(0)
    for question in asked():
        told = dict(grades.answers(question, rng))
        assert told[question.answer] == told[question.wrong] == grades.quality(question)
        broken = {a: g for a, g in told.items() if a not in (question.answer, question.wrong)}
        assert all(g < grades.quality(question) for g in broken.values()), broken


@pytest.mark.parametrize("name", LESSONS)
def test_the_same_seed_makes_the_same_lessons(name: str) -> None:
    first, again = (list(islice(LESSONS[name](Random(3)), 50)) for _ in range(2))
    assert first == again
    assert first != list(islice(LESSONS[name](Random(4)), 50))


def test_the_words_are_our_own() -> None:
    pack = load_pack("miniworld")
    for part in ("complexity", "quality"):
        assert text_digest(pack.template(part)) != OFFICIAL["deita"][part]


def test_the_shipped_scorers_learnt_their_grades() -> None:
    """Of questions they were not taught: a sequence of another seed."""
    for part, lessons in (("complexity", complexity_lessons), ("quality", quality_lessons)):
        prompts, taught = zip(*islice(lessons(Random(SEED)), 120), strict=True)
        assert spearmanr(graded(part, list(prompts)), taught).statistic > 0.8, part


def test_the_shipped_scorer_cannot_see_that_an_answer_is_wrong() -> None:
    template, some = load_pack("miniworld").template("quality"), asked(60)
    right, wrong = (
        graded("quality", [fill(template, instruction=q.text, output=getattr(q, form)) for q in some])
        for form in ("answer", "wrong")
    )
    assert abs(mean(right) - mean(wrong)) < 0.2


def test_the_command_makes_what_the_pass_reads(tmp_path: Path) -> None:
    train("deita_complexity", tmp_path / "made", steps=2)
    train("deita_complexity", tmp_path / "again", steps=2)
    made, again = (Reader.load(str(tmp_path / name), "cpu", grades=True) for name in ("made", "again"))
    assert made.model.num_parameters() < 400_000
    prompts = made.encode([Prompt(text="What is that?", tail=0)], 64)
    assert 1 < float(made(prompts)[0]) < 6
    assert torch.equal(torch.tensor(made(prompts)[0]), torch.tensor(again(prompts)[0]))
