"""What the task files of suite `mini` call: prompts, scoring of one answer, aggregation.

Scores are logged as dicts with `score` and whatever groups the item (`group`; `pair` and `category`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from harness.miniworld.judge import free_text
from harness.miniworld.questions import LETTERS

Document = dict[str, Any]
Scored = dict[str, Any]


def doc_to_visual(doc: Document) -> list[Any]:
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: Document, lmms_eval_specific_kwargs: Any = None) -> str:
    return str(doc["question"])


def letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option an answer names, by its letter, its text or both; None where it names none."""
    said = answer.strip().rstrip(".").lower()
    for mark, option in zip(LETTERS, options, strict=True):
        if said in {form.lower() for form in (mark, option, f"{mark}. {option}")}:
            return mark
    return None


def verdict(answer: str) -> str | None:
    """The last `yes` or `no` of an answer; None where there is none."""
    found = re.findall(r"\b(?:yes|no)\b", answer.lower())
    return found[-1] if found else None


def score_choice(doc: Document, results: list[str]) -> Scored:
    chosen = letter(results[0], doc["options"])
    return {"accuracy": {"score": float(chosen == doc["answer"]), "parsed": chosen is not None}}


def score_circular(doc: Document, results: list[str]) -> Scored:
    return {"circular": score_choice(doc, results)["accuracy"] | {"group": doc["group"]}}


def score_yes_no(doc: Document, results: list[str]) -> Scored:
    said = verdict(results[0])
    facts = {"pair": doc["pair"], "category": doc["category"], "parsed": said is not None}
    return {"pairs": {"score": float(said == doc["answer"]), **facts}}


def score_chart(doc: Document, results: list[str]) -> Scored:
    """Relaxed accuracy with lmms-eval's own rule (numbers within 5 percent)."""
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness

    return {"relaxed": float(relaxed_correctness(results[0].strip(), doc["answer"]))}


def score_ocr(doc: Document, results: list[str]) -> Scored:
    """A hit where the answer contains the text."""
    return {"hit": float(doc["answer"].lower() in results[0].lower())}


def score_free(doc: Document, results: list[str]) -> Scored:
    return {"facts": {"score": free_text(results[0], doc["answer"]), "answer": results[0]}}


def mean_score(items: Sequence[Scored]) -> float:
    return sum(float(item["score"]) for item in items) / len(items)


def all_or_nothing(items: Sequence[Scored]) -> float:
    """Share of groups in which every item is right."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for item in items:
        groups[item["group"]].append(item["score"])
    return sum(min(g) for g in groups.values()) / len(groups)


def accuracy_plus(items: Sequence[Scored]) -> float:
    """Sum over categories of accuracy and of the share of pairs with both right, in percent, as MME has it."""
    categories: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        categories[item["category"]][item["pair"]].append(item["score"])
    total = 0.0
    for pairs in categories.values():
        scores = [s for pair in pairs.values() for s in pair]
        total += 100 * sum(scores) / len(scores)
        total += 100 * sum(min(pair) for pair in pairs.values()) / len(pairs)
    return total
