"""The executor written out in docs/executors.md keeps the contract that stands above it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from test_schedule import Bench

from harness.executors import Executor
from harness.plan import Plan

PAGE = Path(__file__).parents[2] / "docs" / "executors.md"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's code as a module, which the processes it starts can import as well."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(code) == 2
    (tmp_path / "code_of_the_page.py").write_text("\n".join(code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "code_of_the_page", raising=False)
    return importlib.import_module("code_of_the_page")


def test_it_runs_retries_and_reports(page: Any, tmp_path: Path) -> None:
    bench, plan = Bench(tmp_path), Plan()
    first = plan.add(bench.stage("work", "first"))
    second = plan.add(bench.stage("die", "second", {"select.a": first}))
    sour = plan.add(bench.stage("user", "sour"))
    executor: Executor = page.Spawning(bench.store, slots=2)
    sweep = type("Sweep", (), {"plan": plan, "store": bench.store})
    result = page.carry_out(sweep, bench.watcher, executor)
    assert result.done == {first, second}
    assert (bench.runs("first"), bench.runs("second")) == (1, 2)
    assert "sweeten it" in result.failures[sour].message
    assert "failed: the pool is too sour" in bench.store.at(plan.stages[sour]).log.read_text()
