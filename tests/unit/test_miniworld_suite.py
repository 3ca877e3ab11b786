"""Suite `mini`: its documents, its scoring, and its task files under the genuine engine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from itertools import permutations
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
import pytest

from harness.errors import HarnessError
from harness.miniworld import ensure_suite, mini_suite, tasks
from harness.miniworld.documents import QUESTION_SETS, VERSION, documents
from harness.miniworld.judge import judge
from harness.miniworld.render import split_of
from harness.miniworld.suite import TASKS, task_yaml
from tests.bench.behave import constants, grade, skill_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_suite(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def docs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: pq.read_table(folder / f"mini_{name}.parquet").to_pylist() for name in TASKS}


def test_every_task_has_its_number_of_items(docs: dict[str, list[dict[str, Any]]]) -> None:
    assert {name: len(rows) for name, rows in docs.items()} == {name: t.n_items for name, t in TASKS.items()}


@pytest.mark.parametrize("questions", ["report", "tune"])
def test_pictures_belong_to_the_question_set_and_so_never_to_the_pool(questions: str) -> None:
    for name in TASKS:
        assert {split_of(d["image"]["bytes"]) for d in documents(name, questions)} == {questions}


def test_other_questions_have_another_version(docs: dict[str, list[dict[str, Any]]]) -> None:
    """What is already in stores is found by its version: raise it with this digest of all that is written."""
    told = [(name, task_yaml(name, TASKS[name]), [sorted(d.items()) for d in rows]) for name, rows in docs.items()]
    digest = hashlib.sha256(repr(told).encode()).hexdigest()
    assert (VERSION, digest[:16]) == (8, "4a90d92470ba9bda")


def test_an_unknown_question_set_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="Did you mean 'report'"):
        ensure_suite(tmp_path, "reports")


def test_pairs_rotations_and_clusters(docs: dict[str, list[dict[str, Any]]]) -> None:
    pairs: dict[str, list[str]] = {}
    for d in docs["yesno"]:
        pairs.setdefault(d["pair"], []).append(d["answer"])
    assert all(sorted(answers) == ["no", "yes"] for answers in pairs.values())
    groups: dict[str, list[str]] = {}
    for d in docs["circular"]:
        groups.setdefault(d["group"], []).append(d["answer"])
    assert all(sorted(answers) == ["A", "B", "C", "D"] for answers in groups.values())
    assert len({d["cluster"] for d in docs["short"]}) == 40


def test_the_statements_of_a_pair_differ_in_their_last_words(docs: dict[str, list[dict[str, Any]]]) -> None:
    """Captions end with the claim, and nothing else has taught a backbone to judge one."""
    pairs: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for d in docs["yesno"]:
        pairs[d["pair"]].append(tuple(d["question"].split(" It is said to be ")))
    for (asked, claim), (again, other) in pairs.values():
        assert asked == again
        assert claim != other


def perfect(name: str, doc: dict[str, Any]) -> str:
    if name in ("choice", "circular"):
        return str(doc["options"]["ABCD".index(doc["answer"])])
    return str(doc["answer"])


def test_right_answers_score_full_marks_through_the_engine(folder: Path) -> None:
    """The engine loads the folder, and its own task objects give a perfect model the top of every scale."""
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_miniworld_suite import perfect
from lmms_eval.tasks import TaskManager, get_task_dict
manager = TaskManager(include_path={str(folder)!r}, include_defaults=False)
out = {{}}
for name, task in get_task_dict(manager.all_tasks, manager).items():
    (metric, combine), = task.aggregation().items()
    docs = list(task.test_docs())
    scored = [task.process_results(d, [perfect(name[5:], d)])[metric] for d in docs]
    wrong = [task.process_results(d, ["unsure"])[metric] for d in docs]
    assert task.doc_to_visual(docs[0])[0].mode == "RGB"
    out[name] = [f"{{metric}},none", float(combine(scored)), float(combine(wrong)), len(docs), docs[0]["cluster"]]
print(json.dumps(out))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.strip().splitlines()[-1])
    for benchmark in mini_suite(str(folder)).benchmarks:
        metric, best, worst, n, cluster = found[benchmark.task]
        assert metric == benchmark.metrics[0]
        assert best * benchmark.scale == pytest.approx(benchmark.maximum)
        assert worst == 0
        assert n == benchmark.n_items
        assert cluster


@pytest.mark.parametrize("name", ["choice", "doc", "chart", "ocr", "short", "free"])
def test_chance_is_what_constant_answers_score(name: str) -> None:
    """The best constant answer to each kind of question, chosen in the other question set."""
    scored = []
    for mine, other in permutations(QUESTION_SETS):
        best = constants(other)
        scored += [grade(name, doc, best[skill_of(name, doc)]) for doc in documents(name, mine)]
    assert 100 * mean(scored) == pytest.approx(TASKS[name].chance, abs=2)


def test_chance_of_pairs_and_rotations_is_what_one_answer_scores() -> None:
    yes = [tasks.score_yes_no(d, ["yes"])["pairs"] for d in documents("yesno", "report")]
    assert tasks.accuracy_plus(yes) == TASKS["yesno"].chance
    first = [tasks.score_circular(d, ["A"])["circular"] for d in documents("circular", "report")]
    assert tasks.all_or_nothing(first) == TASKS["circular"].chance


def test_an_option_is_named_by_its_letter_or_its_text() -> None:
    options = ["red", "top left", "372", "pink"]
    assert [tasks.letter(a, options) for a in ("B", "top left", "b. Top left.", "372")] == ["B", "B", "B", "C"]
    assert [tasks.letter(a, options) for a in ("", "blue", "red: B", "red, at the top left")] == [None] * 4


def test_lettered_questions_offer_their_options_in_order(docs: dict[str, list[dict[str, Any]]]) -> None:
    for d in docs["choice"] + docs["circular"]:
        lines = [f"{mark}. {option}" for mark, option in zip("ABCD", d["options"], strict=True)]
        assert d["question"].split("\n")[1:] == lines


def test_the_last_yes_or_no_is_the_verdict() -> None:
    assert tasks.verdict("red: no") == "no"
    assert tasks.verdict("Yes.") == "yes"
    assert tasks.verdict("nothing") is None


def test_accuracy_plus_of_known_pairs() -> None:
    items = [
        {"score": s, "pair": p, "category": c}
        for c, p, s in [("a", "1", 1.0), ("a", "1", 1.0), ("a", "2", 1.0), ("a", "2", 0.0), ("b", "3", 0.0)]
    ]
    assert tasks.accuracy_plus(items) == pytest.approx(75 + 50)


def test_all_or_nothing_of_known_groups() -> None:
    items = [{"score": s, "group": g} for g, s in [("x", 1.0), ("x", 1.0), ("y", 1.0), ("y", 0.0)]]
    assert tasks.all_or_nothing(items) == 0.5


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("2 shapes: red ring, blue cross", 1.0),
        ("Blue cross, red ring, 2 shapes", 1.0),
        ("red ring", 1 / 3),
        ("ring red", 0.0),
        ("2 shapes: red ring, blue cross, pink ring, brown ring, green ring, red cross", 3 / 7),
        ("", 0.0),
    ],
)
def test_the_judge_counts_facts_and_punishes_guessing(answer: str, score: float) -> None:
    assert judge(answer, ["2 shapes", "red ring", "blue cross"]) == pytest.approx(score)
