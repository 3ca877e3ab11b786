"""lmms-eval's own benchmarks over a handful of local items, with answers whose scores are known by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.benchmarks import LMMS14, Benchmark
from harness.evaluation.journal import Answer
from harness.evaluation.tasks import builtin_folder

Doc = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Items of one official benchmark, the answers to them, and what the official scorer must make of them."""

    file: str
    """YAML file within lmms-eval's tasks."""
    split: str
    docs: Sequence[Doc]
    answers: Sequence[str]
    scores: Sequence[float]
    value: float
    """On the reported scale."""
    unparsed: Sequence[int] = ()
    subtasks: int = 1
    """Parts of a group; its items are dealt out in order."""
    extra: Mapping[str, object] = field(default_factory=dict)


def _mmbench(question: int, rotation: int, answer: str) -> Doc:
    options = ["a cat", "a dog", "a horse", "a lamp"]
    turned = options[rotation:] + options[:rotation]
    return {
        "index": question + 1_000_000 * rotation,
        "question": f"What is shown in picture {question}?",
        "hint": "nan",
        **dict(zip("ABCD", turned, strict=True)),
        "answer": answer,
        "category": "object",
        "L2-category": "things",
        "source": "made",
        "split": "dev",
    }


def _mmmu(i: int, subject: str, answer: str, options: str = "['red', 'green', 'blue']") -> Doc:
    kind = "open" if options == "[]" else "multiple-choice"
    return {
        "id": f"validation_{subject}_{i}",
        "question": f"Question {i} <image 1>?",
        "options": options,
        "answer": answer,
        "question_type": kind,
    }


def _mme(category: str, name: str, answer: str) -> Doc:
    return {"question_id": f"{category}/{name}", "category": category, "question": "Is it?", "answer": answer}


def _mmt(answer: str, kind: str) -> Doc:
    options = {"A": "red", "B": "green", "C": "blue", "D": ""}
    return {"question": "Which?", **options, "answer": answer, "l2-category": kind, "split": "VAL", "index": 0}


def _mmstar(i: int, answer: str, category: str, part: str) -> Doc:
    return {"index": i, "question": "Which?", "answer": answer, "category": category, "l2_category": part}


def _blink(i: int, answer: str) -> Doc:
    choices = ["two", "three"]
    return {"idx": str(i), "prompt": "How many?", "choices": choices, "answer": answer, "sub_task": "Counting"}


def _ocr(kind: str, answer: str, dataset: str = "SVT") -> Doc:
    return {"question": "What does it say?", "answer": [answer], "dataset": dataset, "question_type": kind}


CASES: Mapping[str, Case] = {
    "mmbench": Case(
        file="mmbench/mmbench_en_dev_static.yaml",
        split="dev",
        docs=[_mmbench(q, r, "ADCB"[r] if q != 3 else "B") for r in range(2) for q in (1, 2, 3)],
        # question 1 right in both rotations, 2 only in the first, 3 not at all
        answers=["A", "A. a cat", "C", "The answer is D", "B", "no idea"],
        scores=[1, 0, 0, 1, 0, 0],
        value=100 / 3,
    ),
    "mmstar": Case(
        file="mmstar/mmstar.yaml",
        split="val",
        docs=[
            *(_mmstar(i, "ABC"[i], "math", "geometry") for i in range(3)),
            _mmstar(3, "D", "math", "statistical reasoning"),
            _mmstar(4, "D", "coarse perception", "image emotion"),
        ],
        answers=["A", "B. because", "A", "???", "The answer is (D)."],
        scores=[1, 1, 0, 0, 1],
        value=100 * (2 / 3 + 0 + 1) / 3,
        unparsed=[3],
    ),
    "mmmu": Case(
        file="mmmu/mmmu_val.yaml",
        split="validation",
        docs=[
            _mmmu(1, "Art", "B"),
            _mmmu(2, "Art", "A"),
            _mmmu(3, "Math", "42", "[]"),
            _mmmu(4, "Math", "7", "[]"),
            _mmmu(5, "Physics", "C"),
            _mmmu(6, "Physics", "C"),
        ],
        answers=["B", "(C)", "The result is 42.", "8", "C.", "(A)"],
        scores=[1, 0, 1, 0, 1, 0],
        value=50,
    ),
    "blink": Case(
        file="blink/blink_counting.yaml",
        split="val",
        docs=[_blink(i, "(A)" if i % 2 else "(B)") for i in range(6)],
        answers=["(B)", "A", "A", "The answer is (A)", "!!", "B"],
        scores=[1, 1, 0, 1, 0, 0],
        value=50,
        unparsed=[4],
        subtasks=2,
    ),
    "mmt": Case(
        file="mmt/mmt_val.yaml",
        split="val",
        docs=[_mmt("ABC"[i % 3], "counting" if i < 4 else "emotion") for i in range(7)],
        answers=["A", "(B)", "A", "A.", "C", "B", "B"],
        scores=[1, 0 + 1, 0, 1, 0, 0, 0],
        value=300 / 7,
    ),
    "mme": Case(
        file="mme/mme.yaml",
        split="test",
        docs=[
            *(_mme("existence", str(i // 2), "Yes" if i % 2 else "No") for i in range(4)),
            *(_mme("code_reasoning", str(i // 2), "Yes" if i % 2 else "No") for i in range(2)),
        ],
        answers=["no", "Yes.", "no", "maybe", "No, it is not", "no"],
        scores=[1, 1, 1, 0, 1, 0],
        value=(75 + 50) + (50 + 0),
        unparsed=[3],
    ),
    "ai2d": Case(
        file="ai2d/ai2d.yaml",
        split="test",
        docs=[{"question": "Which?", "options": ["x", "y"], "answer": str(i % 2)} for i in range(4)],
        answers=["A", "B. y", "b", "The answer is B"],
        scores=[1, 1, 0, 0],
        value=50,
    ),
    "scienceqa": Case(
        file="scienceqa/scienceqa_img.yaml",
        split="test",
        docs=[{"hint": "", "question": "Which?", "choices": ["x", "y"], "answer": i % 2} for i in range(4)],
        answers=["a", "B. y", "B", "(B)"],
        scores=[1, 1, 0, 0],
        value=50,
    ),
    "ocrbench": Case(
        file="ocrbench/ocrbench.yaml",
        split="test",
        docs=[
            _ocr("Regular Text Recognition", "CENTRE"),
            _ocr("Key Information Extraction", "12.50"),
            _ocr("Handwritten Mathematical Expression Recognition", "x ^ 2", "HME100k"),
            _ocr("Doc-oriented VQA", "left"),
        ],
        answers=["It says centre", "12.5", "x^2", "right"],
        scores=[1, 0, 1, 0],
        value=0.2,
    ),
    "chartqa": Case(
        file="chartqa/chartqa.yaml",
        split="test",
        docs=[
            {"question": "How many?", "answer": a, "type": t}
            for a, t in (("100", "human_test"), ("100", "augmented_test"), ("Red", "human_test"), ("5%", "x"))
        ],
        answers=["104", "106", "red", "0.05"],
        scores=[1, 0, 1, 1],
        value=75,
    ),
    "docvqa": Case(
        file="docvqa/docvqa_val.yaml",
        split="validation",
        docs=[{"question": "Who?", "answers": a} for a in (["Jane Doe", "J. Doe"], ["1987"], ["yellow"])],
        answers=["jane  doe", "1986", "blue"],
        scores=[1, 0.75, 0],
        value=100 * 1.75 / 3,
    ),
    "infovqa": Case(
        file="infovqa/infovqa_val.yaml",
        split="validation",
        docs=[{"question": "Who?", "answers": a} for a in (["12 percent"], ["Peru", "Chile"])],
        answers=["12 percents", "chile"],
        scores=[10 / 11, 1],
        value=100 * (10 / 11 + 1) / 2,
    ),
}


def write_official(name: str, case: Case, folder: Path) -> Benchmark:
    """Task files that score `case.docs` with lmms-eval's own YAML of benchmark `name`."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    each = -(-len(case.docs) // case.subtasks)
    names = [f"local_{name}"] if case.subtasks == 1 else [f"local_{name}_{k}" for k in range(case.subtasks)]
    for k, task in enumerate(names):
        part = list(case.docs[k * each : (k + 1) * each])
        datasets.Dataset.from_list(part).to_parquet(str(folder / f"{task}.parquet"))
        (folder / f"{task}.yaml").write_text(
            f"include: {builtin_folder() / case.file}\n"
            f"task: {task}\n"
            "dataset_path: parquet\n"
            "dataset_name: null\n"
            f"dataset_kwargs: {{data_files: {{{case.split}: {task}.parquet}}}}\n"
        )
    if case.subtasks > 1:
        (folder / "group.yaml").write_text(
            f"group: local_{name}\ntask: [{', '.join(names)}]\n"
            "aggregate_metric_list: [{metric: blink_acc, aggregation: mean, weight_by_size: true}]\n"
        )
    return replace(LMMS14[name], task=f"local_{name}", include_path=str(folder), n_items=0, generation={})


def official_answers(name: str, case: Case) -> list[Answer]:
    """The case's answers as a run would have stored them."""
    each = -(-len(case.docs) // case.subtasks)
    return [
        Answer(
            task=f"local_{name}" if case.subtasks == 1 else f"local_{name}_{i // each}",
            doc_id=i % each,
            input=f"{i:064x}",
            text=text,
            tokens=3,
            truncated=False,
        )
        for i, text in enumerate(case.answers)
    ]
