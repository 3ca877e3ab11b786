"""Suite `mini`: eight genuine lmms-eval tasks on local files, one for each metric shape of the real fourteen.

What their samples log for one item, under the metric's key:

* `mini_choice` `accuracy`: `{"score", "parsed"}`; `mini_free` `facts`: `{"score", "answer"}`;
* `mini_circular` `circular`: `{"score", "parsed", "group"}`; the value is the share of groups with every score 1;
* `mini_yesno` `pairs`: `{"score", "parsed", "pair", "category"}`; the value is the sum over categories of
  100 * (accuracy + share of pairs with both scores 1), at most 800;
* `mini_chart` `relaxed`, `mini_ocr` `hit`, `mini_doc` `anls`, `mini_short` `exact_match`: a number from 0 to 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from harness.benchmarks import Benchmark, Suite
from harness.errors import unknown_name
from harness.miniworld.build import make_once
from harness.miniworld.documents import QUESTION_SETS, VERSION, documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: its metric and how the YAML describes it."""

    title: str
    metric: str
    n_items: int
    chance: float
    """Score of the best constant answer to each kind of question, on the reported scale."""
    max_new_tokens: int
    score: str = ""
    """Function of `tasks` that scores one answer; empty: the metric of that name that lmms-eval brings."""
    aggregation: str = "mean"
    options: str = ""
    """Further settings of the metric."""
    target: str = "answer"
    item_score: str = ""
    recompute: str = "mean"
    scale: float = 100.0
    maximum: float = 100.0
    judge: str | None = None
    """What scores the stored answers, where it is not the task itself."""


TASKS: Final = {
    "choice": Task(
        title="Choice",
        metric="accuracy",
        n_items=120,
        chance=25.0,
        max_new_tokens=8,
        score="score_choice",
        aggregation="mean_score",
        item_score="accuracy.score",
    ),
    "circular": Task(
        title="Circular",
        metric="circular",
        n_items=120,
        chance=0.0,
        max_new_tokens=8,
        score="score_circular",
        aggregation="all_or_nothing",
        item_score="circular",
        recompute="circular",
    ),
    "yesno": Task(
        title="Yes/no",
        metric="pairs",
        n_items=120,
        chance=200.0,
        max_new_tokens=20,
        score="score_yes_no",
        aggregation="accuracy_plus",
        item_score="pairs",
        recompute="pairs",
        scale=1.0,
        maximum=800.0,
    ),
    "doc": Task(title="Doc", metric="anls", n_items=120, chance=5.0, max_new_tokens=6, target="answers"),
    "chart": Task(
        title="Chart", metric="relaxed", n_items=120, chance=12.0, max_new_tokens=4, score="score_chart"
    ),
    "ocr": Task(title="OCR", metric="hit", n_items=120, chance=1.0, max_new_tokens=4, score="score_ocr"),
    "short": Task(
        title="Short",
        metric="exact_match",
        n_items=120,
        chance=16.0,
        max_new_tokens=6,
        options="    ignore_case: true\n    ignore_punctuation: true\n",
    ),
    "free": Task(
        title="Free",
        metric="facts",
        n_items=120,
        chance=10.0,
        max_new_tokens=40,
        score="score_free",
        aggregation="mean_score",
        item_score="facts.score",
        judge="rules:harness.miniworld.judge:free_text",
    ),
}

_TEMPLATE: Final = """\
task: mini_{name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: mini_{name}.parquet
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: {target}
{score}\
metric_list:
  - metric: {metric}
    aggregation: {aggregation}
    higher_is_better: true
{options}\
generation_kwargs:
  max_new_tokens: {tokens}
  temperature: 0
  top_p: 1.0
  num_beams: 1
  do_sample: false
lmms_eval_specific_kwargs:
  default:
    pre_prompt: ""
    post_prompt: ""
metadata:
  version: {version}.0
"""
_UTILS: Final = '''\
"""What the task files beside this one call; the functions live in the installed package."""

from harness.miniworld.tasks import (  # noqa: F401
    accuracy_plus,
    all_or_nothing,
    doc_to_text,
    doc_to_visual,
    mean_score,
    score_chart,
    score_choice,
    score_circular,
    score_free,
    score_ocr,
    score_yes_no,
)
'''
_IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_IMAGE_COLUMN: Final = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
"""Parquet metadata by which `datasets` reads the column `image` as pictures."""


def ensure_suite(root: Path, questions: str = "report") -> Path:
    """The folder of the suite's task files, written where it is not there yet.

    `questions` is `report`, or `tune` for a disjoint set to choose settings on.
    """
    if questions not in QUESTION_SETS:
        raise unknown_name("question set", questions, QUESTION_SETS)
    return make_once(root / f"mini-{questions}-v{VERSION}", lambda tmp: _write(questions, tmp))


def mini_suite(include_path: str) -> Suite:
    """The suite as the harness knows it; `include_path` is a folder made by `ensure_suite`."""
    return Suite(
        name="mini",
        protocol="mini",
        benchmarks=tuple(_benchmark(name, task, include_path) for name, task in TASKS.items()),
    )


def _benchmark(name: str, task: Task, include_path: str) -> Benchmark:
    return Benchmark(
        name=f"mini_{name}",
        title=task.title,
        task=f"mini_{name}",
        metrics=(f"{task.metric},none",),
        scale=task.scale,
        maximum=task.maximum,
        chance=task.chance,
        n_items=task.n_items,
        item_score=task.item_score or task.metric,
        recompute=task.recompute,
        judge=task.judge,
        cluster="cluster",
        include_path=include_path,
    )


def _write(questions: str, out: Path) -> None:
    (out / "utils.py").write_text(_UTILS)
    for name, task in TASKS.items():
        (out / f"mini_{name}.yaml").write_text(task_yaml(name, task))
        table = pa.Table.from_pylist(documents(name, questions))
        # An all-empty column has no type of its own, and `datasets` wants text there.
        table = table.set_column(table.column_names.index("image"), "image", table["image"].cast(_IMAGE))
        pq.write_table(table.replace_schema_metadata(_IMAGE_COLUMN), out / f"mini_{name}.parquet")


def task_yaml(name: str, task: Task) -> str:
    """The YAML file of one task."""
    own = task.aggregation != "mean"
    return _TEMPLATE.format(
        name=name,
        target=task.target,
        score=f"process_results: !function utils.{task.score}\n" if task.score else "",
        metric=task.metric,
        aggregation=f"!function utils.{task.aggregation}" if own else "mean",
        options=task.options,
        tokens=task.max_new_tokens,
        version=VERSION,
    )
