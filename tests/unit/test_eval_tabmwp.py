"""The example of a user's own benchmark: its rules always, its data where it is to be had."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from eval_support import spec_of, tiny_checkpoint

from harness.benchmarks import Benchmark

ROOT = Path(__file__).parents[2]
TASK = ROOT / "examples" / "tabmwp_task"
SUITE = ROOT / "conf" / "suite" / "tabmwp.yaml"
DATA = Path(os.environ.get("SIEVEBENCH_TABMWP") or TASK.parents[2] / "shared" / "data" / "tabmwp")
needs_data = pytest.mark.skipif(not (DATA / "test.json").is_file(), reason="set SIEVEBENCH_TABMWP to its folder")


def load(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"tabmwp_{name}", TASK / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def doc(answer: str, *, unit: str = "", choices: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"question": "How many?", "answer": answer, "unit": unit, "choices": list(choices)}


@pytest.mark.parametrize(
    ("said", "item", "right"),
    [
        ("4656", doc("4,656", unit="$"), True),
        ("$4,656.00", doc("4,656", unit="$"), True),
        ("4,655", doc("4,656", unit="$"), False),
        ("3 minutes per day", doc("3", unit="minutes per day"), True),
        ("3 apples", doc("3", unit="minutes per day"), False),
        ("6/20", doc("3/10"), True),
        ("0.3", doc("3/10"), True),
        ("1/0", doc("3/10"), False),
        (".5", doc("0.50"), True),
        ("-7.", doc("-7"), True),
        ("7", doc("-7"), False),
        ("2:35 p.m", doc("2:35 P.M."), True),
        ("no", doc("no", choices=("yes", "no")), True),
        ("B", doc("no", choices=("yes", "no")), True),
        ("(b) no", doc("no", choices=("yes", "no")), True),
        ("B.", doc("yes", choices=("yes", "no")), False),
        ("D", doc("no", choices=("yes", "no")), False),
        ("Because it is", doc("no", choices=("yes", "no")), False),
        ("", doc("no", choices=("yes", "no")), False),
        ("", doc("3"), False),
    ],
)
def test_scoring(said: str, item: dict[str, Any], right: bool) -> None:
    assert load("utils").process_results(item, [said]) == {"exact_match": float(right)}


def test_prompts_are_worded_as_the_pool_is() -> None:
    import yaml

    utils = load("utils")
    yaml.SafeLoader.add_constructor("!function", lambda loader, node: node.value)
    words = yaml.safe_load((TASK / "tabmwp.yaml").read_text())["lmms_eval_specific_kwargs"]["default"]
    assert utils.doc_to_text(doc("10", unit="pounds"), words) == (
        "How many? (Unit: pounds)\nAnswer the question using a single word or phrase."
    )
    item = doc("nonlinear", choices=("linear", "nonlinear"))
    assert utils.doc_to_text(item, words) == (
        "How many?\nA. linear\nB. nonlinear\nAnswer with the option's letter from the given choices directly."
    )
    assert utils.doc_to_target(item) == "B"


def test_the_docs_show_the_files_as_they_are() -> None:
    import yaml

    class Loader(yaml.SafeLoader):
        """Task files name functions."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    task, suite = (
        yaml.load(block, Loader) for block in re.findall(r"```yaml\n((?:task|defaults):.*?)```", page, re.S)
    )
    file = yaml.load((TASK / "tabmwp.yaml").read_text(), Loader)
    assert task == file
    (told,), (entry,) = suite.pop("benchmarks"), (given := yaml.safe_load(SUITE.read_text())).pop("benchmarks")
    assert suite == given
    assert told == {"recompute": "mean", "scale": 100, **entry}
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert code in (TASK / "utils.py").read_text()


@pytest.fixture(scope="module")
def tabmwp(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """The benchmark with its data, as docs/benchmarks.md has it."""
    folder = tmp_path_factory.mktemp("tabmwp")
    for name in ("tabmwp.yaml", "utils.py"):
        shutil.copy(TASK / name, folder)
    load("make_data").write(DATA, folder / "tabmwp.parquet")
    return Benchmark(
        name="tabmwp",
        title="TabMWP",
        task="tabmwp",
        metrics=("exact_match,none",),
        item_score="exact_match",
        cluster="image_name",
        include_path=str(folder),
    )


@needs_data
def test_perfect_answers_score_hundred(tabmwp: Benchmark, tmp_path: Path) -> None:
    from harness.evaluation.engine import run_task
    from harness.evaluation.journal import Answer
    from harness.evaluation.replay import SieveReplay
    from harness.evaluation.scoring import score_run

    questions = json.loads((DATA / "test.json").read_text())
    answers = [
        Answer(task="tabmwp", doc_id=i, input="", text=q["answer"], tokens=1, truncated=False)
        for i, q in enumerate(questions)
    ]
    model = SieveReplay.of(answers)
    rows, score = score_run(tabmwp, run_task(model, spec_of(tabmwp), tmp_path), model.answers)
    assert (score.value, score.n) == (100.0, len(questions))
    assert rows[0].cluster == questions[0]["image"]


@needs_data
def test_a_checkpoint_is_evaluated_on_it(tabmwp: Benchmark, tmp_path: Path) -> None:
    from harness.evaluation.session import EvalSession

    session = EvalSession(
        tiny_checkpoint(), device="cpu", dtype="float32", attention="sdpa", batch_size=8, threads=1
    )
    score = session.run(spec_of(tabmwp, limit=16), tabmwp, tmp_path / "out", tmp_path / "p")
    assert score is not None
    assert score.n == 16
